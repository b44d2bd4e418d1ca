"""Action masks where SB3 does not ask for them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import VecEnv


class WithActionMasks:
    """
    A model that asks an environment for its action masks at every prediction; everything else is the model's own.

    SB3's ``evaluate_policy`` hands on the state but no masks, sb3-contrib's masks but no state. With this, SB3's does both:
    ``evaluate_policy(WithActionMasks(model, env), env)``. An environment without masks changes nothing.

    :param model: a :class:`SequencePPO`
    :param env: the environment that the predictions are for
    """

    def __init__(self, model: Any, env: VecEnv) -> None:
        self.model, self.env, self.masked = model, env, is_masking_supported(env)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[Any], Any]:
        """Legal actions and the state for the next call; see :meth:`SequencePolicy.predict`."""
        masks = {"action_masks": np.asarray(get_action_masks(self.env), dtype=bool)} if self.masked else {}
        result: tuple[NDArray[Any], Any] = self.model.predict(observation, state, episode_start, deterministic, **masks)
        return result


class EvalCallbackWithMasks(EvalCallback):
    """SB3's ``EvalCallback`` for a :class:`SequencePPO`, with the action masks of the environments that it evaluates on."""

    def _init_callback(self) -> None:
        super()._init_callback()
        self.model = WithActionMasks(self.model, self.eval_env)  # type: ignore[assignment]

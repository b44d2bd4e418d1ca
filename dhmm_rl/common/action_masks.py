"""Action masks for SB3's functions, which do not ask environments for them."""

from typing import Any

from numpy.typing import NDArray
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl.data.random_actions import action_masks_of
from dhmm_rl.tokens.action_masks import choices_per_field


class WithActionMasks:
    """
    A model that asks an environment for its action masks at every prediction. All other attributes are the model's own.

    SB3's ``evaluate_policy`` passes the state but no masks; sb3-contrib's passes masks but no state. This wrapper does both:
    ``evaluate_policy(WithActionMasks(model, env), env)``. An environment without masks changes nothing.

    :param model: a :class:`SequencePPO`, or another model with ``predict(..., action_masks=...)``
    :param env: environment that the predictions are for
    """

    def __init__(self, model: Any, env: VecEnv) -> None:
        self.model, self.env, self.masked = model, env, is_masking_supported(env)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "model" not in vars(self):  # while this object is copied or unpickled
            raise AttributeError(name)
        return getattr(self.model, name)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: Any = False
    ) -> tuple[NDArray[Any], Any]:
        """
        Choose legal actions; also returns the state for the next call. See :meth:`SequencePolicy.predict`.

        :raises InputError: for masks that cannot be read or that forbid every action
        """
        masks = {}
        if self.masked:
            masks["action_masks"] = action_masks_of(self.env, choices_per_field(self.env.action_space))
        result: tuple[NDArray[Any], Any] = self.model.predict(observation, state, episode_start, deterministic, **masks)
        return result


class EvalCallbackWithMasks(EvalCallback):
    """SB3's ``EvalCallback``, which evaluates a :class:`SequencePPO` with the action masks of the evaluation environment."""

    def _init_callback(self) -> None:
        super()._init_callback()
        self.model = WithActionMasks(self.model, self.eval_env)  # type: ignore[assignment]

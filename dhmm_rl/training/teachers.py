"""
Teachers: policies out of the zips that SB3's algorithms save.

A zip holds its policy's class, keywords and weights, and that is all it takes to act: which algorithm trained it does not
matter, nor need its replay buffer be made.

Shapes: N environments.
"""

import inspect
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, iterate
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecTransposeImage

from dhmm_rl.data.rollouts import Notice
from dhmm_rl.errors import InputError
from dhmm_rl.files import reading
from dhmm_rl.policies import DHMMPolicy


class Teacher:
    """
    A policy that acts on an environment's plain observations.

    :param policy: SB3's or sb3-contrib's
    :param prepare: turns observations of N environments into those that the policy was trained on
    """

    def __init__(self, policy: BasePolicy, prepare: Callable[[Any], Any]) -> None:
        self.policy, self.prepare = policy, prepare
        self._takes_masks = "action_masks" in inspect.signature(policy.predict).parameters

    def predict(
        self,
        observation: Any,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
        action_masks: NDArray[Any] | None = None,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """As SB3's policies have it; masks are for those that take them."""
        masks = {"action_masks": action_masks} if self._takes_masks else {}
        return self.policy.predict(self.prepare(observation), state, episode_start, deterministic, **masks)


def load_teacher(path: str | Path, env: VecEnv, env_id: str = "", notice: Notice = print) -> Teacher:
    """
    The policy of an SB3 model's zip, for an environment.

    Observations are normalised by the statistics of a ``VecNormalize`` that lie beside the zip (:func:`statistics_beside`),
    and flattened (categories one-hot) for a policy that was trained behind Gymnasium's ``FlattenObservation``.

    :param env: plain
    :param env_id: its name, for messages and the search for statistics
    :param notice: takes a line that says which statistics are used
    :raises InputError: when there is no such model, or it was trained on other spaces
    """
    policy = load_policy(path)
    statistics = statistics_beside(Path(path), env_id)
    normalize = None if statistics is None else _read_statistics(statistics)
    if normalize is not None:
        notice(f"note: observations of the teacher are normalised by {statistics}")

    sees, shown = policy.observation_space, env.observation_space
    if isinstance(shown, spaces.Box):
        flat, transposed = False, is_image_space(shown) and VecTransposeImage.transpose_space(shown) == sees
    else:
        flat, transposed = shown.is_np_flattenable and spaces.flatten_space(shown) == sees, False
    # An image that is transposed for the policy needs nothing: predict transposes it, too.
    if not (flat or transposed or sees in (shown, getattr(normalize, "observation_space", shown))):
        raise InputError(f"the teacher sees {_line(sees)}, but {env_id} shows {_line(shown)}")
    if policy.action_space != env.action_space:
        mine, wanted = _line(policy.action_space), _line(env.action_space)
        raise InputError(f"the teacher acts in {mine}, but {env_id} takes {wanted}")

    def prepare(observations: Any) -> Any:
        if flat:
            each = iterate(batch_space(shown, env.num_envs), observations)
            observations = np.stack([np.asarray(spaces.flatten(shown, observation)) for observation in each])
        return observations if normalize is None else normalize.normalize_obs(observations)

    return Teacher(policy, prepare)


def _line(space: spaces.Space[Any]) -> str:
    """A space in one line, which arrays of bounds break."""
    return " ".join(str(space).split())


def load_policy(path: str | Path) -> BasePolicy:
    """
    The policy of an SB3 model's zip, on the CPU.

    :raises InputError: when there is no zip, or it holds no policy that can be made here
    """
    if not Path(path).is_file():
        raise InputError(f"there is no teacher {path}; an SB3 model's save writes such a zip")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # schedules saved under another Python; acting needs none
            data, weights, _ = load_from_zip_file(path, device="cpu")
        assert data is not None
        if issubclass(data["policy_class"], DHMMPolicy):
            raise InputError("it is an agent of dhmm-rl's, which sees token streams; a teacher sees plain observations")
        known = inspect.signature(data["policy_class"]).parameters
        keywords: dict[str, Any] = {"lr_schedule": lambda progress: 0.0, "use_sde": data.get("use_sde", False)}
        keywords = {name: value for name, value in keywords.items() if name in known} | data["policy_kwargs"]
        keywords.pop("device", None)
        policy: BasePolicy = data["policy_class"](data["observation_space"], data["action_space"], **keywords)
        state: Any = weights["policy"]
        policy.load_state_dict(state)
    except Exception as error:  # a zip can hold anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is not a model of SB3 or sb3-contrib that can be used here ({reason:.200})") from error
    return policy


def statistics_beside(model: Path, env_id: str = "") -> Path | None:
    """
    Where the ``VecNormalize`` statistics of a model lie, if it has any.

    Beside ``best_model.zip``: ``best_vecnormalize.pkl``; beside ``rl_model_100_steps.zip``, a checkpoint of SB3's:
    ``rl_model_vecnormalize_100_steps.pkl``; beside any: ``vecnormalize.pkl``, ``vec_normalize.pkl``, or, as RL-Zoo has it,
    ``<env>/vecnormalize.pkl``.
    """
    names = [
        model.stem.replace("model", "vecnormalize"),
        re.sub(r"_(\d+_steps)$", r"_vecnormalize_\1", model.stem),
        "vecnormalize",
        "vec_normalize",
        f"{env_id}/vecnormalize",
    ]
    return next((path for name in names if (path := model.parent / f"{name}.pkl").is_file()), None)


def _read_statistics(path: Path) -> VecNormalize | None:
    """
    Statistics of observations; ``None`` if they are of rewards alone.

    :raises InputError: when they cannot be read
    """
    with reading(path), path.open("rb") as file:
        normalize = pickle.load(file)
        if not isinstance(normalize, VecNormalize):
            raise TypeError(f"a {type(normalize).__name__}, no VecNormalize")
    return normalize if normalize.norm_obs else None

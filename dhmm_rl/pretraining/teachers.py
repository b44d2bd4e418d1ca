"""
Teachers: the best agents of runs, and policies from the zips that SB3's algorithms save.

A zip holds the class, keywords and weights of its policy, which is enough to act. Which algorithm trained the policy does not
matter, and no replay buffer is created.

Shapes: N environments.
"""

import inspect
import pickle
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, iterate
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, VecTransposeImage

from dhmm_rl.common import DHMMPolicy
from dhmm_rl.data.episodes import Notice
from dhmm_rl.errors import InputError
from dhmm_rl.files import reading
from dhmm_rl.recipes.imports import check_installed
from dhmm_rl.runs.run import Run
from dhmm_rl.runs.saved_agents import SpacesOnly, check_trusted, read_best

_READS_TOKENS = "is an agent of dhmm-rl, which sees token streams; a teacher sees plain observations"


class Teacher:
    """
    A policy that acts on an environment's plain observations.

    :param policy: policy of SB3 or sb3-contrib
    :param prepare: function that converts observations of N environments to those the policy was trained on
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
        """Predict actions like SB3's policies do. Masks are only passed to policies that take them."""
        masks = {"action_masks": action_masks} if self._takes_masks else {}
        return self.policy.predict(self.prepare(observation), state, episode_start, deterministic, **masks)


def load_teacher(path: str | Path, env: VecEnv, env_id: str = "", notice: Notice = print, *, trust: bool = False) -> Teacher:
    """
    Load the policy of an SB3 model's zip, or the best agent of a run, for an environment.

    Observations are normalized with the ``VecNormalize`` statistics next to the zip (:func:`find_statistics`) or of the run's
    agent. They are flattened (categories become one-hot) for a policy that was trained with Gymnasium's
    ``FlattenObservation``.

    :param path: a zip, or the folder of a run
    :param env: environment without token wrappers or normalization
    :param env_id: name of the environment, for messages and the search for statistics
    :param notice: called with a line that says which statistics are used
    :param trust: also read a zip and the pickle of its statistics, which can run code; the agent of a run needs no trust
    :raises InputError: when there is no such model, it needs trust, or it was trained on other spaces
    """
    path = Path(path)
    policy, normalize = _policy_of_run(path, trust) if path.is_dir() else _policy_of_zip(path, env_id, trust)
    if normalize is not None:
        notice(f"note: observations of the teacher are normalized by {normalize.path}")

    sees, shown = policy.observation_space, env.observation_space
    if isinstance(shown, spaces.Box):
        flat, transposed = False, is_image_space(shown) and VecTransposeImage.transpose_space(shown) == sees
    else:
        flat, transposed = shown.is_np_flattenable and spaces.flatten_space(shown) == sees, False
    # The policy's own predict transposes images, so a transposed image space needs no preparation
    known = flat or transposed or sees in (shown, shown if normalize is None else normalize.wrapper.observation_space)
    if not known or (normalize is not None and not flat and shown.shape != sees.shape):
        raise InputError(f"the teacher sees {_line(sees)}, but {env_id} shows {_line(shown)}")
    if policy.action_space != env.action_space:
        mine, wanted = _line(policy.action_space), _line(env.action_space)
        raise InputError(f"the teacher acts in {mine}, but {env_id} takes {wanted}")

    def prepare(observations: Any) -> Any:
        if flat:
            each = iterate(batch_space(shown, env.num_envs), observations)
            observations = np.stack([np.asarray(spaces.flatten(shown, observation)) for observation in each])
        return observations if normalize is None else normalize.wrapper.normalize_obs(observations)

    return Teacher(policy, prepare)


def _line(space: spaces.Space[Any]) -> str:
    """Return a space as one line. Its text has several lines when arrays of bounds are long."""
    return " ".join(str(space).split())


class _Statistics(NamedTuple):
    """Statistics that normalize observations, and the file they come from."""

    wrapper: VecNormalize
    path: Path


def _policy_of_run(folder: Path, trust: bool) -> tuple[BasePolicy, _Statistics | None]:
    run = Run.open(folder, trust=True)  # its environment is not created
    if not trust:
        check_installed(run.agent.policy, f"{folder}/run.json")
    if run.command != "ppo":
        raise InputError(f"the run {folder} is of python -m dhmm_rl.{run.command}; a teacher is a run of dhmm_rl.ppo")
    if run.agent.reads_tokens:
        raise InputError(f"the agent of {folder} {_READS_TOKENS}")
    saved = read_best(folder, "cpu", trust)
    agent = saved.build(run.agent)
    if not run.agent.normalize_observation:
        return agent.policy, None
    if saved.content is None:
        statistics = _read_statistics(saved.pickle)
        return agent.policy, None if statistics is None else _Statistics(statistics, saved.pickle)
    wrapper = VecNormalize(DummyVecEnv([partial(SpacesOnly, agent.observation_space, agent.action_space)]), training=False)
    saved.restore_normalization(wrapper, training=False)
    return agent.policy, _Statistics(wrapper, saved.path)


def _policy_of_zip(path: Path, env_id: str, trust: bool) -> tuple[BasePolicy, _Statistics | None]:
    if path.is_file():
        check_trusted(path, trust)
    policy, found = load_policy(path), find_statistics(path, env_id)
    statistics = None if found is None else _read_statistics(found)
    return policy, None if statistics is None or found is None else _Statistics(statistics, found)


def load_policy(path: str | Path) -> BasePolicy:
    """
    Load the policy of an SB3 model's zip on the CPU. This runs any code hidden in the zip.

    :raises InputError: when there is no zip, or when it holds no policy that can be created here
    """
    if not Path(path).is_file():
        raise InputError(f"there is no teacher {path}; an SB3 model's save writes such a zip")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # schedules saved with another Python; acting needs no schedule
            data, weights, _ = load_from_zip_file(path, device="cpu")
        assert data is not None
        if issubclass(data["policy_class"], DHMMPolicy):
            raise InputError(f"it {_READS_TOKENS}")
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


def find_statistics(model: Path, env_id: str = "") -> Path | None:
    """
    Return the file with the ``VecNormalize`` statistics of a model, or ``None``.

    The file is in the folder of the model. Its name is ``best_vecnormalize.pkl`` for ``best_model.zip``;
    ``rl_model_vecnormalize_100_steps.pkl`` for ``rl_model_100_steps.zip``, a checkpoint of SB3; and for any model
    ``vecnormalize.pkl``, ``vec_normalize.pkl``, or ``<env>/vecnormalize.pkl`` as in RL-Zoo.
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
    Read the statistics of observations; ``None`` if the file holds statistics of rewards only.

    :raises InputError: when the file cannot be read
    """
    with reading(path), path.open("rb") as file:
        normalize = pickle.load(file)
        if not isinstance(normalize, VecNormalize):
            raise TypeError(f"a {type(normalize).__name__}, not a VecNormalize")
    return normalize if normalize.norm_obs else None

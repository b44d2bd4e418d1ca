"""
Agents on disk: one file of tensors and plain values, which cannot contain code. Everything in it is of the same step.

Older runs have SB3's zip and a pickle of ``VecNormalize`` instead. Reading these can run code, so the user must allow it.
"""

from collections import deque
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from dhmm_rl.envs import TokenSpace
from dhmm_rl.errors import InputError
from dhmm_rl.files import check_same_run, reading, run_checksum
from dhmm_rl.model.checkpoint import load_torch, save_torch
from dhmm_rl.recipes import AgentRecipe
from dhmm_rl.recipes.agents import make_agent
from dhmm_rl.recipes.algorithms import ALGORITHMS, find_algorithm
from dhmm_rl.recipes.environments import load_vecnormalize
from dhmm_rl.tokens import Tokenizer
from dhmm_rl.tokens.fields import space_from_dict, space_to_dict

_FORMAT = "dhmm-rl agent 1"

BEST_AGENT = "best_agent.pt"
"""Name of the file with the best agent of a run."""
BEST_ZIP, BEST_PICKLE = "best_model.zip", "best_vecnormalize.pkl"
"""Names of the same agent's files for SB3's ``load`` and ``VecNormalize.load``. Older runs have only these."""
AGENT = "agent.pt"
"""Name of the agent's file in the folder of a checkpoint."""
_AGENT_ZIP, _AGENT_PICKLE = "model.zip", "vecnormalize.pkl"

_COUNTERS = (
    "num_timesteps",
    "_n_updates",
    "_episode_num",
    "_current_progress_remaining",
    "_rollouts",
    "_advantage_variance",
    "_learning_rate_factor",
)
"""Attributes that algorithms count during training. An algorithm, or a file of an earlier version, may lack some of them."""
_EPISODES = ("ep_info_buffer", "ep_success_buffer")
"""Attributes with SB3's statistics of the latest episodes."""


_KEYS = {
    "algorithm",
    "observation_space",
    "action_space",
    "keep_prior",
    "policy",
    "optimizer",
    "counters",
    "episodes",
    "normalization",
}


class SavedAgent(NamedTuple):
    """
    A trained agent that was read from a file and is not built yet.

    :param path: path of the file
    :param content: content of the file; ``None`` for an SB3 zip, which is read when the agent is built
    :param pickle: path of the statistics that belong to an SB3 zip
    :param device: device for the agent
    """

    path: Path
    content: dict[str, Any] | None
    pickle: Path
    device: str

    def build(self, recipe: AgentRecipe, env: VecEnv | None = None, seed: int = 0) -> OnPolicyAlgorithm:
        """
        Build the agent in the state in which it was saved.

        :param recipe: recipe of the agent
        :param env: environments as the agent sees them; ``None`` for an agent that only acts
        :param seed: seed of the agent
        :raises InputError: when the agent cannot be read, or has another recipe or other spaces
        """
        if self.content is None:
            with reading(self.path):
                return ALGORITHMS[recipe.algorithm].load_class().load(self.path, env=env, device=self.device)
        content = self.content
        if content["algorithm"] != recipe.algorithm:
            raise InputError(f"{self.path} is of another run: an agent of {content['algorithm']}, not {recipe.algorithm}")
        venv = DummyVecEnv([partial(SpacesOnly, *self._spaces())] * recipe.n_envs) if env is None else self.check_spaces(env)
        agent = make_agent(recipe, venv, seed, self.device, None, keep_prior=bool(content["keep_prior"]))
        if content.get("masked") is True and env is None:
            agent.masked = True  # type: ignore[attr-defined]
        with reading(self.path):
            agent.policy.load_state_dict(content["policy"])
            agent.policy.optimizer.load_state_dict(content["optimizer"])
            for name in _counters(agent):
                if name in content["counters"]:
                    setattr(agent, name, type(getattr(agent, name))(content["counters"][name]))
            for name in _EPISODES:
                setattr(agent, name, deque(_rows(content["episodes"][name]), maxlen=agent._stats_window_size))
        return agent

    def check_spaces(self, env: VecEnv) -> VecEnv:
        """
        Return the environments as SB3 shows them to the agent, with transposed images.

        :raises InputError: when their spaces are not those the agent was trained on
        """
        venv = BaseAlgorithm._wrap_env(env, verbose=0, monitor_wrapper=False)
        if self.content is not None:
            for verb, mine, other in zip(
                ("sees", "acts in"), self._spaces(), (venv.observation_space, venv.action_space), strict=True
            ):
                if isinstance(mine, TokenSpace) and mine.shape == other.shape:
                    mine.check_equal(other)
                if mine != other:
                    raise InputError(f"{self.path} is of another run: its agent {verb} {_line(mine)}, not {_line(other)}")
        return venv

    def _spaces(self) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
        assert self.content is not None
        with reading(self.path):
            return _space_from_dict(self.content["observation_space"]), space_from_dict(self.content["action_space"])

    def statistics(self) -> dict[str, RunningMeanStd] | None:
        """Return the statistics that normalize observations and returns, by name; ``None`` when nothing is normalized."""
        if self.content is None or self.content["normalization"] is None:
            return None
        statistics = {}
        for name, values in self.content["normalization"].items():
            statistics[name] = RunningMeanStd(shape=tuple(values["mean"].shape))
            statistics[name].mean, statistics[name].var = values["mean"].numpy(), values["var"].numpy()
            statistics[name].count = values["count"]
        return statistics

    def restore_normalization(self, env: VecEnv, training: bool) -> VecEnv:
        """
        Return the environments with the statistics of the agent, if they have a :class:`VecNormalize`.

        :param env: environments as the agent sees them
        :param training: whether the statistics change from now on
        :raises InputError: when the statistics cannot be read, or the environments do not belong to the agent
        """
        self.check_spaces(env)
        if not isinstance(env, VecNormalize):
            return env
        if self.content is None:
            return load_vecnormalize(env, self.pickle, training)
        with reading(self.path):
            for name, statistics in (self.statistics() or {}).items():
                if statistics.mean.shape != getattr(env, name).mean.shape:
                    raise InputError(f"{self.path} is of another run: its {name} has the shape {statistics.mean.shape}")
                setattr(env, name, statistics)
        env.training = training
        return env


def save_agent(agent: OnPolicyAlgorithm, path: Path, run: Path | None = None) -> None:
    """
    Save an agent together with the current normalization statistics of its environments.

    :param agent: agent to save
    :param path: path of the file
    :param run: folder of the run that the agent belongs to; readers then refuse the file in another run
    """
    normalize = agent.get_vec_normalize_env()
    content = {
        "format": _FORMAT,
        "run": None if run is None else run_checksum(run),
        "algorithm": find_algorithm(agent),
        "observation_space": _space_to_dict(agent.observation_space),
        "action_space": space_to_dict(agent.action_space),
        "keep_prior": bool(getattr(agent.policy, "keep_prior", False)),
        "masked": bool(getattr(agent, "masked", False)),
        "policy": agent.policy.state_dict(),
        "optimizer": agent.policy.optimizer.state_dict(),
        "counters": {name: getattr(agent, name) for name in _counters(agent)},
        "episodes": {name: _columns(getattr(agent, name)) for name in _EPISODES},
        "normalization": None if normalize is None else _normalization(normalize),
    }
    save_torch(path, content)


def read_best(folder: Path, device: str, trust: bool = False) -> SavedAgent:
    """
    Read the best agent of a run.

    :param folder: folder of the run
    :param device: device for the agent
    :param trust: also read the files of older runs, which can run code
    :raises InputError: when there is no agent, or it cannot be read
    """
    return _read(folder, folder, (BEST_AGENT, BEST_ZIP, BEST_PICKLE), device, trust)


def read_checkpoint(folder: Path, device: str, trust: bool = False) -> SavedAgent:
    """
    Read the agent of a run's checkpoint.

    :param folder: folder of the checkpoint
    :param device: device for the agent
    :param trust: also read the files of older runs, which can run code
    :raises InputError: when there is no agent, or it cannot be read
    """
    return _read(folder, folder.parent.parent, (AGENT, _AGENT_ZIP, _AGENT_PICKLE), device, trust)


def check_trusted(path: Path, trust: bool) -> None:
    """:raises InputError: for a file that can run code when it is read, unless ``trust`` is set"""
    if not trust:
        safer = f" (teacher:{path.parent} needs none)" if path.name == BEST_ZIP and (path.parent / BEST_AGENT).is_file() else ""
        raise InputError(
            f"{path} is in SB3's format, which holds pickles: reading it runs whatever code is in it; "
            f"if you trust whoever made it, add --trust{safer}"
        )


def _read(folder: Path, run: Path, names: tuple[str, str, str], device: str, trust: bool) -> SavedAgent:
    path, zipped, pickled = (folder / name for name in names)
    if path.is_file() or not zipped.is_file():
        if not path.is_file():
            raise InputError(f"there is no trained agent {path}")
        content = load_torch(path, _FORMAT)
        missing = _KEYS - content.keys()
        if missing:
            raise InputError(f"{path} lacks {sorted(missing)[0]!r}; save_agent writes it")
        check_same_run(path, content.get("run"), run)
        return SavedAgent(path, content, pickled, device)
    check_trusted(zipped, trust)
    return SavedAgent(zipped, None, pickled, device)


class SpacesOnly(gym.Env[Any, Any]):
    """Environment with spaces only, for agents that act without an environment."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space


def _space_to_dict(space: spaces.Space[Any]) -> dict[str, Any]:
    if isinstance(space, TokenSpace):
        return {"tokenizer": space.tokenizer.to_dict(), "history": space.shape[0]}
    return space_to_dict(space)


def _space_from_dict(description: dict[str, Any]) -> spaces.Space[Any]:
    if "tokenizer" in description:
        return TokenSpace(Tokenizer.from_dict(description["tokenizer"]), description["history"])
    return space_from_dict(description)


def _normalization(normalize: VecNormalize) -> dict[str, dict[str, Any]]:
    """Return means and variances of returns and, if they are normalized, of observations, without loss of precision."""
    normalized = {"ret_rms": normalize.ret_rms} | ({"obs_rms": normalize.obs_rms} if normalize.norm_obs else {})
    return {
        name: {
            "mean": torch.from_numpy(np.array(statistics.mean)),
            "var": torch.from_numpy(np.array(statistics.var)),
            "count": float(statistics.count),
        }
        for name, statistics in normalized.items()
        if isinstance(statistics, RunningMeanStd)
    }


def _counters(agent: OnPolicyAlgorithm) -> list[str]:
    return [name for name in _COUNTERS if hasattr(agent, name)]


def _columns(rows: Any) -> Any:
    """Convert SB3's statistics of the latest episodes, dictionaries of numbers or numbers, to arrays."""
    if rows and isinstance(rows[0], dict):
        return {name: torch.from_numpy(np.array([row[name] for row in rows])) for name in ("r", "l", "t")}
    return torch.from_numpy(np.array(list(rows or [])))


def _rows(columns: Any) -> list[Any]:
    if isinstance(columns, dict):
        arrays: dict[str, NDArray[Any]] = {name: values.numpy() for name, values in columns.items()}
        return [dict(zip(arrays, row, strict=True)) for row in zip(*arrays.values(), strict=True)]
    return list(columns.numpy())


def _line(value: Any) -> str:
    """Return the text of a value as one line. Long arrays of bounds have several."""
    return " ".join(str(value).split())

"""
Gymnasium's vector environments as Stable-Baselines3's.

SB3 resets an environment in the step in which its episode ends; Gymnasium calls that ``AutoresetMode.SAME_STEP``, and its own
vector environments can do it. Those of other makers often reset a step later instead, in a step that ignores the action. No
number of such steps makes the other kind, so these environments must be able to reset some of theirs on demand.

Shapes: N environments.
"""

import importlib
import time
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import iterate
from numpy.typing import NDArray
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from dhmm_rl.envs.wrappers.faults import ReportFaults, environment_fault
from dhmm_rl.errors import EnvironmentFault, InputError

AnyVectorEnv = VectorEnv[Any, Any, Any]
ResetSome = Callable[[Any, NDArray[np.bool_]], tuple[Any, dict[str, Any]]]


def reset_by_mask(env: AnyVectorEnv, which: NDArray[np.bool_]) -> tuple[Any, dict[str, Any]]:
    """
    Reset some environments by Gymnasium's option for it.

    :param which: (N,)
    :return: the observations of all environments, and infos
    """
    return env.reset(options={"reset_mask": which})


def _reset_some_cartpoles(env: CartPoleVectorEnv, which: NDArray[np.bool_]) -> tuple[Any, dict[str, Any]]:
    """What ``CartPoleVectorEnv.step`` does for those that ended a step ago."""
    env.state[:, which] = env.np_random.uniform(env.low, env.high, (4, which.sum()))  # type: ignore[index]
    env.steps[which] = 0
    env.prev_done[which] = False
    return env.state.T.astype(np.float32), {}  # type: ignore[attr-defined]


class GymnasiumVecEnv(VecEnv):
    """
    A Gymnasium :class:`VectorEnv` as an SB3 :class:`VecEnv`: what SB3's own ``DummyVecEnv`` gives, in one call for all.

    ``infos`` hold ``terminal_observation``, ``TimeLimit.truncated`` and, of episodes that have ended, the ``episode`` with its
    return, length and time of SB3's ``Monitor``. A seed is seed + i for environment i where there are N
    separate ones (``SyncVectorEnv``, ``AsyncVectorEnv``), and the seed of the whole where there are not.

    :param env: from ``gymnasium.make_vec``, say. ``SyncVectorEnv``, ``AsyncVectorEnv`` and the NumPy-vectorized CartPole may
        have any autoreset mode; others must have SAME_STEP or DISABLED, unless ``reset_some`` is given
    :param reset_some: resets those environments that are true in a mask (N,), and gives the observations of all, with infos.
        For a NEXT_STEP environment that knows Gymnasium's ``options["reset_mask"]``, give :func:`reset_by_mask`
    :param mask_key: the key of infos that holds action masks, ``"action_mask"`` in Taxi-v3; they are then what
        ``env_method("action_masks")`` returns
    :raises InputError: when the environment cannot reset in the step in which an episode ends
    :raises EnvironmentFault: from ``reset`` and ``step`` when the environment raises an error
    """

    def __init__(self, env: AnyVectorEnv, reset_some: ResetSome | None = None, mask_key: str | None = None) -> None:
        self.env = env
        self.mask_key = mask_key
        self.reset_some = None if env.metadata.get("autoreset_mode") is AutoresetMode.SAME_STEP else _way(env, reset_some)
        # SB3 stores an observation after the step that follows it; an environment may write over it in that step.
        self._copy = type(env.unwrapped) is not CartPoleVectorEnv and not getattr(env.unwrapped, "copy", False)
        self._actions = np.empty(0)
        self._masks: list[Any] = []
        self._returns, self._lengths, self._began = np.zeros(env.num_envs), np.zeros(env.num_envs), time.time()
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata = env.metadata

    def reset(self) -> VecEnvObs:
        """Begin an episode in every environment."""
        options = self._options[0]
        if any(other != options for other in self._options):
            raise InputError("a vector environment of Gymnasium's takes one dictionary of options for all environments")
        observations, infos = self._told("reset", self.env.reset, seed=self._seeds[0], options=options or None)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = _by_environment(infos, self.num_envs)
        self._keep_masks(self.reset_infos)
        self._returns[:] = 0
        self._lengths[:] = 0
        return self._kept(observations)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions; :meth:`step_wait` carries them out."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Act in all environments, and begin anew in those whose episode has ended."""
        observations, rewards, terminated, truncated, vector_infos = self._told("step", self.env.step, self._actions)
        infos = _by_environment(vector_infos, self.num_envs)
        dones = np.asarray(terminated | truncated)
        now = infos
        self._returns += rewards
        self._lengths += 1
        if dones.any():
            observations = self._begin_anew(dones, observations, infos)
            for i in np.flatnonzero(dones).tolist():
                monitored = {"r": float(self._returns[i]), "l": int(self._lengths[i]), "t": round(time.time() - self._began, 6)}
                infos[i].setdefault("episode", monitored)
            self._returns[dones] = 0
            self._lengths[dones] = 0
            now = [self.reset_infos[i] if done else infos[i] for i, done in enumerate(dones)]
        self._keep_masks(now)
        for i, info in enumerate(infos):
            info["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
        return self._kept(observations), np.asarray(rewards, dtype=np.float32), dones, infos

    def _begin_anew(self, dones: NDArray[np.bool_], observations: Any, infos: list[dict[str, Any]]) -> Any:
        """Observations after the resets; ``infos`` and ``reset_infos`` become those of the ends and of the beginnings."""
        ended = np.flatnonzero(dones).tolist()
        if self.reset_some is None:
            for i in ended:
                self.reset_infos[i] = infos[i]
                infos[i] = infos[i].pop("final_info", {})
                if "episode" in self.reset_infos[i]:  # Gymnasium's RecordEpisodeStatistics says beside it what has ended
                    infos[i]["episode"] = self.reset_infos[i].pop("episode")
                infos[i]["terminal_observation"] = self.reset_infos[i].pop("final_obs")
        else:
            last = list(iterate(self.env.observation_space, observations))
            for i in ended:
                infos[i]["terminal_observation"] = deepcopy(last[i])  # a view; the environment may write over it
            observations, vector_infos = self._told("reset", self.reset_some, self.env, dones)
            after = _by_environment(vector_infos, self.num_envs)
            for i in ended:
                self.reset_infos[i] = after[i]
        return observations

    def _told(self, method: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the environments; an error of theirs is told as theirs."""
        try:
            return call(*args, **kwargs)
        except (InputError, EnvironmentFault):
            raise
        except Exception as error:
            raise environment_fault(
                f"the environment {self.env}, in {method} of all {self.num_envs} together,", error
            ) from error

    def _kept(self, observations: VecEnvObs) -> VecEnvObs:
        return deepcopy(observations) if self._copy else observations

    def _keep_masks(self, infos: Iterable[dict[str, Any]]) -> None:
        if self.mask_key is not None:
            try:
                self._masks = [info[self.mask_key] for info in infos]
            except KeyError as error:
                raise InputError(f"infos of {self.env} hold no {self.mask_key!r}, where action masks should be") from error

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """A picture of every environment."""
        frames: Any = self.env.render()
        return [None] * self.num_envs if frames is None else list(frames)

    # Attributes: N separate environments have their own; one that is vectorized through and through has them for all.

    def has_attr(self, attr_name: str) -> bool:
        """Whether every environment has the attribute."""
        if attr_name == "action_masks" and self.mask_key is not None:
            return True
        base = self.env.unwrapped
        if isinstance(base, SyncVectorEnv):
            return all(env.has_wrapper_attr(attr_name) for env in base.envs)
        if isinstance(base, AsyncVectorEnv):  # asking for what is not there would end its processes
            return all(base.call("has_wrapper_attr", attr_name))
        return hasattr(base, attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        An attribute of every environment (``AsyncVectorEnv`` calls it, if it can be called).

        Of an environment that is vectorized through and through: row i of an array with N rows, anything else for all alike.

        :raises AttributeError: when there is none
        """
        if not self.has_attr(attr_name):
            raise AttributeError(f"{self.env} has no attribute {attr_name!r}")
        base = self.env.unwrapped
        if isinstance(base, SyncVectorEnv):
            return [base.envs[i].get_wrapper_attr(attr_name) for i in self._get_indices(indices)]
        if isinstance(base, AsyncVectorEnv):
            values: Sequence[Any] = base.get_attr(attr_name)
        else:
            values = self._rows(getattr(base, attr_name)) or [getattr(base, attr_name)] * self.num_envs
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Set an attribute of every environment.

        :raises InputError: for some of the environments only, where all have it together
        """
        base = self.env.unwrapped
        if isinstance(base, SyncVectorEnv):
            for i in self._get_indices(indices):
                base.envs[i].set_wrapper_attr(attr_name, value)
            return
        self._refuse_some(indices, f"set {attr_name!r}")
        if isinstance(base, AsyncVectorEnv):
            base.set_attr(attr_name, [value] * self.num_envs)
        else:
            setattr(base, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        """
        Call a method of every environment.

        :raises AttributeError: when there is none
        :raises InputError: for some of the environments only, or a result that is not one for each, where all are one
        """
        if method_name == "action_masks" and self.mask_key is not None:
            return [self._masks[i] for i in self._get_indices(indices)]
        if not self.has_attr(method_name):
            raise AttributeError(f"{self.env} has no method {method_name!r}")
        base = self.env.unwrapped
        if isinstance(base, SyncVectorEnv):
            envs = [base.envs[i] for i in self._get_indices(indices)]
            return [env.get_wrapper_attr(method_name)(*method_args, **method_kwargs) for env in envs]
        self._refuse_some(indices, f"call {method_name!r}")
        if isinstance(base, AsyncVectorEnv):
            return list(base.call(method_name, *method_args, **method_kwargs))
        rows = self._rows(getattr(base, method_name)(*method_args, **method_kwargs))
        if rows is None:
            raise InputError(f"{method_name!r} of {self.env} does not return one result for each of its {self.num_envs}")
        return rows

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None) -> list[bool]:
        """Whether each environment is wrapped so; only a ``SyncVectorEnv`` can tell, others say no."""
        base = self.env.unwrapped
        envs = base.envs if isinstance(base, SyncVectorEnv) else None
        return [envs is not None and is_wrapped(envs[i], wrapper_class) for i in self._get_indices(indices)]

    def _rows(self, value: Any) -> list[Any] | None:
        """One value for each environment, if that is what this is."""
        each = isinstance(value, np.ndarray | list | tuple) and len(value) == self.num_envs
        return list(value) if each else None

    def _refuse_some(self, indices: VecEnvIndices, what: str) -> None:
        if sorted(self._get_indices(indices)) != list(range(self.num_envs)):
            raise InputError(f"{self.env} can {what} for all of its environments only, not for some (indices)")


def make_gymnasium_vec_env(
    env_id: str,
    num_envs: int,
    wrapper: Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]] | None = None,
    **kwargs: Any,
) -> GymnasiumVecEnv:
    """
    ``gymnasium.make_vec`` for SB3: an environment's own vectorized form where it has one, else a ``SyncVectorEnv``.

    :param env_id: as ``gymnasium.make`` takes it
    :param wrapper: of every environment; the vectorized form takes none, and is not used then
    :param kwargs: of the environment
    """
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)  # which registers it
    spec = gym.spec(name)
    if spec.vector_entry_point is not None and not spec.additional_wrappers and wrapper is None:
        vectorized = gym.make_vec(env_id, num_envs, "vector_entry_point", **kwargs)
        try:
            return GymnasiumVecEnv(vectorized)
        except InputError:  # it cannot reset in the same step
            vectorized.close()
    wrappers = [wrapper or partial(ReportFaults, env_id=env_id)]
    same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
    made: Any = gym.make_vec(env_id, num_envs, "sync", vector_kwargs=same_step, wrappers=wrappers, **kwargs)  # type: ignore[arg-type]
    return GymnasiumVecEnv(made)


def _way(env: AnyVectorEnv, reset_some: ResetSome | None) -> ResetSome:
    """How to reset some of the environments."""
    if reset_some is not None:
        return reset_some
    disabled = env.metadata.get("autoreset_mode") is AutoresetMode.DISABLED
    if disabled or isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv):
        return reset_by_mask
    if type(env) is CartPoleVectorEnv:
        return _reset_some_cartpoles
    raise InputError(
        f"{env} resets an environment a step after its episode has ended; SB3 needs autoreset_mode SAME_STEP, "
        "or a function reset_some"
    )


def _by_environment(infos: dict[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """Gymnasium's dictionary of arrays, with masks under keys that begin with "_", as a dictionary for each environment."""
    split: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for key, values in infos.items():
        if key.startswith("_"):
            continue
        if isinstance(values, dict):
            values = _by_environment(values, num_envs)
        present = infos.get(f"_{key}")
        for i in range(num_envs) if present is None else np.flatnonzero(present):
            split[i][key] = values[i]
    return split

"""
Gymnasium's vector environments in Stable-Baselines3.

SB3 resets an environment in the step in which its episode ends. Gymnasium calls this ``AutoresetMode.SAME_STEP``, and its own
vector environments support it. Other vector environments often reset one step later, in a step that ignores the action. SB3
cannot use that step, so these vector environments must be able to reset some of their environments on demand.

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


def reset_by_mask(env: AnyVectorEnv, reset_mask: NDArray[np.bool_]) -> tuple[Any, dict[str, Any]]:
    """
    Reset some environments with Gymnasium's option ``reset_mask``.

    :param env: vector environment that supports the option
    :param reset_mask: whether each environment is reset, (N,)
    :return: observations of all environments, and infos
    """
    return env.reset(options={"reset_mask": reset_mask})


def _reset_some_cartpoles(env: CartPoleVectorEnv, reset_mask: NDArray[np.bool_]) -> tuple[Any, dict[str, Any]]:
    """Reset as ``CartPoleVectorEnv.step`` does one step after the end of an episode."""
    env.state[:, reset_mask] = env.np_random.uniform(env.low, env.high, (4, reset_mask.sum()))  # type: ignore[index]
    env.steps[reset_mask] = 0
    env.prev_done[reset_mask] = False
    return env.state.T.astype(np.float32), {}  # type: ignore[attr-defined]


class GymnasiumVecEnv(VecEnv):
    """
    A Gymnasium :class:`VectorEnv` as an SB3 :class:`VecEnv`, with the results of SB3's ``DummyVecEnv``.

    ``infos`` have ``terminal_observation``, ``TimeLimit.truncated`` and, at the end of an episode, the ``episode`` of SB3's
    ``Monitor``: return, length and time. A seed becomes seed + i for environment i of N separate ones (``SyncVectorEnv``,
    ``AsyncVectorEnv``). Any other vector environment gets the seed itself.

    :param env: vector environment, for example from ``gymnasium.make_vec``. ``SyncVectorEnv``, ``AsyncVectorEnv`` and the
        NumPy-vectorized CartPole may have any autoreset mode; others must have SAME_STEP or DISABLED, unless ``reset_some`` is
        given
    :param reset_some: function that resets the environments that are true in a mask (N,), and returns observations of all
        environments and infos. For a NEXT_STEP environment that supports ``options["reset_mask"]``, pass :func:`reset_by_mask`
    :param mask_key: key of action masks in infos, such as ``"action_mask"`` in Taxi-v3; ``env_method("action_masks")`` then
        returns these masks
    :raises InputError: if the environment cannot reset in the step in which an episode ends
    :raises EnvironmentFault: from ``reset`` and ``step`` if the environment raises an error
    """

    def __init__(self, env: AnyVectorEnv, reset_some: ResetSome | None = None, mask_key: str | None = None) -> None:
        self.env = env
        self.mask_key = mask_key
        self.reset_some = (
            None if env.metadata.get("autoreset_mode") is AutoresetMode.SAME_STEP else _choose_reset(env, reset_some)
        )
        # SB3 stores an observation after the next step, and an environment may overwrite its arrays in that step
        self._copy = type(env.unwrapped) is not CartPoleVectorEnv and not getattr(env.unwrapped, "copy", False)
        self._actions = np.empty(0)
        self._masks: list[Any] = []
        self._returns, self._lengths, self._began = np.zeros(env.num_envs), np.zeros(env.num_envs), time.time()
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata = env.metadata

    def reset(self) -> VecEnvObs:
        """Reset all environments."""
        options = self._options[0]
        if any(other != options for other in self._options):
            raise InputError("a Gymnasium vector environment takes one dictionary of options for all environments")
        observations, infos = self._call("reset", self.env.reset, seed=self._seeds[0], options=options or None)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = _by_environment(infos, self.num_envs)
        self._store_masks(self.reset_infos)
        self._returns[:] = 0
        self._lengths[:] = 0
        return self._copied(observations)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Store the actions for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step all environments, and reset those in which an episode ended."""
        observations, rewards, terminated, truncated, vector_infos = self._call("step", self.env.step, self._actions)
        infos = _by_environment(vector_infos, self.num_envs)
        dones = np.asarray(terminated | truncated)
        self._returns += rewards
        self._lengths += 1
        if dones.any():
            observations = self._reset_ended(dones, observations, infos)
            for i in np.flatnonzero(dones).tolist():
                monitored = {"r": float(self._returns[i]), "l": int(self._lengths[i]), "t": round(time.time() - self._began, 6)}
                infos[i].setdefault("episode", monitored)
            self._returns[dones] = 0
            self._lengths[dones] = 0
        if self.mask_key is not None:  # masks belong to the observations that are returned
            self._store_masks([self.reset_infos[i] if done else infos[i] for i, done in enumerate(dones)])
        for info, timed_out in zip(infos, np.asarray(truncated & ~terminated).tolist(), strict=True):
            info["TimeLimit.truncated"] = timed_out
        return self._copied(observations), np.asarray(rewards, dtype=np.float32), dones, infos

    def _reset_ended(self, dones: NDArray[np.bool_], observations: Any, infos: list[dict[str, Any]]) -> Any:
        """
        Return the observations after the resets.

        ``infos`` are changed to those at the end of an episode, ``self.reset_infos`` to those of the reset.
        """
        ended = np.flatnonzero(dones).tolist()
        if self.reset_some is None:
            for i in ended:
                self.reset_infos[i] = infos[i]
                infos[i] = infos[i].pop("final_info", {})
                if "episode" in self.reset_infos[i]:  # Gymnasium's RecordEpisodeStatistics puts it into the reset's info
                    infos[i]["episode"] = self.reset_infos[i].pop("episode")
                infos[i]["terminal_observation"] = self.reset_infos[i].pop("final_obs")
        else:
            # Copies, because the environment may overwrite its arrays
            if isinstance(observations, np.ndarray) and observations.dtype != object:
                last: Any = dict(zip(ended, observations[ended], strict=True))
            else:
                last = deepcopy(list(iterate(self.env.observation_space, observations)))
            for i in ended:
                infos[i]["terminal_observation"] = last[i]
            observations, vector_infos = self._call("reset", self.reset_some, self.env, dones)
            after = _by_environment(vector_infos, self.num_envs)
            for i in ended:
                self.reset_infos[i] = after[i]
        return observations

    def _call(self, method: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the environments, and report an error as their fault."""
        try:
            return call(*args, **kwargs)
        except (InputError, EnvironmentFault):
            raise
        except Exception as error:
            raise environment_fault(
                f"the environment {self.env}, in {method} of all {self.num_envs} together,", error
            ) from error

    def _copied(self, observations: VecEnvObs) -> VecEnvObs:
        return deepcopy(observations) if self._copy else observations

    def _store_masks(self, infos: Iterable[dict[str, Any]]) -> None:
        if self.mask_key is not None:
            try:
                self._masks = [info[self.mask_key] for info in infos]
            except KeyError as error:
                raise InputError(f"infos of {self.env} have no {self.mask_key!r}, the key of action masks") from error

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return an image of every environment."""
        frames: Any = self.env.render()
        return [None] * self.num_envs if frames is None else list(frames)

    # Attributes: N separate environments have attributes of their own; a natively vectorized one has them for all N.

    def has_attr(self, attr_name: str) -> bool:
        """Return whether every environment has the attribute."""
        if attr_name == "action_masks" and self.mask_key is not None:
            return True
        base = self.env.unwrapped
        if isinstance(base, SyncVectorEnv):
            return all(env.has_wrapper_attr(attr_name) for env in base.envs)
        if isinstance(base, AsyncVectorEnv):  # getting a missing attribute would end its processes
            return all(base.call("has_wrapper_attr", attr_name))
        return hasattr(base, attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        Return an attribute of every environment (``AsyncVectorEnv`` calls it if it is callable).

        For a natively vectorized environment, environment i gets row i of an array with N rows, and any other value itself.

        :raises AttributeError: if an environment does not have the attribute
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

        :raises InputError: for a natively vectorized environment, if ``indices`` are only some of the environments
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

        :raises AttributeError: if an environment does not have the method
        :raises InputError: for a natively vectorized environment, if ``indices`` are only some environments or the method
            does not return one result for each
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
        """Return whether each environment has this wrapper; always false except for a ``SyncVectorEnv``."""
        base = self.env.unwrapped
        envs = base.envs if isinstance(base, SyncVectorEnv) else None
        return [envs is not None and is_wrapped(envs[i], wrapper_class) for i in self._get_indices(indices)]

    def _rows(self, value: Any) -> list[Any] | None:
        """Return the values of the environments if ``value`` has one for each, else ``None``."""
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
    Call ``gymnasium.make_vec`` for SB3: use the natively vectorized form of an environment if there is one.

    :param env_id: id of the environment, as in ``gymnasium.make``
    :param num_envs: number of environments
    :param wrapper: function that wraps each environment; with a wrapper the natively vectorized form is not used
    :param kwargs: keywords of the environment
    """
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)  # registers the environment
    spec = gym.spec(name)
    if spec.vector_entry_point is not None and not spec.additional_wrappers and wrapper is None:
        vectorized = gym.make_vec(env_id, num_envs, "vector_entry_point", **kwargs)
        try:
            return GymnasiumVecEnv(vectorized)
        except InputError:  # it cannot reset in the step in which an episode ends
            vectorized.close()
    wrappers = [wrapper or partial(ReportFaults, env_id=env_id)]
    same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
    made: Any = gym.make_vec(env_id, num_envs, "sync", vector_kwargs=same_step, wrappers=wrappers, **kwargs)  # type: ignore[arg-type]
    return GymnasiumVecEnv(made)


def _choose_reset(env: AnyVectorEnv, reset_some: ResetSome | None) -> ResetSome:
    """Return the function that resets some of the environments."""
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
    """Split Gymnasium's dictionary of arrays, which has masks under keys that begin with "_", by environment."""
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

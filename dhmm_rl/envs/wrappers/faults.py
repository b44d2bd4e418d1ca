"""
Reports faults of environments in one line that names the environment, with the environment's own traceback.

An environment is the user's own code. Without this module, its errors end tracebacks through five wrappers, or arrive from a
worker process as an ``EOFError`` without a reason.
"""

import multiprocessing as mp
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper
from stable_baselines3.common.vec_env.subproc_vec_env import _worker

from dhmm_rl.errors import EnvironmentFault, InputError

FIVE_VALUES = "it must return observation, reward, terminated, truncated and info"
WRAPPERS = [os.path.join("gymnasium", part) for part in ("wrappers", "utils", "core.py")]  # noqa: PTH118 - parts of paths


def environment_fault(where: str, error: BaseException) -> EnvironmentFault:
    """
    Turn an error of an environment into an :class:`EnvironmentFault`.

    :param where: name of the environment, method and step, for the message
    :param error: error that was caught in the frame that called the environment; the traceback leaves out that frame and those
        of Gymnasium's wrappers
    """
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        path = frame.tb_frame.f_code.co_filename
        if path != __file__ and not any(wrappers in path for wrappers in WRAPPERS):
            break
        frame = frame.tb_next
    details = "".join(traceback.format_exception(type(error), error, frame)).rstrip()
    message = _line(str(error))
    return EnvironmentFault(f"{where} raised {type(error).__name__}{': ' if message else ''}{message}", details)


class ReportFaults(gym.Wrapper[Any, Any, Any, Any]):
    """
    Raises :class:`EnvironmentFault` when an environment raises an error or returns an invalid value.

    Errors that are meant for the user (:class:`InputError`) pass unchanged.

    :param env: environment with all wrappers of the user
    :param env_id: name of the environment in messages
    """

    def __init__(self, env: gym.Env[Any, Any], env_id: str) -> None:
        super().__init__(env)
        self.env_id = env_id
        self._episode = self._step = 0
        for method in ("action_masks", "oracle"):
            if env.has_wrapper_attr(method):
                setattr(self, method, partial(self._call, method))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode and check what the environment returned."""
        self._episode, self._step = self._episode + 1, 0
        result = self._call("reset", seed=seed, options=options)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            raise self._returned("reset", result, "it must return observation and info, a dictionary")
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment and check what it returned."""
        self._step += 1
        try:
            result: Any = self.env.step(action)
        except (InputError, EnvironmentFault):
            raise
        except Exception as error:
            fault = environment_fault(self._where("step"), error)
            if "values to unpack" in str(error):  # raised by one of Gymnasium's wrappers
                fault = EnvironmentFault(f"{fault}; {FIVE_VALUES}", fault.details)
            raise fault from error
        if not isinstance(result, tuple) or len(result) != 5:
            raise self._returned("step", result, FIVE_VALUES)
        _, reward, terminated, truncated, info = result
        if not (isinstance(reward, float | int) or _is_number(reward)):
            raise self._returned("step", reward, "the reward must be a number")
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if not (isinstance(flag, bool) or _is_number(flag)):
                raise self._returned("step", flag, f"{name} must be true or false")
        if not isinstance(info, dict):
            raise self._returned("step", info, "info must be a dictionary")
        return result

    def render(self) -> Any:
        """Render the environment and check that the result is an image if the render mode asks for one."""
        frame = self._call("render")
        if self.render_mode == "rgb_array" and not (
            isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
        ):
            raise self._returned("render", frame, "it must return an image: an array of bytes, (height, width, 3)")
        return frame

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.env.get_wrapper_attr(method)(*args, **kwargs)
        except (InputError, EnvironmentFault):
            raise
        except Exception as error:
            raise environment_fault(self._where(method), error) from error

    def _where(self, method: str) -> str:
        step = f"at step {self._step}" if self._step else "at the beginning"
        return f"the environment {self.env_id}, in {method} {step} of episode {self._episode},"

    def _returned(self, method: str, value: Any, right: str) -> EnvironmentFault:
        what = f"{len(value)} values" if isinstance(value, tuple) and right == FIVE_VALUES else f"{_line(repr(value)):.80}"
        return EnvironmentFault(f"{self._where(method)} returned {what}; {right}")


def _is_number(value: Any) -> bool:
    return bool(np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf")


def _line(text: str) -> str:
    return " ".join(text.split())


class ReportingSubprocVecEnv(SubprocVecEnv):
    """
    SB3's ``SubprocVecEnv`` with reports of faults: an error in a worker is raised in this process, as is the death of a worker.

    :param env_fns: functions that make the environments
    :param start_method: start method of the processes, as in ``SubprocVecEnv``
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env[Any, Any]]], start_method: str | None = None) -> None:
        self.waiting = self.closed = False
        if start_method is None:
            start_method = "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"
        context: Any = mp.get_context(start_method)
        self.processes, remotes = [], []
        for i, env_fn in enumerate(env_fns):
            remote, work_remote = context.Pipe()
            arguments = (work_remote, remote, CloudpickleWrapper(env_fn))
            process = context.Process(target=_reporting_worker, args=arguments, daemon=True)
            process.start()
            work_remote.close()
            self.processes.append(process)
            remotes.append(_Remote(remote, process, i))
        self.remotes: Any = tuple(remotes)
        self.remotes[0].send(("get_spaces", None))
        VecEnv.__init__(self, len(env_fns), *self.remotes[0].recv())

    def close(self) -> None:
        """Close the environments. If one of the processes has ended already, terminate the others."""
        if not any(remote.broken for remote in self.remotes):
            with suppress(EnvironmentFault):
                super().close()
        if not self.closed:
            for process, remote in zip(self.processes, self.remotes, strict=True):
                process.terminate()
                process.join()
                remote.close()
            self.closed = True


class _Remote:
    """The parent's end of a worker's pipe. It raises an error that the worker sent instead of a result."""

    def __init__(self, connection: Any, process: Any, number: int) -> None:
        self.connection, self.process, self.number, self.broken = connection, process, number, False

    def send(self, message: Any) -> None:
        try:
            self.connection.send(message)
        except ConnectionError as error:
            raise self._ended() from error

    def recv(self) -> Any:
        try:
            result = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise self._ended() from error
        if isinstance(result, EnvironmentFault | InputError):
            self.broken = True
            raise result
        return result

    def close(self) -> None:
        self.connection.close()

    def _ended(self) -> EnvironmentFault:
        self.broken = True
        self.process.join(5)
        code = self.process.exitcode
        how = "has gone" if code is None else f"ended with exit status {code}"
        if code is not None and code < 0:
            how = f"was killed by the signal {signal.Signals(-code).name}"
            how += ", which is what happens when memory is full" if -code == signal.SIGKILL else ""
        return EnvironmentFault(f"the process of environment {self.number} {how}")


def _reporting_worker(remote: Any, parent_remote: Any, env_fn: CloudpickleWrapper) -> None:
    try:
        _worker(remote, parent_remote, env_fn)
    except (EnvironmentFault, InputError) as error:
        remote.send(error)
    except Exception as error:
        remote.send(environment_fault("an environment in a process of its own", error))

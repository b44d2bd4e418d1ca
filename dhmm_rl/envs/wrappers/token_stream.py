"""
Wrappers that turn any environment into a stream of tokens: one for Gymnasium environments, one for SB3's vector environments.

Shapes: N environments, H steps of history, C slots, of which the first A are the action's.
"""

import json
import operator
import zlib
from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from dhmm_rl.errors import InputError
from dhmm_rl.tokens import PAD_ID, RESET, Tokenizer
from dhmm_rl.tokens.fields import flatten
from dhmm_rl.tokens.monitor import ObservationMonitor

Tokens = NDArray[Any]


class TokenSpace(spaces.Box):
    """
    The space of the last H steps of a token stream: int64 ids (H, C), with -1 before the episode began.

    The space carries its tokenizer, so a policy finds it without further arguments, and SB3 saves it with the model.

    :param tokenizer: tokenizer that makes the ids
    :param history: number of steps H, at least 1
    :raises InputError: for a history that is not a whole number of at least 1
    """

    def __init__(self, tokenizer: Tokenizer, history: int) -> None:
        try:
            history = operator.index(history)
        except TypeError:
            raise InputError(f"history is {history!r}; it must be a whole number of steps") from None
        if history < 1:
            raise InputError(f"history is {history}; it must be at least 1, which shows the present step alone")
        super().__init__(PAD_ID, tokenizer.vocab_size - 1, (history, len(tokenizer.slots)), np.int64)
        self.tokenizer = tokenizer

    def __repr__(self) -> str:
        digest = zlib.crc32(json.dumps(self.tokenizer.to_dict()).encode())
        slots = len(self.tokenizer.slots)
        return f"TokenSpace(history={self.shape[0]}, slots={slots}, ids={self.tokenizer.vocab_size}, tokenizer={digest:08x})"

    def check_equal(self, other: spaces.Space[Any]) -> None:
        """
        Compare with another space, and say what differs.

        :param other: the space of an environment that an agent with this space is given
        :raises InputError: for a space that differs, naming the first difference
        """
        if not isinstance(other, TokenSpace):
            raise InputError(f"the agent reads token streams, but the environment gives {other}; wrap it in VecTokenStream")
        difference = self.tokenizer.difference(other.tokenizer)
        if difference:
            raise InputError(
                f"the agent (here) and the environment (there) have different tokenizers: {difference}; wrap the environment "
                "in VecTokenStream(env, model.observation_space.tokenizer)"
            )
        if self.shape != other.shape:
            raise InputError(f"the agent reads a history of {self.shape[0]} steps, the environment gives {other.shape[0]}")

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and (not isinstance(other, TokenSpace) or self.tokenizer == other.tokenizer)


class ObservationEncoder:
    """
    Encodes the observations of a stream. Their values are flattened once, for the checks and for the tokenizer.

    :param tokenizer: the tokenizer of the stream
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._space, self._codec = tokenizer.observation_space, tokenizer.observation_codec
        self._monitor = ObservationMonitor(tokenizer)

    def __call__(self, observation: Any) -> Tokens:
        """
        Encode one observation, or those of N environments.

        :param observation: values of the observation space, with any leading shape
        :return: ids of the observation slots, (..., C - A)
        :raises InputError: for a value that is NaN, infinite or not a category of its field
        """
        values = flatten(self._space, observation)
        self._monitor.check(values)
        return self._codec.encode(values)


class TokenStream(gym.Wrapper[Tokens, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """
    Turns observations into the last ``history`` steps of the episode's token stream.

    :param env: any environment that has spaces which can be tokenized
    :param tokenizer: tokenizer of its spaces; when ``None``, one with 10 bins for each real field
    :param history: number of steps to show, including the present one
    :raises InputError: for a tokenizer of other spaces; from ``reset`` and ``step`` for observations that are NaN or infinite
    """

    def __init__(self, env: gym.Env[Any, Any], tokenizer: Tokenizer | None = None, history: int = 16) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, tokenizer=tokenizer, history=history)
        super().__init__(env)
        self.tokenizer = tokenizer or Tokenizer(env.observation_space, env.action_space)
        self.tokenizer.check_spaces(env.observation_space, env.action_space)
        self.observation_space = TokenSpace(self.tokenizer, history)
        self._encode = ObservationEncoder(self.tokenizer)
        self._stream = np.full(self.observation_space.shape, PAD_ID)  # the steps shown, (H, C)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tokens, dict[str, Any]]:
        """Begin an episode; its stream has one step."""
        observation, info = self.env.reset(seed=seed, options=options)
        ids = self._encode(observation)
        self._stream[:] = PAD_ID
        self._write_step(RESET, ids)
        return self._stream.copy(), info

    def step(self, action: Any) -> tuple[Tokens, SupportsFloat, bool, bool, dict[str, Any]]:
        """Act; the stream grows by one step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        ids = self._encode(observation)
        self._stream[:-1] = self._stream[1:]
        self._write_step(self.tokenizer.encode_action(action), ids)
        return self._stream.copy(), reward, terminated, truncated, info

    def _write_step(self, action_ids: Tokens | int, observation_ids: Tokens) -> None:
        self._stream[-1, : self.tokenizer.action_slots] = action_ids
        self._stream[-1, self.tokenizer.action_slots :] = observation_ids


class VecTokenStream(VecEnvWrapper):
    """
    :class:`TokenStream` for all environments of a vector environment at once.

    :param venv: a vector environment that has spaces which can be tokenized
    :param tokenizer: tokenizer of its spaces; when ``None``, one with 10 bins for each real field
    :param history: number of steps to show, including the present one
    :raises InputError: for a tokenizer of other spaces; from ``reset`` and ``step`` for observations that are NaN or infinite
    """

    def __init__(self, venv: VecEnv, tokenizer: Tokenizer | None = None, history: int = 16) -> None:
        self.tokenizer = tokenizer or Tokenizer(venv.observation_space, venv.action_space)
        self.tokenizer.check_spaces(venv.observation_space, venv.action_space)
        space = TokenSpace(self.tokenizer, history)
        super().__init__(venv, observation_space=space)
        self._encode = ObservationEncoder(self.tokenizer)
        self._streams = np.full((venv.num_envs, *space.shape), PAD_ID)  # the steps shown, (N, H, C)
        self._actions = np.empty(0)

    def reset(self) -> VecEnvObs:
        """Begin an episode in every environment."""
        ids = self._encode(self.venv.reset())
        self._streams[:] = PAD_ID
        self._write_step(slice(None), RESET, ids)
        return self._streams.copy()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Start a step."""
        self._actions = actions
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Finish a step. Infos of finished episodes hold the last steps of their streams as ``terminal_observation``."""
        observations, rewards, dones, infos = self.venv.step_wait()
        ids = self._encode(observations)
        self._streams[:, :-1] = self._streams[:, 1:]
        self._write_step(slice(None), self.tokenizer.encode_action(self._actions), ids)
        # The observation of a finished episode is already the first one of the next episode. Some vector environments do not
        # report its own last observation.
        ended = np.flatnonzero(dones).tolist()
        reported = [i for i in ended if infos[i].get("terminal_observation") is not None]
        terminal_ids = self._encode_each([infos[i]["terminal_observation"] for i in reported])
        for i, terminal in zip(reported, terminal_ids, strict=True):
            terminal_stream = self._streams[i].copy()
            terminal_stream[-1, self.tokenizer.action_slots :] = terminal
            infos[i]["terminal_observation"] = terminal_stream
        for i in ended:
            self._streams[i] = PAD_ID
            self._write_step(i, RESET, ids[i])
        return self._streams.copy(), rewards, dones, infos

    def _encode_each(self, observations: list[Any]) -> Sequence[Tokens]:
        """Encode single observations; arrays together."""
        if len(observations) > 1 and all(isinstance(observation, np.ndarray) for observation in observations):
            return list(self._encode(np.stack(observations)))
        return [self._encode(observation) for observation in observations]

    def _write_step(self, env: slice | int, action_ids: Tokens | int, observation_ids: Tokens) -> None:
        self._streams[env, -1, : self.tokenizer.action_slots] = action_ids
        self._streams[env, -1, self.tokenizer.action_slots :] = observation_ids

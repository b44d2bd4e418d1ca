"""
Any environment as a stream of tokens: one wrapper for Gymnasium environments, one for SB3's vector environments.

Shapes: N environments, H steps of history, C slots.
"""

import json
import operator
import zlib
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from dhmm_rl.errors import InputError
from dhmm_rl.tokens import PAD_ID, Tokenizer
from dhmm_rl.tokens.monitor import ObservationMonitor

Tokens = NDArray[Any]


class TokenSpace(spaces.Box):
    """
    The space of the last H steps of a token stream: ids, int64, (H, C), -1 before the episode began.

    It carries its tokenizer, so a policy finds it without further arguments and SB3 saves it with the model.

    :param tokenizer: what makes the ids
    :param history: H
    :raises InputError: when H is not a whole number of at least 1
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
        Refuse another space, for people to whom two tokenizers look alike.

        :raises InputError: saying what differs
        """
        if not isinstance(other, TokenSpace):
            raise InputError(f"the agent reads token streams, but the environment gives {other}; wrap it in VecTokenStream")
        difference = self.tokenizer.difference(other.tokenizer)
        if difference:
            raise InputError(
                f"the tokenizer of the agent (here) is not that of the environment (there): {difference}; wrap the environment "
                "with the agent's own, model.observation_space.tokenizer"
            )
        if self.shape != other.shape:
            raise InputError(f"the agent reads a history of {self.shape[0]} steps, the environment gives {other.shape[0]}")

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and (not isinstance(other, TokenSpace) or self.tokenizer == other.tokenizer)


class TokenStream(gym.Wrapper[Tokens, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """
    Observations become the last ``history`` steps of the episode's token stream.

    :param env: any environment whose spaces can be tokenized
    :param tokenizer: its tokenizer; made from its spaces with 10 bins a real field when ``None``
    :param history: how many steps are shown, the present one included
    :raises InputError: when the tokenizer's spaces are not the environment's; from ``reset`` and ``step`` for observations
        that are NaN or infinite
    """

    def __init__(self, env: gym.Env[Any, Any], tokenizer: Tokenizer | None = None, history: int = 16) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, tokenizer=tokenizer, history=history)
        super().__init__(env)
        self.tokenizer = tokenizer or Tokenizer(env.observation_space, env.action_space)
        self.tokenizer.check_spaces(env.observation_space, env.action_space)
        self.observation_space = TokenSpace(self.tokenizer, history)
        self._watch = ObservationMonitor(self.tokenizer)
        self._steps = np.full(self.observation_space.shape, PAD_ID)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tokens, dict[str, Any]]:
        """Begin an episode; its stream holds one step."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._watch.check(observation)
        self._steps[:] = PAD_ID
        self._steps[-1] = self.tokenizer.first_step(observation)
        return self._steps.copy(), info

    def step(self, action: Any) -> tuple[Tokens, SupportsFloat, bool, bool, dict[str, Any]]:
        """Act; the stream grows by one step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._watch.check(observation)
        self._steps[:-1] = self._steps[1:]
        self._steps[-1] = self.tokenizer.next_step(action, observation)
        return self._steps.copy(), reward, terminated, truncated, info


class VecTokenStream(VecEnvWrapper):
    """
    :class:`TokenStream` for all environments of a vector environment at once.

    :param venv: a vector environment whose spaces can be tokenized
    :param tokenizer: its tokenizer; made from its spaces with 10 bins a real field when ``None``
    :param history: how many steps are shown, the present one included
    :raises InputError: when the tokenizer's spaces are not the environment's; from ``reset`` and ``step`` for observations
        that are NaN or infinite
    """

    def __init__(self, venv: VecEnv, tokenizer: Tokenizer | None = None, history: int = 16) -> None:
        self.tokenizer = tokenizer or Tokenizer(venv.observation_space, venv.action_space)
        self.tokenizer.check_spaces(venv.observation_space, venv.action_space)
        super().__init__(venv, observation_space=TokenSpace(self.tokenizer, history))
        self._watch = ObservationMonitor(self.tokenizer)
        self._steps = np.full((venv.num_envs, *self.observation_space.shape), PAD_ID)  # type: ignore[misc]
        self._actions = np.empty(0)

    def reset(self) -> VecEnvObs:
        """Begin an episode in every environment."""
        observations = self.venv.reset()
        self._watch.check(observations)
        self._steps[:] = PAD_ID
        self._steps[:, -1] = self.tokenizer.first_step(observations)
        return self._steps.copy()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Start a step."""
        self._actions = actions
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Finish a step; infos hold the terminal observations of finished episodes as tokens, too."""
        observations, rewards, dones, infos = self.venv.step_wait()
        self._watch.check(observations)
        self._steps[:, :-1] = self._steps[:, 1:]
        self._steps[:, -1] = self.tokenizer.next_step(self._actions, observations)
        first = self.tokenizer.first_step(observations) if dones.any() else self._steps[:, -1]
        for i in np.flatnonzero(dones):
            if infos[i].get("terminal_observation") is not None:  # not every vector environment tells it
                self._watch.check(infos[i]["terminal_observation"])
                final = self._steps[i].copy()
                final[-1] = self.tokenizer.next_step(self._actions[i], infos[i]["terminal_observation"])
                infos[i]["terminal_observation"] = final
            self._steps[i] = PAD_ID
            self._steps[i, -1] = first[i]
        return self._steps.copy(), rewards, dones, infos

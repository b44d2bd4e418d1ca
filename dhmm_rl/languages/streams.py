"""Token streams of environments as a language, one slot after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.env_util import make_vec_env

from dhmm_rl.data import Rollouts, collect
from dhmm_rl.envs import flatten_if_needed
from dhmm_rl.errors import InputError
from dhmm_rl.languages.language import Language, TraceReader
from dhmm_rl.tokens import DONE, PAD_ID, RESET, Tokenizer

Word = tuple[int, ...]


@dataclass(frozen=True)
class Stream(Language[Word]):
    """
    The token stream of an environment, slot by slot: ``RESET s s s s action s s s s … DONE`` in CartPole.

    The size is the number of steps after the first one. An instance is a part of an episode, or the whole episode if it is
    shorter. Its first step is given. Ids are those of the tokenizer. The executor knows the grammar of steps, but not the
    dynamics of the environment. A stream may end anywhere. For streams of your own rollouts, derive a class and override
    ``rollouts``.
    """

    sizes: tuple[int, int] = (20, 20)
    """The smallest and the largest size in training."""
    env: str = "CartPole-v1"
    """Gymnasium id of the environment."""
    episodes: int = 200
    """Number of episodes to collect with random actions."""
    seed: int = 0
    """Seed of the episodes."""

    deterministic = False
    end = "DONE"

    @cached_property
    def rollouts(self) -> Rollouts:
        """Episodes that the streams are cut from."""
        try:
            venv = make_vec_env(self.env, 1, seed=self.seed, wrapper_class=flatten_if_needed)
        except (gym.error.Error, ImportError, TypeError) as error:
            raise InputError(f"the environment {self.env} cannot be made: {str(error).splitlines()[0]}") from error
        try:
            return collect(venv, episodes=self.episodes, imitate=True, env_id=self.env, seed=self.seed)
        finally:
            venv.close()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer, fitted to the rollouts."""
        rollouts = self.rollouts
        return Tokenizer(rollouts.observation_space, rollouts.action_space, bins=10).fit(rollouts)

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """``RESET``, ``DONE``, and each field's values or bins: ``observation[2]:7`` is the eighth bin of the third entry."""
        names = ["RESET", "DONE"]
        for codec in (self.tokenizer.action_codec, self.tokenizer.observation_codec):
            for name, start, stop in zip(codec.names, codec.starts[:-1], codec.starts[1:], strict=True):
                names += [f"{name}:{value}" for value in range(stop - start)]
        return tuple(names)

    @cached_property
    def _episodes(self) -> list[NDArray[np.int64]]:
        """Steps of each episode as token ids, shape (T, C)."""
        episodes = []
        for start, stop, terminated in zip(
            self.rollouts.starts[:-1], self.rollouts.starts[1:], self.rollouts.terminated, strict=True
        ):
            rows = np.arange(start, stop)
            steps = self.tokenizer.next_step(self.rollouts.actions_at(rows), self.rollouts.observations_at(rows))
            steps[0, : self.tokenizer.action_slots] = RESET
            episodes.append(np.concatenate([steps, self.tokenizer.done_step()[None]]) if terminated else steps)
        return episodes

    def instance(self, size: int, rng: np.random.Generator) -> Word:
        """Draw ``size`` + 1 steps of a random episode, or all its steps if it is shorter."""
        steps = self._episodes[rng.integers(len(self._episodes))]
        first = rng.integers(max(len(steps) - size, 1))
        ids = steps[first : first + size + 1].ravel()
        return tuple(ids[ids != PAD_ID].tolist())

    def prompt(self, instance: Word) -> list[str]:
        """Return the first step."""
        return self.decode(instance[: len(self.tokenizer.slots)])

    def trace(self, instance: Word) -> list[str]:
        """Return the steps after the first one."""
        return self.decode(instance[len(self.tokenizer.slots) :])

    def parse(self, text: str) -> Word:
        """Parse one step or more."""
        word, tokens = tuple(self.encode(text.split())), text.split()
        allowed = list(self._legal)
        if tokens[:1] == ["RESET"]:
            allowed[: self.tokenizer.action_slots] = [{"RESET"}] * self.tokenizer.action_slots
        if len(tokens) < len(allowed) or any(token not in ids for token, ids in zip(tokens, allowed, strict=False)):
            example = " ".join(self.decode(self._episodes[0][0]))
            raise InputError(f"{text!r} is not a stream; a stream begins with a whole step, such as {example}")
        self.execute(word, self.trace(word))
        return word

    def execute(self, instance: Word, trace: Sequence[str]) -> NDArray[Any]:
        """
        Assign the tokens to slots.

        :return: ids of all whole steps, including the first one, shape (T, C)
        :raises IllegalTrace: for a token in a slot of another field
        """
        names, legal = [slot.name for slot in self.tokenizer.slots], self._legal
        reader, rows = TraceReader(trace), [self.encode(self.prompt(instance))]
        while reader.place < len(trace):
            first = reader.take({*legal[0], "DONE"}, f"{names[0]} or DONE must stand here")
            if first == "DONE":
                rows.append(self.tokenizer.done_step().tolist())
                break
            left = len(trace) - reader.place
            slots = list(zip(legal, names, strict=True))[1 : left + 1]
            rest = [reader.take(ids, f"{name} must stand here") for ids, name in slots]
            if len(rest) + 1 == len(names):
                rows.append(self.encode([first, *rest]))
        reader.finish()
        return np.array(rows)

    @cached_property
    def _legal(self) -> list[set[str]]:
        """Legal tokens of each slot."""
        return [{*self.tokens[max(slot.start, DONE + 1) : slot.stop]} for slot in self.tokenizer.slots]

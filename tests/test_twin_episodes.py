"""Twin episodes: where actions change nothing but the next reward, later rewards say nothing about them."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from dhmm_rl.data.twin_episodes import only_next_reward_depends_on_actions
from tests.test_policies import RepeatCue


class Stream(gym.Env[np.int64, np.int64]):
    """Random symbols; a subclass says what is rewarded, and what its actions change."""

    observation_space = spaces.Discrete(5)
    action_space = spaces.Discrete(3)
    length = 20

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.int64, dict[str, Any]]:
        super().reset(seed=seed)
        self.taken: list[int] = []
        self.shown = [self.np_random.integers(5)]
        return self.shown[-1], {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        self.taken.append(int(action))
        reward = self.reward()
        self.shown.append(self.following())
        return self.shown[-1], reward, len(self.taken) >= self.length, False, {}

    def reward(self) -> float:
        return float(self.taken[-1] == self.shown[0] % 3)

    def following(self) -> np.int64:
        return self.np_random.integers(5)


class Delayed(Stream):
    """What was done first is rewarded last."""

    def reward(self) -> float:
        return float(len(self.taken) == self.length and self.taken[0] == 1)


class DelayedAndAtOnce(Stream):
    """Every action is rewarded at once, and the first one again at the end."""

    def reward(self) -> float:
        return super().reward() + float(len(self.taken) == self.length and self.taken[0] == 1)


class Moves(Stream):
    """The rewards are the same, but actions change what is seen."""

    def following(self) -> np.int64:
        return np.int64((self.np_random.integers(4) + self.taken[-1]) % 5)


class Ends(Stream):
    """A wrong answer ends the episode."""

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        shown, reward, terminated, truncated, info = super().step(action)
        return shown, reward, terminated or reward == 0, truncated, info


class Unseeded(Stream):
    """It ignores its seed."""

    def following(self) -> np.int64:
        return np.random.default_rng().integers(5)


class Nothing(Stream):
    """Nothing that is done matters."""

    def reward(self) -> float:
        return 1.0


class Contextual(Stream):
    """The reward is noisy, with noise that does not depend on the action."""

    action_space = spaces.Box(-1, 1, (2,), np.float64)  # type: ignore[assignment]

    def step(self, action: Any) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        reward = float(action.sum() * self.shown[-1] + self.np_random.normal())
        self.taken.append(0)
        self.shown.append(self.following())
        return self.shown[-1], reward, len(self.taken) >= self.length, False, {}


@pytest.mark.parametrize("make", [Stream, RepeatCue, Contextual])
@pytest.mark.parametrize("n_envs", [4, 16])
def test_actions_that_change_only_the_next_reward_are_found(make: Callable[[], Any], n_envs: int) -> None:
    assert only_next_reward_depends_on_actions(make_vec_env(make, n_envs))


@pytest.mark.parametrize(
    "make", [Delayed, DelayedAndAtOnce, Moves, Ends, Unseeded, Nothing, "CartPole-v1", "FrozenLake-v1", "Pendulum-v1"]
)
def test_all_others_are_not(make: Any) -> None:
    assert not any(only_next_reward_depends_on_actions(make_vec_env(make, 8), seed) for seed in range(3))


def test_few_environments_play_as_many_episodes_as_many_do() -> None:
    # Most games of Blackjack end after a step or two, so four pairs of them may show no difference.
    assert not any(only_next_reward_depends_on_actions(make_vec_env("Blackjack-v1", 1), seed) for seed in range(20))


@pytest.mark.filterwarnings("ignore")  # popgym's own
@pytest.mark.parametrize(
    ("name", "expected"), [("CountRecallEasy", True), ("RepeatPreviousEasy", True), ("MultiarmedBanditEasy", False)]
)
def test_popgyms_environments(name: str, expected: bool) -> None:
    pytest.importorskip("popgym")
    assert only_next_reward_depends_on_actions(make_vec_env(lambda: gym.make(f"popgym:popgym-{name}-v0"), 4)) == expected

"""Greedy actions in some environments and sampled ones in others, in the same steps."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl import InputError, SequencePPO, VecTokenStream
from dhmm_rl.runs.evaluate import GREEDY, SAMPLED, EvalResult, evaluate, evaluate_both
from tests.test_policies import small
from tests.test_sequence_ppo import shaken, streams


class Masked(gym.Env[Any, Any]):
    """Ten steps with reward 1 for the only legal action, which changes with every step."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(3)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=kwargs.get("seed"))
        self.steps = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward, self.steps = float(action == self.steps % 3), self.steps + 1
        return np.zeros(1, dtype=np.float32), reward, self.steps == 10, False, {}

    def action_masks(self) -> np.ndarray[Any, Any]:
        return np.isin(np.arange(3), self.steps % 3)


def agent_of(env: VecEnv) -> SequencePPO:
    settings = small(layers=1, window=4, num_states=2)
    return shaken(SequencePPO("DHMMPolicy", env, n_steps=32, batch_size=64, seed=0, policy_kwargs=settings))


@pytest.mark.parametrize(
    ("name", "head"), [("CartPole-v1", "tokens"), ("Pendulum-v1", "tokens"), ("Pendulum-v1", "gaussian")], ids=str
)
def test_every_environment_gets_the_kind_of_action_that_it_is_asked_for(name: str, head: str) -> None:
    env = streams(name)
    model = SequencePPO("DHMMPolicy", env, n_steps=32, batch_size=64, seed=0, policy_kwargs=small() | {"action_head": head})
    observation: Any = env.reset()
    greedy, after = model.predict(observation, deterministic=True)
    mixed = [model.predict(observation, deterministic=np.array([True, False, True, False])) for _ in range(20)]
    for actions, state in mixed:
        np.testing.assert_array_equal(actions[::2], greedy[::2])
        torch.testing.assert_close(state.belief, after.belief)
    assert any((actions[1] != greedy[1]).any() for actions, _ in mixed)
    with pytest.raises(InputError, match=r"deterministic has shape \(2,\); it must be one boolean, or one for each of 4"):
        model.predict(observation, deterministic=np.array([True, False]))


def test_greedy_returns_are_those_of_an_evaluation_of_their_own() -> None:
    """Also through ends of episodes, while the other environments get sampled actions."""
    make: Callable[[int], VecEnv] = lambda count: VecTokenStream(  # noqa: E731
        make_vec_env(lambda: TimeLimit(gym.make("CartPole-v1"), 60), count, seed=5), history=1
    )
    model = agent_of(make(2))
    both = evaluate_both(model, make(7), 16)  # environments 0 to 3 get greedy actions
    alone = evaluate(model, make(4), 16, early=False)
    assert sorted(both[GREEDY].returns) == sorted(alone.returns)
    assert len(both[SAMPLED].returns) == 16
    assert sorted(both[SAMPLED].returns) != sorted(alone.returns)


def count_calls(monkeypatch: pytest.MonkeyPatch, kind: type[Any]) -> list[Any]:
    calls: list[Any] = []
    predict = kind.predict

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs.get("deterministic", args[3] if len(args) > 3 else False))
        return predict(self, *args, **kwargs)

    monkeypatch.setattr(kind, "predict", counted)
    return calls


@pytest.mark.parametrize("count", [1, 2, 5])
def test_both_kinds_of_actions_take_as_many_steps_as_one(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = agent_of(streams("Pendulum-v1"))
    calls = count_calls(monkeypatch, SequencePPO)
    results = evaluate_both(model, streams("Pendulum-v1", count), 1, seconds=0.0)
    assert list(results) == [GREEDY, SAMPLED]
    assert len(calls) == (15 if count > 1 else 30)
    assert all(len(result.returns) == 1 for result in results.values())


def test_agents_that_act_in_one_way_at_a_time_are_evaluated_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> VecEnv:
        return make_vec_env(lambda: TimeLimit(gym.make("Pendulum-v1"), 15), 4, seed=0)

    model = PPO("MlpPolicy", make(), n_steps=32, batch_size=32, seed=0, device="cpu")
    calls = count_calls(monkeypatch, PPO)
    results = evaluate_both(model, make(), 4)
    assert calls == [True] * 15 + [False] * 15
    assert {len(result.returns) for result in results.values()} == {4}


def test_masks_hold_for_both_kinds_of_actions() -> None:
    def make(count: int) -> VecEnv:
        return VecTokenStream(make_vec_env(Masked, count), history=1)

    results: dict[str, EvalResult] = evaluate_both(agent_of(make(2)), make(5), 5)
    assert {kind: set(result.returns) for kind, result in results.items()} == {GREEDY: {10.0}, SAMPLED: {10.0}}

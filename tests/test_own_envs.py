"""The environments that this project registers, compared with exact results."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dhmm_rl._registration import VELOCITIES
from dhmm_rl.envs import TMaze, tiger_beliefs, tiger_values
from dhmm_rl.envs.tasks.tiger import HEAR_LEFT, HEAR_RIGHT, LISTEN, NOTHING_HEARD, OPEN_LEFT, OPEN_RIGHT


@pytest.mark.parametrize("name", ["dhmm_rl/Tiger-v0", "dhmm_rl/TMaze-v0"])
def test_gymnasiums_checker_passes(name: str) -> None:
    check_env(gym.make(name).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", VELOCITIES)
def test_without_velocities_everything_else_is_the_same(name: str) -> None:
    env, version = name.split("-")
    full, masked = gym.make(name), gym.make(f"dhmm_rl/{env}NoVel-{version}")
    full.action_space.seed(0)
    seen, shown = full.reset(seed=3)[0], masked.reset(seed=3)[0]
    keep = np.ones(len(seen), dtype=bool)
    keep[list(VELOCITIES[name])] = False
    for _ in range(10):
        assert (shown[~keep] == 0).all()
        assert (shown[keep] == seen[keep]).all()
        action = full.action_space.sample()
        seen, reward, *ends, _ = full.step(action)
        shown, same_reward, *same_ends, _ = masked.step(action)
        assert (reward, ends) == (same_reward, same_ends)
    assert masked.spec is not None
    assert full.spec is not None
    assert masked.spec.max_episode_steps == full.spec.max_episode_steps


@pytest.mark.parametrize("corridor", [1, 7])
def test_the_maze_is_worth_1_to_who_remembers_and_half_to_who_does_not(corridor: int) -> None:
    env = TMaze(corridor)

    def mean_return(remembers: bool) -> float:
        total = 0.0
        for seed in range(200):
            cue, _ = env.reset(seed=seed)
            for _ in range(corridor):
                seen, reward, terminated, truncated, _ = env.step(np.int64(0))
                assert (reward, terminated, truncated) == (0, False, False)
            assert seen == 3
            _, reward, terminated, *_ = env.step(np.int64(1 + cue if remembers else 1))
            assert terminated
            total += reward
        return total / 200

    assert mean_return(remembers=True) == 1
    assert abs(mean_return(remembers=False) - 0.5) < 0.1


def test_who_does_not_move_in_the_maze_pays_and_is_cut_off() -> None:
    env = TMaze(corridor=5)
    env.reset(seed=0)
    steps = [env.step(np.int64(1)) for _ in range(12)]
    assert sum(float(step[1]) for step in steps) == pytest.approx(-12 / 5)
    assert [step[3] for step in steps] == [False] * 11 + [True]


def test_the_tigers_optimal_return_is_what_its_optimal_policy_gets() -> None:
    gamma, horizon = 0.95, 40
    values, choices = tiger_values(gamma, horizon=horizon)
    assert (choices == np.repeat([OPEN_RIGHT, LISTEN, OPEN_LEFT], [horizon - 1, 3, horizon - 1])[::-1]).all()
    env = gym.make("dhmm_rl/Tiger-v0", max_episode_steps=200)
    returns = []
    for seed in range(1_000):
        env.reset(seed=seed)
        n, total, discount, truncated = 0, 0.0, 1.0, False
        while not truncated:
            action = choices[horizon + n]
            heard, reward, _, truncated, _ = env.step(action)
            n = n + (1 if heard == HEAR_LEFT else -1) if action == LISTEN else 0
            total, discount = total + discount * float(reward), discount * gamma
        returns.append(total)
    assert abs(np.mean(returns) - values[horizon]) < 4 * np.std(returns) / np.sqrt(len(returns))


def test_the_tigers_belief_counts_what_was_heard_since_a_door_was_opened() -> None:
    actions = np.array([0, LISTEN, LISTEN, LISTEN, OPEN_LEFT, LISTEN])
    heard = np.array([NOTHING_HEARD, HEAR_LEFT, HEAR_LEFT, HEAR_RIGHT, HEAR_LEFT, HEAR_RIGHT])
    exact = [0.5, 0.85, 0.85**2 / (0.85**2 + 0.15**2), 0.85, 0.5, 0.15]
    np.testing.assert_allclose(tiger_beliefs(actions, heard), exact)

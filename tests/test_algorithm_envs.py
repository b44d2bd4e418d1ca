"""Algorithms as environments: one conformance test for all, and oracles with the highest possible score."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from dhmm_rl.envs import Copy, DuplicatedInput, RepeatCopy, Reverse, ReversedAddition, SortEnv, TapeTask
from dhmm_rl.envs.tasks.tapes import DOWN, LEFT, RIGHT, UP
from dhmm_rl.errors import InputError
from dhmm_rl.tokens import Tokenizer

TAPES = ["Copy", "DuplicatedInput", "RepeatCopy", "Reverse", "ReversedAddition", "ReversedAddition3"]
THRESHOLDS = {
    "Copy": 25,
    "DuplicatedInput": 9,
    "RepeatCopy": 75,
    "Reverse": 25,
    "ReversedAddition": 25,
    "ReversedAddition3": 25,
}
"""https://github.com/openai/gym/blob/9f7705904c52594645541ef1b608236155b8c45b/gym/envs/__init__.py"""

Policy = Iterator[tuple[int, int, int]]


def oracle(env: TapeTask) -> Policy:
    """Generator that solves a task from what is seen: it receives symbols and yields actions."""
    seen: Any
    match env:
        case Copy():
            seen = yield RIGHT, 0, 0  # the first symbol is sent, too
            while True:
                seen = yield RIGHT, 1, seen
        case DuplicatedInput():
            seen = yield RIGHT, 0, 0
            while True:
                seen = yield RIGHT, 1, seen
                seen = yield RIGHT, 0, 0
        case Reverse():
            seen = yield RIGHT, 0, 0
            while seen != env.base:
                seen = yield RIGHT, 0, 0
            seen = yield LEFT, 0, 0
            while True:
                seen = yield LEFT, 1, seen
        case RepeatCopy():
            seen = yield RIGHT, 0, 0
            for move in (RIGHT, LEFT, RIGHT):
                while seen != env.base:
                    seen = yield move, 1, seen
                seen = yield LEFT if move == RIGHT else RIGHT, 0, 0
        case ReversedAddition():
            seen, carry, down = (yield RIGHT, 0, 0), 0, True
            while seen != env.base:
                for _ in range(env.rows - 1):
                    carry += seen
                    seen = yield DOWN if down else UP, 0, 0
                carry, digit = divmod(carry + seen, env.base)
                seen, down = (yield RIGHT, 1, digit), not down
            yield RIGHT, 1, carry


def play(env: gym.Env[Any, Any]) -> float:
    """Play one episode with an oracle and return its return."""
    task = env.unwrapped
    assert isinstance(task, TapeTask)
    policy: Any = oracle(task)
    next(policy)
    seen, _ = env.reset()
    total, over = 0.0, False
    while not over:
        action = np.array(policy.send(int(seen)))
        assert env.action_space.contains(action)
        assert (action == task.oracle()).all()  # the task's own does not know more than what is seen
        seen, reward, terminated, truncated, _ = env.step(action)
        total, over = total + float(reward), terminated or truncated
    return total


@pytest.mark.parametrize("name", [*TAPES, "Sort"])
def test_gymnasiums_checker_passes(name: str) -> None:
    env = gym.make(f"dhmm_rl/{name}-v0").unwrapped
    check_env(env, skip_render_check=True)
    Tokenizer(env.observation_space, env.action_space)


@pytest.mark.parametrize("name", [name for name in TAPES if name != "ReversedAddition3"])
def test_the_oracle_gets_everything_and_ends_above_the_threshold(name: str) -> None:
    env = gym.make(f"dhmm_rl/{name}-v0")
    task = env.unwrapped
    assert isinstance(task, TapeTask)
    env.reset(seed=0)
    assert env.spec is not None
    assert env.spec.reward_threshold == THRESHOLDS[name]
    assert env.spec.max_episode_steps == 200
    first, episodes = task.min_length, 0
    while task.min_length < 30:
        assert play(env) == len(task.target)
        episodes += 1
    assert episodes == task.episodes * (30 - first) + 1  # one length more after so many good ones, from the next on
    returns = [play(env) for _ in range(100)]
    assert np.mean(returns) >= THRESHOLDS[name]
    assert task.min_length == 30


def test_three_rows_cannot_be_added_in_time_beyond_four_columns() -> None:
    solved = {False: 0, True: 0}
    task = ReversedAddition(rows=3)
    task.reset(seed=0)
    for _ in range(60):
        total = play(task)
        solved[total == len(task.target)] += 1
        in_time = 3 * len(task.tape) + (len(task.target) > len(task.tape)) <= 2 * len(task.tape) + 4
        assert (total == len(task.target)) == in_time
        assert in_time <= (len(task.tape) <= 4)
    assert solved[True] > 0
    assert task.min_length < 5


@pytest.mark.parametrize("name", TAPES)
def test_rewards_are_the_originals(name: str) -> None:
    task = gym.make(f"dhmm_rl/{name}-v0").unwrapped
    assert isinstance(task, TapeTask)
    task.reset(seed=0)
    right = task.target[0]
    assert task.step(np.array([RIGHT, 0, 0]))[1:4] == (0.0, False, False)
    assert task.step(np.array([RIGHT, 1, right]))[1] == 1.0
    task.reset()
    wrong = (task.target[0] + 1) % task.base
    assert task.step(np.array([RIGHT, 1, wrong]))[1:4] == (-0.5, True, False)
    task.reset()
    ends = [task.step(np.array([LEFT, 0, 0]))[:4] for _ in range(task.time_limit + 1)]
    assert [end[1:] for end in ends[:-1]] == [(0.0, False, False)] * task.time_limit
    assert ends[-1][1:] == (-1.0, True, False)
    assert ends[-1][0] == task.base  # beside the tape


@pytest.mark.parametrize("name", TAPES)
def test_tapes_do_not_grow_for_who_fails(name: str) -> None:
    env = gym.make(f"dhmm_rl/{name}-v0")
    task = env.unwrapped
    assert isinstance(task, TapeTask)
    env.action_space.seed(0)
    first = task.min_length
    for episode in range(200):
        env.reset(seed=episode)
        assert first <= len(task.tape) + (name == "DuplicatedInput") <= first + 3
        over = False
        while not over:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            over = terminated or truncated
    assert task.min_length == first


@pytest.mark.parametrize("name", TAPES)
def test_mixed_tapes_are_of_all_lengths_so_far(name: str) -> None:
    task = gym.make(f"dhmm_rl/{name}-v0", mixed=True, min_length=7).unwrapped
    assert isinstance(task, TapeTask)
    lengths = set()
    for seed in range(200):
        task.reset(seed=seed)
        lengths.add(len(task.tape))
    assert lengths == ({2, 4, 6, 8} if name == "DuplicatedInput" else set(range(1, 10)))


# Sorting


@given(size=st.integers(2, 8), seed=st.integers(0, 2**31))
def test_the_oracle_sorts_every_array_in_half_the_time(size: int, seed: int) -> None:
    env, terminated, truncated = SortEnv(size=size), False, False
    env.reset(seed=seed)
    total = 0.0
    while not terminated:
        assert not truncated
        action = env.oracle()
        assert env.action_space.contains(action)
        _, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
    assert total >= 0.5 - 1e-9


def sort(env: SortEnv, places: Any) -> float:
    """Compare at given positions, swap numbers that are out of order, and return the return."""
    total, terminated, truncated = 0.0, False, False
    while not terminated and not truncated:
        i = next(places)
        (left, right), reward, terminated, truncated, _ = env.step(np.int64(i))
        total += reward
        if left > right:
            _, reward, terminated, truncated, _ = env.step(np.int64(env.size - 1 + i))
            total += reward
    assert terminated
    assert env.array.tolist() == sorted(env.array.tolist())
    return total


@given(seed=st.integers(0, 2**31), size=st.integers(2, 8), values=st.integers(2, 12))
def test_the_best_return_is_two_operations_an_inversion(seed: int, size: int, values: int) -> None:
    env = SortEnv(size, values)
    seen, info = env.reset(seed=seed)
    assert seen.tolist() == [values, values]
    array = info["array"].tolist()
    inversions = sum(a > b for i, a in enumerate(array) for b in array[i + 1 :])
    assert inversions > 0

    def out_of_order() -> Iterator[int]:
        while True:
            yield int((env.array[:-1] > env.array[1:]).argmax())

    assert sort(env, out_of_order()) == pytest.approx(1 - 2 * inversions / env.limit)
    env.reset(seed=seed)
    assert env.array.tolist() == array

    def bubble() -> Iterator[int]:
        for last in range(size - 1, 0, -1):
            yield from range(last)

    assert 0.5 - 1e-9 <= sort(env, bubble()) <= 1 - 2 * inversions / env.limit + 1e-9


def test_a_swap_of_what_was_not_compared_does_nothing() -> None:
    env = SortEnv(3, 5)
    env.reset(seed=0)
    before = env.array.copy()
    for action in (2, 0, 3, 2):  # SWAP 0; COMPARE 0, SWAP 1; SWAP 0
        seen, reward, terminated, truncated, _ = env.step(np.int64(action))
        assert (env.array == before).all()
        assert (reward, terminated, truncated) == (-1 / 12, False, False)
        assert seen.tolist() == (before[:2].tolist() if action == 0 else [5, 5])
    returns = [env.step(np.int64(2)) for _ in range(8)]
    assert [step[3] for step in returns] == [False] * 7 + [True]
    with pytest.raises(InputError, match="nothing to sort"):
        SortEnv(1)

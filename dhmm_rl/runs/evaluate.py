"""
Evaluating an agent: it acts for whole episodes in several environments.

Shapes: N environments.
"""

import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl.common import SequenceOnPolicyAlgorithm
from dhmm_rl.recipes.agents import with_masks

GREEDY, SAMPLED = ACTIONS = ("greedy", "sampled")
"""The two ways to act: taking the most likely actions, or sampling them."""
PRECISE = 0.01
"""An evaluation ends early when the half width of the mean's 95 % interval is below this fraction of the largest return."""


class EvalResult(NamedTuple):
    """
    Result of an evaluation.

    :param returns: return of each episode
    :param lengths: length of each episode in steps
    :param cut: number of episodes that the evaluation ended because the environment has no time limit
    :param round_seconds: mean duration of a round, in which every environment finishes one episode
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    cut: int
    round_seconds: float

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the returns."""
        return float(self.returns.std())

    @property
    def error(self) -> float:
        """Standard error of the mean return; infinite for a single episode."""
        count = len(self.returns)
        return float(self.returns.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf

    @property
    def precise(self) -> bool:
        """Whether further episodes would hardly change the mean return."""
        return 1.96 * self.error <= PRECISE * float(np.abs(self.returns).max())

    def __str__(self) -> str:
        mean, std = show_numbers(self.mean, self.std)
        count = len(self.returns)
        text = f"mean return {mean} ± {std} over {count} episode{'s' if count > 1 else ''}"
        return text + (f", {self.cut} of them cut off after {self.lengths.max()} steps" if self.cut else "")


def better_actions(greedy: EvalResult, sampled: EvalResult) -> str:
    """Return which actions to take: sampled ones if their mean return is higher by more than one standard error."""
    errors = [result.error if math.isfinite(result.error) else 0.0 for result in (greedy, sampled)]
    return SAMPLED if sampled.mean - greedy.mean > math.hypot(*errors) else GREEDY


def show_numbers(*values: float) -> list[str]:
    """Format numbers of one kind with the same number of decimals, so that the largest has four significant digits."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    decimals = 3 - math.floor(math.log10(largest)) if largest > 0 else 0
    if decimals > 8:
        return [f"{value:.4g}" for value in values]
    return [f"{value:.{max(decimals, 0)}f}" for value in values]


def evaluate(
    agent: Any,
    env: VecEnv,
    episodes: int,
    *,
    greedy: bool = True,
    limit: int | None = None,
    seconds: float = math.inf,
    early: bool = True,
) -> EvalResult:
    """
    Let an agent act for whole episodes.

    All environments contribute the same number of episodes, give or take one. Taking the first episodes that end would favor
    short ones. So the environments play rounds of one episode each.

    :param agent: any object with SB3's ``predict``
    :param env: environments as the agent sees them
    :param episodes: number of episodes
    :param greedy: take the most likely action instead of a sampled one
    :param limit: number of steps after which an episode is ended; the environment then contributes no further episode until
        this one really ends
    :param seconds: time limit; a round that would end later is not started, except the first one
    :param early: end after half of the episodes when the mean return is known precisely
    """
    recorder = _EpisodeRecorder(_split_episodes(episodes, env.num_envs), limit)
    return _play(agent, env, recorder, [slice(None)], greedy, seconds, early)[0]


def acts_both_ways_at_once(agent: Any) -> bool:
    """Whether an agent can take greedy actions in some environments and sampled ones in others at the same time."""
    return isinstance(agent, SequenceOnPolicyAlgorithm)


def evaluate_both(
    agent: Any, env: VecEnv, episodes: int, *, limit: int | None = None, seconds: float = math.inf
) -> dict[str, EvalResult]:
    """
    Evaluate an agent with greedy and with sampled actions.

    If the agent and the number of environments allow it, the first half of the environments gets greedy actions and the rest
    sampled ones. That takes half of the time, because most of an evaluation is the overhead of each step, however many
    environments take it. Otherwise there are two evaluations, one after the other.

    :param agent: see :func:`evaluate`
    :param env: see :func:`evaluate`
    :param episodes: number of episodes with each kind of actions
    :param limit: see :func:`evaluate`
    :param seconds: time limit of both together; a round that would end later is not started, except the first one
    :return: results by kind of actions, ``greedy`` and ``sampled``
    """
    if env.num_envs == 1 or not acts_both_ways_at_once(agent):
        began = time.perf_counter()
        greedy = evaluate(agent, env, episodes, greedy=True, limit=limit, seconds=seconds / 2)
        left = seconds - (time.perf_counter() - began)
        return {GREEDY: greedy, SAMPLED: evaluate(agent, env, episodes, greedy=False, limit=limit, seconds=left)}
    half = (env.num_envs + 1) // 2
    quotas = [_split_episodes(episodes, half), _split_episodes(episodes, env.num_envs - half)]
    recorder = _EpisodeRecorder(np.concatenate(quotas), limit)
    takes_greedy = np.arange(env.num_envs) < half
    results = _play(agent, env, recorder, [slice(half), slice(half, None)], takes_greedy, seconds, early=True)
    return dict(zip(ACTIONS, results, strict=True))


def _split_episodes(episodes: int, num_envs: int) -> NDArray[np.int64]:
    """Number of episodes that each environment contributes, (N,)."""
    return (episodes + np.arange(num_envs)) // num_envs


def _play(
    agent: Any,
    env: VecEnv,
    recorder: "_EpisodeRecorder",
    groups: list[slice],
    greedy: bool | NDArray[np.bool_],
    seconds: float,
    early: bool,
) -> list[EvalResult]:
    """
    Play rounds until the environments have contributed their episodes, every group's mean is precise, or the time is over.

    :param recorder: a new recorder of all environments
    :param groups: environments of each group; every environment is in one
    :param greedy: whether to take the most likely action: in all environments, or in each of them (N,)
    :return: result of each group
    """
    agent = with_masks(agent, env)
    began = time.perf_counter()
    observation, state, starts = env.reset(), None, np.ones(env.num_envs, dtype=bool)
    while True:
        # All environments take one step
        actions, state = agent.predict(observation, state=state, episode_start=starts, deterministic=greedy)
        observation, rewards, starts, infos = env.step(actions)
        recorder.add_step(rewards, starts, infos)
        if not recorder.finish_round():
            continue
        # After each round, decide whether to play another one
        used = time.perf_counter() - began
        round_seconds = used / recorder.rounds
        results = [recorder.result(round_seconds, group) for group in groups]
        out_of_time = used + round_seconds > seconds
        halfway = all(2 * len(one.returns) >= recorder.quota[group].sum() for one, group in zip(results, groups, strict=True))
        precise = early and halfway and all(one.precise for one in results)
        if recorder.complete or out_of_time or precise:
            return results


class _EpisodeRecorder:
    """
    Records the episodes of every environment, and counts the rounds.

    :param quota: number of episodes that each environment contributes, (N,)
    :param limit: see :func:`evaluate`
    """

    def __init__(self, quota: NDArray[np.int64], limit: int | None) -> None:
        num_envs = len(quota)
        self.limit, self.rounds, self.quota = limit, 0, quota
        self.returns: list[list[float]] = [[] for _ in range(num_envs)]
        self.lengths: list[list[int]] = [[] for _ in range(num_envs)]
        self.cuts: list[list[bool]] = [[] for _ in range(num_envs)]
        self.running_return, self.running_length = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64)
        self.stuck = np.zeros(num_envs, dtype=bool)  # in an episode that was cut and has not ended since

    def add_step(self, rewards: NDArray[Any], ends: NDArray[np.bool_], infos: list[dict[str, Any]]) -> None:
        """Add one step of all environments; ``ends`` says where it was the last one of an episode."""
        self.running_return += rewards
        self.running_length += 1
        cut = (self.running_length >= self.limit) & ~ends if self.limit is not None else np.zeros_like(ends)
        for i in np.flatnonzero((ends | cut) & ~self.stuck):
            # Monitor's record has the rewards of the environment itself, before wrappers changed them
            episode = infos[i].get("episode") if ends[i] else None
            self.returns[i].append(float(self.running_return[i] if episode is None else episode["r"]))
            self.lengths[i].append(int(self.running_length[i] if episode is None else episode["l"]))
            self.cuts[i].append(bool(cut[i]))
        self.stuck = (self.stuck | cut) & ~ends
        self.running_return[ends], self.running_length[ends] = 0.0, 0

    def finish_round(self) -> bool:
        """Count a round if every environment has contributed to it, and return whether that is so."""
        counts = np.array([len(returns) for returns in self.returns])
        if (~self.stuck & (counts < np.minimum(self.rounds + 1, self.quota))).any():
            return False
        self.rounds += 1
        return True

    @property
    def complete(self) -> bool:
        """Whether no environment can contribute another episode."""
        return bool(self.rounds >= self.quota.max() or self.stuck.all())

    def result(self, round_seconds: float, envs: slice) -> EvalResult:
        """Return some environments' episodes of all finished rounds. Episodes that ended in a later round do not count."""
        most = np.minimum(self.rounds, self.quota)[envs]

        def counted(values: list[list[Any]]) -> list[Any]:
            return [value for row, count in zip(values[envs], most, strict=True) for value in row[:count]]

        cut = sum(counted(self.cuts))
        return EvalResult(np.array(counted(self.returns)), np.array(counted(self.lengths)), cut, round_seconds)


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Restore the random number generators of Python, NumPy and torch after the block."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  environments may draw from it
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002

"""
How good an agent is: evaluations during training and at its end, which take a limited share of the time.

Shapes: N environments.
"""

import inspect
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write, check_same_run, reading, run_checksum
from dhmm_rl.model import DHMMGPT2
from dhmm_rl.recipes import AgentRecipe, EnvRecipe
from dhmm_rl.recipes.agents import with_masks
from dhmm_rl.runs.callbacks import EVALUATIONS, Clock, save_best
from dhmm_rl.runs.saved_agents import SavedAgent

GREEDY, SAMPLED = ACTIONS = ("greedy", "sampled")
"""How an agent acts: it takes the likeliest actions, or draws them."""
EVAL_SHARE = 0.2
"""Evaluations take at most this share of the seconds of training."""
DURING_TRAINING = 0.6
"""Evaluations during training take at most this part of that share; the rest is for those at the end."""
EVAL_ENVS = 20
"""Environments of an evaluation, stepped together."""
FINAL_EPISODES = 100
"""Episodes of each evaluation after training."""
FIGURES = 4
"""Evaluations after training: the last agent and the best one, each with greedy and with sampled actions."""
CHEAP_STEP = 0.002
"""Seconds. Fewer environments make an evaluation no faster when a step of all of them takes less time than this."""
NARROW = 0.01
"""An evaluation ends early when half the 95 % interval of the mean is below this share of the largest return."""
LIMIT = 10_000
"""Steps after which an evaluation ends an episode of an environment without a time limit."""
ENDLESS = 1_000
"""Steps after which an episode of such an environment is reported as one that does not end."""


class Evaluated(NamedTuple):
    """
    What an evaluation found.

    :param returns: return of each episode
    :param lengths: length of each episode in steps
    :param cut: number of episodes that the evaluation ended, because the environment has no time limit
    :param round_seconds: seconds in which every environment finished one episode
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

    def __str__(self) -> str:
        mean, std = show_numbers(self.mean, self.std)
        count = len(self.returns)
        text = f"mean return {mean} ± {std} over {count} episode{'s' if count > 1 else ''}"
        return text + (f", {self.cut} of them cut off after {self.lengths.max()} steps" if self.cut else "")


def better_actions(greedy: Evaluated, sampled: Evaluated) -> str:
    """Which actions to take: sampled ones where they give more, by more than chance explains easily."""
    return SAMPLED if sampled.mean - greedy.mean > math.hypot(_known(greedy.error), _known(sampled.error)) else GREEDY


def _known(error: float) -> float:
    return error if math.isfinite(error) else 0.0


def show_numbers(*values: float) -> list[str]:
    """Numbers of one kind as text: as many decimals for all as give the largest four significant digits."""
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
) -> Evaluated:
    """
    Let an agent act for whole episodes.

    Every environment contributes equally many episodes (give or take one), because taking whichever end first would favor
    short ones. After every round, in which each environment finishes one episode, the evaluation may end early.

    :param agent: anything with SB3's ``predict``
    :param env: the environments as the agent sees them
    :param episodes: number of episodes
    :param greedy: take the likeliest action, not a sampled one
    :param limit: end an episode after this many steps; that environment contributes no further episode until this one really
        ends
    :param seconds: start no round that would end later than this; the first round is always played
    :param early: end after half of the episodes when the mean is known well enough
    """
    agent = with_masks(agent, env)
    quota = (episodes + np.arange(env.num_envs)) // env.num_envs
    returns: list[list[float]] = [[] for _ in quota]
    lengths: list[list[int]] = [[] for _ in quota]
    cuts: list[list[bool]] = [[] for _ in quota]
    running, steps = np.zeros(len(quota)), np.zeros(len(quota), dtype=np.int64)
    stuck = np.zeros(len(quota), dtype=bool)
    began, rounds = time.perf_counter(), 0
    observation, state, starts = env.reset(), None, np.ones(len(quota), dtype=bool)
    while True:
        actions, state = agent.predict(observation, state=state, episode_start=starts, deterministic=greedy)
        observation, rewards, starts, infos = env.step(actions)
        running += rewards
        steps += 1
        cut = (steps >= limit) & ~starts if limit is not None else np.zeros_like(starts)
        for i in np.flatnonzero((starts | cut) & ~stuck):
            episode = infos[i].get("episode") if starts[i] else None  # Monitor's, before wrappers changed rewards
            returns[i].append(float(running[i] if episode is None else episode["r"]))
            lengths[i].append(int(steps[i] if episode is None else episode["l"]))
            cuts[i].append(bool(cut[i]))
        stuck = (stuck | cut) & ~starts
        running[starts], steps[starts] = 0.0, 0

        counts = np.array([len(one) for one in returns])
        if (~stuck & (counts < np.minimum(rounds + 1, quota))).any():
            continue
        rounds += 1
        used = time.perf_counter() - began
        takes = [slice(min(rounds, int(most))) for most in quota]
        found = Evaluated(
            np.array([value for one, take in zip(returns, takes, strict=True) for value in one[take]]),
            np.array([value for one, take in zip(lengths, takes, strict=True) for value in one[take]]),
            sum(value for one, take in zip(cuts, takes, strict=True) for value in one[take]),
            used / rounds,
        )
        complete = rounds >= quota.max() or stuck.all()
        if complete or used + found.round_seconds > seconds or (early and _narrow(found, episodes)):
            return found


def _narrow(found: Evaluated, episodes: int) -> bool:
    return 2 * len(found.returns) >= episodes and 1.96 * found.error <= NARROW * float(np.abs(found.returns).max())


def time_limit(env: EnvRecipe) -> int | None:
    """The time limit that Gymnasium or a wrapper gives an environment; it may have one of its own without saying so."""
    spec = gym.registry.get(env.id.rpartition(":")[2])
    limits = [env.kwargs.get("max_episode_steps"), getattr(spec, "max_episode_steps", None)]
    limits += [kwargs.get("max_episode_steps") for kwargs in env.wrappers.values()]
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)


def check_positions(agent: AgentRecipe, env: EnvRecipe) -> None:
    """
    See that learned positions last for a whole episode: training must not end in the middle.

    :raises InputError: when the environment's time limit exceeds the model's ``max_len``
    """
    limit = time_limit(env)
    if limit is None or not agent.reads_tokens or agent.model.get("positions", "rotary") == "rotary":
        return
    last = agent.model.get("max_len", inspect.signature(DHMMGPT2).parameters["max_len"].default)
    if limit >= last:
        raise InputError(
            f"episodes of {env.name} may have {limit} steps, but the learned positions of {agent.name} end at max_len {last}: "
            f"set max_len to at least {limit + 1}, or use rotary positions"
        )


def eval_limit(env: EnvRecipe, longest: int = 0, ended: int = 0, affordable: float = math.inf) -> int | None:
    """
    Steps after which an evaluation ends an episode; ``None`` for an environment with a time limit.

    It is far above the longest episode of the training, because the environment may have a limit that Gymnasium does not know.

    :param longest: steps of the longest episode that training met, whether or not it ended; 0 when that is not known
    :param ended: steps of the longest one that ended
    :param affordable: steps that the time allows
    """
    if time_limit(env) is not None:
        return None
    most = max(longest, min(4 * longest, LIMIT)) if longest else LIMIT
    return int(max(ENDLESS, 2 * ended, min(most, affordable)))


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Leave the random numbers of Python, NumPy and torch as though the block had not been there."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  environments may draw from it
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002


class Evaluation(BaseCallback):
    """
    Evaluates the agent as learning goes on, within a share of the time, and saves the best.

    During training evaluations may take :data:`DURING_TRAINING` of their share; one that does not fit in it is postponed.
    Environments are made at the first evaluation: fewer of them where episodes are long and steps expensive. The random numbers
    of the training do not depend on evaluations, so the weights do not, either.

    :param folder: of the run
    :param recipe: of the environment
    :param make_env: makes a number of environments as the agent sees them
    :param clock: of the run
    :param every: environment steps from one evaluation to the next
    :param episodes: of an evaluation
    :param final_episodes: of each evaluation after training
    :param share: of the seconds of training that evaluations may take; infinite for no limit
    :param checkpoint: from which the run goes on; its evaluations are read back
    :raises InputError: when those evaluations cannot be read
    """

    def __init__(
        self,
        folder: Path,
        recipe: EnvRecipe,
        make_env: Callable[[int], VecEnv],
        clock: Clock,
        *,
        every: int,
        episodes: int,
        final_episodes: int = FINAL_EPISODES,
        share: float = EVAL_SHARE,
        checkpoint: Path | None = None,
    ) -> None:
        super().__init__()
        self.folder, self.recipe, self.make_env, self.clock = folder, recipe, make_env, clock
        self.every, self.episodes, self.final_episodes, self.share = every, episodes, final_episodes, share
        self.env: VecEnv | None = None
        self.timesteps: list[int] = []
        """Environment steps of PPO at every evaluation."""
        self.returns: list[list[float]] = []
        """Of every episode of every evaluation."""
        self.lengths: list[list[int]] = []
        self.limit: int | None = None
        """Steps after which evaluations end an episode; ``None`` while there was no need."""
        self._eval_step_seconds: float | None = None
        self._stepping, self._stepped = 0.0, 0
        if checkpoint is not None and (checkpoint / EVALUATIONS).is_file():
            path = checkpoint / EVALUATIONS
            with reading(path), path.open("rb") as file, np.load(file) as earlier:
                check_same_run(path, str(earlier.get("run", "")), folder)
                self.timesteps = earlier["timesteps"].tolist()
                for key, kept in (("results", self.returns), ("ep_lengths", self.lengths)):
                    kept += [row[~np.isnan(row)].tolist() for row in earlier[key]]

    @property
    def best(self) -> int | None:
        """Number of the evaluation with the highest mean return, the later one of two alike."""
        means = [float(np.mean(returns)) for returns in self.returns]
        return max(range(len(means)), key=lambda i: (means[i], i), default=None)

    def _on_training_start(self) -> None:
        assert self.training_env is not None
        self._started, self._started_at = self.clock.training, self.num_timesteps
        self._lengths = np.zeros(self.training_env.num_envs, dtype=np.int64)
        self._endless = time_limit(self.recipe) is None
        calls = max(self.every // self.training_env.num_envs, 1)
        self._every = calls * self.training_env.num_envs

    def _on_rollout_start(self) -> None:
        self._before = self.clock.training

    def _on_step(self) -> bool:
        now = self.clock.training
        self._stepping += now - self._before
        self._stepped += len(self._lengths)
        self._lengths += 1
        self.clock.longest = max(self.clock.longest, int(self._lengths.max()))
        dones = self.locals["dones"]
        self.clock.longest_ended = max(self.clock.longest_ended, int(self._lengths[dones].max(initial=0)))
        self._lengths[dones] = 0
        if self._endless and self._lengths.max() >= ENDLESS:
            self._endless = False
            print(
                f"note: an episode of {self.recipe.name} has not ended within {ENDLESS} steps, and Gymnasium knows no time"
                " limit of it; kwargs = { max_episode_steps = … } in a recipe gives it one"
            )
        last = self.timesteps[-1] if self.timesteps else 0
        if self.num_timesteps // self._every > last // self._every and self._is_affordable():
            self._evaluate()
        self._before = self.clock.training
        return True

    @property
    def _step_seconds(self) -> float:
        """Seconds of one environment step: as the last evaluation measured it, or before the first one, in rollouts."""
        if self._eval_step_seconds is not None:
            return self._eval_step_seconds
        return self._stepping / max(self._stepped, 1)

    def _expected_length(self) -> int:
        """Steps of a long episode: of those that ended lately in training, and of those that have not ended yet."""
        ended = [int(info["l"]) for info in self.model.ep_info_buffer or ()]
        return max(*ended, int(self._lengths.max()), 1)

    def _count_envs(self) -> int:
        """How many environments to evaluate in: as many as the time allows for one round of each evaluation after training."""
        most = min(EVAL_ENVS, self.episodes, self.final_episodes)
        if math.isinf(self.share) or self._stepped == 0:
            return most
        done = max(self.num_timesteps - self._started_at, 1)
        left = max(self.model._total_timesteps - self.num_timesteps, 0)
        training = self.clock.training + left / done * (self.clock.training - self._started)
        affordable = self.share * (1 - DURING_TRAINING) / FIGURES * training / (self._expected_length() * self._step_seconds)
        return int(min(max(affordable, CHEAP_STEP / self._step_seconds, 1), most))

    def _is_affordable(self) -> bool:
        count = self._count_envs() if self.env is None else min(self._count_envs(), self.env.num_envs)
        return count * self._expected_length() * self._step_seconds <= self._allowed(self.share * DURING_TRAINING)

    def _allowed(self, share: float) -> float:
        return share * self.clock.training - self.clock.evaluating

    def _prepare(self, seconds: float) -> VecEnv:
        """
        The environments to evaluate in, with the present statistics of the training.

        :param seconds: that the evaluation may take
        """
        count = self._count_envs()
        if self.env is not None and count <= self.env.num_envs // 2:
            self.close()
        if self.env is None:
            self.env = self.make_env(count)
        sync_envs_normalization(self.training_env, self.env)
        if self.limit is None or 2 * self.clock.longest_ended > self.limit:
            affordable = seconds / (self.env.num_envs * self._step_seconds) if self._stepped else math.inf
            self.limit = eval_limit(self.recipe.evaluated, self.clock.longest, self.clock.longest_ended, affordable)
            if self.limit is not None:
                print(f"note: {self.recipe.name} has no time limit; evaluations end an episode after {self.limit} steps")
        return self.env

    def _evaluate(self) -> None:
        self.clock.marks.append(self.clock.training)
        with self.clock.evaluation(), kept_random_state():
            seconds = self._allowed(self.share * DURING_TRAINING)
            env = self._prepare(seconds)
            found = evaluate(self.model, env, self.episodes, limit=self.limit, seconds=seconds)
        self._measure(found, env.num_envs)
        self.timesteps.append(self.num_timesteps)
        self.returns.append(found.returns.tolist())
        self.lengths.append(found.lengths.tolist())
        self._save()
        if self.best == len(self.returns) - 1:
            save_best(self.model, self.folder)
        self.logger.record("eval/mean_reward", found.mean)
        self.logger.record("eval/mean_ep_length", float(found.lengths.mean()))
        self.logger.record("eval/episodes", len(found.returns))
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    def _save(self) -> None:
        """Write ``evaluations.npz`` as SB3's EvalCallback does; shorter rows end in NaN."""
        most = max(map(len, self.returns))
        results, lengths = (
            np.array([[*row, *[math.nan] * (most - len(row))] for row in rows]) for rows in (self.returns, self.lengths)
        )
        with atomic_write(self.folder / EVALUATIONS) as temporary:
            run = run_checksum(self.folder) or ""
            np.savez(temporary, timesteps=self.timesteps, results=results, ep_lengths=lengths, run=run)

    def evaluate_last(self, agent: BaseAlgorithm, greedy: bool, left: int) -> Evaluated:
        """
        Evaluate the agent after training.

        :param greedy: take the likeliest actions, not sampled ones
        :param left: number of evaluations that the time left is for, this one included
        """
        with self.clock.evaluation():
            seconds = self._allowed(self.share) / left
            return self._final(agent, self._prepare(seconds), greedy, seconds)

    def evaluate_best(self, agent: BaseAlgorithm, saved: SavedAgent, greedy: bool, left: int) -> Evaluated:
        """The same for an agent that was saved, with the statistics that it was saved with."""
        with self.clock.evaluation():
            seconds = self._allowed(self.share) / left
            env = saved.restore_normalization(self._prepare(seconds), training=False)
            return self._final(agent, env, greedy, seconds)

    def _final(self, agent: BaseAlgorithm, env: VecEnv, greedy: bool, seconds: float) -> Evaluated:
        found = evaluate(agent, env, self.final_episodes, greedy=greedy, limit=self.limit, seconds=seconds)
        self._measure(found, env.num_envs)
        return found

    def _measure(self, found: Evaluated, num_envs: int) -> None:
        """Remember what an environment step costs in evaluations, where a round lasts as long as its longest episode."""
        steps = num_envs * max(int(found.lengths.max()), 1)
        self._eval_step_seconds = max(found.round_seconds / steps, 1e-9)

    def close(self) -> None:
        """Close the environments."""
        if self.env is not None:
            self.env.close()
            self.env = None


def check_share(name: str, share: float) -> None:
    """:raises InputError: for a share that is not positive; it may be infinite"""
    if not share > 0:
        raise InputError(f"{name} is {share:g}; it must be positive, such as 0.2; inf sets no limit")

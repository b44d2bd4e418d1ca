"""
Evaluations during training and at its end, which take a limited fraction of the time.

Shapes: N environments.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write, check_same_run, reading, run_checksum
from dhmm_rl.recipes import EnvRecipe
from dhmm_rl.runs import time_limits
from dhmm_rl.runs.callbacks import EVALUATIONS, Clock, save_best
from dhmm_rl.runs.evaluate import (
    ACTIONS,
    EvalResult,
    acts_both_ways_at_once,
    evaluate,
    evaluate_both,
    preserve_random_state,
)
from dhmm_rl.runs.saved_agents import SavedAgent

EVAL_SHARE = 0.2
"""Default fraction of the training time that evaluations may take."""
DURING_TRAINING = 0.4
"""Part of that fraction for evaluations during training. The rest is for the evaluations at the end."""
EVAL_ENVS = 20
"""Largest number of environments in an evaluation; they are stepped together."""
FINAL_EPISODES = 100
"""Default number of episodes of each evaluation after training."""
FINAL_EVALUATIONS = 2
"""Number of evaluations after training, each with greedy and with sampled actions: of the last and of the best agent."""
CHEAP_STEP = 0.004
"""Duration in seconds. When a step of all environments is faster, fewer environments would not make evaluations faster."""
RECENT_EPISODES = 100
"""Number of episodes of the training that show how long episodes are at present."""


@dataclass(frozen=True)
class EvalSettings:
    """
    When and how long an agent is evaluated.

    :param every: number of environment steps between evaluations
    :param episodes: number of episodes of an evaluation during training
    :param final_episodes: number of episodes of each evaluation after training
    :param share: fraction of the training time that evaluations may take; no limit when infinite
    """

    every: int
    episodes: int
    final_episodes: int = FINAL_EPISODES
    share: float = EVAL_SHARE


class EvaluationCallback(BaseCallback):
    """
    Evaluates the agent during training, within a fraction of the time, and saves the best one.

    Evaluations during training may take :data:`DURING_TRAINING` of that fraction. An evaluation that does not fit in it is
    postponed. The environments are created at the first evaluation: fewer of them when episodes are long and steps are slow.
    Evaluations change neither the random numbers of the training nor, therefore, the weights.

    :param folder: folder of the run
    :param recipe: recipe of the environment
    :param make_env: function that makes the given number of environments as the agent sees them
    :param clock: clock of the run
    :param settings: settings that say when and how long the agent is evaluated
    :param checkpoint: checkpoint that the run resumes from, with its evaluations; a new run when ``None``
    :raises InputError: when the evaluations of the checkpoint cannot be read
    """

    def __init__(
        self,
        folder: Path,
        recipe: EnvRecipe,
        make_env: Callable[[int], VecEnv],
        clock: Clock,
        settings: EvalSettings,
        checkpoint: Path | None = None,
    ) -> None:
        super().__init__()
        self.folder, self.recipe, self.make_env, self.clock, self.settings = folder, recipe, make_env, clock, settings
        self.env: VecEnv | None = None
        self.timesteps: list[int] = []
        """Environment steps of PPO at each evaluation."""
        self.returns: list[list[float]] = []
        """Returns of the episodes of each evaluation."""
        self.lengths: list[list[int]] = []
        """Lengths of the episodes of each evaluation."""
        self.limit: int | None = None
        """Number of steps after which evaluations end an episode; ``None`` when they need no limit, or not yet."""
        self._eval_call_seconds: float | None = None  # duration of a step of all environments in the last evaluation
        self._rollout_seconds, self._rollout_steps = 0.0, 0
        if checkpoint is not None and (checkpoint / EVALUATIONS).is_file():
            path = checkpoint / EVALUATIONS
            with reading(path), path.open("rb") as file, np.load(file) as earlier:
                check_same_run(path, str(earlier.get("run", "")), folder)
                self.timesteps = earlier["timesteps"].tolist()
                self.returns = [row[~np.isnan(row)].tolist() for row in earlier["results"]]
                self.lengths = [row[~np.isnan(row)].tolist() for row in earlier["ep_lengths"]]

    @property
    def best(self) -> int | None:
        """Index of the evaluation with the highest mean return, of the latest one if several are equal."""
        means = [float(np.mean(returns)) for returns in self.returns]
        return max(range(len(means)), key=lambda i: (means[i], i), default=None)

    def _on_training_start(self) -> None:
        assert self.training_env is not None
        self._started, self._started_at = self.clock.training, self.num_timesteps
        self._lengths = np.zeros(self.training_env.num_envs, dtype=np.int64)
        self._recent: deque[int] = deque(maxlen=RECENT_EPISODES)
        self._longest_recent = 1
        self._endless = time_limits.time_limit(self.recipe) is None
        calls = max(self.settings.every // self.training_env.num_envs, 1)
        self._every = calls * self.training_env.num_envs

    def _on_rollout_start(self) -> None:
        self._before = self.clock.training

    def _on_step(self) -> bool:
        now = self.clock.training
        self._rollout_seconds += now - self._before
        self._rollout_steps += len(self._lengths)
        self._lengths += 1
        self.clock.longest = max(self.clock.longest, int(self._lengths.max()))
        dones = self.locals["dones"]
        if dones.any():
            self._recent.extend(self._lengths[dones].tolist())
            self._longest_recent = max(self._recent)
            self.clock.longest_ended = max(self.clock.longest_ended, self._longest_recent)
            self._lengths[dones] = 0
        if self._endless and self._lengths.max() >= time_limits.ENDLESS:
            self._endless = False
            print(
                f"note: an episode of {self.recipe.name} has not ended within {time_limits.ENDLESS} steps, and Gymnasium"
                " knows no time limit of it; kwargs = { max_episode_steps = … } in a recipe gives it one"
            )
        last = self.timesteps[-1] if self.timesteps else 0
        if self.num_timesteps // self._every > last // self._every and self._is_affordable():
            self._evaluate()
        self._before = self.clock.training
        return True

    @property
    def _step_seconds(self) -> float:
        """Duration of one environment step in rollouts."""
        return self._rollout_seconds / max(self._rollout_steps, 1)

    def _expected_length(self) -> int:
        """Length of the longest among recent episodes of the training and those that have not ended yet."""
        return max(self._longest_recent, int(self._lengths.max()))

    def _count_envs(self) -> int:
        """Number of environments to evaluate in: one round of each kind of final evaluation must fit in the time for them."""
        settings = self.settings
        most = min(EVAL_ENVS, settings.episodes, settings.final_episodes)
        if math.isinf(settings.share) or self._rollout_steps == 0:
            return most
        done = max(self.num_timesteps - self._started_at, 1)
        left = max(self.model._total_timesteps - self.num_timesteps, 0)
        training = self.clock.training + left / done * (self.clock.training - self._started)
        rounds = FINAL_EVALUATIONS * (1 if acts_both_ways_at_once(self.model) else len(ACTIONS))
        seconds = settings.share * (1 - DURING_TRAINING) * training / rounds
        affordable = seconds / (self._expected_length() * self._step_seconds)
        return int(min(max(affordable, CHEAP_STEP / self._step_seconds, 1), most))

    def _is_affordable(self) -> bool:
        call_seconds = self._eval_call_seconds
        if call_seconds is None:  # no evaluation has measured it yet
            call_seconds = self._count_envs() * self._step_seconds
        return call_seconds * self._expected_length() <= self._seconds_left(DURING_TRAINING)

    def _seconds_left(self, part: float) -> float:
        """Seconds that evaluations may still take when they may use a part of their whole share of the time."""
        return part * self.settings.share * self.clock.training - self.clock.evaluating

    def _prepare(self, seconds: float) -> VecEnv:
        """
        Return the environments to evaluate in, with the current normalization statistics of the training.

        :param seconds: time limit of the evaluation
        """
        count = self._count_envs()
        if self.env is not None and count <= self.env.num_envs // 2:
            self.close()
        if self.env is None:
            self.env = self.make_env(count)
        sync_envs_normalization(self.training_env, self.env)
        if self.limit is None or 2 * self.clock.longest_ended > self.limit:
            affordable = seconds / (self.env.num_envs * self._step_seconds) if self._rollout_steps else math.inf
            self.limit = time_limits.eval_limit(
                self.recipe.for_evaluation, self.clock.longest, self.clock.longest_ended, affordable
            )
            if self.limit is not None:
                print(f"note: {self.recipe.name} has no time limit; evaluations end an episode after {self.limit} steps")
        return self.env

    def _evaluate(self) -> None:
        self.clock.marks.append(self.clock.training)
        with self.clock.evaluation(), preserve_random_state():
            seconds = self._seconds_left(DURING_TRAINING)
            env = self._prepare(seconds)
            result = evaluate(self.model, env, self.settings.episodes, limit=self.limit, seconds=seconds)
        # A round of an evaluation lasts as long as its longest episode.
        self._eval_call_seconds = result.round_seconds / max(int(result.lengths.max()), 1)
        self.timesteps.append(self.num_timesteps)
        self.returns.append(result.returns.tolist())
        self.lengths.append(result.lengths.tolist())
        self._save()
        if self.best == len(self.returns) - 1:
            save_best(self.model, self.folder)
        self.logger.record("eval/mean_reward", result.mean)
        self.logger.record("eval/mean_ep_length", float(result.lengths.mean()))
        self.logger.record("eval/episodes", len(result.returns))
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    def _save(self) -> None:
        """Write ``evaluations.npz`` in the format of SB3's EvalCallback. Shorter rows end in NaN."""
        results, lengths = _pad(self.returns), _pad(self.lengths)
        with atomic_write(self.folder / EVALUATIONS) as temporary:
            run = run_checksum(self.folder) or ""
            np.savez(temporary, timesteps=self.timesteps, results=results, ep_lengths=lengths, run=run)

    def evaluate_last(self, agent: BaseAlgorithm) -> dict[str, EvalResult]:
        """
        Evaluate the last agent after training, in its part of the remaining time.

        :param agent: agent to evaluate
        :return: results by kind of actions, ``greedy`` and ``sampled``
        """
        with self.clock.evaluation():
            seconds = self._seconds_left(1.0) / FINAL_EVALUATIONS
            return self._evaluate_both(agent, self._prepare(seconds), seconds)

    def evaluate_best(self, agent: BaseAlgorithm, saved: SavedAgent) -> dict[str, EvalResult]:
        """
        Evaluate a saved agent after the last one, with the normalization statistics that it was saved with.

        :param agent: agent that was built from the file
        :param saved: file of the agent
        :return: results by kind of actions, ``greedy`` and ``sampled``
        """
        with self.clock.evaluation():
            seconds = self._seconds_left(1.0)
            env = saved.restore_normalization(self._prepare(seconds), training=False)
            return self._evaluate_both(agent, env, seconds)

    def _evaluate_both(self, agent: BaseAlgorithm, env: VecEnv, seconds: float) -> dict[str, EvalResult]:
        return evaluate_both(agent, env, self.settings.final_episodes, limit=self.limit, seconds=seconds)

    def close(self) -> None:
        """Close the environments."""
        if self.env is not None:
            self.env.close()
            self.env = None


def _pad(rows: Sequence[Sequence[float]]) -> NDArray[Any]:
    """A table of rows of different lengths; shorter ones end in NaN."""
    most = max(map(len, rows))
    return np.array([[*row, *[math.nan] * (most - len(row))] for row in rows])


def check_share(name: str, share: float) -> None:
    """
    Check a fraction of the time, which can be infinite.

    :raises InputError: when it is not positive
    """
    if not share > 0:
        raise InputError(f"{name} is {share:g}; it must be positive, such as 0.2; inf sets no limit")

"""What happens beside the learning of an agent: keeping the best, keeping a checkpoint."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl.files import atomic_write

BEST = "best_model.zip"
CHECKPOINT = "checkpoint"
SECONDS = "seconds.txt"


class KeepBest(BaseCallback):
    """Saves the agent when an :class:`EvalCallback` found a new best."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def _on_step(self) -> bool:
        with atomic_write(self.folder / BEST) as temporary:
            self.model.save(temporary)
        return True


class KeepCheckpoint(BaseCallback):
    """
    Saves agent and reward statistics, to resume from, at the first update after so many environment steps.

    :param folder: of the run
    :param every: environment steps
    :param clock: seconds that the run has taken so far; kept beside the agent
    """

    def __init__(self, folder: Path, every: int, clock: Callable[[], float]) -> None:
        super().__init__()
        self.folder, self.every, self.clock, self.last = folder, every, clock, 0

    def _on_training_start(self) -> None:
        self.last = self.num_timesteps

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self.last + self.every:
            self.last = self.num_timesteps
            with atomic_write(self.folder / CHECKPOINT) as temporary:
                temporary.mkdir()
                self.model.save(temporary / "model.zip")
                normalize = self.model.get_vec_normalize_env()
                if normalize is not None:
                    normalize.save(str(temporary / "vecnormalize.pkl"))
                (temporary / SECONDS).write_text(f"{self.clock():.1f}\n")

    def _on_step(self) -> bool:
        return True


def seconds_before(folder: Path) -> float:
    """What a run had taken when its checkpoint was written; 0 without one."""
    path = folder / CHECKPOINT / SECONDS
    return float(path.read_text()) if path.is_file() else 0.0


def make_eval_callback(folder: Path, env: VecEnv, episodes: int, every_calls: int, resumed_at: int) -> EvalCallback:
    """
    SB3's evaluation as learning goes on; earlier evaluations of a resumed run are read back.

    :param every_calls: steps of the training environments between evaluations
    :param resumed_at: such steps taken before the checkpoint that a run goes on from; 0 for a new one
    """
    callback = EvalCallback(
        env,
        callback_on_new_best=KeepBest(folder),
        n_eval_episodes=episodes,
        eval_freq=max(every_calls, 1),
        log_path=str(folder),
        verbose=0,
    )
    callback.n_calls = resumed_at
    path = folder / "evaluations.npz"
    if resumed_at and path.is_file():
        earlier = np.load(path)
        kept = np.arange(len(earlier["timesteps"])) < resumed_at // callback.eval_freq
        callback.evaluations_timesteps = earlier["timesteps"][kept].tolist()
        callback.evaluations_results = earlier["results"][kept].tolist()
        callback.evaluations_length = earlier["ep_lengths"][kept].tolist()
        if kept.any():
            callback.best_mean_reward = float(earlier["results"][kept].mean(axis=1).max())
    return callback

"""What happens beside the learning of an agent: keeping the best, keeping a checkpoint."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl.files import atomic_write
from dhmm_rl.training.agents import with_masks

BEST = "best_model.zip"
BEST_NORMALIZATION = "best_vecnormalize.pkl"
CHECKPOINTS = "checkpoints"
EVALUATIONS = "evaluations.npz"


class KeepBest(BaseCallback):
    """Saves the agent when an :class:`EvalCallback` found a new best."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def _on_step(self) -> bool:
        save_best(self.model, self.folder)
        return True


def save_best(model: BaseAlgorithm, folder: Path) -> None:
    """Keep an agent as the best of its run, with the statistics by which its observations are normalised."""
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        with atomic_write(folder / BEST_NORMALIZATION) as temporary:
            normalize.save(str(temporary))
    with atomic_write(folder / BEST) as temporary:
        model.save(temporary)


class Evaluation(EvalCallback):
    """SB3's evaluation, with the masks of environments that have them."""

    def _init_callback(self) -> None:
        super()._init_callback()
        self.model = with_masks(self.model, self.eval_env)


class KeepCheckpoint(BaseCallback):
    """
    Saves what a run needs to be resumed, at the first update after so many environment steps, in ``checkpoints/<steps>/``.

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
            older = last_checkpoint(self.folder)
            with atomic_write(self.folder / CHECKPOINTS / str(self.num_timesteps)) as temporary:
                temporary.mkdir()
                self.model.save(temporary / "model.zip")
                normalize = self.model.get_vec_normalize_env()
                if normalize is not None:
                    normalize.save(str(temporary / "vecnormalize.pkl"))
                if (self.folder / EVALUATIONS).is_file():
                    shutil.copyfile(self.folder / EVALUATIONS, temporary / EVALUATIONS)
                (temporary / "clock.json").write_text(json.dumps({"seconds": self.clock()}))
            if older is not None:
                shutil.rmtree(older)

    def _on_step(self) -> bool:
        return True


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run."""
    found = [path for path in (folder / CHECKPOINTS).glob("*") if path.name.isdigit()]
    return max(found, key=lambda path: int(path.name), default=None)


def seconds_before(checkpoint: Path | None) -> float:
    """What the run had taken when a checkpoint was written; 0 without one."""
    return 0.0 if checkpoint is None else float(json.loads((checkpoint / "clock.json").read_text())["seconds"])


def make_eval_callback(folder: Path, env: VecEnv, episodes: int, every_calls: int, checkpoint: Path | None) -> EvalCallback:
    """
    SB3's evaluation as learning goes on; evaluations before the checkpoint of a resumed run are read back.

    :param every_calls: steps of the vector environment between evaluations
    :param checkpoint: from which the run goes on
    """
    callback = Evaluation(
        env,
        callback_on_new_best=KeepBest(folder),
        n_eval_episodes=episodes,
        eval_freq=max(every_calls, 1),
        log_path=str(folder),
        verbose=0,
    )
    if checkpoint is not None and (checkpoint / EVALUATIONS).is_file():
        earlier = np.load(checkpoint / EVALUATIONS)
        callback.evaluations_timesteps = earlier["timesteps"].tolist()
        callback.evaluations_results = earlier["results"].tolist()
        callback.evaluations_length = earlier["ep_lengths"].tolist()
        callback.best_mean_reward = float(earlier["results"].mean(axis=1).max())
    return callback

"""What happens beside the learning of an agent: keeping the best, keeping a checkpoint."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl.files import atomic_write, reading
from dhmm_rl.training.agents import with_masks
from dhmm_rl.training.saved_agents import AGENT, BEST_AGENT, BEST_PICKLE, BEST_ZIP, save_agent

CHECKPOINTS = "checkpoints"
CLOCK = "clock.json"
EVALUATIONS = "evaluations.npz"


class Clock:
    """
    Seconds that a run has taken, those of evaluations apart.

    :param checkpoint: from which the run goes on; a run's beginning when ``None``
    :param pretraining: seconds of training before that beginning
    """

    def __init__(self, checkpoint: Path | None = None, pretraining: float = 0.0) -> None:
        before: dict[str, Any] = {"training": pretraining, "evaluating": 0.0, "marks": []}
        if checkpoint is not None:
            with reading(checkpoint / CLOCK):
                before |= json.loads((checkpoint / CLOCK).read_text(encoding="utf-8"))
        self.evaluating: float = before["evaluating"]
        self.marks: list[float] = before["marks"]
        """Seconds of training at every evaluation."""
        self._began: float = time.perf_counter() - before["training"] - self.evaluating

    @property
    def training(self) -> float:
        """Seconds of everything but evaluations."""
        return time.perf_counter() - self._began - self.evaluating

    def save(self, folder: Path) -> None:
        """Keep the times in a checkpoint."""
        times = {"training": self.training, "evaluating": self.evaluating, "marks": self.marks}
        (folder / CLOCK).write_text(json.dumps(times), encoding="utf-8")


class KeepBest(BaseCallback):
    """Saves the agent when an :class:`EvalCallback` found a new best."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def _on_step(self) -> bool:
        save_best(self.model, self.folder)
        return True


def save_best(model: BaseAlgorithm, folder: Path) -> None:
    """
    Keep an agent as the best of its run: in one file, which the commands read, and in SB3's files for its ``load`` in Python.
    """
    assert isinstance(model, OnPolicyAlgorithm)
    save_agent(model, folder / BEST_AGENT)
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        with atomic_write(folder / BEST_PICKLE) as temporary:
            normalize.save(str(temporary))
    with atomic_write(folder / BEST_ZIP) as temporary:
        model.save(temporary)


class Evaluation(EvalCallback):
    """SB3's evaluation, with the masks of environments that have them, and timed apart."""

    def __init__(self, clock: Clock, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clock = clock

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq != 0:
            return super()._on_step()
        self.clock.marks.append(self.clock.training)
        began = time.perf_counter()
        goes_on = super()._on_step()
        self.clock.evaluating += time.perf_counter() - began
        return goes_on

    def _init_callback(self) -> None:
        super()._init_callback()
        self.model = with_masks(self.model, self.eval_env)


class KeepCheckpoint(BaseCallback):
    """
    Saves what a run needs to be resumed, at the first update after so many environment steps, in ``checkpoints/<steps>/``.

    :param folder: of the run
    :param every: environment steps
    :param clock: of the run; kept beside the agent
    """

    def __init__(self, folder: Path, every: int, clock: Clock) -> None:
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
                assert isinstance(self.model, OnPolicyAlgorithm)
                save_agent(self.model, temporary / AGENT)
                if (self.folder / EVALUATIONS).is_file():
                    shutil.copyfile(self.folder / EVALUATIONS, temporary / EVALUATIONS)
                self.clock.save(temporary)
            if older is not None:
                shutil.rmtree(older)

    def _on_step(self) -> bool:
        return True


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run."""
    found = [path for path in (folder / CHECKPOINTS).glob("*") if path.name.isdigit()]
    return max(found, key=lambda path: int(path.name), default=None)


def make_eval_callback(
    folder: Path, env: VecEnv, episodes: int, every_calls: int, checkpoint: Path | None, clock: Clock
) -> Evaluation:
    """
    SB3's evaluation as learning goes on; evaluations before the checkpoint of a resumed run are read back.

    :param every_calls: steps of the vector environment between evaluations
    :param checkpoint: from which the run goes on
    :raises InputError: when those evaluations cannot be read
    """
    callback = Evaluation(
        clock,
        env,
        callback_on_new_best=KeepBest(folder),
        n_eval_episodes=episodes,
        eval_freq=max(every_calls, 1),
        log_path=str(folder),
        verbose=0,
    )
    if checkpoint is not None and (checkpoint / EVALUATIONS).is_file():
        with reading(checkpoint / EVALUATIONS), np.load(checkpoint / EVALUATIONS) as earlier:
            callback.evaluations_timesteps = earlier["timesteps"].tolist()
            callback.evaluations_results = earlier["results"].tolist()
            callback.evaluations_length = earlier["ep_lengths"].tolist()
            callback.best_mean_reward = float(earlier["results"].mean(axis=1).max())
    return callback

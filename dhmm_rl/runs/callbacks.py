"""Callbacks and files of an agent's training: the clock, the best agent, checkpoints, and a check for divergence."""

import math
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write, check_same_run, read_json, reading, run_checksum, write_json
from dhmm_rl.runs.saved_agents import AGENT, BEST_AGENT, BEST_PICKLE, BEST_ZIP, save_agent
from dhmm_rl.sequence_ppo import SequencePPO

CHECKPOINTS = "checkpoints"
CLOCK = "clock.json"
EVALUATIONS = "evaluations.npz"


class Clock:
    """
    Clock of a run. It measures the seconds of training and, separately, those of evaluations.

    :param checkpoint: checkpoint that the run resumes from; a new run when ``None``
    :param pretraining: seconds of pretraining before a new run
    """

    def __init__(self, checkpoint: Path | None = None, pretraining: float = 0.0) -> None:
        saved: dict[str, Any] = {"training": pretraining, "evaluating": 0.0, "marks": [], "longest": 0, "longest_ended": 0}
        path = Path(CLOCK) if checkpoint is None else checkpoint / CLOCK
        with reading(path):
            if checkpoint is not None:
                content = read_json(path)
                check_same_run(path, content.get("run"), checkpoint.parent.parent)
                saved = {"longest": 0, "longest_ended": 0} | content  # older runs lack these two
            self._began: float = time.perf_counter() - saved["training"] - saved["evaluating"]
            self.evaluating = float(saved["evaluating"])
            """Seconds of evaluations."""
            self.marks = [float(mark) for mark in saved["marks"]]
            """Seconds of training at each evaluation."""
            self.longest = int(saved["longest"])
            """Length of the longest episode in training, whether or not it ended."""
            self.longest_ended = int(saved["longest_ended"])
            """Length of the longest episode in training that ended."""

    @property
    def training(self) -> float:
        """Seconds of training, which is everything except evaluations."""
        return time.perf_counter() - self._began - self.evaluating

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Count the seconds of the block as those of an evaluation."""
        began = time.perf_counter()
        yield
        self.evaluating += time.perf_counter() - began

    def save(self, folder: Path, run: Path) -> None:
        """
        Save the times.

        :param folder: folder of a checkpoint
        :param run: folder of the run that the checkpoint belongs to
        """
        times: dict[str, Any] = {
            "run": run_checksum(run),
            "training": self.training,
            "evaluating": self.evaluating,
            "marks": self.marks,
            "longest": self.longest,
            "longest_ended": self.longest_ended,
        }
        write_json(folder / CLOCK, times)


def save_best(model: BaseAlgorithm, folder: Path) -> None:
    """
    Save an agent as the best of its run: in one file, which the commands read, and in SB3's own format for ``load`` in Python.

    :param model: agent to save
    :param folder: folder of the run
    """
    assert isinstance(model, OnPolicyAlgorithm)
    save_agent(model, folder / BEST_AGENT, folder)
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        with atomic_write(folder / BEST_PICKLE) as temporary:
            normalize.save(str(temporary))
    with atomic_write(folder / BEST_ZIP) as temporary:
        model.save(temporary)


class CheckpointCallback(BaseCallback):
    """
    Saves everything that resuming a run requires in ``checkpoints/<steps>/``.

    :param folder: folder of the run
    :param every: number of environment steps between checkpoints; the next update after them saves one
    :param clock: clock of the run, saved together with the agent
    """

    def __init__(self, folder: Path, every: int, clock: Clock) -> None:
        super().__init__()
        self.folder, self.every, self.clock, self.last = folder, every, clock, 0

    def _on_training_start(self) -> None:
        self.last = self.num_timesteps

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self.last + self.every:
            self.last = self.num_timesteps
            with atomic_write(self.folder / CHECKPOINTS / str(self.num_timesteps)) as temporary:
                temporary.mkdir()
                assert isinstance(self.model, OnPolicyAlgorithm)
                save_agent(self.model, temporary / AGENT, self.folder)
                if (self.folder / EVALUATIONS).is_file():
                    shutil.copyfile(self.folder / EVALUATIONS, temporary / EVALUATIONS)
                self.clock.save(temporary, self.folder)
            _remove_other_checkpoints(self.folder, str(self.num_timesteps))

    def _on_step(self) -> bool:
        return True


class DivergenceCallback(BaseCallback):
    """
    Warns of a NaN or infinite loss, and ends training before agents with NaN or infinite weights act or are saved.

    :raises InputError: when a weight is NaN or infinite
    """

    def _on_rollout_start(self) -> None:
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.policy.parameters()):
            raise InputError(
                f"training diverged: by step {self.num_timesteps} weights became NaN or infinite. The best agent is kept; "
                "lower learning_rate, or normalize rewards (normalize_reward = true in the agent's recipe)"
            )
        losses = {
            name: value for name, value in self.logger.name_to_value.items() if name.startswith("train/") and "loss" in name
        }
        not_finite = [name for name, value in losses.items() if not math.isfinite(value)]
        if not_finite and not isinstance(self.model, SequencePPO):  # SequencePPO warns itself
            warnings.warn(f"{' and '.join(not_finite)} became NaN or infinite, so the agent may learn nothing", stacklevel=2)

    def _on_training_end(self) -> None:
        self._on_rollout_start()

    def _on_step(self) -> bool:
        return True


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run, or ``None``."""
    checkpoints = [path for path in (folder / CHECKPOINTS).glob("*") if path.name.isdigit()]
    return max(checkpoints, key=lambda path: int(path.name), default=None)


def return_to_checkpoint(folder: Path, checkpoint: Path | None) -> None:
    """
    Remove everything that a killed run wrote after its last checkpoint, and older checkpoints.

    :param folder: folder of the run
    :param checkpoint: the last checkpoint; ``None`` when the run has not written one yet
    """
    _remove_other_checkpoints(folder, None if checkpoint is None else checkpoint.name)
    if checkpoint is not None and (checkpoint / EVALUATIONS).is_file():
        with atomic_write(folder / EVALUATIONS) as temporary:
            shutil.copyfile(checkpoint / EVALUATIONS, temporary)
    else:
        (folder / EVALUATIONS).unlink(missing_ok=True)


def _remove_other_checkpoints(folder: Path, name: str | None) -> None:
    for path in (folder / CHECKPOINTS).glob("*"):
        if path.name != name:
            shutil.rmtree(path)

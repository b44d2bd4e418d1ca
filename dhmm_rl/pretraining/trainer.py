"""
Training a language model by next-token prediction.

Shapes: C slots, n ids of the largest slot.
"""

import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.logger import Logger
from torch import Tensor
from tqdm import tqdm

from dhmm_rl.data import Batch
from dhmm_rl.errors import InputError
from dhmm_rl.files import check_same_run, reading, run_checksum
from dhmm_rl.model import DHMMGPT2
from dhmm_rl.model.checkpoint import load_torch, save_torch
from dhmm_rl.pretraining.gradient_step import Compile, GradientStep, compilation_pays, optimizer_for
from dhmm_rl.recipes.schema import TrainingSettings
from dhmm_rl.tokens import PAD_ID

_FORMAT = "dhmm-rl training state 1"

STATE = "training.pt"
"""Name of the file that holds the training state."""


class SequenceDataset(Protocol):
    """A dataset of numbered windows, fetched one batch at a time."""

    length: int

    def __len__(self) -> int: ...

    def __getitem__(self, indices: NDArray[np.int64]) -> Batch: ...

    def shuffled_indices(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """
        Return the indices of one epoch in random order.

        An index occurs as often as its window is shown. The number of indices is the same in every epoch.
        """
        ...

    def eval_indices(self) -> NDArray[np.int64]:
        """Return indices of windows that together contain every label exactly once."""
        ...


class TrainResult(NamedTuple):
    """
    Result of a training.

    :param steps: number of gradient steps taken
    :param best_step: gradient step with the lowest held-out loss; the model has the weights of that step
    :param loss: weighted held-out loss at that step, in nats per token
    :param bits: held-out cross-entropy per slot at that step, in bits; NaN where the weight is 0, shape (C,)
    :param seconds: duration of the training, including the time before an interruption
    """

    steps: int
    best_step: int
    loss: float
    bits: NDArray[np.float64]
    seconds: float


def train_language_model(
    model: DHMMGPT2,
    train_set: SequenceDataset,
    held_out: SequenceDataset,
    settings: TrainingSettings,
    *,
    folder: Path,
    logger: Logger,
    seed: int = 0,
    progress: bool = False,
    metrics: Callable[[], dict[str, float]] | None = None,
    evaluate_first: bool = False,
    compile: Compile = "auto",
) -> TrainResult:
    """
    Train until the held-out loss stops falling. The model ends with the weights that had the lowest held-out loss.

    The training state is saved in ``folder``. Calling the function again with the same arguments resumes an interrupted
    training, with the same result as without the interruption.

    :param model: model on the device to train on
    :param train_set: windows to train on
    :param held_out: windows to evaluate on
    :param settings: training settings
    :param folder: folder for the training state
    :param logger: SB3 logger for the losses
    :param seed: seed for the order of the batches
    :param progress: show a progress bar
    :param metrics: function that returns further metrics by name; they are logged at each evaluation
    :param evaluate_first: also evaluate before the first step, so that a model that only gets worse keeps its initial weights
    :param compile: compile the loss and its gradient; ``auto``: on a GPU, if the training is long enough for that
    :raises InputError: for settings that are out of range, a diverging loss, and a state in ``folder`` that cannot be read
    """
    settings.check()
    state = TrainingState(model, settings, folder / STATE)
    state.resume()
    batches = _batches(train_set, settings.batch_size, seed, skip=state.step)
    evaluation = _Evaluation(model, held_out, settings, state, logger, metrics)
    eval_every = settings.eval_every or _default_interval(held_out, settings)
    bar = tqdm(total=settings.steps, initial=state.step, desc="pretraining", unit="step", disable=None if progress else True)
    if evaluate_first and not state.best_weights:
        evaluation.run(bar)
    compiled = compilation_pays(compile, model, settings.steps)
    gradient_step = GradientStep(model, state.optimizer, settings.max_grad_norm, compiled)
    # Stop after the last step, or when the held-out loss has not improved for `patience` evaluations
    while state.step < settings.steps and state.stale < settings.patience:
        # Learning-rate schedule: warm-up, then cosine decay
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(state.step, settings)
        # One AdamW step on the next-token loss of a batch
        state.losses.append(gradient_step(next(batches)))
        state.step += 1
        bar.update()
        # Held-out loss, early stopping and checkpoint
        if state.step % eval_every == 0 or state.step == settings.steps:
            evaluation.run(bar)
    bar.close()
    # Return to the weights with the lowest held-out loss
    model.eval().load_state_dict(state.best_weights)
    return TrainResult(state.step, state.best_step, state.best_loss, np.array(state.best_bits), state.elapsed())


class _Evaluation(NamedTuple):
    """Evaluates a model during training, logs the losses and saves the training state."""

    model: DHMMGPT2
    held_out: SequenceDataset
    settings: TrainingSettings
    state: "TrainingState"
    logger: Logger
    metrics: Callable[[], dict[str, float]] | None

    def run(self, bar: "tqdm[Any]") -> None:
        """
        Evaluate once.

        :param bar: progress bar that shows the losses
        :raises InputError: when the held-out loss is NaN or infinite
        """
        state, logger = self.state, self.logger
        # Only now, because on a GPU it waits for the gradient steps
        for train_loss in torch.stack(state.losses).tolist() if state.losses else []:
            logger.record_mean("pretrain/loss", train_loss)
        state.losses.clear()
        loss, bits = evaluate_language_model(self.model, self.held_out, self.settings.batch_size)
        if not math.isfinite(loss):
            raise InputError(f"training diverged: the held-out loss is {loss}; a lower learning rate would help")
        state.update_best(loss, bits)
        bar.set_postfix(held_out=f"{loss:.4f}", best=f"{state.best_loss:.4f}")
        logger.record("pretrain/steps", state.step, exclude="tensorboard")
        logger.record("pretrain/held_out_loss", loss)
        logger.record("pretrain/learning_rate", learning_rate(max(state.step - 1, 0), self.settings))
        for slot, value in zip(self.model.slots, bits, strict=True):
            if not math.isnan(value):
                logger.record(f"bits/{slot.name}", value)
        if self.metrics is not None:
            for name, value in self.metrics().items():
                logger.record(name, value)
        logger.dump(state.step)
        state.save()


def steps_done(folder: Path) -> int:
    """
    Return the gradient step after which the training in a folder resumes.

    The result is −1 when there is no saved state, because step 0 can be logged, too.

    :raises InputError: when the state cannot be read
    """
    path = folder / STATE
    return int(load_torch(path, _FORMAT)["step"]) if path.exists() else -1


def seconds_per_step(model: DHMMGPT2, train_set: SequenceDataset, settings: TrainingSettings, tries: int = 3) -> float:
    """
    Measure the duration of a gradient step on a copy of the model.

    Time in which other processes used the CPU does not count, so a busy machine gives about the same result as an idle one.

    :param model: model to measure; it is not changed
    :param train_set: windows to train on
    :param settings: training settings
    :param tries: number of steps to measure; the fastest one counts
    """
    copied = deepcopy(model)
    gradient_step = GradientStep(copied, torch.optim.AdamW(copied.parameters(), lr=0.0), settings.max_grad_norm)
    batches = _batches(train_set, settings.batch_size, seed=0, skip=0)
    seconds = []
    with torch.random.fork_rng():
        for _ in range(tries):
            batch = next(batches)
            began, cpu_began = time.perf_counter(), time.process_time()
            gradient_step(batch).item()
            seconds.append(min(time.perf_counter() - began, time.process_time() - cpu_began))
    return min(seconds)


@torch.no_grad()
def evaluate_language_model(model: DHMMGPT2, dataset: SequenceDataset, batch_size: int) -> tuple[float, NDArray[np.float64]]:
    """
    Compute the loss over every label of a dataset.

    :param model: model to evaluate
    :param dataset: windows to evaluate on
    :param batch_size: largest number of windows in a forward pass
    :return: weighted mean in nats per token, and unweighted mean per slot in bits, shape (C,), NaN where all weights are 0
    :raises InputError: when the dataset has no label with a positive weight
    """
    model.eval()
    device = model.slot_ids.device
    slots = len(model.slots)
    nats = torch.zeros(slots, dtype=torch.float64)  # per slot: sum of the losses, number of labels, sum of the weights
    labels, total_weight = nats.clone(), nats.clone()
    weighted_nats = 0.0
    for indices in _chunks(dataset.eval_indices(), batch_size):
        batch = Batch(*(part.to(device) for part in dataset[indices]))
        output = model(batch.input_ids, batch.labels, position_ids=batch.position_ids)
        losses = output.token_loss.double().reshape(-1, slots)
        weights = (batch.weights * (batch.labels >= 0)).double().reshape(-1, slots)
        counted = weights > 0
        nats += (losses * counted).sum(dim=0).cpu()
        labels += counted.sum(dim=0).cpu()
        weighted_nats += float((losses * weights).sum())
        total_weight += weights.sum(dim=0).cpu()
    if not total_weight.sum() > 0:
        raise InputError("the held-out episodes hold nothing to predict: give more episodes, or weights that are not all 0")
    return weighted_nats / float(total_weight.sum()), (nats / labels / math.log(2)).numpy()


def frequency_bits(train_set: SequenceDataset, held_out: SequenceDataset, slot_ids: Tensor) -> NDArray[np.float64]:
    """
    Compute the held-out bits per slot of a baseline that only knows how frequent each id is (with add-one smoothing).

    :param train_set: windows whose ids are counted
    :param held_out: windows to evaluate on
    :param slot_ids: the model's ``slot_ids``, shape (C, n)
    :return: bits per slot, shape (C,); NaN where all weights are 0
    """
    starts = slot_ids[:, 0].cpu()
    sizes = (slot_ids >= 0).sum(dim=1).cpu()

    def count_ids(dataset: SequenceDataset) -> list[Tensor]:
        counts = [torch.zeros(int(size), dtype=torch.long) for size in sizes]
        for indices in _chunks(dataset.eval_indices(), 4096):
            batch = dataset[indices]
            labels = batch.labels.masked_fill(batch.weights == 0, PAD_ID).reshape(-1, len(starts))
            for count, column, start in zip(counts, labels.T, starts, strict=True):
                count += torch.bincount(column[column >= 0] - start, minlength=len(count))
        return counts

    bits = []
    for train_count, held_out_count in zip(count_ids(train_set), count_ids(held_out), strict=True):
        probability = (train_count + 1) / (train_count + 1).sum()
        bits.append(float(-(held_out_count * probability.log2()).sum() / held_out_count.sum()))
    return np.array(bits)


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Return the learning rate of a gradient step: linear warm-up, then cosine decay to a tenth of the peak."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(settings.steps - settings.warmup, 1)
    return settings.learning_rate * (0.55 + 0.45 * math.cos(math.pi * min(progress, 1.0)))


def _default_interval(held_out: SequenceDataset, settings: TrainingSettings) -> int:
    """Number of gradient steps between evaluations, which see at most as many batches as the training does."""
    return max(settings.steps // 20, math.ceil(len(held_out.eval_indices()) / settings.batch_size))


def _chunks(indices: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return np.array_split(indices, math.ceil(len(indices) / size))


def _batches(dataset: SequenceDataset, batch_size: int, seed: int, skip: int) -> Iterator[Batch]:
    """
    Yield batches without end. Their order depends only on the seed.

    An epoch shows each environment step about once. Windows overlap, so it takes a fraction 1 / length of the indices.

    :param dataset: windows to fetch
    :param batch_size: number of windows in a batch
    :param seed: seed for the order
    :param skip: number of batches to leave out, those taken before an interruption
    """

    def indices_of(epoch: int) -> NDArray[np.int64]:
        return dataset.shuffled_indices(np.random.default_rng([seed, epoch]))

    per_epoch = max(len(indices_of(0)) // dataset.length // batch_size, 1)
    epoch, first = divmod(skip, per_epoch)
    while True:
        indices = indices_of(epoch)
        for i in range(first, per_epoch):
            yield dataset[indices[i * batch_size : (i + 1) * batch_size]]
        epoch, first = epoch + 1, 0


_SAVED = ("step", "best_step", "stale", "best_loss", "best_bits", "best_weights", "seconds")
"""Attributes of the training state that its file contains unchanged."""


class TrainingState:
    """
    Everything that changes during training, and the file it is saved in.

    :param model: model that is trained
    :param settings: training settings
    :param path: file of the state
    """

    def __init__(self, model: DHMMGPT2, settings: TrainingSettings, path: Path) -> None:
        self.model, self.path = model, path
        self.optimizer = optimizer_for(model, settings.learning_rate, settings.weight_decay)
        self.step = self.best_step = 0
        self.stale = 0
        """Number of evaluations since the lowest held-out loss."""
        self.best_loss = math.inf
        self.best_bits: list[float] = []
        self.best_weights: dict[str, Any] = {}
        self.losses: list[Tensor] = []
        """Training losses since the last evaluation."""
        self.seconds = 0.0
        """Seconds of training in earlier processes."""
        self.began = time.perf_counter()

    def elapsed(self) -> float:
        """Return the seconds of training, without the time between an interruption and its resumption."""
        return self.seconds + time.perf_counter() - self.began

    def update_best(self, loss: float, bits: NDArray[np.float64]) -> None:
        """Copy the weights if their held-out loss is the lowest so far."""
        self.stale += 1
        if loss < self.best_loss:
            self.stale, self.best_step, self.best_loss, self.best_bits = 0, self.step, loss, bits.tolist()
            self.best_weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def save(self) -> None:
        """Write the state to its file."""
        content = {name: getattr(self, name) for name in _SAVED} | {
            "seconds": self.elapsed(),
            "run": run_checksum(self.path.parent),
            "format": _FORMAT,
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }
        save_torch(self.path, content)

    def resume(self) -> None:
        """
        Read the state from its file, if there is one.

        :raises InputError: when the file cannot be read or belongs to another run
        """
        if not self.path.exists():
            return
        content = load_torch(self.path, _FORMAT)
        check_same_run(self.path, content.get("run"), self.path.parent)
        with reading(self.path):
            self.model.load_state_dict(content["weights"])
            # The file may be from another kind of device, where the optimizer is another variant
            for saved, group in zip(content["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True):
                saved["fused"] = group["fused"]
            self.optimizer.load_state_dict(content["optimizer"])
            torch.set_rng_state(content["torch_rng"])
            for name in _SAVED:
                setattr(self, name, content[name])

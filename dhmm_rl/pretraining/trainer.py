"""
Training a language model by next-token prediction.

Shapes: C slots.
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
from dhmm_rl.recipes.schema import TrainingSettings

_FORMAT = "dhmm-rl training state 1"

STATE = "training.pt"
"""File of the state of a training."""


class SequenceDataset(Protocol):
    """A training set: numbered windows, fetched a batch at a time."""

    length: int

    def __len__(self) -> int: ...

    def __getitem__(self, indices: NDArray[np.int64]) -> Batch: ...

    def shuffled_indices(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Numbers of windows in random order: as often each as it is to be shown, always as many altogether."""
        ...

    def eval_indices(self) -> NDArray[np.int64]:
        """Numbers of windows that together hold every label once."""
        ...


class TrainResult(NamedTuple):
    """
    :param steps: gradient steps taken
    :param best_step: the one whose weights the model has now
    :param loss: weighted held-out loss then, in nats per token
    :param bits: held-out cross-entropy per slot then, in bits; NaN where the weight is 0, (C,)
    :param seconds: that training took, those before an interruption included
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
    figures: Callable[[], dict[str, float]] | None = None,
    evaluate_first: bool = False,
) -> TrainResult:
    """
    Train until the held-out loss stops falling, and leave the model with the weights that had the lowest.

    The state is kept in ``folder``: the same call again goes on where it was interrupted, with the same result as though it
    had not been.

    :param model: on the device to train on
    :param logger: SB3's, for the losses
    :param progress: show a bar
    :param figures: further ones to log at each look at the held-out set, by name
    :param evaluate_first: also evaluate before the first step, so that a model that only gets worse is left untrained
    :raises InputError: for settings out of range, or a state in ``folder`` that cannot be read
    """
    settings.check()
    state = _State(model, settings, folder / STATE)
    state.resume()
    every = settings.eval_every or max(settings.steps // 20, math.ceil(len(held_out.eval_indices()) / settings.batch_size))
    stream = _batches(train_set, settings.batch_size, seed, state.step)
    bar = tqdm(total=settings.steps, initial=state.step, desc="pretraining", unit="step", disable=None if progress else True)

    def look() -> None:
        held_out_loss, bits = evaluate_language_model(model, held_out, settings.batch_size)
        if not math.isfinite(held_out_loss):
            raise InputError(f"training diverged: the held-out loss is {held_out_loss}; a lower learning rate would help")
        state.keep(held_out_loss, bits)
        bar.set_postfix(held_out=f"{held_out_loss:.4f}", best=f"{state.best_loss:.4f}")
        logger.record("pretrain/steps", state.step, exclude="tensorboard")
        logger.record("pretrain/held_out_loss", held_out_loss)
        logger.record("pretrain/learning_rate", learning_rate(max(state.step - 1, 0), settings))
        for slot, value in zip(model.slots, bits, strict=True):
            if not math.isnan(value):
                logger.record(f"bits/{slot.name}", value)
        for name, value in ({} if figures is None else figures()).items():
            logger.record(name, value)
        logger.dump(state.step)
        state.save()

    if evaluate_first and not state.best_weights:
        look()
    while state.step < settings.steps and state.stale < settings.patience:
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(state.step, settings)
        loss = _gradient_step(model, next(stream), state.optimizer, settings)
        state.step += 1
        bar.update()
        logger.record_mean("pretrain/loss", loss)
        if state.step % every == 0 or state.step == settings.steps:
            look()
    bar.close()
    model.load_state_dict(state.best_weights)
    model.eval()
    return TrainResult(state.step, state.best_step, state.best_loss, np.array(state.best_bits), state.elapsed())


def steps_done(folder: Path) -> int:
    """
    Gradient steps after which the training in a folder resumes; −1 when it has not begun, since step 0 may be logged, too.

    :raises InputError: when its state cannot be read
    """
    path = folder / STATE
    return int(load_torch(path, _FORMAT)["step"]) if path.exists() else -1


def _gradient_step(model: DHMMGPT2, batch: Batch, optimizer: torch.optim.Optimizer, settings: TrainingSettings) -> float:
    """Take one step and return the loss before it."""
    model.train()
    device = model.slot_ids.device
    batch = Batch(*(part.to(device) for part in batch))
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=_mixed_precision(device)):
        loss = model(batch.input_ids, batch.labels, weights=batch.weights, position_ids=batch.position_ids).loss
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    optimizer.step()
    return float(loss.detach())


def seconds_per_step(model: DHMMGPT2, train_set: SequenceDataset, settings: TrainingSettings, tries: int = 3) -> float:
    """
    Measure how long a gradient step takes, on a copy of the model: the fastest of a few.

    Time in which other processes had the CPU does not count, so that a busy machine measures about the same.
    """
    copied = deepcopy(model)
    optimizer = torch.optim.AdamW(copied.parameters(), lr=0.0)
    stream = _batches(train_set, settings.batch_size, 0, 0)
    seconds = []
    with torch.random.fork_rng():
        for _ in range(tries):
            batch = next(stream)
            began = time.perf_counter(), time.process_time()
            _gradient_step(copied, batch, optimizer, settings)
            seconds.append(min(time.perf_counter() - began[0], time.process_time() - began[1]))
    return min(seconds)


@torch.no_grad()
def evaluate_language_model(model: DHMMGPT2, windows: SequenceDataset, batch_size: int) -> tuple[float, NDArray[np.float64]]:
    """
    The loss over every label of a set once.

    :return: weighted mean in nats per token, and mean per slot in bits (C,), NaN where the weights are 0
    """
    model.eval()
    device = model.slot_ids.device
    nats = torch.zeros(len(model.slots), dtype=torch.float64)
    tokens, weight = nats.clone(), nats.clone()
    weighted = 0.0
    for indices in _split(windows.eval_indices(), batch_size):
        batch = Batch(*(part.to(device) for part in windows[indices]))
        losses = (
            model(batch.input_ids, batch.labels, position_ids=batch.position_ids)
            .token_loss.double()
            .reshape(-1, len(model.slots))
        )
        weights = (batch.weights * (batch.labels >= 0)).double().reshape(-1, len(model.slots))
        counted = weights > 0
        nats += (losses * counted).sum(dim=0).cpu()
        tokens += counted.sum(dim=0).cpu()
        weighted += float((losses * weights).sum())
        weight += weights.sum(dim=0).cpu()
    if not weight.sum() > 0:
        raise InputError("the held-out episodes hold nothing to predict: give more episodes, or weights that are not all 0")
    return weighted / float(weight.sum()), (nats / tokens / math.log(2)).numpy()


def frequency_bits(train_set: SequenceDataset, held_out: SequenceDataset, slot_ids: Tensor) -> NDArray[np.float64]:
    """
    Held-out bits per slot of a model that knows only how often each id stands in each slot (add-one smoothing).

    :param slot_ids: ``model.slot_ids``, (C, n)
    :return: (C,)
    """
    starts = slot_ids[:, 0].cpu()
    sizes = (slot_ids >= 0).sum(dim=1).cpu()

    def counts(windows: SequenceDataset) -> list[Tensor]:
        total = [torch.zeros(int(size), dtype=torch.long) for size in sizes]
        for indices in _split(windows.eval_indices(), 4096):
            batch = windows[indices]
            labels = batch.labels.masked_fill(batch.weights == 0, -1).reshape(-1, len(starts))
            for slot, column, start in zip(total, labels.T, starts, strict=True):
                slot += torch.bincount(column[column >= 0] - start, minlength=len(slot))
        return total

    bits = []
    for seen, met in zip(counts(train_set), counts(held_out), strict=True):
        probability = (seen + 1) / (seen + 1).sum()
        bits.append(float(-(met * probability.log2()).sum() / met.sum()))  # NaN where the weights are 0
    return np.array(bits)


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Linear warm-up, then a cosine down to a tenth of the peak."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    share = (step - settings.warmup) / max(settings.steps - settings.warmup, 1)
    return settings.learning_rate * (0.55 + 0.45 * math.cos(math.pi * min(share, 1.0)))


def _split(indices: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return np.array_split(indices, math.ceil(len(indices) / size))


def _mixed_precision(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def _batches(windows: SequenceDataset, batch_size: int, seed: int, skip: int) -> Iterator[Batch]:
    """Endless batches, in an order that depends on the seed alone; an epoch shows every step about once."""

    def order_of(epoch: int) -> NDArray[np.int64]:
        return windows.shuffled_indices(np.random.default_rng([seed, epoch]))

    per_epoch = max(len(order_of(0)) // windows.length // batch_size, 1)
    epoch, first = divmod(skip, per_epoch)
    while True:
        order = order_of(epoch)
        for i in range(first, per_epoch):
            yield windows[order[i * batch_size : (i + 1) * batch_size]]
        epoch, first = epoch + 1, 0


_KEPT = ("step", "best_step", "stale", "best_loss", "best_bits", "best_weights", "seconds")
"""Attributes of the state that its file holds as they are."""


class _State:
    """Everything that training changes, and its file."""

    def __init__(self, model: DHMMGPT2, settings: TrainingSettings, path: Path) -> None:
        self.model, self.path = model, path
        decayed = [p for name, p in model.named_parameters() if p.dim() >= 2 and not name.startswith("chain.")]
        rest = [p for name, p in model.named_parameters() if p.dim() < 2 or name.startswith("chain.")]
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95))
        self.step = self.best_step = self.stale = 0
        self.best_loss = math.inf
        self.best_bits: list[float] = []
        self.best_weights: dict[str, Any] = {}
        self.seconds, self.began = 0.0, time.perf_counter()
        """Of training before this process, and when it began here."""

    def elapsed(self) -> float:
        """Seconds of training, interruptions apart."""
        return self.seconds + time.perf_counter() - self.began

    def keep(self, loss: float, bits: NDArray[np.float64]) -> None:
        """Remember the weights if they are the best so far."""
        self.stale += 1
        if loss < self.best_loss:
            self.stale, self.best_step, self.best_loss, self.best_bits = 0, self.step, loss, bits.tolist()
            self.best_weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def save(self) -> None:
        """Write the state."""
        content = {name: getattr(self, name) for name in _KEPT} | {
            "seconds": self.elapsed(),
            "run": run_checksum(self.path.parent),
            "format": _FORMAT,
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }
        save_torch(self.path, content)

    def resume(self) -> None:
        """Read the state if there is one."""
        if self.path.exists():
            content = load_torch(self.path, _FORMAT)
            check_same_run(self.path, content.get("run"), self.path.parent)
            with reading(self.path):
                self.model.load_state_dict(content["weights"])
                self.optimizer.load_state_dict(content["optimizer"])
                torch.set_rng_state(content["torch_rng"])
                for name in _KEPT:
                    setattr(self, name, content[name])

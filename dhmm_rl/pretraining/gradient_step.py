"""
One gradient step of a language model: in mixed precision, compiled if that pays, and without waiting for the device on a GPU.

Shapes: B windows, L steps, C slots.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from dhmm_rl.common.recording import RecordedGradient
from dhmm_rl.data import Batch
from dhmm_rl.model import DHMMGPT2

Compile = Literal["auto", "on", "off"]
"""When training is compiled by ``torch.compile``; see :func:`compilation_pays`."""

COMPILED_STEPS = 3000
"""Number of gradient steps from which on compilation, which takes about half a minute, pays on a GPU."""


def compilation_pays(choice: Compile, model: DHMMGPT2, steps: int) -> bool:
    """
    Return whether to compile a training.

    :param choice: ``on``, ``off``, or ``auto``: on a GPU, for trainings that are long enough
    :param model: model on the device to train on
    :param steps: number of gradient steps
    """
    on_gpu = model.slot_ids.device.type == "cuda"
    return choice == "on" or (choice == "auto" and on_gpu and steps >= COMPILED_STEPS)


RECORDED_SHAPES = 8
"""Number of shapes of batches for which a gradient is recorded; each needs memory of its own."""


class GradientStep:
    """
    Takes gradient steps on the next-token loss of batches. On a GPU, gradients are recorded and replayed.

    :param model: model on the device to train on
    :param optimizer: optimizer of its parameters
    :param max_grad_norm: gradient-norm clipping threshold
    :param compiled: whether the loss and its gradient are compiled
    """

    def __init__(self, model: DHMMGPT2, optimizer: torch.optim.Optimizer, max_grad_norm: float, compiled: bool = False) -> None:
        self.model, self.optimizer, self.max_grad_norm = model, optimizer, max_grad_norm
        self.device = model.slot_ids.device
        self.inspects = self.device.type == "cpu" and not compiled
        self.loss: Any = torch.compile(next_token_loss) if compiled else next_token_loss
        self.parameters = list(model.parameters())
        self.padded = False
        self.recorded: dict[Any, RecordedGradient[Tensor]] = {}

    def __call__(self, batch: Batch) -> Tensor:
        """Take one gradient step; returns the loss before it, (), which is still being computed on a GPU."""
        if not self.model.training:
            self.model.train()
        # On a GPU, ids are inspected before they get there. Once there was padding, later passes allow it, too
        padded = None
        if not self.inspects:
            missing = batch.input_ids < 0
            self.padded = self.padded or bool((missing.all(dim=-1) if missing.dim() > 2 else missing).any())
            padded = self.padded
        loss = self._replay(batch, self.padded) if self.device.type == "cuda" else self._gradient(batch, padded)
        self.optimizer.step()
        return loss

    def _gradient(self, batch: Batch, padded: bool | None) -> Tensor:
        """Compute the gradient on a batch and clip it; returns the loss, ()."""
        for parameter in self.parameters:
            parameter.grad = None
        with torch.enable_grad():
            loss: Tensor = self.loss(self.model, batch, padded)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        return loss.detach()

    def _replay(self, batch: Batch, padded: bool) -> Tensor:
        """The same on a GPU, without waiting for it."""
        batch = Batch(*(part.contiguous().pin_memory() for part in batch))
        key = (batch.input_ids.shape, padded)
        if key not in self.recorded:
            on_gpu = Batch(*(part.to(self.device, non_blocking=True) for part in batch))
            if len(self.recorded) == RECORDED_SHAPES:
                return self._gradient(on_gpu, padded)

            def gradient(*parts: Tensor) -> Tensor:
                return self._gradient(Batch(*parts), padded)

            self.recorded[key] = RecordedGradient(self.parameters, gradient, *on_gpu)
        return self.recorded[key](*batch).clone()


def next_token_loss(model: DHMMGPT2, batch: Batch, padded: bool | None) -> Tensor | None:
    """
    Mean next-token loss of a batch; on a GPU in bfloat16, where the latent layer and the losses stay in single precision.

    :param model: model to train
    :param batch: windows, on the model's device
    :param padded: whether some steps may be padding; see :meth:`DHMMGPT2.forward`
    """
    device = model.slot_ids.device
    mixed = device.type == "cuda" and torch.cuda.is_bf16_supported()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
        out = model(batch.input_ids, batch.labels, weights=batch.weights, position_ids=batch.position_ids, padded=padded)
    loss: Tensor | None = out.loss
    return loss


def optimizer_for(model: DHMMGPT2, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """
    Return AdamW for a language model; on a GPU, one kernel updates all parameters.

    Weight decay acts on the transformer's matrices: not on biases and norms, and not on the latent layer.

    :param model: model to train
    :param learning_rate: learning rate
    :param weight_decay: weight decay
    """
    decayed = [p for name, p in model.named_parameters() if p.dim() >= 2 and not name.startswith("latent.")]
    rest = [p for name, p in model.named_parameters() if p.dim() < 2 or name.startswith("latent.")]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    fused = True if model.slot_ids.device.type == "cuda" else None
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=fused)

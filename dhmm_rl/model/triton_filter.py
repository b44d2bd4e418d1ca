# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton reads the annotations of its kernels; only sizes that they are compiled for have one.
"""
The filter's loop as two Triton kernels, for GPUs: one program filters one chain of one sequence, with its belief in registers.

This module imports Triton, which torch's builds for CUDA contain; :mod:`dhmm_rl.model.filter_ops` imports it when it is needed.

Shapes: B sequences, T steps, N chains, K states of a chain, M transition matrices. P is the program's number, b · N + n.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dhmm_rl.model.filter_kernels import TINY, UNLIKELY


def forward(
    initial: Tensor,
    gates: Tensor,
    likelihood: Tensor,
    transitions: Tensor,
    restart_belief: Tensor,
    restarts: Tensor | None,
    jumps: Tensor | None,
    guard: bool,
) -> tuple[Tensor, Tensor]:
    """Filter all steps; see :func:`dhmm_rl.model.filter_ops.filter_forward`."""
    batch, steps, chains, _ = likelihood.shape
    beliefs, norms = torch.empty_like(likelihood), likelihood.new_empty(batch, steps, chains)
    _forward[(batch * chains,)](
        initial, gates, likelihood, transitions, restart_belief,
        likelihood if restarts is None else restarts.view(torch.uint8), likelihood if jumps is None else jumps,
        beliefs, norms, steps, TINY,
        **_sizes(gates, likelihood, restarts, jumps, guard),
    )  # fmt: skip
    return beliefs, norms


def backward(
    grad: Tensor,
    gates: Tensor,
    likelihood: Tensor,
    transitions: Tensor,
    restarts: Tensor | None,
    jumps: Tensor | None,
    beliefs: Tensor,
    norms: Tensor,
    guard: bool,
) -> Tensor:
    """Gradients before normalization; see :func:`dhmm_rl.model.filter_ops.filter_backward`."""
    batch, steps, chains, _ = likelihood.shape
    at_post = torch.empty_like(likelihood)
    _backward[(batch * chains,)](
        grad, gates, likelihood, transitions,
        likelihood if restarts is None else restarts.view(torch.uint8), likelihood if jumps is None else jumps,
        beliefs, norms, at_post, steps, UNLIKELY,
        **_sizes(gates, likelihood, restarts, jumps, guard),
    )  # fmt: skip
    return at_post


def _sizes(
    gates: Tensor, likelihood: Tensor, restarts: Tensor | None, jumps: Tensor | None, guard: bool
) -> dict[str, int | bool]:
    """What the kernels are compiled for. Sizes of blocks are powers of two."""
    chains, states, matrices = likelihood.shape[2], likelihood.shape[3], gates.shape[3]
    return {
        "chains": chains,
        "matrices": matrices,
        "states": states,
        "block_m": triton.next_power_of_2(matrices),
        "block_k": triton.next_power_of_2(states),
        "restarting": restarts is not None,
        "jumping": jumps is not None,
        "guard": guard,
        "num_warps": 4 if matrices * states**2 > 1024 else 1,
    }


@triton.jit
def _load_transitions(pointer, n, matrices: tl.constexpr, states: tl.constexpr, block_m: tl.constexpr, block_k: tl.constexpr):
    """The transition matrices of chain n, (M, K, K), with zeros beyond their sizes."""
    m, k, to = tl.arange(0, block_m)[:, None, None], tl.arange(0, block_k)[None, :, None], tl.arange(0, block_k)[None, None, :]
    inside = (m < matrices) & (k < states) & (to < states)
    return tl.load(pointer + ((n * matrices + m) * states + k) * states + to, mask=inside, other=0.0)


@triton.jit
def _forward(
    initial, gates, likelihood, transitions, restart_belief, restarts, jumps, beliefs, norms, steps, tiny,
    chains: tl.constexpr, matrices: tl.constexpr, states: tl.constexpr, block_m: tl.constexpr, block_k: tl.constexpr,
    restarting: tl.constexpr, jumping: tl.constexpr, guard: tl.constexpr,
):  # fmt: skip
    """Filter chain n of sequence b."""
    program = tl.program_id(0)
    b, n = program // chains, program % chains
    m, k = tl.arange(0, block_m), tl.arange(0, block_k)
    all_transitions = _load_transitions(transitions, n, matrices, states, block_m, block_k)
    start = tl.load(restart_belief + n * states + k, mask=k < states, other=0.0)
    belief = tl.load(initial + program * states + k, mask=k < states, other=0.0)
    # What a step reads is loaded one step ahead, because a load takes longer than a step
    row = b.to(tl.int64) * steps * chains + n
    gate = tl.load(gates + row * matrices + m, mask=m < matrices, other=0.0)
    like = tl.load(likelihood + row * states + k, mask=k < states, other=0.0)
    for t in range(steps):
        following = tl.where(t + 1 < steps, row + chains, row)
        next_gate = tl.load(gates + following * matrices + m, mask=m < matrices, other=0.0)
        next_like = tl.load(likelihood + following * states + k, mask=k < states, other=0.0)
        # Reset the belief where an episode starts
        if restarting:
            belief = tl.where(tl.load(restarts + b * steps + t) != 0, start, belief)
        # Predict by the mixture of the matrices, correct, and normalize
        mixed = tl.sum(all_transitions * gate[:, None, None], axis=0)
        post = tl.sum(mixed * belief[:, None], axis=0) * like
        if guard:
            post = tl.where(k < states, post + tiny, 0.0)
        norm = tl.sum(post, axis=0)
        belief = post / norm
        # Mutate
        if jumping:
            target = tl.load(jumps + row)
            belief = tl.where(target >= 0, (k == target).to(tl.float32), belief)
        tl.store(beliefs + row * states + k, belief, mask=k < states)
        tl.store(norms + row, norm)
        row, gate, like = following, next_gate, next_like


@triton.jit
def _backward(
    grad, gates, likelihood, transitions, restarts, jumps, beliefs, norms, at_post, steps, unlikely,
    chains: tl.constexpr, matrices: tl.constexpr, states: tl.constexpr, block_m: tl.constexpr, block_k: tl.constexpr,
    restarting: tl.constexpr, jumping: tl.constexpr, guard: tl.constexpr,
):  # fmt: skip
    """Go backwards through chain n of sequence b."""
    program = tl.program_id(0)
    b, n = program // chains, program % chains
    m, k = tl.arange(0, block_m), tl.arange(0, block_k)
    all_transitions = _load_transitions(transitions, n, matrices, states, block_m, block_k)
    carried = tl.zeros((block_k,), dtype=tl.float32)  # gradient at the belief that the following step starts from
    row = (b.to(tl.int64) * steps + steps - 1) * chains + n
    gate = tl.load(gates + row * matrices + m, mask=m < matrices, other=0.0)
    like = tl.load(likelihood + row * states + k, mask=k < states, other=0.0)
    arriving = tl.load(grad + row * states + k, mask=k < states, other=0.0)
    belief = tl.load(beliefs + row * states + k, mask=k < states, other=0.0)
    norm = tl.load(norms + row)
    for i in range(steps):
        previous = tl.where(i + 1 < steps, row - chains, row)
        next_gate = tl.load(gates + previous * matrices + m, mask=m < matrices, other=0.0)
        next_like = tl.load(likelihood + previous * states + k, mask=k < states, other=0.0)
        next_arriving = tl.load(grad + previous * states + k, mask=k < states, other=0.0)
        next_belief = tl.load(beliefs + previous * states + k, mask=k < states, other=0.0)
        next_norm = tl.load(norms + previous)
        # The gradient h at the belief; at what it is normalized from, it is (h - h · b) / norm
        h = arriving + carried
        if jumping:
            h = tl.where(tl.load(jumps + row) >= 0, 0.0, h)
        if guard:
            h = tl.minimum(tl.maximum(h, -1.0 / unlikely), 1.0 / unlikely)
            norm = tl.maximum(norm, unlikely)
        inner = (h - tl.sum(h * belief, axis=0)) / norm
        tl.store(at_post + row * states + k, inner, mask=k < states)
        # The gradient at the belief that the step started from
        mixed = tl.sum(all_transitions * gate[:, None, None], axis=0)
        carried = tl.sum(mixed * (inner * like)[None, :], axis=1)
        if restarting:
            carried = tl.where(tl.load(restarts + b * steps + steps - 1 - i) != 0, 0.0, carried)
        row, gate, like, arriving, belief, norm = previous, next_gate, next_like, next_arriving, next_belief, next_norm

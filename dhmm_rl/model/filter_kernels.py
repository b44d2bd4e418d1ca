"""
The filter's fast paths: a fused loop and a scan, both equal to :mod:`bayes_filter`'s formulas step after step.

Shapes: B sequences, T steps, N chains, K states of a chain, M transition matrices. Steps are the first dimension.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

TINY = torch.finfo(torch.float32).tiny
UNLIKELY = 1e-16
"""Lower bound of a step's likelihood in gradients: dividing by smaller numbers would overflow."""

SCAN_LIMIT = 2**26
"""Largest number of values in the products of a scan. It stores about 12 times this number for its backward pass: 3 GB."""
SHORTEST_SCAN = 16
"""Number of steps from which on a scan is faster than the loop."""


def scan_pays(device: torch.device, numbers: int) -> bool:
    """
    Return whether a scan is faster than the loop, and fits into memory.

    :param device: device of the filter
    :param numbers: number of values in the product of one step
    """
    return (device.type == "cuda" or torch.compiler.is_compiling()) and numbers * SHORTEST_SCAN <= SCAN_LIMIT


def scan_filter(
    initial: Tensor,
    gates: Tensor,
    likelihood: Tensor,
    transitions: Tensor,
    restart_belief: Tensor,
    *events: Tensor | None,
) -> Tensor:
    """
    Run the filter as a scan, or as several, one after the other, so that memory does not grow with K² T. Shapes are those of
    :class:`FilterLoop`, with transitions (N, M, K, K).

    :param events: restarts, jumps, their targets, and the one matrix of each step; ``None`` where there are none
    """
    length = max(1, SCAN_LIMIT // (likelihood[0].numel() * likelihood.shape[-1]))
    belief, beliefs = initial, []
    for first in range(0, len(likelihood), length):
        span = slice(first, first + length)
        arguments: list[Any] = [belief, gates[span], likelihood[span], transitions, restart_belief]
        arguments += [event if event is None else event[span] for event in events]
        if len(likelihood) <= length:
            return _scan(*arguments)
        # Products are computed again in the backward pass
        part: Tensor = checkpoint(_scan, *arguments, use_reentrant=False)
        beliefs.append(part)
        belief = part[-1]
    return torch.cat(beliefs)


def _scan(
    initial: Tensor,
    gates: Tensor,
    likelihood: Tensor,
    transitions: Tensor,
    restart_belief: Tensor,
    restarts: Tensor | None,
    jumps: Tensor | None,
    targets: Tensor | None,
    matrix_index: Tensor | None,
) -> Tensor:
    """
    Compute all prefix products of the steps' matrices ``A_t diag(L_t)`` in ``log2 T`` rounds (Hillis
    and Steele 1986, doi 10.1145/7902.7903). This is at least K times the work of the loop, but in few and large operations.

    Products are scaled, which does not change the normalized belief.
    """
    if matrix_index is None:
        products = torch.einsum("tnbm,nmkl->tnbkl", gates, transitions)
    else:
        products = transitions[:, matrix_index].transpose(0, 1)
    products = products * likelihood[..., None, :]
    if restarts is not None:  # whatever the belief was, it continues from the start
        products = torch.where(restarts[..., None], restart_belief[:, :, None] @ products, products)
    if jumps is not None and targets is not None:
        products = torch.where(jumps[..., None], targets[..., None, :], products)
    reach = 1
    while reach < len(products):
        products = products / products.detach().amax(dim=(-2, -1), keepdim=True)
        products = torch.cat([products[:reach], products[:-reach] @ products[reach:]])
        reach *= 2
    post = (initial[..., None, :] @ products)[..., 0, :]
    return post / post.sum(dim=-1, keepdim=True)


CHUNK = 2**14
"""Number of values computed at once where no loop over steps is needed: few calls, and within the processor's cache."""


class FilterLoop(torch.autograd.Function):
    """
    The filter's loop with its own backward pass: if autograd recorded its thousands of tiny operations, they would take most of
    an update's time.

    With ``b'`` the belief that a step starts from, gate g, likelihood L and ``W_m = g_m L``: ``post = Σ_m (b' A_m) ⊙ W_m``,
    ``b = post / |post|``. For a gradient h at b, the gradient at post is ``(h - h·b) / |post|``. Only this
    gradient and the one at b' need a loop.
    """

    @staticmethod
    def forward(
        ctx: Any,
        initial: Tensor,
        gates: Tensor,
        likelihood: Tensor,
        flat_transitions: Tensor,
        restart_belief: Tensor,
        restarts: Tensor | None,
        jumps: Tensor | None,
        targets: Tensor | None,
        matrix_index: Tensor | None,
        guard: bool,
    ) -> Tensor:
        """
        Filter all steps.

        :param initial: belief before the first step, (N, B, K)
        :param gates: weights of the matrices, (T, N, B, M)
        :param likelihood: likelihood of each step's tokens, (T, N, B, K)
        :param flat_transitions: transition matrices, (N, K, M · K), or (N, M, K, K) with ``matrix_index``
        :param restart_belief: belief before the first step of an episode, (N, 1, K)
        :param restarts: steps before which the belief is reset, (T, 1, B, 1)
        :param jumps: beliefs that jump after a step, (T, N, B, 1)
        :param targets: one-hot states that they jump to, (T, N, B, K)
        :param matrix_index: the one matrix of each step, (T, B)
        :param guard: whether steps may have likelihood 0
        :return: beliefs after each step, (T, N, B, K)
        """
        _, chains, batch, states = likelihood.shape
        belief, beliefs, norms, products = initial, [], [], []
        groups = None if matrix_index is None else _Groups(matrix_index, flat_transitions.shape[1])
        for chunk in _chunks(gates, likelihood):
            weights = _weights(gates, likelihood, chunk).unbind(0)
            for t, weight in zip(chunk, weights, strict=True):
                # Reset the belief where an episode starts.
                if restarts is not None:
                    belief = torch.where(restarts[t], restart_belief, belief)
                # Predict: propagate the belief through the transition matrices.
                product = torch.bmm(belief, flat_transitions) if groups is None else groups.times(belief, flat_transitions, t)
                propagated = product.view(chains, batch, -1, states)
                # Correct: weigh by gates and likelihood, and normalize.
                post = propagated * weight
                post = post.sum(dim=2) if gates.shape[-1] > 1 else post[:, :, 0]
                if guard:  # ordinary numbers do not change, and 0 / 0 becomes 1 / K
                    post = post + TINY
                norm = post.sum(dim=-1, keepdim=True)
                belief = post / norm
                # Mutate.
                if jumps is not None and targets is not None:
                    belief = torch.where(jumps[t], targets[t], belief)
                beliefs.append(belief)
                norms.append(norm)
                products.append(propagated)
        filtered, scale = torch.stack(beliefs), torch.stack(norms)
        ctx.save_for_backward(initial, gates, likelihood, flat_transitions, restart_belief, restarts, jumps, filtered, scale)
        ctx.products, ctx.groups, ctx.guard = products, groups, guard
        return filtered

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the first five inputs."""
        initial, gates, likelihood, flat_transitions, restart_belief, restarts, jumps, filtered, norms = ctx.saved_tensors
        chains, batch, _ = initial.shape
        if ctx.guard:
            norms = norms.clamp_min(UNLIKELY)
        # The belief that each step started from.
        started = torch.cat([initial[None], filtered[:-1]])
        if restarts is not None:
            started = torch.where(restarts, restart_belief, started)
            continues = (~restarts).to(initial.dtype)
        kept = None if jumps is None else (~jumps).to(initial.dtype)
        grad_gates, grad_likelihood = torch.empty_like(gates), torch.empty_like(likelihood)
        grad_transitions, grad_restart = torch.zeros_like(flat_transitions), torch.zeros_like(restart_belief)
        back, groups = flat_transitions.transpose(-2, -1), ctx.groups
        grouped: list[Tensor] = []
        carried = torch.zeros_like(initial)  # gradient at the belief that the following step starts from
        for chunk in reversed(_chunks(gates, likelihood)):
            span = slice(chunk.start, chunk.stop)
            weights = _weights(gates, likelihood, chunk)
            # Backwards through the steps of the chunk: only the gradients at beliefs need a loop.
            scaled = (weights / norms[span, ..., None]).unbind(0)
            arriving, belief_of = grads[0][span].unbind(0), filtered[span].unbind(0)
            inner, at_initial = [], []  # h - h·b, and the gradient at the belief that the step starts from
            for i in reversed(range(len(chunk))):
                h = arriving[i] + carried
                if kept is not None:
                    h = h * kept[chunk[i]]
                if ctx.guard:  # where a belief is 0, the gradient at it grows without bound from step to step
                    h = h.clamp(-1 / UNLIKELY, 1 / UNLIKELY)
                h = h - (h * belief_of[i]).sum(dim=-1, keepdim=True)
                at_propagated = (h[:, :, None] * scaled[i]).view(chains, batch, -1)
                carried = torch.bmm(at_propagated, back) if groups is None else groups.times(at_propagated, back, chunk[i])
                inner.append(h)
                at_initial.append(carried)
                if restarts is not None:
                    carried = carried * continues[chunk[i]]
            if restarts is not None:
                grad_restart += (torch.stack(at_initial[::-1]) * restarts[span]).sum(dim=(0, 2))[:, None]
            # All other gradients of the chunk at once.
            at_post = torch.stack(inner[::-1]) / norms[span]
            at_weights = torch.stack(ctx.products[span]) * at_post[:, :, :, None]
            grad_gates[span] = (at_weights * likelihood[span, :, :, None]).sum(dim=-1)
            grad_likelihood[span] = (at_weights * gates[span, ..., None]).sum(dim=-2)
            at_propagated = (at_post[:, :, :, None] * weights).transpose(0, 1).reshape(chains, len(chunk) * batch, -1)
            if groups is None:
                grad_transitions += torch.bmm(started[span].permute(1, 3, 0, 2).flatten(2), at_propagated)
            else:
                grouped.append(at_propagated)
        if groups is not None:  # once for all steps: every matrix's gradient is as large as the matrix
            grad_transitions = groups.outer(started.transpose(0, 1).flatten(1, 2), torch.cat(grouped[::-1], dim=1))
        return carried, grad_gates, grad_likelihood, grad_transitions, grad_restart, None, None, None, None, None


class _Groups:
    """
    Products of each sequence's row with its own matrix: rows that have the same matrix are multiplied together.

    :param matrix_index: the matrix of every step and sequence, (T, B)
    :param matrices: number of matrices M
    """

    def __init__(self, matrix_index: Tensor, matrices: int) -> None:
        self.matrix_index, self.matrices = matrix_index, matrices
        batch = matrix_index.shape[1]
        counts = torch.zeros(len(matrix_index), matrices, dtype=torch.long, device=matrix_index.device)
        counts.scatter_add_(1, matrix_index, torch.ones_like(matrix_index))
        self.size = int(counts.max())
        order = matrix_index.argsort(dim=1)
        sorted_ = matrix_index.gather(1, order)
        rank = torch.arange(batch, device=matrix_index.device) - (counts.cumsum(1) - counts).gather(1, sorted_)
        self.place = torch.empty_like(order).scatter_(1, order, sorted_ * self.size + rank)  # row of each sequence, (T, B)
        # The sequence in each row.
        self.rows = torch.full((len(matrix_index), matrices * self.size), batch, device=matrix_index.device)
        self.rows.scatter_(1, self.place, torch.arange(batch, device=matrix_index.device).expand_as(matrix_index))

    def times(self, rows: Tensor, transitions: Tensor, t: int) -> Tensor:
        """Rows (N, B, K) times their matrices (N, M, K, K) in step t, (N, B, K)."""
        chains, _, states = rows.shape
        padded = nn.functional.pad(rows, (0, 0, 0, 1))[:, self.rows[t]].view(-1, self.size, states)
        return torch.bmm(padded, transitions.reshape(-1, states, states)).view(chains, -1, states)[:, self.place[t]]

    def outer(self, rows: Tensor, others: Tensor) -> Tensor:
        """For each matrix, the sum of the outer products of rows and others, (N, T · B, K), that have it, (N, M, K, K)."""
        matrix_index = self.matrix_index.flatten()
        order, counts = matrix_index.argsort(), torch.bincount(matrix_index, minlength=self.matrices).tolist()
        parts = zip(*(torch.split(some[:, order], counts, dim=1) for some in (rows, others)), strict=True)
        return torch.stack([torch.bmm(row.transpose(1, 2), other) for row, other in parts], dim=1)


def _chunks(gates: Tensor, likelihood: Tensor) -> list[range]:
    """Ranges of steps that are computed at once."""
    steps, chains, batch, states = likelihood.shape
    size = max(1, CHUNK // (chains * batch * gates.shape[-1] * states))
    return [range(first, min(first + size, steps)) for first in range(0, steps, size)]


def _weights(gates: Tensor, likelihood: Tensor, chunk: range) -> Tensor:
    """Factors of each matrix's prediction: its gate times the likelihood, (steps, N, B, M, K)."""
    span = slice(chunk.start, chunk.stop)
    return gates[span, ..., None] * likelihood[span, :, :, None]

"""
The belief: a Bayes filter over K latent states whose transition matrix is chosen by a gate and dithered.

Pure functions in linear space, fp32, normalized at every step. Shapes: B sequences, T steps, N independent chains, K states
a chain, M transition matrices; ``...`` any leading shape. ``chains`` dimensions come before states everywhere.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

TINY = torch.finfo(torch.float32).tiny
UNLIKELY = 1e-16
"""In gradients, no step is less likely than this: smaller numbers would overflow when divided by."""
SOME_DITHER = 1e-7
"""With at least this much dither, every belief is so far from 0 that the filter needs no guards and a scan is exact enough."""


def dither(transitions: Tensor, floor: float) -> Tensor:
    """
    ``(1 - floor) A + (floor / K) 11ᵀ``: no transition is impossible, so the filter always forgets its past.

    The Hilbert distance of two beliefs then shrinks at every step by ``(R - 1) / (R + 1)``, ``R = 1 + K (1 - floor) / floor``
    (Birkhoff's contraction coefficient).

    :param transitions: row-stochastic, (..., K, K)
    """
    return (1 - floor) * transitions + floor / transitions.shape[-1]


def move(belief: Tensor, transitions: Tensor) -> Tensor:
    """``b A_m`` for every matrix, (..., N, M, K), of a belief (..., N, K) and transitions (N, M, K, K)."""
    return torch.einsum("...nk,nmkl->...nml", belief, transitions)


def predict(moved: Tensor, gate: Tensor | None) -> Tensor:
    """
    ``b⁻ = Σ_m g_m · b A_m``.

    :param moved: from :func:`move`, (..., N, M, K)
    :param gate: weights of the transition matrices, (..., N, M); ``None`` when there is one matrix
    :return: (..., N, K)
    """
    return moved[..., 0, :] if gate is None else torch.einsum("...nm,...nml->...nl", gate, moved)


def mix(gate: Tensor, transitions: Tensor) -> Tensor:
    """``Σ_m g_m A_m``, (..., N, K, K), of gates (..., N, M) and transitions (N, M, K, K)."""
    return torch.einsum("...nm,nmkl->...nkl", gate, transitions)


def limit(log_likelihood: Tensor, floor: float) -> Tensor:
    """Evidence: a log-likelihood (..., K) minus its maximum over the states, floored at ``-floor``."""
    return (log_likelihood - log_likelihood.amax(dim=-1, keepdim=True)).clamp_min(-floor)


def correct(prior: Tensor, evidence: Tensor) -> Tensor:
    """``b ∝ b⁻ ⊙ exp(ℓ)``, for a prior and evidence (..., K); it sums to less where the evidence is nearly impossible."""
    posterior = prior * evidence.exp()
    return posterior / posterior.sum(dim=-1, keepdim=True).clamp_min(UNLIKELY)


def bound_gradient(x: Tensor) -> Tensor:
    """The same numbers; where they are 0 and the gradient at them has no bound, it is cut off."""
    if x.requires_grad:
        bound = 1 / UNLIKELY
        x.register_hook(lambda grad: grad.nan_to_num(0.0).clamp(-bound, bound))  # type: ignore[no-untyped-call]
    return x


def draw_mutations(
    lead: Sequence[int], states: int, rate: float, generator: torch.Generator | None = None, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """
    Which beliefs of shape (*lead, K) jump, booleans (*lead, 1), and to which state, drawn uniformly, one-hot (*lead, K).

    :param rate: probability of a jump
    """
    jumps = torch.rand(*lead, 1, generator=generator, device=device) < rate
    targets = torch.randint(states, tuple(lead), generator=generator, device=device)
    return jumps, nn.functional.one_hot(targets, states).float()


def run_filter(
    initial: Tensor,
    gates: Tensor,
    evidence: Tensor,
    transitions: Tensor,
    *,
    start: Tensor | None = None,
    episode_start: Tensor | None = None,
    mutation: float = 0.0,
    which: Tensor | None = None,
    generator: torch.Generator | None = None,
    scan: bool = False,
) -> Tensor:
    """
    Filter sequences: predict and correct, step after step.

    In a plain loop, on a CPU the fastest way for the lengths and widths that policies have. A GPU, which a loop would have wait
    for launches, takes a scan where it may, as long as that takes no great memory.

    :param initial: belief before the first step, (B, N, K)
    :param gates: (B, T, N, M); of ones, with M = 1, when ``which`` is given
    :param evidence: floored log-likelihoods, (B, T, N, K)
    :param transitions: dithered, (N, M, K, K)
    :param which: the one transition matrix of each step, (B, T), below M: where every step has a single one of many, it costs
        M times less to take it than to weigh all
    :param start: belief before an episode's first step, (N, K); needed with ``episode_start``
    :param episode_start: steps at which the belief begins anew from ``start``, (B, T)
    :param mutation: probability of a jump per step and chain
    :param generator: draws the jumps; torch's own when ``None``
    :param scan: whether a scan may be taken: with dither of :data:`SOME_DITHER` or more. With less, single precision is not
        enough for one, and the loop guards against steps that no state explains: after such a step every state is possible
    :return: filtered beliefs, (B, T, N, K)
    """
    _, steps, chains, states = evidence.shape
    if evidence.numel() == 0:
        return evidence
    restarts = jumps = targets = None
    if start is not None and episode_start is not None and bool(episode_start.any()):
        restarts = episode_start.T[:, None, :, None]
    if mutation > 0:
        jumps, targets = draw_mutations((steps, chains, len(evidence)), states, mutation, generator, evidence.device)
    anew = transitions.new_zeros(chains, 1, states) if start is None else start[:, None]
    before, weights = initial.transpose(0, 1), gates.permute(1, 2, 0, 3).contiguous()
    likelihood = evidence.exp().permute(1, 2, 0, 3).contiguous()
    taken = None if which is None else which.T.contiguous()
    beliefs: Tensor
    if scan and _scan_pays(evidence.device, evidence.numel() * states):
        beliefs = _scan(before, weights, likelihood, transitions, anew, restarts, jumps, targets, taken)
    else:
        stacked = transitions.transpose(1, 2).reshape(chains, states, -1) if which is None else transitions.contiguous()
        beliefs = _Recurrence.apply(  # type: ignore[no-untyped-call]
            before, weights, likelihood, stacked, anew, restarts, jumps, targets, taken, not scan
        )
    return beliefs.permute(2, 0, 1, 3)


SCAN_LIMIT = 2**26
"""A scan keeps about a dozen times so many numbers for the backward pass: 3 GB."""


def _scan_pays(device: torch.device, numbers: int) -> bool:
    return device.type == "cuda" and numbers <= SCAN_LIMIT


def _scan(
    initial: Tensor,
    gates: Tensor,
    likelihood: Tensor,
    transitions: Tensor,
    anew: Tensor,
    restarts: Tensor | None,
    jumps: Tensor | None,
    targets: Tensor | None,
    which: Tensor | None,
) -> Tensor:
    """
    The filter by the products of its steps' matrices ``A_t diag(L_t)``, all of whose prefixes are found in ``log2 T`` rounds
    (Hillis and Steele 1986, doi 10.1145/7902.7903): K times the loop's work and more, but few and large operations.

    Every product is scaled, which the belief does not see. Shapes as in :class:`_Recurrence`, transitions (N, M, K, K).
    """
    if which is None:
        products = torch.einsum("tnbm,nmkl->tnbkl", gates, transitions)
    else:
        products = transitions[:, which].transpose(0, 1)
    products = products * likelihood[..., None, :]
    if restarts is not None:  # wherever the belief was, it goes on from the start
        products = torch.where(restarts[..., None], anew[:, :, None] @ products, products)
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
"""What needs no loop over steps is done for so many numbers at once: for few calls, and within the cache."""


class _Recurrence(torch.autograd.Function):
    """
    The filter's loop with a backward pass of its own: recorded by autograd, its thousands of tiny operations would take most
    of an update's time.

    With ``b'`` the belief that a step starts from, gate g, likelihood L and ``W_m = g_m L``: ``post = Σ_m (b' A_m) ⊙ W_m``,
    ``b = post / |post|``. For a gradient h at b, that at post is ``(h - h·b) / |post|``. Only it and that at b' need a loop.
    """

    @staticmethod
    def forward(
        ctx: Any,
        initial: Tensor,
        gates: Tensor,
        likelihood: Tensor,
        stacked: Tensor,
        anew: Tensor,
        restarts: Tensor | None,
        jumps: Tensor | None,
        targets: Tensor | None,
        which: Tensor | None,
        guard: bool,
    ) -> Tensor:
        """
        From (N, B, K), (T, N, B, M), (T, N, B, K), (N, K, M · K) or, with ``which``, (N, M, K, K), (N, 1, K), (T, 1, B, 1),
        (T, N, B, 1), (T, N, B, K) and (T, B) to (T, N, B, K).
        """
        _, chains, batch, states = likelihood.shape
        belief, beliefs, norms, products = initial, [], [], []
        groups = None if which is None else _Groups(which, stacked.shape[1])
        for chunk in _chunks(gates, likelihood):
            weights = _weights(gates, likelihood, chunk).unbind(0)
            for t, weight in zip(chunk, weights, strict=True):
                if restarts is not None:
                    belief = torch.where(restarts[t], anew, belief)
                moved = torch.bmm(belief, stacked) if groups is None else groups.times(belief, stacked, t)
                moved = moved.view(chains, batch, -1, states)
                post = moved * weight
                post = post.sum(dim=2) if gates.shape[-1] > 1 else post[:, :, 0]
                if guard:  # ordinary numbers stay as they are, and 0 / 0 becomes 1 / K
                    post = post + TINY
                norm = post.sum(dim=-1, keepdim=True)
                belief = post / norm
                if jumps is not None and targets is not None:
                    belief = torch.where(jumps[t], targets[t], belief)
                beliefs.append(belief)
                norms.append(norm)
                products.append(moved)
        filtered = torch.stack(beliefs)
        ctx.save_for_backward(initial, gates, likelihood, stacked, anew, restarts, jumps, filtered, torch.stack(norms))
        ctx.products, ctx.groups, ctx.guard = products, groups, guard
        return filtered

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the first five inputs."""
        initial, gates, likelihood, stacked, anew, restarts, jumps, filtered, norms = ctx.saved_tensors
        chains, batch, _ = initial.shape
        if ctx.guard:
            norms = norms.clamp_min(UNLIKELY)
        started = torch.cat([initial[None], filtered[:-1]])
        if restarts is not None:
            started = torch.where(restarts, anew, started)
            goes_on = (~restarts).to(initial.dtype)
        stays = None if jumps is None else (~jumps).to(initial.dtype)
        grad_gates, grad_likelihood = torch.empty_like(gates), torch.empty_like(likelihood)
        grad_stacked, grad_anew = torch.zeros_like(stacked), torch.zeros_like(anew)
        back, groups = stacked.transpose(-2, -1), ctx.groups
        grouped: list[Tensor] = []
        carried = torch.zeros_like(initial)  # the gradient at the belief that the step after starts from
        for chunk in reversed(_chunks(gates, likelihood)):
            span = slice(chunk.start, chunk.stop)
            weights = _weights(gates, likelihood, chunk)
            scaled = (weights / norms[span, ..., None]).unbind(0)
            arriving, belief_of = grads[0][span].unbind(0), filtered[span].unbind(0)
            inner, before = [], []  # h - h·b, and the gradient at the belief that the step starts from
            for i in reversed(range(len(chunk))):
                h = arriving[i] + carried
                if stays is not None:
                    h = h * stays[chunk[i]]
                if ctx.guard:  # where a belief is 0, the gradient at it grows without bound from step to step
                    h = h.clamp(-1 / UNLIKELY, 1 / UNLIKELY)
                h = h - (h * belief_of[i]).sum(dim=-1, keepdim=True)
                at_moved = (h[:, :, None] * scaled[i]).view(chains, batch, -1)
                carried = torch.bmm(at_moved, back) if groups is None else groups.times(at_moved, back, chunk[i])
                inner.append(h)
                before.append(carried)
                if restarts is not None:
                    carried = carried * goes_on[chunk[i]]
            if restarts is not None:
                grad_anew += (torch.stack(before[::-1]) * restarts[span]).sum(dim=(0, 2))[:, None]
            at_post = torch.stack(inner[::-1]) / norms[span]
            at_weights = torch.stack(ctx.products[span]) * at_post[:, :, :, None]
            grad_gates[span] = (at_weights * likelihood[span, :, :, None]).sum(dim=-1)
            grad_likelihood[span] = (at_weights * gates[span, ..., None]).sum(dim=-2)
            at_moved = (at_post[:, :, :, None] * weights).transpose(0, 1).reshape(chains, len(chunk) * batch, -1)
            if groups is None:
                grad_stacked += torch.bmm(started[span].permute(1, 3, 0, 2).flatten(2), at_moved)
            else:
                grouped.append(at_moved)
        if groups is not None:  # once for all steps: every matrix's gradient is as large as the matrix
            grad_stacked = groups.outer(started.transpose(0, 1).flatten(1, 2), torch.cat(grouped[::-1], dim=1))
        return carried, grad_gates, grad_likelihood, grad_stacked, grad_anew, None, None, None, None, None


class _Groups:
    """
    Products of every sequence's row with a matrix of its own: rows that have the same one are multiplied together.

    :param which: the matrix of every step and sequence, (T, B)
    :param matrices: M
    """

    def __init__(self, which: Tensor, matrices: int) -> None:
        self.which, self.matrices = which, matrices
        batch = which.shape[1]
        counts = torch.zeros(len(which), matrices, dtype=torch.long, device=which.device)
        counts.scatter_add_(1, which, torch.ones_like(which))
        self.size = int(counts.max())
        order = which.argsort(dim=1)
        sorted_ = which.gather(1, order)
        rank = torch.arange(batch, device=which.device) - (counts.cumsum(1) - counts).gather(1, sorted_)
        self.place = torch.empty_like(order).scatter_(1, order, sorted_ * self.size + rank)  # of each sequence, (T, B)
        self.rows = torch.full((len(which), matrices * self.size), batch, device=which.device)  # which sequence is where
        self.rows.scatter_(1, self.place, torch.arange(batch, device=which.device).expand_as(which))

    def times(self, rows: Tensor, transitions: Tensor, t: int) -> Tensor:
        """Rows (N, B, K) times their matrices (N, M, K, K) in step t, (N, B, K)."""
        chains, _, states = rows.shape
        padded = nn.functional.pad(rows, (0, 0, 0, 1))[:, self.rows[t]].view(-1, self.size, states)
        return torch.bmm(padded, transitions.reshape(-1, states, states)).view(chains, -1, states)[:, self.place[t]]

    def outer(self, rows: Tensor, others: Tensor) -> Tensor:
        """For each matrix, the sum of the outer products of rows and others, (N, T · B, K), that have it, (N, M, K, K)."""
        which = self.which.flatten()
        order, counts = which.argsort(), torch.bincount(which, minlength=self.matrices).tolist()
        parts = zip(*(torch.split(some[:, order], counts, dim=1) for some in (rows, others)), strict=True)
        return torch.stack([torch.bmm(row.transpose(1, 2), other) for row, other in parts], dim=1)


def _chunks(gates: Tensor, likelihood: Tensor) -> list[range]:
    steps, chains, batch, states = likelihood.shape
    size = max(1, CHUNK // (chains * batch * gates.shape[-1] * states))
    return [range(first, min(first + size, steps)) for first in range(0, steps, size)]


def _weights(gates: Tensor, likelihood: Tensor, chunk: range) -> Tensor:
    """What each matrix's prediction is multiplied with, (steps, N, B, M, K)."""
    span = slice(chunk.start, chunk.stop)
    return gates[span, ..., None] * likelihood[span, :, :, None]


def log_predictive(prior: Tensor, emissions: Tensor) -> Tensor:
    """
    ``log Σ_k b_k E[k, v]``: how likely each id is under a belief.

    :param prior: (C, ..., N, K)
    :param emissions: probabilities, (C, N, K, V)
    :return: (C, ..., N, V)
    """
    return torch.einsum("c...nk,cnkv->c...nv", prior, emissions).clamp_min(TINY).log()

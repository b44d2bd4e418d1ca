"""
The belief: a Bayes filter over K latent states with a transition matrix that is chosen by a gate and dithered.

Pure functions in linear space, fp32, normalized at every step. The fast loop and the scan are in :mod:`filter_kernels`.

Shapes: B sequences, T steps, N independent chains, K states of a chain, M transition matrices; ``...`` any leading shape. The
dimension of chains comes before that of states everywhere.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dhmm_rl.model import compiled_filter, filter_kernels, filter_ops
from dhmm_rl.model.filter_kernels import TINY, UNLIKELY
from dhmm_rl.model.steps import can_inspect

MIN_DITHER = 1e-7
"""With at least this much dither, every belief is so far from 0 that the filter needs no guards and a scan is exact enough."""


def dither(transitions: Tensor, epsilon: float) -> Tensor:
    """
    ``(1 - ε) A + (ε / K) 11ᵀ``: every transition is possible, so the filter always forgets its past.

    The Hilbert distance of two beliefs then shrinks at every step by ``(R - 1) / (R + 1)``, ``R = 1 + K (1 - ε) / ε``
    (Birkhoff's contraction coefficient).

    :param transitions: row-stochastic matrices, (..., K, K)
    :param epsilon: dither ε
    """
    return (1 - epsilon) * transitions + epsilon / transitions.shape[-1]


def propagate(belief: Tensor, transitions: Tensor) -> Tensor:
    """``b A_m`` for every matrix, (..., N, M, K), of a belief (..., N, K) and transitions (N, M, K, K)."""
    return torch.einsum("...nk,nmkl->...nml", belief, transitions)


def predict(propagated: Tensor, gate: Tensor | None) -> Tensor:
    """
    ``b⁻ = Σ_m g_m · b A_m``.

    :param propagated: result of :func:`propagate`, (..., N, M, K)
    :param gate: weights of the transition matrices, (..., N, M); ``None`` if there is one matrix
    :return: (..., N, K)
    """
    return propagated[..., 0, :] if gate is None else torch.einsum("...nm,...nml->...nl", gate, propagated)


def mix(gate: Tensor, transitions: Tensor) -> Tensor:
    """``Σ_m g_m A_m``, (..., N, K, K), of gates (..., N, M) and transitions (N, M, K, K)."""
    return torch.einsum("...nm,nmkl->...nkl", gate, transitions)


def clip_evidence(log_likelihood: Tensor, floor: float) -> Tensor:
    """Evidence: a log-likelihood (..., K) minus its maximum over the states, floored at ``-floor``."""
    return (log_likelihood - log_likelihood.amax(dim=-1, keepdim=True)).clamp_min(-floor)


def correct(prior: Tensor, evidence: Tensor) -> Tensor:
    """``b ∝ b⁻ ⊙ exp(ℓ)``, for a prior and evidence (..., K); the sum is below 1 if the evidence is nearly impossible."""
    posterior = prior * evidence.exp()
    return posterior / posterior.sum(dim=-1, keepdim=True).clamp_min(UNLIKELY)


def bound_gradient(x: Tensor) -> Tensor:
    """The same numbers with a bounded gradient: where they are 0, the gradient may be infinite."""
    if x.requires_grad:
        bound = 1 / UNLIKELY
        x.register_hook(lambda grad: grad.nan_to_num(0.0).clamp(-bound, bound))  # type: ignore[no-untyped-call]
    return x


def draw_mutations(
    lead: Sequence[int], states: int, rate: float, generator: torch.Generator | None = None, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """
    Draw which beliefs jump, and to which state.

    :param lead: shape of the beliefs without their last dimension
    :param states: number of states K
    :param rate: probability of a jump
    :param generator: random generator; torch's global one by default
    :param device: device of the results
    :return: whether each belief jumps, booleans (*lead, 1), and its new state, uniform and one-hot, (*lead, K)
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
    matrix_index: Tensor | None = None,
    generator: torch.Generator | None = None,
    scan: bool = False,
) -> Tensor:
    """
    Filter sequences: predict and correct, step after step.

    On a CPU a plain loop is the fastest way for the lengths and widths that policies have. On a GPU a loop in Python would wait
    for kernel launches; a single kernel runs the loop there, or a scan if matrices are too large for it or differ by token.

    :param initial: belief before the first step, (B, N, K)
    :param gates: weights of the transition matrices, (B, T, N, M); ones, with M = 1, if ``matrix_index`` is given
    :param evidence: clipped log-likelihoods, (B, T, N, K)
    :param transitions: dithered transition matrices, (N, M, K, K)
    :param start: belief before an episode's first step, (N, K); required with ``episode_start``
    :param episode_start: steps before which the belief is reset to ``start``, (B, T)
    :param mutation: probability of a jump per step and chain
    :param matrix_index: the one transition matrix of each step, (B, T). If every step has a single one of many matrices,
        gathering it costs M times less than mixing all
    :param generator: random generator of the jumps; torch's global one by default
    :param scan: whether a scan may be used: with a dither of :data:`MIN_DITHER` or more. With less, single precision is not
        enough for a scan, and the loop guards against steps that no state explains: after them every state is possible
    :return: filtered beliefs, (B, T, N, K)
    """
    _, steps, chains, states = evidence.shape
    if evidence.numel() == 0:
        return evidence
    # Steps before which the belief is reset, (B, T), and the belief that it is reset to, (N, K).
    restarts = jumps = targets = None
    if start is not None and episode_start is not None and not (can_inspect(episode_start) and not bool(episode_start.any())):
        restarts = episode_start
    restart_belief = transitions.new_zeros(chains, states) if start is None else start
    # Jumps are drawn for all steps at once.
    if mutation > 0:
        jumps, targets = draw_mutations((steps, chains, len(evidence)), states, mutation, generator, evidence.device)
    likelihood = evidence.exp()
    inputs = (initial, gates, likelihood, transitions, restart_belief)
    if matrix_index is None and filter_ops.operators_pay(inputs):
        if jumps is not None and targets is not None:
            jumps = torch.where(jumps[..., 0], targets.argmax(dim=-1), -1).permute(2, 0, 1)
        return filter_ops.filter_by_operators(inputs, restarts, jumps, not scan)
    scans = scan and filter_kernels.scan_pays(evidence.device, evidence[:, 0].numel() * states)
    if not scans and matrix_index is None and compiled_filter.compilation_pays(inputs):
        if jumps is not None and targets is not None:
            jumps, targets = jumps[..., 0].permute(2, 0, 1), targets.permute(2, 0, 1, 3)
        filtered: Tensor = compiled_filter.CompiledFilter.apply(  # type: ignore[no-untyped-call]
            *inputs, restarts, jumps, targets, not scan
        )
        return filtered
    return _filter_by_steps(inputs, restarts, jumps, targets, matrix_index, scans, not scan)


def _filter_by_steps(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    restarts: Tensor | None,
    jumps: Tensor | None,
    targets: Tensor | None,
    matrix_index: Tensor | None,
    scans: bool,
    guard: bool,
) -> Tensor:
    """Filter by a scan or by the loop in Python; the inputs are those of :class:`compiled_filter.CompiledFilter`."""
    initial, gates, likelihood, transitions, restart_belief = inputs
    _, _, chains, states = likelihood.shape
    # Steps become the first dimension, so that each step is one contiguous block.
    initial, weights = initial.transpose(0, 1), gates.permute(1, 2, 0, 3).contiguous()
    likelihood = likelihood.permute(1, 2, 0, 3).contiguous()
    restarts = None if restarts is None else restarts.T[:, None, :, None]
    matrix_of_step = None if matrix_index is None else matrix_index.T.contiguous()
    events = (restart_belief[:, None], restarts, jumps, targets, matrix_of_step)
    if scans:
        beliefs = filter_kernels.scan_filter(initial, weights, likelihood, transitions, *events)
    else:
        # A matrix product with [A_1 … A_M] propagates the belief through all matrices at once.
        if matrix_index is None:
            transitions = transitions.transpose(1, 2).reshape(chains, states, -1)
        beliefs = filter_kernels.FilterLoop.apply(  # type: ignore[no-untyped-call]
            initial, weights, likelihood, transitions.contiguous(), *events, guard
        )
    return beliefs.permute(2, 0, 1, 3)


def log_predictive(prior: Tensor, emissions: Tensor) -> Tensor:
    """
    ``log Σ_k b_k E[k, v]``: log-probability of each id under a belief.

    :param prior: beliefs, (C, ..., N, K)
    :param emissions: probabilities of each id in each state, (C, N, K, V)
    :return: (C, ..., N, V)
    """
    return torch.einsum("c...nk,cnkv->c...nv", prior, emissions).clamp_min(TINY).log()

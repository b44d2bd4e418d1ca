"""
The belief: a Bayes filter over K latent states whose transition matrix is chosen by a gate and dithered.

Pure functions in linear space, fp32, normalised at every step. Shapes: B sequences, T steps, N independent chains, K states
a chain, M transition matrices; ``...`` any leading shape. ``chains`` dimensions come before states everywhere.
"""

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny


def dither(transitions: Tensor, floor: float) -> Tensor:
    """
    ``(1 - floor) A + (floor / K) 11ᵀ``: no transition is impossible, so the filter always forgets its past.

    The Hilbert distance of two beliefs then shrinks at every step by ``(R - 1) / (R + 1)``, ``R = 1 + K (1 - floor) / floor``
    (Birkhoff's contraction coefficient).

    :param transitions: row-stochastic, (..., K, K)
    """
    return (1 - floor) * transitions + floor / transitions.shape[-1]


def predict(belief: Tensor, gate: Tensor, transitions: Tensor) -> Tensor:
    """
    ``b⁻ = Σ_m g_m · b A_m``.

    :param belief: (..., N, K)
    :param gate: weights of the transition matrices, (..., N, M)
    :param transitions: (N, M, K, K)
    :return: (..., N, K)
    """
    moved = torch.einsum("...nk,nmkl->...nml", belief, transitions)
    return torch.einsum("...nm,...nml->...nl", gate, moved)


def limit(log_likelihood: Tensor, floor: float) -> Tensor:
    """Evidence: a log-likelihood (..., K) minus its maximum over the states, floored at ``-floor``."""
    return (log_likelihood - log_likelihood.amax(dim=-1, keepdim=True)).clamp_min(-floor)


def correct(prior: Tensor, evidence: Tensor) -> Tensor:
    """``b ∝ b⁻ ⊙ exp(ℓ)``, for a prior and evidence (..., K)."""
    posterior = prior * evidence.exp()
    return posterior / posterior.sum(dim=-1, keepdim=True)


def mutate(belief: Tensor, rate: float, generator: torch.Generator | None = None) -> Tensor:
    """With probability ``rate``, each chain's belief (..., N, K) jumps to one state, drawn uniformly."""
    lead, states = belief.shape[:-1], belief.shape[-1]
    jumps = torch.rand(lead, generator=generator, device=belief.device) < rate
    targets = torch.randint(states, lead, generator=generator, device=belief.device)
    return torch.where(jumps[..., None], torch.nn.functional.one_hot(targets, states).to(belief.dtype), belief)


def run_filter(
    initial: Tensor,
    gates: Tensor,
    evidence: Tensor,
    transitions: Tensor,
    *,
    start: Tensor | None = None,
    episode_start: Tensor | None = None,
    mutation: float = 0.0,
) -> Tensor:
    """
    Filter sequences: predict and correct, step after step.

    A plain loop: on CPU it is the fastest way for the lengths and widths that policies have.

    :param initial: belief before the first step, (B, N, K)
    :param gates: (B, T, N, M)
    :param evidence: floored log-likelihoods, (B, T, N, K)
    :param transitions: dithered, (N, M, K, K)
    :param start: belief before an episode's first step, (N, K); needed with ``episode_start``
    :param episode_start: steps at which the belief begins anew from ``start``, (B, T)
    :param mutation: probability of a jump per step and chain
    :return: filtered beliefs, (B, T, N, K)
    """
    batch, steps, chains, states = evidence.shape
    matrices = gates.shape[-1]
    # The loop runs on (N, B, ...), so that one batched product per step serves all chains and matrices.
    stacked = transitions.transpose(1, 2).reshape(chains, states, matrices * states)
    likelihoods = evidence.exp().permute(1, 2, 0, 3).unbind(0)
    weights = gates.permute(1, 2, 0, 3).unsqueeze(-1).unbind(0)
    belief = initial.transpose(0, 1)
    restarts = None
    if start is not None and episode_start is not None and bool(episode_start.any()):
        restarts = episode_start.T[:, None, :, None].unbind(0)
        anew = start[:, None]
    beliefs = []
    for t in range(steps):
        if restarts is not None:
            belief = torch.where(restarts[t], anew, belief)
        prior = torch.bmm(belief, stacked)
        if matrices > 1:
            prior = (prior.view(chains, batch, matrices, states) * weights[t]).sum(dim=2)
        posterior = prior * likelihoods[t]
        belief = posterior / posterior.sum(dim=-1, keepdim=True)
        if mutation > 0:
            belief = mutate(belief.transpose(0, 1), mutation).transpose(0, 1)
        beliefs.append(belief)
    return torch.stack(beliefs, dim=2).permute(1, 2, 0, 3)


def log_predictive(prior: Tensor, emissions: Tensor) -> Tensor:
    """
    ``log Σ_k b_k E[k, v]``: how likely each id is under a belief.

    :param prior: (..., C, N, K)
    :param emissions: probabilities, (C, N, K, V)
    :return: (..., C, N, V)
    """
    return torch.einsum("...cnk,cnkv->...cnv", prior, emissions).clamp_min(TINY).log()

"""
The parameters of the latent layer, and what a belief says of the next step's slots.

Shapes: B sequences, T steps, C slots (the first A of them the action's), N chains, K states, M transition matrices, V ids,
n the ids of the widest slot.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dhmm_rl.model import filter as hmm
from dhmm_rl.tokens import Slot

CONTROLS = ("actions", "all", "none")


class LatentChain(nn.Module):
    """
    N hidden Markov chains side by side whose transitions are gated by control tokens.

    An agent's own action is an input of the filter, not evidence: given the history it says nothing of the state. So action
    slots gate the transition and are predicted from the belief before it; the other slots are evidence and are predicted
    from the belief after it.

    :param slots: the slots of a step
    :param action_slots: A
    :param control: which slots gate the transition: ``actions``, ``all`` or ``none``
    :param floor: dither ε of the transitions
    :param evidence_floor: c, the largest log-likelihood ratio that one step may contribute
    """

    def __init__(
        self,
        vocab_size: int,
        slots: Sequence[Slot],
        slot_ids: Tensor,
        action_slots: int,
        num_states: int,
        chains: int,
        matrices: int,
        control: str,
        floor: float,
        evidence_floor: float,
    ) -> None:
        super().__init__()
        self.action_slots, self.floor, self.evidence_floor = action_slots, floor, evidence_floor
        self.shape = (chains, num_states)
        self.matrices = matrices
        self.slot_ids: Tensor
        self.register_buffer("slot_ids", slot_ids, persistent=False)  # (C, n), -1 beyond a slot's ids
        controls = [control == "all" or (control == "actions" and j < action_slots) for j in range(len(slots))]
        self.controls: Tensor
        self.register_buffer("controls", torch.tensor(controls), persistent=False)

        self.start_logits = nn.Parameter(torch.zeros(chains, num_states))
        self.transition_logits = nn.Parameter(_sticky(chains, matrices, num_states, floor))
        self.emission_logits = nn.Parameter(0.1 * torch.randn(vocab_size, chains, num_states))
        self.gate_weight = nn.Parameter(torch.randn(vocab_size, chains, matrices)) if matrices > 1 else None
        self.gate_bias = nn.Parameter(torch.zeros(chains, matrices)) if matrices > 1 else None
        self.residual_scale = nn.Parameter(torch.full((chains,), 1.0 / chains))

    @property
    def start(self) -> Tensor:
        """Belief before an episode's first step, (N, K)."""
        return self.start_logits.float().softmax(dim=-1)

    @property
    def transitions(self) -> Tensor:
        """Dithered transition matrices, (N, M, K, K)."""
        return hmm.dither(self.transition_logits.float().softmax(dim=-1), self.floor)

    def log_emissions(self) -> Tensor:
        """Log-probability of each slot's ids in each state, (C, N, K, n); minus infinity beyond a slot's ids."""
        logits = self.emission_logits.float()[self.slot_ids.clamp_min(0)]
        logits = logits.masked_fill((self.slot_ids < 0)[..., None, None], -torch.inf)
        return logits.log_softmax(dim=1).permute(0, 2, 3, 1)

    def slot_log_likelihood(self, tokens: Tensor, log_emissions: Tensor) -> Tensor:
        """``log E_j[:, x_j]`` per slot, (B, T, C, N, K); zero for action slots and where there is nothing."""
        slots, chains, states, width = log_emissions.shape
        table = log_emissions.permute(0, 3, 1, 2).reshape(slots * width, chains * states)
        offset = torch.arange(slots, device=tokens.device) * width
        evident = tokens >= 0
        if self.action_slots:
            evident = evident & (torch.arange(slots, device=tokens.device) >= self.action_slots)
        index = torch.where(evident, tokens - self.slot_ids[:, 0] + offset, 0)
        found = nn.functional.embedding(index, table).view(*index.shape, chains, states)
        return torch.where(evident[..., None, None], found, 0.0)

    def gate(self, tokens: Tensor) -> Tensor:
        """Gate logits that each slot of a step contributes, (B, T, C, N, M), before the bias."""
        assert self.gate_weight is not None
        weight = self.gate_weight.float()
        present = (tokens >= 0) & self.controls
        return torch.where(present[..., None, None], weight[tokens.clamp_min(0)], 0.0)

    def _softmax_gate(self, logits: Tensor) -> Tensor:
        assert self.gate_bias is not None
        return (logits + self.gate_bias.float()).softmax(dim=-1)

    def forward(self, tokens: Tensor, initial: Tensor, episode_start: Tensor | None, mutation: float) -> Tensor:
        """
        Beliefs after each step.

        :param tokens: (B, T, C)
        :param initial: belief before the first step, (B, N, K)
        :param episode_start: where the belief begins anew, (B, T)
        :return: (B, T, N, K)
        """
        batch, steps, _ = tokens.shape
        likelihood = self.slot_log_likelihood(tokens, self.log_emissions()).sum(dim=2)
        if self.matrices > 1:
            gates = self._softmax_gate(self.gate(tokens).sum(dim=2))
        else:
            gates = likelihood.new_ones(batch, steps, self.shape[0], 1)
        return hmm.run_filter(
            initial,
            gates,
            hmm.limit(likelihood, self.evidence_floor),
            self.transitions,
            start=self.start,
            episode_start=episode_start,
            mutation=mutation,
        )

    def slot_logits(self, belief: Tensor, following: Tensor, first: int, last: int) -> Tensor:
        """
        The chains' part in the logits of the next step's slots ``first`` to ``last - 1``.

        Each slot is predicted by the filter conditioned on the slots of the same step before it.

        :param belief: (B, T, N, K)
        :param following: ids of the next step, -1 where unknown, (B, T, C)
        :return: log-probabilities times the learned scales, (B, T, last - first, n)
        """
        log_emissions = self.log_emissions()
        span = slice(first, last)
        action = torch.arange(first, last, device=belief.device) < self.action_slots
        prior = belief[:, :, None]
        if last > self.action_slots:
            if self.matrices > 1:
                gates = self._softmax_gate(sum_before(self.gate(following))[:, :, span])
            else:
                gates = belief.new_ones(1, 1, 1, self.shape[0], 1)
            moved = torch.einsum("btnk,nmkl->btnml", belief, self.transitions)
            moved = torch.einsum("btcnm,btnml->btcnl", gates, moved)
            prior = torch.where(action[:, None, None], prior, moved)
            seen = sum_before(self.slot_log_likelihood(following, log_emissions))[:, :, span]
            prior = hmm.correct(prior, hmm.limit(seen, self.evidence_floor))
        prior = prior.expand(-1, -1, last - first, -1, -1)
        predictive = hmm.log_predictive(prior, log_emissions[span].exp())
        return torch.einsum("btcnv,n->btcv", predictive, self.residual_scale.float())


def sum_before(x: Tensor) -> Tensor:
    """Sum over the slots before each slot, for (B, T, C, ...); what follows has no part in it, not even by rounding."""
    return torch.cat([torch.zeros_like(x[:, :, :1]), x[:, :, :-1]], dim=2).cumsum(dim=2)


def _sticky(chains: int, matrices: int, states: int, floor: float) -> Tensor:
    """
    Transition logits (N, M, K, K) that stay, with dwell times spread log-uniformly over the states from 3 to 1 / floor steps.

    Without long dwell times no memory of a distant cue, gradient included, would survive to be learned from.
    """
    longest = 1 / floor if floor > 0 else 1000.0
    dwell = torch.logspace(torch.tensor(3.0).log10().item(), torch.tensor(max(longest, 3.0)).log10().item(), states)
    leave = (1 / dwell)[:, None] / max(states - 1, 1)
    probabilities = torch.where(torch.eye(states, dtype=torch.bool), 1 - (1 / dwell)[:, None], leave)
    return probabilities.log() + 0.1 * torch.randn(chains, matrices, states, states)

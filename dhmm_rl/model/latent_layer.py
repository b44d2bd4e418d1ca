"""
The parameters of the latent layer, and what a belief says of the next step's slots.

Shapes: B sequences, T steps, C slots (the first A of them the action's), N chains, K states, M transition matrices, V ids,
n the ids of the widest slot.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dhmm_rl.model import bayes_filter as hmm
from dhmm_rl.model.config import DHMMConfig
from dhmm_rl.model.slot_decoder import slot_table

PREFERENCE = 5.0
"""Of what is preferred at first in an automaton, the logit above those of the rest."""
GROUPED = 4096
"""From so many numbers M · K of all matrices' predictions on, a step takes the one matrix of its token instead of all."""


class LatentChain(nn.Module):
    """
    N hidden Markov chains side by side whose transitions are gated by control tokens.

    An agent's own action is an input of the filter, not evidence: given the history it says nothing of the state. So action
    slots gate the transition and are predicted from the belief before it; the other slots are evidence and are predicted
    from the belief after it.

    The logits are divided by ``latent_rate``, so that they move that much faster than other parameters under optimizers such as
    Adam: probabilities near 0 and 1 are far away in logits.
    """

    def __init__(self, config: DHMMConfig) -> None:
        super().__init__()
        assert config.slots is not None
        self.action_slots, self.control, self.matrices = config.action_slots, config.control, config.matrices
        self.floor, self.evidence_floor, self.rate = config.dither, config.evidence_floor, config.latent_rate
        self.shape = (config.chains, config.num_states)
        vocab_size, chains, num_states, matrices, rate = (
            config.vocab_size, config.chains, config.num_states, config.matrices, config.latent_rate
        )  # fmt: skip
        self.slot_ids: Tensor
        self.register_buffer("slot_ids", slot_table(config.slots), persistent=False)  # (C, n), -1 beyond a slot's ids
        gating = torch.full((vocab_size + 1,), config.control == "all")
        if config.control == "actions":  # RESET stands below the first action's ids
            gating[: max(slot.stop for slot in config.slots[: config.action_slots])] = True
        gating[-1] = False
        self.gating: Tensor
        self.register_buffer("gating", gating, persistent=False)  # whether an id gates the transition, (V + 1,)

        self.start_logits = nn.Parameter(torch.zeros(chains, num_states))
        sticky = config.latent_init == "sticky"
        transitions = _sticky(chains, matrices, num_states, config.dither) if sticky else _random(chains, matrices, num_states)
        self.transition_logits = nn.Parameter(transitions / rate)
        emissions = 0.1 * torch.randn(vocab_size, chains, num_states)
        if not sticky:
            emissions += PREFERENCE * _in_turn(num_states, vocab_size).T[:, None]
        self.emission_logits = nn.Parameter(emissions / rate)
        self.gate_weight = self.gate_bias = None
        if matrices > 1:
            gates, bias = torch.randn(vocab_size, chains, matrices), torch.zeros(chains, matrices)
            if not sticky:
                own = nn.functional.pad(_in_turn(vocab_size, matrices - 1), (0, 1))
                gates = 2 * PREFERENCE * own[:, None].repeat(1, chains, 1)
                bias[:, -1] = PREFERENCE
            self.gate_weight = nn.Parameter(gates / rate)
            self.gate_bias = nn.Parameter(bias / rate)
        self.residual_scale = nn.Parameter(torch.full((chains,), 1.0 / chains))

    @property
    def start(self) -> Tensor:
        """Belief before an episode's first step, (N, K)."""
        return (self.rate * at_least_single(self.start_logits)).softmax(dim=-1)

    @property
    def transitions(self) -> Tensor:
        """Dithered transition matrices, (N, M, K, K)."""
        return hmm.dither((self.rate * at_least_single(self.transition_logits)).softmax(dim=-1), self.floor)

    def tables(self) -> "ChainTables":
        """The parameters as passes use them, computed once for a whole pass or for all the steps of a rollout."""
        logits = self.rate * at_least_single(self.emission_logits)[self.slot_ids.clamp_min(0)]
        logits = logits.masked_fill((self.slot_ids < 0)[..., None, None], -torch.inf)
        by_slot = logits.log_softmax(dim=1)  # (C, n, N, K)
        evident = self.slot_ids >= 0
        evident[: self.action_slots] = False
        rows = len(self.emission_logits) + 1
        evidence = by_slot.new_zeros(rows, *self.shape).index_put((self.slot_ids[evident],), by_slot[evident])
        gates = None
        if self.gate_weight is not None:
            weights = nn.functional.pad(self.rate * at_least_single(self.gate_weight), (0, 0, 0, 0, 0, 1))
            gates = torch.where(self.gating[:, None, None], weights, 0.0)
        return ChainTables(self.transitions, by_slot.permute(0, 2, 3, 1), evidence, gates)

    def weigh(self, gate_logits: Tensor | None) -> Tensor | None:
        """The gate: weights (..., N, M) of the transition matrices, from the sum of the control tokens' logits."""
        if gate_logits is None:
            return None
        assert self.gate_bias is not None
        return (gate_logits + self.rate * at_least_single(self.gate_bias)).softmax(dim=-1)

    def forward(
        self,
        log_likelihood: Tensor,
        gate_logits: Tensor | None,
        initial: Tensor,
        episode_start: Tensor | None,
        tables: "ChainTables",
        mutation: float = 0.0,
        ids: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """
        Beliefs after each step.

        :param log_likelihood: of the steps' tokens, (B, T, N, K)
        :param gate_logits: of the steps' control tokens, (B, T, N, M); ``None`` when there is one matrix
        :param initial: belief before the first step, (B, N, K)
        :param episode_start: where the belief begins anew, (B, T)
        :param ids: the steps' tokens where there is one slot, -1 for nothing, (B, T); then the belief after nothing may be any
        :param mutation: probability per step that the belief jumps to a random state
        :param generator: draws the jumps; torch's own when ``None``
        :return: (B, T, N, K)
        """
        gates, transitions, which = None, tables.transitions, None
        if ids is not None and tables.gates is not None and self.matrices * self.shape[1] >= GROUPED:
            known, which = torch.unique(ids, return_inverse=True)
            of_each = self.weigh(tables.gates[known])
            assert of_each is not None
            transitions = hmm.mix(of_each, transitions).transpose(0, 1)
            # The belief after nothing is never read; were all of it one group, every step would be as dear as the longest.
            turns = torch.arange(len(ids), device=ids.device)[:, None] % len(known)
            which = torch.where(ids < 0, turns, which)
        else:
            gates = self.weigh(gate_logits)
        return hmm.run_filter(
            initial,
            log_likelihood.new_ones(*log_likelihood.shape[:3], 1) if gates is None else gates,
            hmm.limit(log_likelihood, self.evidence_floor),
            transitions,
            start=self.start,
            episode_start=episode_start,
            mutation=mutation,
            which=which,
            generator=generator,
            scan=self.floor >= hmm.SOME_DITHER,
        )

    def slot_priors(
        self, belief: Tensor, seen: Tensor | None, gate_logits: Tensor | None, first: int, last: int, tables: "ChainTables"
    ) -> Tensor:
        """
        The beliefs that slots ``first`` to ``last - 1`` of the next step are predicted from.

        For each slot, the filter conditioned on the slots of the same step before it.

        :param belief: (B, T, N, K)
        :param seen: log-likelihood of the slots before each, (last - first, B, T, N, K); ``None`` when there are none. Not
            needed for actions
        :param gate_logits: sums of their gate logits, (last - first, B, T, N, M); ``None`` when there are none or one matrix
        :return: (last - first, B, T, N, K)
        """
        prior = belief[None]
        if last > self.action_slots:
            if seen is None:
                prior = torch.einsum("btnk,nkl->btnl", belief, self._expected(tables.transitions))[None]
            else:
                if self.control == "actions" and gate_logits is not None:
                    gate_logits = gate_logits[-1:]  # all slots after the actions have the same gate
                moved = hmm.predict(hmm.move(belief, tables.transitions), self.weigh(gate_logits))
                if first < self.action_slots:
                    action = torch.arange(first, last, device=belief.device) < self.action_slots
                    moved = torch.where(action[:, None, None, None, None], prior, moved)
                prior = hmm.correct(moved, hmm.limit(seen, self.evidence_floor))
        if self.floor < hmm.SOME_DITHER:
            prior = hmm.bound_gradient(prior)
        return prior.expand(last - first, -1, -1, -1, -1)

    def _expected(self, transitions: Tensor) -> Tensor:
        """The transition while nothing is known of the step that gates it, (N, K, K)."""
        if self.gate_bias is None:
            return transitions[:, 0]
        gate = self.weigh(torch.zeros_like(self.gate_bias))
        assert gate is not None
        return hmm.mix(gate, transitions)

    def slot_logits(self, priors: Tensor, emissions: Tensor) -> Tensor:
        """
        The chains' part in the logits of some slots: log-probabilities times the learned scales.

        :param priors: from :meth:`slot_priors`, (c, B, T, N, K)
        :param emissions: probabilities of these slots' ids, (c, N, K, n)
        :return: (c, B, T, n)
        """
        predictive, scale = hmm.log_predictive(priors, emissions), at_least_single(self.residual_scale)
        if len(scale) == 1:
            return predictive[..., 0, :] * scale
        return torch.einsum("cbtnv,n->cbtv", predictive, scale)


class ChainTables(NamedTuple):
    """
    :param transitions: dithered, (N, M, K, K)
    :param log_emissions: log-probability of each slot's ids in each state, (C, N, K, n); minus infinity beyond a slot's ids
    :param evidence: log-likelihood of every id, (V + 1, N, K); zero for actions and, in the last row, for nothing
    :param gates: gate logits that every id contributes, (V + 1, N, M); ``None`` when there is one matrix
    """

    transitions: Tensor
    log_emissions: Tensor
    evidence: Tensor
    gates: Tensor | None


def at_least_single(x: Tensor) -> Tensor:
    """Numbers in single precision, or in the double precision that they have: half of it is too little for a filter."""
    return x if x.dtype == torch.float64 else x.float()


def _sticky(chains: int, matrices: int, states: int, floor: float) -> Tensor:
    """
    Transition logits (N, M, K, K) that stay, with dwell times spread log-uniformly over the states from 3 to 1 / floor steps.

    Without long dwell times no memory of a distant cue, gradient included, would survive to be learned from.
    """
    longest = 1 / floor if floor >= hmm.SOME_DITHER else 1000.0
    dwell = torch.logspace(torch.tensor(3.0).log10().item(), torch.tensor(max(longest, 3.0)).log10().item(), states)
    leave = (1 / dwell)[:, None] / max(states - 1, 1)
    probabilities = torch.where(torch.eye(states, dtype=torch.bool), 1 - (1 / dwell)[:, None], leave)
    return probabilities.log() + 0.1 * torch.randn(chains, matrices, states, states)


def _random(chains: int, matrices: int, states: int) -> Tensor:
    """Transition logits (N, M, K, K) drawn at random, but for the last of several matrices, in which states stay."""
    logits = torch.randn(chains, matrices, states, states)
    if matrices > 1:
        logits[:, -1] += 2 * PREFERENCE * torch.eye(states)
    return logits


def _in_turn(rows: int, columns: int) -> Tensor:
    """Row i has its 1 in column i modulo their number, (rows, columns)."""
    return nn.functional.one_hot(torch.arange(rows) % columns, columns).float()

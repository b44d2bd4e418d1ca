"""
The hidden Markov layer: its parameters, and what a belief says about the next step's slots.

Shapes: B sequences, T steps, C slots (the first A of them the action's), c of these slots, N chains, K states, M transition
matrices, V ids, n the ids of the widest slot.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dhmm_rl.model import bayes_filter
from dhmm_rl.model.config import DHMMConfig
from dhmm_rl.model.latent_layer import LatentLayer, LatentParameters, at_least_single
from dhmm_rl.model.slots import slot_table
from dhmm_rl.model.steps import can_inspect

PREFERENCE = 5.0
"""Initial logit of what an automaton prefers, above those of the rest."""
GATHER_SIZE = 4096
"""When M · K reaches this size, gather one transition matrix per token instead of mixing all M."""


@dataclass
class HMMParameters(LatentParameters):
    """
    The parameters of the chains as passes use them.

    :param transitions: dithered transition matrices, (N, M, K, K)
    :param log_emissions: log-probability of each slot's ids in each state, (C, N, K, n); minus infinity beyond a slot's ids
    :param gates: gate logits that each id contributes, (V + 1, N, M); ``None`` if there is one matrix
    """

    transitions: Tensor
    log_emissions: Tensor
    gates: Tensor | None


class HMMLayer(LatentLayer):
    """
    N parallel hidden Markov chains with transitions that are gated by control tokens.

    An agent's own action is an input of the filter, not evidence: given the history it says nothing about the state. So action
    slots gate the transition and are predicted from the belief before it; the other slots are evidence and are predicted from
    the belief after it.

    The logits are divided by ``latent_rate``, so that they move that much faster than other parameters under optimizers such as
    Adam: probabilities near 0 and 1 are far away in logits.

    :param config: hyperparameters of the model
    """

    def __init__(self, config: DHMMConfig) -> None:
        super().__init__(config)
        self.action_slots, self.control, self.matrices = config.action_slots, config.control, config.matrices
        self.dither, self.evidence_floor, self.rate = config.dither, config.evidence_floor, config.latent_rate
        self.belief_shape = (config.chains, config.num_states)
        self.slot_ids: Tensor
        self.register_buffer("slot_ids", slot_table(config.slots), persistent=False)  # (C, n), -1 beyond a slot's ids
        gating = torch.full((config.vocab_size + 1,), config.control == "all")
        if config.control == "actions":  # RESET is below the first action's ids
            gating[: max(slot.stop for slot in config.slots[: config.action_slots])] = True
        gating[-1] = False
        self.gating: Tensor
        self.register_buffer("gating", gating, persistent=False)  # whether an id gates the transition, (V + 1,)
        # The place of each id's log-likelihoods among those of all slots. Ids of action slots are not evidence: their rows, and
        # that of padding, are zero.
        evidence_index = torch.full((config.vocab_size + 1,), self.slot_ids.numel())
        for j, slot in enumerate(config.slots[config.action_slots :], start=config.action_slots):
            evidence_index[slot.start : slot.stop] = torch.arange(slot.stop - slot.start) + j * self.slot_ids.shape[1]
        self.evidence_index: Tensor
        self.register_buffer("evidence_index", evidence_index, persistent=False)
        self._init_parameters(config)

    def _init_parameters(self, config: DHMMConfig) -> None:
        chains, states, matrices, ids = config.chains, config.num_states, config.matrices, config.vocab_size
        sticky, rate = config.latent_init == "sticky", config.latent_rate
        self.start_logits = nn.Parameter(torch.zeros(chains, states))
        init = (
            _sticky_transitions(chains, matrices, states, config.dither)
            if sticky
            else _random_transitions(chains, matrices, states)
        )
        self.transition_logits = nn.Parameter(init / rate)
        emissions = 0.1 * torch.randn(ids, chains, states)
        if not sticky:  # every state prefers an id
            emissions += PREFERENCE * _take_turns(states, ids).T[:, None]
        self.emission_logits = nn.Parameter(emissions / rate)
        self.gate_weight = self.gate_bias = None
        if matrices > 1:
            gates, bias = torch.randn(ids, chains, matrices), torch.zeros(chains, matrices)
            if not sticky:  # every id prefers a matrix of its own; without control tokens, the last one is preferred
                own = nn.functional.pad(_take_turns(ids, matrices - 1), (0, 1))
                gates = 2 * PREFERENCE * own[:, None].repeat(1, chains, 1)
                bias[:, -1] = PREFERENCE
            self.gate_weight = nn.Parameter(gates / rate)
            self.gate_bias = nn.Parameter(bias / rate)
        # The log-probabilities of a plain HMM are not scaled: a large scale would let faint beliefs give confident answers.
        plain_hmm = config.layers == 0 and chains == 1
        self.residual_scale = nn.Parameter(torch.full((chains,), 1.0 / chains), requires_grad=not plain_hmm)

    @property
    def start(self) -> Tensor:
        """Belief before the first step of an episode, (N, K)."""
        return (self.rate * at_least_single(self.start_logits)).softmax(dim=-1)

    @property
    def transitions(self) -> Tensor:
        """Dithered transition matrices, (N, M, K, K)."""
        return bayes_filter.dither((self.rate * at_least_single(self.transition_logits)).softmax(dim=-1), self.dither)

    def cached_parameters(self) -> HMMParameters:
        """Probabilities from logits; the features of an id are its log-likelihood in each state and its gate logits."""
        logits = self.rate * at_least_single(self.emission_logits)[self.slot_ids.clamp_min(0)]
        logits = logits.masked_fill((self.slot_ids < 0)[..., None, None], -torch.inf)
        by_slot = logits.log_softmax(dim=1)  # (C, n, N, K)
        nothing = by_slot.new_zeros(1, *self.belief_shape)
        evidence = torch.cat([by_slot.flatten(0, 1), nothing]).index_select(0, self.evidence_index)
        gates, features = None, evidence.flatten(1)
        if self.gate_weight is not None:
            weights = nn.functional.pad(self.rate * at_least_single(self.gate_weight), (0, 0, 0, 0, 0, 1))
            gates = torch.where(self.gating[:, None, None], weights, 0.0)
            features = torch.cat([features, gates.flatten(1)], dim=1)
        return HMMParameters(self.start, features, self.transitions, by_slot.permute(0, 2, 3, 1), gates)

    def filter(
        self,
        features: Tensor,
        initial: Tensor,
        starts: Tensor | None,
        parameters: Any,
        *,
        ids: Tensor | None = None,
        mutation: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Bayes filter of the steps, see :meth:`LatentLayer.filter`."""
        log_likelihood, gate_logits = self._split(features)
        transitions, matrix_index = parameters.transitions, None
        if ids is not None and parameters.gates is not None and self.matrices * self.belief_shape[1] >= GATHER_SIZE:
            # With one slot, a step's transition depends on its id alone: mix one matrix per id, not per step.
            if can_inspect(ids):
                known, matrix_index = torch.unique(ids, return_inverse=True)
            else:  # the matrices of all ids, because the number of different ids is unknown
                known = torch.arange(len(parameters.gates), device=ids.device)
                matrix_index = ids
            of_each = self._gate(parameters.gates[known])
            assert of_each is not None
            transitions = bayes_filter.mix(of_each, transitions).transpose(0, 1)
            # The belief at padding is never read. Spread padding over all matrices, so that no group of rows becomes large.
            spread = torch.arange(len(ids), device=ids.device)[:, None] % len(known)
            matrix_index = torch.where(ids < 0, spread, matrix_index)
            gates = None
        else:
            gates = self._gate(gate_logits)
        return bayes_filter.run_filter(
            initial,
            log_likelihood.new_ones(*log_likelihood.shape[:3], 1) if gates is None else gates,
            bayes_filter.clip_evidence(log_likelihood, self.evidence_floor),
            transitions,
            start=parameters.initial,
            episode_start=starts,
            mutation=mutation,
            matrix_index=matrix_index,
            generator=generator,
            scan=self.dither >= bayes_filter.MIN_DITHER,
        )

    def slot_beliefs(self, belief: Tensor, seen: Tensor | None, first: int, last: int, parameters: Any) -> Tensor:
        """For each slot, the filter conditioned on the slots of the same step before it, (c, B, T, N, K)."""
        prior = belief[None]
        if last > self.action_slots:
            if seen is None:
                prior = torch.einsum("btnk,nkl->btnl", belief, self._expected_transition(parameters.transitions))[None]
            else:
                log_likelihood, gate_logits = self._split(seen)
                if self.control == "actions" and gate_logits is not None:
                    gate_logits = gate_logits[-1:]  # all slots after the actions have the same gate
                propagated = bayes_filter.propagate(belief, parameters.transitions)
                predicted = bayes_filter.predict(propagated, self._gate(gate_logits))
                if first < self.action_slots:
                    action = torch.arange(first, last, device=belief.device) < self.action_slots
                    predicted = torch.where(action[:, None, None, None, None], prior, predicted)
                prior = bayes_filter.correct(predicted, bayes_filter.clip_evidence(log_likelihood, self.evidence_floor))
        if self.dither < bayes_filter.MIN_DITHER:
            prior = bayes_filter.bound_gradient(prior)
        return prior.expand(last - first, -1, -1, -1, -1)

    def slot_emissions(self, slots: slice | Tensor, width: int, parameters: Any) -> Tensor:
        """Probabilities of the slots' ids in each state, (c, N, K, n)."""
        probabilities: Tensor = parameters.log_emissions[slots][..., :width].exp()
        return probabilities

    def slot_logits(self, slot_beliefs: Tensor, emissions: Tensor) -> Tensor:
        """Log-probabilities of the ids, summed over the chains with learned scales, (c, B, T, n)."""
        predictive, scale = bayes_filter.log_predictive(slot_beliefs, emissions), at_least_single(self.residual_scale)
        if len(scale) == 1:
            return predictive[..., 0, :] * scale
        return torch.einsum("cbtnv,n->cbtv", predictive, scale)

    def _split(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Log-likelihoods (..., N, K) and gate logits (..., N, M) of features (..., F)."""
        (chains, states), lead = self.belief_shape, features.shape[:-1]
        if self.matrices == 1:
            return features.reshape(*lead, chains, states), None
        log_likelihood, gates = torch.split(features, [chains * states, chains * self.matrices], dim=-1)
        return log_likelihood.reshape(*lead, chains, states), gates.reshape(*lead, chains, self.matrices)

    def _gate(self, gate_logits: Tensor | None) -> Tensor | None:
        """Weights (..., N, M) of the transition matrices, from the sum of the control tokens' logits."""
        if gate_logits is None:
            return None
        assert self.gate_bias is not None
        return (gate_logits + self.rate * at_least_single(self.gate_bias)).softmax(dim=-1)

    def _expected_transition(self, transitions: Tensor) -> Tensor:
        """The transition when nothing is known of the step that gates it, (N, K, K)."""
        if self.gate_bias is None:
            return transitions[:, 0]
        gate = self._gate(torch.zeros_like(self.gate_bias))
        assert gate is not None
        return bayes_filter.mix(gate, transitions)


def _sticky_transitions(chains: int, matrices: int, states: int, dither: float) -> Tensor:
    """
    Transition logits (N, M, K, K) that stay, with dwell times spread log-uniformly over the states from 3 to 1 / dither steps.

    Without long dwell times no memory of a distant cue, and no gradient to it, would survive to be learned from.
    """
    longest = 1 / dither if dither >= bayes_filter.MIN_DITHER else 1000.0
    dwell = torch.logspace(torch.tensor(3.0).log10().item(), torch.tensor(max(longest, 3.0)).log10().item(), states)
    leave = (1 / dwell)[:, None] / max(states - 1, 1)
    probabilities = torch.where(torch.eye(states, dtype=torch.bool), 1 - (1 / dwell)[:, None], leave)
    return probabilities.log() + 0.1 * torch.randn(chains, matrices, states, states)


def _random_transitions(chains: int, matrices: int, states: int) -> Tensor:
    """Random transition logits (N, M, K, K); in the last of several matrices, states stay."""
    logits = torch.randn(chains, matrices, states, states)
    if matrices > 1:
        logits[:, -1] += 2 * PREFERENCE * torch.eye(states)
    return logits


def _take_turns(rows: int, columns: int) -> Tensor:
    """One-hot rows that take turns: row i has its 1 in column i modulo the number of columns, (rows, columns)."""
    return nn.functional.one_hot(torch.arange(rows) % columns, columns).float()

"""
The automaton that a model's latent chain has become.

Shapes: B sentences, T tokens, K latent states, U of them in use, V ids, S states of the automaton.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from dhmm_rl.languages.evaluation import batches_for
from dhmm_rl.languages.language import Language
from dhmm_rl.model import DHMMGPT2, HiddenStates
from dhmm_rl.tokens import PAD_ID

IN_USE = 0.99
"""The fewest latent states that hold this share of the belief are in use."""
MOST_IN_USE = 64
"""Of more latent states nobody wants a picture."""
RARE = 0.05
"""A token does not come in a state where it is rarer than this, compared with the commonest one there."""
LIKELY = 0.1
"""A token leads to every state that then holds more than this share of the belief."""
TOLERANCE = 0.1
"""Probabilities no further apart are the same where states are compared."""


class LatentAutomaton(NamedTuple):
    """
    :param members: the latent states that each of the S states stands for
    :param predicted: probability of each token to be predicted there, (S, V)
    :param moves: belief after each token, for one who was certain of the state before, (S, V, S); zero for tokens that do not
        come there
    """

    members: tuple[tuple[int, ...], ...]
    predicted: Tensor
    moves: Tensor

    def arrows(self) -> dict[tuple[int, int], list[int]]:
        """Ids of the tokens that lead from one state to another."""
        found: dict[tuple[int, int], list[int]] = {}
        for source, token, target in (self.moves > LIKELY).nonzero().tolist():
            found.setdefault((source, target), []).append(token)
        return found


@torch.no_grad()
def read_automaton(model: DHMMGPT2, language: Language[Any], instances: Sequence[Any]) -> LatentAutomaton | None:
    """
    For each latent state in use, ask the chain what it predicts when it is certain of that state, and where its belief goes
    from there with every token that comes.

    It is the same question whether tokens choose the transition, are evidence, or both. States that behave alike become one:
    a chain with more states than it needs often has several where one would do.

    :param instances: with their traces, they show which states are in use and which tokens come there
    :return: ``None`` for a model without one latent chain, or with more than :data:`MOST_IN_USE` states in use
    """
    if model.hmm is None or model.hmm.belief_shape[0] > 1:
        return None
    model.eval()
    mass, met = _count(model, language, instances)
    order = mass.argsort(descending=True)
    count = int((mass[order].cumsum(dim=0) < IN_USE * mass.sum()).sum()) + 1
    if count > MOST_IN_USE:
        return None
    used = order[:count].sort().values
    mass, met = mass[used], met[used]
    met *= met > RARE * met.amax(dim=1, keepdim=True)

    device, (states, ids) = model.slot_ids.device, (model.hmm.belief_shape[1], len(language.tokens))
    certain = torch.eye(states)[used, None, None].to(device)  # (U, 1, 1, K)
    hidden = torch.zeros(count, 1, model.embed_size, device=device)
    logits = model.decode(
        HiddenStates(hidden, certain, model.cached_parameters()), torch.full((count, 1, 1), PAD_ID, device=device)
    )
    predicted = logits[:, 0, 0].softmax(dim=-1).cpu()
    tokens = torch.arange(ids, device=device).repeat(count)[:, None]
    after = model.filter_beliefs(tokens, certain[:, 0].repeat_interleave(ids, dim=0))
    moves = after.cpu().view(count, ids, states)[..., used]

    alike = _merge(predicted, moves, met > 0)
    groups = [torch.nonzero(alike == group)[:, 0] for group in set(alike.tolist())]
    groups.sort(key=lambda group: (int((mass[group] @ predicted[group]).argmax()), int(group[0])))
    belongs = torch.stack([torch.isin(torch.arange(count), group) for group in groups], dim=1).float()  # (U, S)
    times = belongs.T @ met  # (S, V)
    return LatentAutomaton(
        tuple(tuple(used[group].tolist()) for group in groups),
        (belongs * mass[:, None]).T @ predicted / (belongs.T @ mass)[:, None],
        torch.einsum("us,uv,uvt->svt", belongs, met, moves @ belongs) / times.clamp_min(1e-9)[..., None],
    )


@torch.no_grad()
def chain_agreement(model: DHMMGPT2, language: Language[Any], instances: Sequence[Any]) -> float:
    """
    How often the likeliest next token of the latent chain alone is that of the whole model.

    :param model: with a latent chain
    :param instances: with their traces, the tokens that are read
    :return: a share of the predicted tokens; 1 in a model without a transformer
    """
    model.eval()
    same = tokens = 0
    for batch in batches_for(model, language, instances):
        states = model.hidden_states(batch.input_ids, position_ids=batch.position_ids)
        chain_only = states._replace(hidden=torch.zeros_like(states.hidden))
        unknown = torch.full_like(batch.input_ids, PAD_ID)[..., None]
        whole, alone = (model.decode(part, unknown)[:, :, 0].argmax(dim=-1) for part in (states, chain_only))
        predicted = batch.labels >= 0
        same, tokens = same + int(((whole == alone) & predicted).sum()), tokens + int(predicted.sum())
    return same / tokens


def _count(model: DHMMGPT2, language: Language[Any], instances: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Belief in each latent state after a token, summed over all tokens, (K,), and by the token that then came, (K, V)."""
    ids, mass, met = len(language.tokens), [], []
    for batch in batches_for(model, language, instances):
        read = batch.input_ids >= 0
        belief = model.hidden_states(batch.input_ids, position_ids=batch.position_ids)[1][:, :, 0] * read[..., None]
        following = one_hot(batch.input_ids[:, 1:].clamp_min(0), ids) * read[:, 1:, None]
        mass.append(belief.sum(dim=(0, 1)))
        met.append(torch.einsum("btk,btv->kv", belief[:, :-1], following.float()))
    return torch.stack(mass).sum(dim=0).cpu(), torch.stack(met).sum(dim=0).cpu()


def _merge(predicted: Tensor, moves: Tensor, comes: Tensor) -> Tensor:
    """
    Partition refinement (Moore 1956): states are alike that predict the same and that every token takes to states alike.

    :param predicted: (U, V)
    :param moves: (U, V, U)
    :param comes: tokens that come in each state, (U, V); only those that come in both tell two states apart
    :return: a state that stands for each state's group, (U,)
    """
    alike = torch.zeros(len(predicted), dtype=torch.long)
    while True:
        onto = moves @ one_hot(alike, len(predicted)).float()  # belief on each group, (U, V, U)
        finer = alike.clone()
        for state, group in enumerate(alike):
            apart = ((onto - onto[state]).abs().amax(dim=2) * (comes & comes[state])).amax(dim=1)
            apart = apart.maximum((predicted - predicted[state]).abs().amax(dim=1))
            finer[state] = torch.nonzero((alike == group) & (apart < TOLERANCE))[0, 0]
        if len(set(finer.tolist())) == len(set(alike.tolist())):
            return alike
        alike = finer

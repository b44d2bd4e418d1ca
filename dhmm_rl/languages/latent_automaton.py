"""
Reading an automaton from a model's latent chain.

Shapes: B sentences, T tokens, K latent states, U of them in use, V ids, S states of the automaton.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from dhmm_rl.languages.evaluation import make_batches
from dhmm_rl.languages.language import Language
from dhmm_rl.model import DHMMGPT2, HiddenStates
from dhmm_rl.tokens import PAD_ID

IN_USE = 0.99
"""The latent states in use are the smallest set that holds this fraction of the belief."""
MAX_IN_USE = 64
"""With more latent states in use, a plot of the automaton would not be readable."""
RARE = 0.05
"""A token counts as absent in a state if it is rarer than this, relative to the most common token there."""
LIKELY = 0.1
"""A token leads to every state that then holds more than this fraction of the belief."""
TOLERANCE = 0.1
"""When states are compared, probabilities count as equal if they differ by at most this."""


class LatentAutomaton(NamedTuple):
    """
    An automaton read from a latent chain.

    :param members: latent states that each of the S states represents
    :param predicted: predicted probability of each token in each state, shape (S, V)
    :param moves: belief after each token, starting from certainty of a state, shape (S, V, S); zero for tokens that do not
        occur in the state
    """

    members: tuple[tuple[int, ...], ...]
    predicted: Tensor
    moves: Tensor

    def arrows(self) -> dict[tuple[int, int], list[int]]:
        """Return the ids of the tokens that lead from one state to another, by (source, target)."""
        arrows: dict[tuple[int, int], list[int]] = {}
        for source, token, target in (self.moves > LIKELY).nonzero().tolist():
            arrows.setdefault((source, target), []).append(token)
        return arrows


@torch.no_grad()
def read_automaton(model: DHMMGPT2, language: Language[Any], instances: Sequence[Any]) -> LatentAutomaton | None:
    """
    Read the automaton of a model's latent chain.

    For each latent state in use, the chain is made certain of that state. Then the automaton has what the chain predicts and
    the belief after each token that occurs. This works whether tokens choose the transition, are evidence, or both. Latent
    states that behave alike are merged, because chains often have several where one would suffice.

    :param model: model of the language
    :param language: language of the instances
    :param instances: instances that show, with their traces, which states are in use and which tokens occur there
    :return: the automaton; ``None`` for a model without exactly one latent chain, or with more than :data:`MAX_IN_USE` states
        in use
    """
    if model.hmm is None or model.hmm.belief_shape[0] > 1:
        return None
    model.eval()
    mass, met = _count(model, language, instances)
    order = mass.argsort(descending=True)
    count = int((mass[order].cumsum(dim=0) < IN_USE * mass.sum()).sum()) + 1
    if count > MAX_IN_USE:
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
    after, _ = model.advance(tokens, certain[:, 0].repeat_interleave(ids, dim=0))
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
    Return how often the latent chain alone and the whole model predict the same most likely token.

    :param model: model with a latent chain
    :param language: language of the instances
    :param instances: instances to predict the traces of
    :return: fraction of the predicted tokens; 1 in a model without a transformer
    """
    model.eval()
    same = tokens = 0
    for batch in make_batches(model, language, instances):
        states = model.hidden_states(batch.input_ids, position_ids=batch.position_ids)
        chain_only = states._replace(hidden=torch.zeros_like(states.hidden))
        unknown = torch.full_like(batch.input_ids, PAD_ID)[..., None]
        whole, alone = (model.decode(part, unknown)[:, :, 0].argmax(dim=-1) for part in (states, chain_only))
        predicted = batch.labels >= 0
        same, tokens = same + int(((whole == alone) & predicted).sum()), tokens + int(predicted.sum())
    return same / tokens


def _count(model: DHMMGPT2, language: Language[Any], instances: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Return the belief in each latent state, summed over all tokens, (K,), and the same for each next token, (K, V)."""
    ids, mass, met = len(language.tokens), [], []
    for batch in make_batches(model, language, instances):
        read = batch.input_ids >= 0
        belief = model.hidden_states(batch.input_ids, position_ids=batch.position_ids)[1][:, :, 0] * read[..., None]
        following = one_hot(batch.input_ids[:, 1:].clamp_min(0), ids) * read[:, 1:, None]
        mass.append(belief.sum(dim=(0, 1)))
        met.append(torch.einsum("btk,btv->kv", belief[:, :-1], following.float()))
    return torch.stack(mass).sum(dim=0).cpu(), torch.stack(met).sum(dim=0).cpu()


def _merge(predicted: Tensor, moves: Tensor, occurs: Tensor) -> Tensor:
    """
    Partition refinement (Moore 1956): states are alike if they predict the same and every token leads them to states alike.

    :param predicted: predicted probability of each token, shape (U, V)
    :param moves: belief after each token, shape (U, V, U)
    :param occurs: whether each token occurs in each state, shape (U, V); only tokens that occur in both states distinguish them
    :return: index of a representative of each state's group, shape (U,)
    """
    alike = torch.zeros(len(predicted), dtype=torch.long)
    while True:
        onto = moves @ one_hot(alike, len(predicted)).float()  # belief on each group, (U, V, U)
        finer = alike.clone()
        for state, group in enumerate(alike):
            apart = ((onto - onto[state]).abs().amax(dim=2) * (occurs & occurs[state])).amax(dim=1)
            apart = apart.maximum((predicted - predicted[state]).abs().amax(dim=1))
            finer[state] = torch.nonzero((alike == group) & (apart < TOLERANCE))[0, 0]
        if len(set(finer.tolist())) == len(set(alike.tolist())):
            return alike
        alike = finer

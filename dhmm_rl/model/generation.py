"""
Generation: a model continues streams.

Shapes: B streams, T steps, C slots.
"""

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from dhmm_rl.errors import InputError
from dhmm_rl.model.dhmm_gpt2 import DHMMGPT2
from dhmm_rl.model.filter_kernels import TINY
from dhmm_rl.model.outputs import HiddenStates
from dhmm_rl.tokens import DONE, PAD_ID


def check_predictions(logits: Tensor) -> None:
    """
    Refuse to choose tokens or actions by numbers that are NaN or infinite: the likeliest of them would be arbitrary.

    :param logits: logits or log-probabilities, (..., n); minus infinity for an entry that must not be chosen
    :raises InputError: for a row with NaN or infinity in it, or without any finite value
    """
    if not bool(logits.amax(dim=-1).isfinite().all()):
        raise InputError(
            "the model's predictions are not finite numbers (NaN or infinity), so nothing can be chosen: its weights have "
            "diverged or were damaged; use an earlier checkpoint, or train again with a lower learning rate"
        )


def choose(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    greedy: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """
    Pick one entry of each row.

    :param logits: logits of the entries, (B, n)
    :param temperature: softmax temperature; above 1 it flattens the distribution, below 1 it sharpens it
    :param top_k: number of likeliest entries to choose from; all by default
    :param greedy: take the likeliest entry
    :return: indices, (B,)
    :raises InputError: for a temperature or ``top_k`` out of range, or logits that are not finite numbers
    """
    check_predictions(logits)
    if greedy:
        return logits.argmax(dim=-1)
    if not TINY <= temperature < math.inf:
        raise InputError(f"temperature is {temperature}; it must be positive and finite (greedy=True takes the likeliest)")
    if top_k is not None:
        if top_k < 1:
            raise InputError(f"top_k is {top_k}; it must be at least 1")
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    below_best = logits.float() - logits.float().amax(dim=-1, keepdim=True)  # no temperature makes this overflow
    return torch.multinomial((below_best / temperature).softmax(dim=-1), 1, generator=generator)[:, 0]


def mutation_rate(model: DHMMGPT2, greedy: bool, mutation: float | None) -> float:
    """The given mutation rate; by default the model's own, or 0 if the likeliest token is taken."""
    if mutation is None:
        return 0.0 if greedy else model.mutation
    if not 0 <= mutation < 1:
        raise InputError(f"mutation is {mutation}; it is a probability below 1")
    return mutation


@torch.no_grad()
def sample_slots(
    model: DHMMGPT2,
    states: HiddenStates,
    slots: range,
    following: Tensor | None = None,
    *,
    legal: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    greedy: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """
    Choose the slots of the next step one after the other.

    :param states: hidden states of the step before, with T = 1
    :param slots: slots to choose; those before them are read from ``following``
    :param legal: flags of the ids that may be chosen, (V,) booleans; all by default
    :return: ids of the next step, -1 in slots not chosen or given, (B, C)
    :raises InputError: when no legal id is left for a slot
    """
    if following is None:
        following = torch.full((len(states.hidden), len(model.slots)), -1, device=states.hidden.device)
    following = following.clone()
    for j in slots:
        logits = model.decode(states, following[:, None], j, j + 1)[:, 0, 0]
        ids = model.slot_ids[j]
        if legal is not None:
            allowed = legal[ids.clamp_min(0)] & (ids >= 0)
            if not bool(allowed.any()):
                raise InputError(f"none of the legal ids belongs to slot {model.slots[j].name}")
            logits = logits.masked_fill(~allowed, -torch.inf)
        picked = choose(logits, temperature=temperature, top_k=top_k, greedy=greedy, generator=generator)
        following[:, j] = ids[picked]
    return following


@torch.no_grad()
def generate(
    model: DHMMGPT2,
    prompt: Tensor,
    steps: int,
    *,
    legal_ids: Collection[int] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    greedy: bool = False,
    mutation: float | None = None,
    generator: torch.Generator | None = None,
    end_id: int | None = None,
    position_ids: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """
    Continue streams on the cached state, so that a continuation may have any length.

    :param model: model of the streams
    :param prompt: first steps of the streams, at least one, (B, T), or (B, T, C) with several slots
    :param steps: number of steps to add
    :param legal_ids: the only ids that may be chosen; all by default
    :param temperature: softmax temperature; above 1 it flattens the distribution, below 1 it sharpens it
    :param top_k: number of likeliest ids to choose from; all by default
    :param greedy: always take the likeliest id
    :param mutation: probability of a jump of the belief per step after the prompt; by default the model's, or 0 if ``greedy``
    :param generator: random generator of the choices and the jumps
    :param end_id: id that ends a sequence, followed by padding only; ``DONE`` in a stream of an environment
    :param position_ids: function that returns the position ids (B, t), or (B, t, P), of the ids (B, t) so far
    :return: prompt and continuation, (B, T + steps) or (B, T + steps, C)
    :raises InputError: for an empty prompt, or legal ids that leave a slot without choice
    """
    _check_prompt(prompt, steps)
    rate, length = mutation_rate(model, greedy, mutation), prompt.shape[1]
    legal = None if legal_ids is None else _legal_flags(model, legal_ids, prompt.device)
    sampling: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "greedy": greedy, "generator": generator}
    end_id = DONE if model.action_slots > 0 else end_id
    stream = prompt.new_full((len(prompt), length + steps, *prompt.shape[2:]), PAD_ID)
    stream[:, :length] = prompt
    last = prompt[:, -1] if prompt.dim() == 2 else prompt[:, -1, 0]
    ended = torch.zeros_like(last, dtype=torch.bool) if end_id is None else last.eq(end_id)
    state = model.initial_state(len(prompt))
    # Read the prompt, all but its last step.
    ids = None if position_ids is None else position_ids(prompt)
    for t in range(length - 1):
        _, state = model.step_hidden_states(prompt[:, t], state, position_ids=None if ids is None else ids[:, t])
    # Read the last step so far, choose the next one, and so on.
    for t in range(length - 1, length + steps - 1):
        ids = None if position_ids is None else position_ids(stream[:, : t + 1])[:, -1]
        states, state = model.step_hidden_states(stream[:, t], state, rate, ids, generator)
        tokens = sample_slots(model, states, range(len(model.slots)), legal=legal, **sampling)
        # Padding follows the end of a stream; a step that ends one holds nothing else.
        if end_id is not None:
            tokens[ended] = PAD_ID
            ended = ended | (tokens[:, 0] == end_id)
            tokens[ended, 1:] = PAD_ID
        stream[:, t + 1] = tokens[:, 0] if prompt.dim() == 2 else tokens
        if bool(ended.all()):
            break
    return stream


def _check_prompt(prompt: Tensor, steps: int) -> None:
    if prompt.shape[1] == 0:
        raise InputError("the prompt is empty; generation needs at least one step to continue")
    if steps < 0:
        raise InputError(f"steps is {steps}; it must not be negative")


def _legal_flags(model: DHMMGPT2, legal_ids: Collection[int], device: torch.device) -> Tensor:
    """Flags of the ids that may be chosen, (V,)."""
    if not all(0 <= id_ < model.vocab_size for id_ in legal_ids):
        raise InputError(f"legal ids must lie between 0 and {model.vocab_size - 1}")
    legal = torch.zeros(model.vocab_size, dtype=torch.bool, device=device)
    legal[torch.tensor(sorted(legal_ids), dtype=torch.long, device=device)] = True
    return legal

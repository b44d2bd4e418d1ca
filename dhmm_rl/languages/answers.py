"""
What a model answers in a language.

Shapes: B instances, T tokens of the longest.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dhmm_rl.data import Batch
from dhmm_rl.languages.batches import make_batch
from dhmm_rl.languages.language import Language
from dhmm_rl.model import DHMMGPT2, generate
from dhmm_rl.model.generate import choose, mutation_rate
from dhmm_rl.tokens import NOTHING

TOKENS = 2**14
"""How many tokens are read at once."""


class Score(NamedTuple):
    """
    :param exact: share of the instances whose whole trace is right
    :param tokens: share of the traces' tokens that are right
    :param nats: mean loss of the traces' tokens
    """

    exact: float
    tokens: float
    nats: float


@torch.no_grad()
def score(model: DHMMGPT2, language: Language[Any], instances: Sequence[Any], batch_size: int | None = None) -> Score:
    """
    Whether the likeliest token is the right one, everywhere, given the right ones before it.

    Where it is in a whole trace, the trace is exactly what the model writes when it always takes the likeliest token, and the
    other way round; so one parallel pass counts exact matches.

    :param batch_size: as :func:`batches_for` takes it
    """
    model.eval()
    exact: list[Tensor] = []
    right = wanted = 0
    nats = 0.0
    for batch in batches_for(model, language, instances, batch_size):
        out = model(batch.input_ids, batch.labels, position_ids=batch.position_ids)
        learned = batch.labels >= 0
        hit = (out.logits.argmax(dim=-1) == batch.labels) | ~learned
        exact.append(hit.all(dim=1))
        right, wanted = right + int((hit & learned).sum()), wanted + int(learned.sum())
        nats += float(out.token_loss.double().sum())
    return Score(float(torch.cat(exact).double().mean()), right / wanted, nats / wanted)


def batches_for(
    model: DHMMGPT2, language: Language[Any], instances: Sequence[Any], batch_size: int | None = None
) -> Iterator[Batch]:
    """
    Instances with their traces on a model's device.

    :param batch_size: instances in a batch; when ``None``, as many as the longest leaves room for
    """
    if batch_size is None:
        batch_size = max(1, TOKENS // max(len(language.sentence(instance).ids) for instance in instances))
    for first in range(0, len(instances), batch_size):
        batch = make_batch(language, instances[first : first + batch_size])
        yield Batch(*(part.to(model.slot_ids.device) for part in batch))


@torch.no_grad()
def write_traces(
    model: DHMMGPT2,
    language: Language[Any],
    instances: Sequence[Any],
    *,
    steps: int | None = None,
    greedy: bool = True,
    temperature: float = 1.0,
    mutation: float | None = None,
    generator: torch.Generator | None = None,
) -> list[list[str]]:
    """
    Let a model write a trace for each instance.

    :param steps: the most tokens of a trace; as many as the longest of the language's own traces when ``None``
    :param greedy: always take the likeliest token; drawn when ``False``
    :param temperature: of drawn tokens
    :param mutation: probability per step that the belief jumps to a random state; the model's own when ``None``, or 0 if
        ``greedy``
    :param generator: seeds the choices and the jumps
    :return: B traces; one that comes to no end in so many steps is cut there
    """
    model.eval()
    device = model.slot_ids.device
    if language.transduces:
        batch = make_batch(language, instances)
        hidden, belief = model.encode(
            batch.input_ids.to(device),
            position_ids=batch.position_ids.to(device),
            mutation=mutation_rate(model, greedy, mutation),
            generator=generator,
        )
        logits = model.decode(hidden, belief, torch.full_like(batch.input_ids, NOTHING, device=device)[..., None])[:, :, 0]
        ids = choose(logits.flatten(0, 1), greedy=greedy, temperature=temperature, generator=generator).view(logits.shape[:2])
        return [language.decode(row[seen >= 0].tolist()) for row, seen in zip(ids.cpu(), batch.input_ids, strict=True)]

    prompts = [language.encode(language.prompt(instance)) for instance in instances]
    width = max(map(len, prompts))
    ids = torch.tensor([[NOTHING] * (width - len(prompt)) + prompt for prompt in prompts], device=device)

    offsets = [language.offset(language.prompt(instance)) for instance in instances]

    def positions(stream: Tensor) -> Tensor:
        found = torch.zeros_like(stream)
        for row, ids, offset in zip(found, stream.tolist(), offsets, strict=True):
            places = torch.tensor(language.positions(language.decode(ids)), device=stream.device) + offset
            first = next(i for i, id_ in enumerate(ids) if id_ >= 0)
            row[first : first + len(places)] = places.clamp_max(model.max_len - 1)  # a trace that is wrong may run beyond
        return found

    stream = generate(
        model,
        ids,
        max(len(language.trace(instance)) for instance in instances) if steps is None else steps,
        greedy=greedy,
        temperature=temperature,
        mutation=mutation,
        generator=generator,
        end_id=None if language.end is None else language.ids[language.end],
        position_ids=None if language.max_position is None else positions,
    )
    return [language.decode(row) for row in stream[:, width:].tolist()]

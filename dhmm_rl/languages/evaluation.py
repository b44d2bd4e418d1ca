"""
Evaluating a model of a language, and letting it write traces.

Shapes: B instances, T tokens of the longest sentence, K states of a hidden process.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dhmm_rl.data import Batch
from dhmm_rl.languages.datasets import make_batch
from dhmm_rl.languages.language import Language
from dhmm_rl.languages.processes import HiddenProcess
from dhmm_rl.model import DHMMGPT2, generate
from dhmm_rl.model.generation import choose, mutation_rate
from dhmm_rl.tokens import PAD_ID

MAX_TOKENS = 2**14
"""Largest number of tokens in a batch."""


class Score(NamedTuple):
    """
    How well a model predicts traces.

    :param exact: fraction of the instances with an exact trace
    :param tokens: fraction of the tokens of all traces that are right
    :param nats: mean loss per token of the traces, in nats
    """

    exact: float
    tokens: float
    nats: float


@torch.no_grad()
def score(model: DHMMGPT2, language: Language[Any], instances: Sequence[Any], batch_size: int | None = None) -> Score:
    """
    Count the tokens for which the model's most likely token is right, given the right tokens before it.

    If all tokens of a trace are right, the trace is exactly what the model writes when it always takes the most likely token,
    and vice versa. So exact traces can be counted in one parallel pass, without generating them.

    :param model: model of the language
    :param language: language of the instances
    :param instances: instances to predict the traces of
    :param batch_size: number of instances in a batch, see :func:`make_batches`
    """
    model.eval()
    exact: list[Tensor] = []
    right = total = 0
    nats = 0.0
    for batch in make_batches(model, language, instances, batch_size):
        out = model(batch.input_ids, batch.labels, position_ids=batch.position_ids)
        in_trace = batch.labels >= 0
        hit = out.logits.argmax(dim=-1) == batch.labels
        exact.append((hit | ~in_trace).all(dim=1))
        right += int((hit & in_trace).sum())
        total += int(in_trace.sum())
        nats += float(out.token_loss.double().sum())
    return Score(float(torch.cat(exact).double().mean()), right / total, nats / total)


def make_batches(
    model: DHMMGPT2, language: Language[Any], instances: Sequence[Any], batch_size: int | None = None
) -> Iterator[Batch]:
    """
    Yield batches of instances with their traces, on the device of a model.

    :param model: model that determines the device
    :param language: language of the instances
    :param instances: instances of all batches
    :param batch_size: number of instances in a batch; determined by the longest sentence when ``None``
    """
    if batch_size is None:
        batch_size = max(1, MAX_TOKENS // max(len(language.sentence(instance).ids) for instance in instances))
    for first in range(0, len(instances), batch_size):
        batch = make_batch(language, instances[first : first + batch_size])
        yield Batch(*(part.to(model.slot_ids.device) for part in batch))


class ReadOut(NamedTuple):
    """
    How well the true belief of a process can be predicted linearly, as R² (see :func:`linear_r2`).

    :param belief: R² of the prediction from the model's belief
    :param last_symbol: R² of the prediction from the last symbol alone, which a model without memory reaches
    """

    belief: float
    last_symbol: float


def read_out_belief(model: DHMMGPT2, process: HiddenProcess, words: NDArray[np.int64]) -> ReadOut:
    """
    Predict the true belief after each symbol linearly from the model's belief.

    If a model predicts every future exactly like the process, and the states of the process make different predictions, then
    the true belief is a linear function of the model's, regardless of the model's number of states.

    :param model: model with latent states, trained on the process
    :param process: hidden process with a true belief
    :param words: indices of symbols, shape (B, T); the read-out is fitted to the first half of them and evaluated on the rest
    """
    symbols = np.array(process.encode(process.symbols))[words]
    start = np.full((len(words), 1), process.ids["START"])
    ids = torch.from_numpy(np.concatenate([start, symbols], axis=1)).to(model.slot_ids.device)
    beliefs, _ = model.advance(ids)
    belief = beliefs[:, 1:].flatten(2).cpu().numpy()
    true = process.beliefs(words)
    return ReadOut(linear_r2(belief, true), linear_r2(np.eye(len(process.symbols))[words], true))


def linear_r2(inputs: NDArray[np.floating[Any]], targets: NDArray[np.floating[Any]]) -> float:
    """
    Return R², the fraction of the targets' variance that a least-squares prediction from the inputs explains.

    The prediction has an intercept. It is fitted to the first half of the sequences and evaluated on the rest. Squares are
    summed over all K targets.

    :param inputs: inputs, shape (B, T, n)
    :param targets: targets, shape (B, T, K)
    :return: R², at most 1; NaN when the targets never change
    """

    def rows(array: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        return array.reshape(-1, array.shape[-1])

    half = len(inputs) // 2
    inputs = np.concatenate([inputs, np.ones_like(inputs[..., :1])], axis=-1)
    weights = np.linalg.lstsq(rows(inputs[:half]), rows(targets[:half]), rcond=None)[0]
    true = rows(targets[half:])
    total = ((true - true.mean(axis=0)) ** 2).sum()
    return float(1 - ((true - rows(inputs[half:]) @ weights) ** 2).sum() / total) if total > 0 else float("nan")


@torch.no_grad()
def write_traces(
    model: DHMMGPT2,
    language: Language[Any],
    instances: Sequence[Any],
    *,
    steps: int | None = None,
    begun: Sequence[Sequence[str]] | None = None,
    greedy: bool = True,
    temperature: float = 1.0,
    mutation: float | None = None,
    generator: torch.Generator | None = None,
) -> list[list[str]]:
    """
    Let a model write a trace for each instance.

    :param model: model of the language
    :param language: language of the instances
    :param instances: B instances
    :param steps: largest number of tokens to write; the length of the longest of the language's own traces when ``None``
    :param begun: beginnings of the traces, given to the model; not for a language that transduces
    :param greedy: take the most likely tokens instead of sampled ones
    :param temperature: temperature of sampled tokens
    :param mutation: probability per step that the belief jumps to a random state; the model's own when ``None``, or 0 with
        ``greedy``
    :param generator: random number generator for sampled tokens and for jumps
    :return: B traces; a trace that does not end within ``steps`` tokens is cut there
    """
    model.eval()
    sampling: dict[str, Any] = {"greedy": greedy, "temperature": temperature, "generator": generator}
    if language.transduces:
        return _answer_prompts(model, language, instances, mutation_rate(model, greedy, mutation), sampling)

    # Prompts and beginnings, padded in front to the same length
    begun = [[]] * len(instances) if begun is None else begun
    prompts = [
        language.encode([*language.prompt(instance), *beginning]) for instance, beginning in zip(instances, begun, strict=True)
    ]
    length = max(map(len, prompts))
    ids = torch.tensor([[PAD_ID] * (length - len(prompt)) + prompt for prompt in prompts], device=model.slot_ids.device)

    has_positions = language.coupling == "learned" or model.reach is not None
    stream = generate(
        model,
        ids,
        max(len(language.trace(instance)) for instance in instances) if steps is None else steps,
        mutation=mutation,
        end_id=None if language.end is None else language.ids[language.end],
        position_ids=_position_function(model, language, instances) if has_positions else None,
        **sampling,
    )
    written = stream[:, length:].tolist()
    return [[*beginning, *language.decode(row)] for beginning, row in zip(begun, written, strict=True)]


def _answer_prompts(
    model: DHMMGPT2, language: Language[Any], instances: Sequence[Any], mutation: float, sampling: dict[str, Any]
) -> list[list[str]]:
    """Answer all tokens of each prompt in one parallel pass, in a language that transduces."""
    device = model.slot_ids.device
    batch = make_batch(language, instances)
    states = model.hidden_states(
        batch.input_ids.to(device),
        position_ids=batch.position_ids.to(device),
        mutation=mutation,
        generator=sampling["generator"],
    )
    unknown = torch.full_like(batch.input_ids, PAD_ID, device=device)[..., None]
    logits = model.decode(states, unknown)[:, :, 0]
    ids = choose(logits.flatten(0, 1), **sampling).view(logits.shape[:2])
    return [language.decode(row[read >= 0].tolist()) for row, read in zip(ids.cpu(), batch.input_ids, strict=True)]


def _position_function(model: DHMMGPT2, language: Language[Any], instances: Sequence[Any]) -> Callable[[Tensor], Tensor]:
    """Return a function from ids (B, T), padded in front, to the position ids that the language gives them."""
    offsets = [language.offset(language.prompt(instance)) for instance in instances]

    def position_ids(stream: Tensor) -> Tensor:
        rows = [
            language.position_ids(language.decode(ids)) + offset for ids, offset in zip(stream.tolist(), offsets, strict=True)
        ]
        padded = torch.zeros(*stream.shape, rows[0].shape[1], dtype=torch.long)
        for target, ids, row in zip(padded, stream, rows, strict=True):
            first = int((ids >= 0).nonzero()[0])
            target[first : first + len(row)] = torch.from_numpy(row)
        if model.reach is None:
            padded = padded[..., 0].clamp_max(model.max_len - 1)  # a wrong trace can be longer than all positions
        return padded.to(stream.device)

    return position_ids

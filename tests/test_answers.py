"""Answers of a model in a language: in one pass, token by token, and the verdict of the executor."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dhmm_rl.languages import (
    LANGUAGES,
    Addition,
    BubbleSort,
    FreshSentences,
    Language,
    MarkovChain,
    Mess3,
    Parity,
    linear_r2,
    make_batch,
    read_out_belief,
    score,
    write_traces,
)
from dhmm_rl.languages.run import model_settings
from dhmm_rl.model import DHMMGPT2, generate

SMALL: dict[str, Language[Any]] = {
    "addition": Addition(),
    "addition, learned positions": Addition(coupling="learned", max_position=40),
    "addition, counted positions": Addition(coupling="none"),
    "bubble sort": BubbleSort(),
    "bubble sort, full": BubbleSort(form="full", coupling="learned", max_position=40),
    "parity": Parity(),
}


def model_of(language: Language[Any], **settings: Any) -> DHMMGPT2:
    fitting = {key: value for key, value in model_settings(language, [8]).items() if key not in language.model}
    small: dict[str, Any] = dict(embed_size=32, heads=2, num_states=4) | fitting
    return DHMMGPT2(len(language.tokens), **(small | settings))


def train(model: DHMMGPT2, language: Language[Any], steps: int, learning_rate: float = 1e-2) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    batches = FreshSentences(language, steps * 64, seed=0)
    for step in range(steps):
        ids, labels, _, position_ids = batches[range(step * 64, (step + 1) * 64)]
        optimizer.zero_grad()
        model(ids, labels, position_ids=position_ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def instances(language: Language[Any], sizes: list[int]) -> list[Any]:
    rng = np.random.default_rng(1)
    return [language.instance(size, rng) for size in sizes]


@pytest.mark.parametrize("language", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("num_states", [0, 4])
def test_one_pass_says_what_would_be_written(language: Language[Any], num_states: int) -> None:
    """A trace that is written token by token is right exactly where one pass has no error; the first error is the same."""
    model = model_of(language, num_states=num_states)
    train(model, replace(language, sizes=(1, 3)), 40)
    some = instances(language, [1, 2, 3, 2, 1, 3] * 5)
    written = write_traces(model, language, some)
    right = 0
    for instance, trace in zip(some, written, strict=True):
        own = language.trace(instance)
        batch = make_batch(language, [instance])
        out = model(batch.input_ids, batch.labels, position_ids=batch.position_ids)
        wrong = ((out.logits.argmax(dim=-1) != batch.labels) & (batch.labels >= 0))[0][batch.labels[0] >= 0]
        n = int(wrong.int().argmax()) if wrong.any() else len(own)
        assert trace[:n] == own[:n]
        assert trace[: n + 1] != own[: n + 1] or n == len(own)
        assert (trace == own) == (not wrong.any())
        right += trace == own
    got = score(model, language, some, batch_size=7)
    assert got.exact == pytest.approx(right / len(some))
    assert got.tokens >= got.exact


@pytest.mark.parametrize("language", SMALL.values(), ids=SMALL)
def test_position_ids_are_those_of_the_language(language: Language[Any]) -> None:
    """Step by step with given position ids equals one pass with them."""
    model = model_of(language).eval()
    batch = make_batch(language, instances(language, [5]))
    out = model(batch.input_ids, position_ids=batch.position_ids)
    state = model.initial_state(1)
    for t in range(batch.input_ids.shape[1]):
        (hidden, *_), state = model.step_hidden_states(batch.input_ids[:, t], state, position_ids=batch.position_ids[:, t])
        torch.testing.assert_close(hidden[:, 0], out.hidden[:, t], atol=1e-5, rtol=1e-5)


def test_generation_stops_at_the_end_and_leaves_nothing_behind_it() -> None:
    model = DHMMGPT2(5, num_states=0).eval()
    prompt = torch.randint(1, 5, (64, 3))
    stream = generate(model, prompt, 20, end_id=0)
    assert stream.shape == (64, 23)
    over = (stream == 0).cumsum(dim=1) - (stream == 0).long()
    assert ((stream == -1) == (over > 0)).all()
    assert (over[:, -1] > 0).any()
    model = DHMMGPT2(5, num_states=0, embed_size=16).eval()
    model.head.data[0] += 100 * torch.sign(model(prompt).hidden[:, -1].mean(dim=0))
    assert generate(model, prompt[:1], 5, legal_ids=[0], end_id=0)[0, 3:].tolist() == [0, -1, -1, -1, -1]


def test_traces_are_drawn_by_seed() -> None:
    language = BubbleSort()
    model = model_of(language)
    some = instances(language, [2, 3])
    drawn = [
        write_traces(model, language, some, steps=9, greedy=False, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(trace) <= 9 for trace in drawn[0])


@pytest.mark.parametrize("language", [BubbleSort(), Parity()], ids=["continuing", "transducing"])
def test_traces_of_likeliest_tokens_differ_where_the_model_mutates(language: Language[Any]) -> None:
    model = model_of(language)
    some = instances(language, [6] * 8)

    def written(rate: float | None, seed: int = 0) -> list[list[str]]:
        return write_traces(model, language, some, steps=20, mutation=rate, generator=torch.Generator().manual_seed(seed))

    assert written(None) == written(0.0)
    assert written(0.0) != written(0.5) == written(0.5) != written(0.5, seed=1)


def test_a_model_learns_to_sort_two_numbers() -> None:
    language = BubbleSort(sizes=(2, 2), values=4, form="compact")
    model = model_of(language)
    train(model, language, 150)
    some = instances(language, [2] * 50)
    verdicts = [language.check(*pair) for pair in zip(some, write_traces(model, language, some), strict=True)]
    assert all(verdict.solved for verdict in verdicts)
    assert score(model, language, some).exact == 1


def test_sums_four_times_as_long_as_those_learned_from_are_right() -> None:
    """Attention over counted or learned positions has none of them right."""
    language = Addition(sizes=(1, 5))
    model = model_of(language, embed_size=64, heads=4, num_states=8, window=80)
    train(model, language, 500, learning_rate=3e-3)
    assert score(model, language, instances(language, [20] * 100)).exact > 0.8


@pytest.mark.parametrize("name", LANGUAGES)
def test_every_language_can_be_learned_from_and_written(name: str) -> None:
    language = LANGUAGES[name]
    model = model_of(language, embed_size=16)
    before = score(model, language, instances(language, [3] * 20)).nats
    train(model, replace(language, sizes=(1, 4)), 25)
    assert score(model, language, instances(language, [3] * 20)).nats < before
    some = instances(language, [3, 2])
    for instance, trace in zip(some, write_traces(model, language, some), strict=True):
        verdict = language.check(instance, trace)
        assert verdict.solved or verdict.illegal is not None or verdict.text.startswith("wrong")


def test_a_linear_read_out_explains_what_is_linear_and_nothing_of_noise() -> None:
    rng = np.random.default_rng(0)
    process = Mess3()
    beliefs = process.beliefs(np.array([process.instance(64, rng) for _ in range(200)]))
    noise = rng.normal(size=beliefs.shape)
    assert linear_r2(beliefs, beliefs) == pytest.approx(1)
    assert linear_r2(beliefs @ rng.normal(size=(3, 8)) + 5, beliefs) == pytest.approx(1)
    assert abs(linear_r2(noise, beliefs)) < 0.01
    assert linear_r2(beliefs + 0.1 * noise, beliefs) == pytest.approx(
        1 / (1 + 0.01 / beliefs.var(axis=(0, 1)).mean()), abs=0.02
    )
    assert np.isnan(linear_r2(noise, np.ones_like(noise)))


@torch.no_grad()
def test_the_belief_of_a_model_that_is_the_process_is_the_true_one() -> None:
    process = Mess3()
    rng = np.random.default_rng(1)
    words = np.array([process.instance(64, rng) for _ in range(100)])
    model = DHMMGPT2(4, layers=0, num_states=3, matrices=1, dither=0.0)
    assert model.hmm is not None
    assert read_out_belief(model, process, words).belief < 0.5

    def logs(p: float, rest: float) -> Tensor:
        return (rest + (p - rest) * torch.eye(3)).log()

    model.hmm.transition_logits.copy_(logs(1 - 2 * process.x, process.x))
    model.hmm.emission_logits.fill_(-20)  # of START
    model.hmm.emission_logits[1:, 0] = logs(process.a, (1 - process.a) / 2)
    found = read_out_belief(model, process, words)
    assert found.belief == pytest.approx(1, abs=1e-6)
    assert 0.5 < found.last_symbol < 0.9
    chain = MarkovChain(states=3)
    words = np.array([chain.instance(64, rng) for _ in range(100)])
    assert read_out_belief(model, chain, words).last_symbol == pytest.approx(1)

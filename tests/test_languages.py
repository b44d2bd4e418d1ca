"""Token languages: traces can be parsed, executed and learned, and no wrong trace counts as right."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise, permutations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dhmm_rl.errors import InputError
from dhmm_rl.languages import (
    LANGUAGES,
    Addition,
    BubbleSort,
    Counting,
    Dyck,
    EvenProcess,
    FixedSentences,
    FreshSentences,
    HiddenProcess,
    IllegalTrace,
    InContextChains,
    InsertionSort,
    Language,
    MarkovChain,
    Mess3,
    Parity,
    Process,
    Sorting,
    Stream,
    TraceReader,
    WordProblem,
    make_batch,
)
from dhmm_rl.languages.datasets import largest_size

VARIANTS: dict[str, Language[Any]] = {
    "addition, plain": Addition(format="plain"),
    "addition, carry": Addition(format="carry"),
    "bubble sort, compact": BubbleSort(form="compact"),
    "insertion sort, compact": InsertionSort(form="compact"),
    "bubble sort, many duplicates": BubbleSort(values=3),
    "counting modulo 2": Counting(n=2),
}
ALL = LANGUAGES | VARIANTS
COUPLED = {
    f"{name}, {coupling}": replace(language, coupling=coupling)
    for name, language in ALL.items()
    for coupling in (("learned", "none") if language.reach else ("learned",))
}
EXACT = {name: language for name, language in ALL.items() if language.deterministic}
SORTING: list[Sorting] = [language for language in ALL.values() if isinstance(language, Sorting)]

seeds = st.integers(0, 2**31)
sizes = st.integers(1, 9)


def draw_instance(language: Language[Any], size: int, seed: int) -> Any:
    return language.instance(size, np.random.default_rng(seed))


# Every language


@pytest.mark.parametrize("language", ALL.values(), ids=ALL)
@given(size=sizes, seed=seeds)
def test_what_a_language_writes_it_reads_and_executes(language: Language[Any], size: int, seed: int) -> None:
    assert len(set(language.tokens)) == len(language.tokens)
    assert all(token and not set(token) & set(" \t\n") for token in language.tokens)
    instance = draw_instance(language, size, seed)
    assert instance == draw_instance(language, size, seed)
    prompt, trace = language.prompt(instance), language.trace(instance)
    assert prompt
    assert language.decode(language.encode(prompt + trace)) == prompt + trace
    verdict = language.check(instance, trace)
    assert verdict.solved, verdict.text
    if language.deterministic:
        assert language.parse(" ".join(prompt)) == instance
        assert verdict.result == language.answer(instance)
    else:
        assert language.parse(" ".join(prompt + trace)) == instance
    if language.end is not None:
        assert language.end not in trace[:-1]
        assert trace[-1] == language.end or not language.deterministic


@pytest.mark.parametrize("language", (ALL | COUPLED).values(), ids=ALL | COUPLED)
@given(size=sizes, seed=seeds)
def test_the_trace_is_learned_and_nothing_else(language: Language[Any], size: int, seed: int) -> None:
    instance = draw_instance(language, size, seed)
    prompt, trace = language.prompt(instance), language.trace(instance)
    assume(trace)
    ids, labels, positions = language.sentence(instance)
    assert len(ids) == len(labels) == len(positions)
    assert [label for label in labels if label >= 0] == language.encode(trace)
    if language.transduces:
        assert ids == language.encode(prompt)
        assert labels == language.encode(trace)
    else:
        whole = language.encode(prompt + trace)
        assert ids == whole[:-1]
        assert [label if label >= 0 else following for label, following in zip(labels, whole[1:], strict=True)] == whole[1:]
    assert positions.min() >= 0
    for read in range(len(prompt), len(ids)):  # a position is known when its token is
        assert (language.position_ids(language.decode(ids[:read])) == positions[:read]).all()


@pytest.mark.parametrize("language", EXACT.values(), ids=EXACT)
@given(size=sizes, seed=seeds, data=st.data())
def test_a_trace_with_a_wrong_token_is_no_solution(language: Language[Any], size: int, seed: int, data: st.DataObject) -> None:
    instance = draw_instance(language, size, seed)
    trace = language.trace(instance)
    place = data.draw(st.integers(0, len(trace) - 1))
    trace[place] = data.draw(st.sampled_from([token for token in language.tokens if token != trace[place]]))
    verdict = language.check(instance, trace)
    assert not verdict.solved or isinstance(language, Sorting)  # a swap too many can be made good
    if language.transduces:
        assert verdict.illegal is not None
    if verdict.illegal is not None:
        assert verdict.illegal.place == place or (verdict.illegal.place > place and not language.transduces)
        assert verdict.illegal.token == "".join(trace[verdict.illegal.place : verdict.illegal.place + 1])
        assert f"at place {verdict.illegal.place} is illegal" in verdict.text
    cut = language.trace(instance)[: data.draw(st.integers(0, len(trace) - 1))]
    verdict = language.check(instance, cut)
    assert verdict.illegal is not None
    assert (verdict.illegal.place, verdict.illegal.token) == (len(cut), "")
    verdict = language.check(instance, [*language.trace(instance), language.tokens[0]])
    assert verdict.illegal is not None
    assert verdict.illegal.place == len(language.trace(instance))


@pytest.mark.parametrize("language", EXACT.values(), ids=EXACT)
@given(seed=seeds, data=st.data())
def test_noise_is_no_solution(language: Language[Any], seed: int, data: st.DataObject) -> None:
    instance = draw_instance(language, 3, seed)
    noise = data.draw(st.lists(st.sampled_from(language.tokens), max_size=8))
    assume(noise != language.trace(instance))
    assert not language.check(instance, noise).solved


def test_options_out_of_range_are_refused() -> None:
    makers: list[tuple[Callable[[], Any], str]] = [
        (lambda: Addition(sizes=(3, 2)), "sizes are 3 to 2"),
        (lambda: Addition(sizes=(0, 2)), "at least 1"),
        (lambda: Addition(growth=1.5), "growth is 1.5"),
        (lambda: BubbleSort(values=1), "values is 1"),
        (lambda: BubbleSort(max_position=0), "max_position is 0"),
        (lambda: Addition(coupling="absolute"), "coupling is 'absolute'"),  # type: ignore[arg-type]
        (lambda: Mess3(x=0.6), "x is 0.6"),
        (lambda: EvenProcess(p=1.0), "p is 1.0"),
        (lambda: MarkovChain(states=1), "states is 1"),
        (lambda: InContextChains(concentration=0), "concentration is 0"),
        (lambda: Parity(n=3), "not 3"),
        (lambda: Counting(n=1), "n is 1"),
        (lambda: Dyck(depth=0), "depth is 0"),
        (lambda: Stream(env="Nowhere-v0").tokens, "Nowhere"),
    ]
    for make, said in makers:
        with pytest.raises(InputError, match=said):
            make()


@pytest.mark.parametrize(
    ("language", "text", "said"),
    [
        (Addition(), "12", "is not a sum"),
        (Addition(), "1x+2", "is not a sum"),
        (BubbleSort(), "3 x", "is not an array"),
        (BubbleSort(), "", "is not an array"),
        (BubbleSort(), "40 1", "40 is too large"),
        (Parity(), "0 2", "'2' is not an input"),
        (Parity(), "", "at least one input"),
        (Dyck(), "( ) )", "at place 2 is not allowed"),
        (Mess3(), "A D", "'D' is not a token"),
        (Stream(), "RESET observation[0]:1", "begins with a whole step"),
    ],
)
def test_texts_that_name_no_instance_are_refused(language: Language[Any], text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        language.parse(text)


# Batches


@pytest.mark.parametrize("language", (ALL | COUPLED).values(), ids=ALL | COUPLED)
@given(seed=seeds)
def test_a_batch_holds_the_sentences(language: Language[Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    instances = [language.instance(size, rng) for size in (3, 7, 1, 3)]
    plain, shifted = make_batch(language, instances), make_batch(language, instances, rng)
    for row, instance in enumerate(instances):
        ids, labels, positions = language.sentence(instance)
        n = len(ids)
        assert plain.input_ids[row].tolist() == ids + [-1] * (plain.input_ids.shape[1] - n)
        assert plain.labels[row].tolist() == labels + [-1] * (plain.input_ids.shape[1] - n)
        middle = language.offset(language.prompt(instance))
        given = positions if language.reach and language.coupling == "relative" else positions[:, 0]
        assert (plain.position_ids[row, :n].numpy() == given + middle).all()
        assert (shifted.input_ids[row] == plain.input_ids[row]).all()
        offsets = shifted.position_ids[row, :n].numpy() - given
        assert (offsets == offsets.flat[0]).all()
        assert 0 <= offsets.flat[0] <= (language.max_position - 1 if language.coupling == "learned" else 0)
        if language.coupling == "learned":
            assert shifted.position_ids[row, :n].max() < language.max_position


@pytest.mark.parametrize("language", [Addition(), BubbleSort(), BubbleSort(form="full")], ids=repr)
def test_coupled_positions_lie_in_the_middle_when_an_instance_is_solved(language: Language[Any]) -> None:
    language = replace(language, coupling="learned", max_position=48)
    positions = make_batch(language, [draw_instance(language, 10, 0)]).position_ids
    assert abs(int(positions.min()) - (47 - int(positions.max()))) <= 1


def test_offsets_reach_every_position_and_too_long_ones_are_refused() -> None:
    language = Addition(coupling="learned", max_position=12)
    batch = make_batch(language, [draw_instance(language, 3, seed) for seed in range(200)], np.random.default_rng(0))
    assert set(batch.position_ids.flatten().tolist()) == set(range(12))
    with pytest.raises(InputError, match="up to 21 are needed; max_position is 12"):
        make_batch(language, [draw_instance(language, 20, 0)])


def test_a_fresh_set_gives_the_same_batch_for_the_same_numbers_and_grows() -> None:
    language = Addition(sizes=(1, 10), growth=0.5)
    one, other = (FreshSentences(language, 10_000, seed=3) for _ in range(2))
    order = one.shuffled_indices(np.random.default_rng(0))
    assert (order == np.arange(10_000)).all()
    for first in (0, 4_992, 9_984):
        batch = one[order[first : first + 16]]
        assert all((mine == theirs).all() for mine, theirs in zip(batch, other[order[first : first + 16]], strict=True))
        assert (batch.input_ids >= 0).sum(dim=1).max() <= 3 * (largest_size(language, first / 10_000) + 1)
    assert (one[order[:16]].input_ids[:, 0] != one[order[16:32]].input_ids[:, 0]).any()
    assert [largest_size(language, share) for share in (0, 0.25, 0.49, 0.5, 1)] == [1, 3, 10, 10, 10]
    assert largest_size(replace(language, growth=0.0), 0) == 10


def test_a_fixed_set_holds_its_sentences() -> None:
    language = Addition()
    instances = [draw_instance(language, 3, seed) for seed in range(10)]
    fixed = FixedSentences(language, instances, seed=0)
    assert sorted(fixed.shuffled_indices(np.random.default_rng(0)).tolist()) == fixed.eval_indices().tolist() == list(range(10))
    batch = fixed[np.array([4, 2])]
    assert [language.decode(row.tolist()) for row in batch.input_ids] == [
        language.decode(language.sentence(instances[number]).ids) for number in (4, 2)
    ]


@pytest.mark.parametrize("name", LANGUAGES)
def test_fresh_batches_are_made_faster_than_a_model_reads_them(name: str) -> None:
    train_set = FreshSentences(LANGUAGES[name], 100_000, seed=0)
    speeds = []
    train_set[np.arange(2)]  # what is computed once
    for first in range(0, 320, 64):
        began = time.perf_counter()
        tokens = int((train_set[np.arange(first, first + 64)].input_ids >= 0).sum())
        speeds.append(tokens / (time.perf_counter() - began))
    assert max(speeds) > 1e5


# Addition


def test_sums_are_written_as_their_format_says() -> None:
    written = {form: " ".join(Addition(format=form).trace(Addition().parse("27+5"))) for form in ("plain", "reversed", "carry")}
    assert written == {"plain": "0 3 2 END", "reversed": "2 3 0 END", "carry": "2 c1 3 c0 0 END"}


@given(a=st.integers(0, 10**30), b=st.integers(0, 10**30))
def test_sums_of_any_length_are_pythons(a: int, b: int) -> None:
    for form in ("plain", "reversed", "carry"):
        language = Addition(format=form)
        instance = language.parse(f"{a} + {b}")
        assert language.execute(instance, language.trace(instance)) == a + b


@given(size=st.integers(1, 30), seed=seeds, form=st.sampled_from(["plain", "reversed", "carry"]))
def test_digits_of_one_column_share_their_position(size: int, seed: int, form: Any) -> None:
    language = Addition(format=form)
    instance = draw_instance(language, size, seed)
    tokens = language.prompt(instance) + language.trace(instance)
    places = list(language.positions(tokens))
    a, b = places[:size], places[size + 1 : 2 * size + 1]
    digits = [place for place, token in zip(places[2 * size + 2 :], tokens[2 * size + 2 :], strict=True) if token.isdigit()]
    carries = [place for place, token in zip(places, tokens, strict=True) if token.startswith("c")]
    assert a == b == list(range(size, 0, -1))
    assert digits == (list(range(size + 1, 0, -1)) if form == "plain" else list(range(1, size + 2)))
    assert carries == (list(range(1, size + 1)) if form == "carry" else [])
    assert places[size] == (0 if form == "plain" else size + 1)
    step = -1 if form == "plain" else 1
    assert places[2 * size + 1] + step == digits[0]  # the answer's first digit follows "=" as the others follow each other


def test_a_carry_that_does_not_arise_is_illegal() -> None:
    language = Addition(format="carry")
    verdict = language.check(language.parse("27+5"), ["2", "c0", "3", "c0", "0", "END"])
    assert verdict.illegal is not None
    assert (verdict.illegal.place, verdict.illegal.token) == (1, "c0")
    assert not language.check(language.parse("27+5"), ["3", "c1", "3", "c0", "0", "END"]).solved


# Sorting


def test_a_trace_reads_like_what_it_does() -> None:
    assert " ".join(BubbleSort(form="full").trace((3, 2, 1))) == (
        "COMPARE 3 2 SWAP 2 3 1 COMPARE 3 1 SWAP 2 1 3 PASS COMPARE 2 1 SWAP 1 2 3 END"
    )
    assert (
        " ".join(BubbleSort(form="compact").trace((2, 1, 2))) == "COMPARE 2 1 SWAP COMPARE 2 2 KEEP PASS COMPARE 1 2 KEEP END"
    )
    assert (
        " ".join(InsertionSort(form="compact").trace((3, 1, 2)))
        == "COMPARE 3 1 SWAP PASS COMPARE 3 2 SWAP COMPARE 1 2 KEEP END"
    )


@pytest.mark.parametrize("language", SORTING, ids=lambda language: f"{type(language).__name__} {language.form}")
@given(array=st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_arrays_with_duplicates_are_sorted(language: Sorting, array: list[int]) -> None:
    trace = language.trace(tuple(array))
    verdict = language.check(tuple(array), trace)
    assert verdict.solved
    assert list(verdict.result) == sorted(array)
    assert trace.count("COMPARE") <= len(array) * (len(array) - 1) // 2
    inversions = sum(a > b for i, a in enumerate(array) for b in array[i + 1 :])
    assert trace.count("SWAP") == inversions


@pytest.mark.parametrize("language", [BubbleSort(values=4, form="compact"), InsertionSort(values=4, form="compact")])
@given(array=st.lists(st.integers(0, 3), min_size=1, max_size=4), choices=st.lists(st.sampled_from("SKP"), max_size=9))
def test_end_is_legal_exactly_when_the_comparisons_leave_no_other_order(
    language: Sorting, array: list[int], choices: list[str]
) -> None:
    """Compare with brute force: every array with the same results of comparisons must end up sorted."""
    trace: list[str] = []
    outcomes: list[tuple[int, int, int]] = []  # items compared and the sign of their difference
    items, sweep, step = list(range(len(array))), 0, 0
    for choice in choices:
        i = language.pair(sweep, step)
        if choice == "P" or not 0 <= i < len(array) - 1:
            trace.append("PASS")
            sweep, step = sweep + 1, 0
            continue
        x, y = items[i : i + 2]
        trace += ["COMPARE", str(array[x]), str(array[y]), "SWAP" if choice == "S" else "KEEP"]
        outcomes.append((x, y, np.sign(array[x] - array[y])))
        if choice == "S":
            items[i : i + 2] = y, x
        step += 1
    alike = [
        other
        for other in product(range(4), repeat=len(array))
        if all(np.sign(other[x] - other[y]) == sign for x, y, sign in outcomes)
    ]
    certain = all(other[x] <= other[y] for other in alike for x, y in pairwise(items))
    verdict = language.check(tuple(array), [*trace, "END"])
    assert verdict.solved == certain
    if certain:
        assert list(verdict.result) == sorted(array) == [array[item] for item in items]
    else:
        assert verdict.illegal is not None
        assert (verdict.illegal.place, verdict.illegal.token) == (len(trace), "END")


@pytest.mark.parametrize(
    ("trace", "place", "said"),
    [
        ("END", 0, "have not shown 1 2 to be sorted"),  # it is, but by accident
        ("SWAP 2 1 END", 0, "COMPARE, PASS or END must stand here"),
        ("COMPARE 2 1", 1, "the numbers at this pair are 1 and 2"),
        ("COMPARE 1 2 1 2", 3, "SWAP or KEEP must follow"),
        ("COMPARE 1 2 SWAP 1 2", 4, "the array is 2 1 now"),
        ("COMPARE 1 2 SWAP 2 1 END", 6, "have not shown 2 1 to be sorted"),
        ("COMPARE 1 2 KEEP 1 2 COMPARE 1 2", 6, "no pair left"),
        ("COMPARE 1 2 KEEP 1 2 END END", 7, "nothing may follow"),
        ("COMPARE 1 2 KEEP 1 2", 6, "COMPARE, PASS or END"),
    ],
)
def test_the_first_illegal_token_is_named(trace: str, place: int, said: str) -> None:
    verdict = BubbleSort(form="full").check((1, 2), trace.split())
    assert not verdict.solved
    assert verdict.illegal is not None
    assert verdict.illegal.place == place
    assert said in verdict.text


def test_another_way_of_sorting_is_executed_too() -> None:
    trace = ["COMPARE", "1", "2", "SWAP", "2", "1", "PASS", "COMPARE", "2", "1", "SWAP", "1", "2", "END"]
    assert BubbleSort(form="full").check((1, 2), trace).solved


def test_numbers_have_the_position_of_their_place() -> None:
    language = BubbleSort(form="full")
    tokens = [*language.prompt((3, 1, 2)), *language.trace((3, 1, 2))]
    places = dict(enumerate(language.positions(tokens)))
    assert [places[i] for i in range(4)] == [4, 1, 2, 3]
    assert " ".join(tokens[4:18]) == "COMPARE 3 1 SWAP 1 3 2 COMPARE 3 2 SWAP 1 2 3"
    assert [places[i] for i in range(4, 18)] == [0, 1, 2, 0, 1, 2, 3, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize("language", [language for language in SORTING if not language.reach], ids=repr)
@given(size=sizes, seed=seeds)
def test_positions_lead_through_a_trace(language: Sorting, size: int, seed: int) -> None:
    """A number is at its place in the array. A pass begins or ends at its mark."""
    instance = draw_instance(language, size, seed)
    tokens = [*language.prompt(instance), *language.trace(instance)]
    places = language.positions(tokens)
    array, opened = list(instance), 0
    for i, token in enumerate(tokens):
        if token == "COMPARE":
            left, right = places[i + 1 : i + 3]
            assert (places[i] + 1, right) == (left, left + 1)
            assert [str(value) for value in array[left - 1 : right]] == tokens[i + 1 : i + 3]
            if tokens[i + 3] == "SWAP":
                array[left - 1 : right] = array[right - 1], array[left - 1]
            if language.form == "full":
                assert places[i + 4 : i + 4 + size] == list(range(1, size + 1))
            following = next(token for token in tokens[i + 4 :] if token in ("COMPARE", "PASS", "END"))
            if isinstance(language, BubbleSort) and following != "COMPARE":
                assert places[opened] == right + 1
            if isinstance(language, InsertionSort) and tokens[opened + (size if opened == 0 else 0) + 1 : i + 1] == ["COMPARE"]:
                assert places[opened] == right
        elif token == "PASS":
            opened = i


@given(size=st.integers(1, 20), seed=seeds)
def test_what_a_comparison_needs_stands_in_reach_at_the_same_places(size: int, seed: int) -> None:
    """Tokens that a comparison needs are at fixed distances: in the comparison before it and in the row above."""
    language = BubbleSort()
    instance = draw_instance(language, size, seed)
    tokens = [*language.prompt(instance), *language.trace(instance)]
    at: dict[tuple[int, int], str] = {}
    for place, token in zip(language.positions(tokens), tokens, strict=True):
        assert at.setdefault(place, token) == token
    assert len(at) == len(tokens)

    def numbers(row: int, column: int) -> list[int]:
        return [int(at[row, column + i]) for i in (1, 2) if (row, column + i) in at]

    for (row, column), token in at.items():
        if token == "COMPARE":
            before = max(numbers(row, column - 4)) if column > 0 else min(numbers(row - 1, 0))
            assert numbers(row, column) == [before, min(numbers(row - 1, column + 4))]
            ends = at.get((row - 1, column + 8)) in ("START", "PASS")
            assert (at[row, column + 4] in ("PASS", "END")) == ends
    assert language.reach == (1, 6)


# Processes

PROCESSES = [Mess3(), EvenProcess(), EvenProcess(p=0.3), MarkovChain(), MarkovChain(states=3, seed=7)]


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_filter_is_that_over_every_path_of_states(process: HiddenProcess) -> None:
    symbols, states, _ = process.matrices.shape
    assert process.matrices.sum(axis=0).sum(axis=1) == pytest.approx(np.ones(states))
    assert process.stationary @ process.matrices.sum(axis=0) == pytest.approx(process.stationary)
    words = np.array(list(product(range(symbols), repeat=3)))
    predictions, beliefs = process.predict(words), process.beliefs(words)
    for word, prediction, belief in zip(words, predictions, beliefs, strict=True):
        joint = np.zeros((symbols, states))  # of the last symbol and the state after it, with the symbols before it
        for path in product(range(states), repeat=4):
            p = process.stationary[path[0]]
            for t in range(2):
                p *= process.matrices[word[t], path[t], path[t + 1]]
            joint[:, path[3]] += p * process.matrices[:, path[2], path[3]]
        if joint.sum() > 0:
            np.testing.assert_allclose(prediction[2], joint.sum(axis=1) / joint.sum(), atol=1e-12)
        if joint[word[2]].sum() > 0:
            np.testing.assert_allclose(belief[2], joint[word[2]] / joint[word[2]].sum(), atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_best_predictor_loses_the_entropy_rate(process: HiddenProcess) -> None:
    lower, upper = process.entropy_rate()
    assert 0 <= upper - lower < 1e-5
    rng = np.random.default_rng(0)
    nats = process.nats(np.array([process.instance(500, rng) for _ in range(400)]))[:, 50:]
    assert abs(nats.mean() - upper) < 5 * nats.mean(axis=1).std() / 20
    longer = process.entropy_rate(9)
    assert longer[0] <= lower + 1e-12
    assert upper <= longer[1] + 1e-12


def test_rates_that_are_known() -> None:
    assert EvenProcess().entropy_rate()[0] == pytest.approx(2 / 3 * math.log(2))
    chain = MarkovChain()
    rows = -(chain.matrix * np.log(chain.matrix)).sum(axis=1)
    assert chain.entropy_rate() == pytest.approx((chain.stationary @ rows,) * 2)
    assert Mess3(x=1 / 3).entropy_rate() == pytest.approx((math.log(3),) * 2)


def test_an_impossible_symbol_is_named() -> None:
    process = EvenProcess()
    verdict = process.check((), ["A", "B", "B", "A", "B", "A", "A"])
    assert verdict.illegal is not None
    assert (verdict.illegal.place, verdict.illegal.token) == (5, "A")
    assert process.check((), ["B", "A", "B", "B", "B", "B", "A"]).solved
    assert process.check((), ["A", "X"]).illegal is not None


@given(word=st.lists(st.integers(0, 2), min_size=1, max_size=12), alpha=st.floats(0.1, 5))
def test_in_context_predictions_are_the_posteriors(word: list[int], alpha: float) -> None:
    """Compare with the ratio of marginal likelihoods of all transitions (Dirichlet-multinomial)."""
    process = InContextChains(concentration=alpha)

    def log_evidence(word: Sequence[int]) -> float:
        counts = np.zeros((3, 3))
        np.add.at(counts, (word[:-1], word[1:]), 1)
        return sum(
            math.lgamma(3 * alpha)
            - math.lgamma(3 * alpha + row.sum())
            + sum(math.lgamma(alpha + n) - math.lgamma(alpha) for n in row)
            for row in counts
        )

    predictions = process.predict(np.array([word]))[0]
    np.testing.assert_allclose(predictions[0], 1 / 3)
    for t in range(1, len(word)):
        exact = [math.exp(log_evidence([*word[:t], x]) - log_evidence(word[:t])) for x in range(3)]
        np.testing.assert_allclose(predictions[t], exact, rtol=1e-9)


def test_nothing_predicts_chains_drawn_anew_better_on_average() -> None:
    process: Process = InContextChains()
    rng = np.random.default_rng(0)
    words = np.array([process.instance(128, rng) for _ in range(500)])
    best = process.nats(words).mean()
    assert best < math.log(3)
    for concentration in (0.5, 2.0):
        assert best < InContextChains(concentration=concentration).nats(words).mean()


# Automata


@pytest.mark.parametrize(("group", "order"), [("S3", 6), ("A4", 12), ("A5", 60)])
def test_word_problems_multiply_in_their_group(group: Any, order: int) -> None:
    language = WordProblem(group=group)
    table = np.array(language.table)
    assert table.shape == (order, order)
    assert (np.sort(table, axis=0) == np.arange(order)[:, None]).all()
    assert (np.sort(table, axis=1) == np.arange(order)).all()
    assert (table[0] == np.arange(order)).all()
    assert (table[table[:, :, None], np.arange(order)] == table[np.arange(order)[:, None, None], table[None]]).all()
    assert (table != table.T).any()
    assert set(language.elements) <= set(permutations(range(int(group[1]))))


@given(size=st.integers(1, 60), seed=seeds)
def test_states_are_what_happens_to_things_that_are_permuted(size: int, seed: int) -> None:
    language = WordProblem(group="A5")
    instance = draw_instance(language, size, seed)
    things = list(range(5))
    for number, state in zip(instance, language.trace(instance), strict=True):
        things = [language.elements[number][thing] for thing in things]
        assert state == "=" + "".join(str(thing + 1) for thing in things)


@given(size=st.integers(1, 60), seed=seeds, depth=st.integers(1, 5), n=st.integers(2, 7))
def test_counters_count(size: int, seed: int, depth: int, n: int) -> None:
    dyck = Dyck(depth=depth)
    brackets = draw_instance(dyck, size, seed)
    open_ = np.cumsum(1 - 2 * np.array(brackets))
    assert dyck.trace(brackets) == [f"={count}" for count in open_]
    assert open_.min() >= 0
    assert open_.max() <= depth
    ones = draw_instance(Counting(n=n), size, seed)
    assert Counting(n=n).trace(ones) == [f"={count}" for count in np.cumsum(ones) % n]
    assert Parity().trace(ones) == [("even", "odd")[count] for count in np.cumsum(ones) % 2]


# Environments


def test_a_stream_is_the_tokenizers_read_flat() -> None:
    language = Stream(episodes=20)
    assert len(language.tokens) == language.tokenizer.vocab_size == 44
    assert language.tokens[:6] == ("RESET", "DONE", "action:0", "action:1", "observation[0]:0", "observation[0]:1")
    rng = np.random.default_rng(0)
    ended = False
    for _ in range(20):
        instance = language.instance(500, rng)  # whole episodes
        assert instance[0] == 0
        ended |= instance[-1] == 1
        steps = language.execute(instance, language.trace(instance))
        assert tuple(steps[steps >= 0].tolist()) == instance
        assert (steps[1:-1, 0] >= 2).all()
    assert ended
    trace = language.trace(instance)
    trace[6] = trace[5]
    verdict = language.check(instance, trace)
    assert verdict.illegal is not None
    assert verdict.illegal.place == 6
    assert "observation[0] must stand here" in verdict.text
    begun = language.trace(instance)[:7]  # a step and a part of another
    assert len(language.execute(instance, begun)) == 2
    begun[6] = begun[5]
    assert language.check(instance, begun).illegal is not None


def test_streams_of_nested_observations_are_read_as_pretraining_reads_them() -> None:
    language = Stream(env="Blackjack-v1", episodes=20, sizes=(2, 2))
    assert len(language.tokenizer.slots) == 4
    instance = draw_instance(language, 2, 0)
    assert language.check(instance, language.trace(instance)).solved


@pytest.mark.parametrize("language", SORTING, ids=lambda language: f"{type(language).__name__}, {language.form}")
@given(size=st.integers(1, 9), seed=seeds)
def test_no_array_takes_longer_than_the_longest(language: Sorting, size: int, seed: int) -> None:
    assert len(language.sentence(draw_instance(language, size, seed)).ids) <= language.longest(size)


def test_a_reader_takes_a_token_and_not_a_part_of_it() -> None:
    for trace in ([], ["E"]):
        with pytest.raises(IllegalTrace):
            TraceReader(trace).take("END", "END must stand here")
    assert TraceReader(["END"]).take("END", "END must stand here") == "END"


@pytest.mark.parametrize(("options", "name"), [({"format": "revrsed"}, "format"), ({"coupling": "relativ"}, "coupling")])
def test_a_misspelt_option_is_refused_in_python_too(options: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is '.*'; it is one of"):
        Addition(**options)

"""The filter compared with brute force, and the bounds that dithering guarantees."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dhmm_rl.model import compiled_filter, filter_kernels, filter_ops
from dhmm_rl.model.bayes_filter import clip_evidence, correct, dither, predict, propagate, run_filter
from dhmm_rl.model.config import DHMMConfig
from dhmm_rl.model.hmm_layer import HMMLayer

seeds = st.integers(0, 2**31)


def random_rows(*shape: int, generator: torch.Generator, sharpness: float = 3.0) -> Tensor:
    return (sharpness * torch.randn(*shape, generator=generator)).softmax(dim=-1)


@given(seeds, st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 2))
def test_filter_equals_enumeration_of_every_path(seed: int, steps: int, states: int, matrices: int, chains: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    transitions = dither(random_rows(chains, matrices, states, states, generator=generator), 1e-3)
    gates = random_rows(1, steps, chains, matrices, generator=generator)
    evidence = -5 * torch.rand(1, steps, chains, states, generator=generator)
    start = random_rows(chains, states, generator=generator)
    beliefs = run_filter(start[None], gates, evidence, transitions)
    for n in range(chains):
        weight = torch.zeros(states, dtype=torch.float64)
        for path in itertools.product(range(states), repeat=steps + 1):
            p = start[n, path[0]].double()
            for t in range(steps):
                step = (gates[0, t, n, :, None, None].double() * transitions[n].double()).sum(0)
                p = p * step[path[t], path[t + 1]] * evidence[0, t, n, path[t + 1]].double().exp()
            weight[path[-1]] += p
        torch.testing.assert_close(beliefs[0, -1, n].double(), weight / weight.sum(), atol=1e-6, rtol=1e-5)


def two_filters(seed: int, states: int, floor: float, steps: int) -> Tensor:
    """Return beliefs (2, steps + 1, K) of two filters that read the same tokens from different starts, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    transitions = dither(random_rows(1, 2, states, states, generator=generator, sharpness=8.0), floor).double()
    gates = random_rows(1, steps, 1, 2, generator=generator).double().expand(2, -1, -1, -1)
    evidence = clip_evidence(-20 * torch.rand(1, steps, 1, states, generator=generator), 20.0).double().expand(2, -1, -1, -1)
    starts = random_rows(2, 1, states, generator=generator, sharpness=8.0).double()
    return torch.cat([starts, run_filter(starts, gates, evidence, transitions)[:, :, 0]], dim=1)


@pytest.fixture(params=[True, False], ids=["compiled", "python"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with the loop that Numba compiles, and with the one in Python."""
    if not request.param:
        monkeypatch.setattr(compiled_filter, "can_compile", lambda: False)


def hilbert(p: Tensor, q: Tensor) -> Tensor:
    ratio = p.log() - q.log()
    return ratio.amax(dim=-1) - ratio.amin(dim=-1)


@given(seeds, st.integers(2, 12), st.sampled_from([1e-3, 0.01, 0.1, 0.5]))
def test_hilbert_distance_and_total_variation_of_two_filters_shrink_as_promised(seed: int, states: int, floor: float) -> None:
    p, q = two_filters(seed, states, floor, steps=30)
    bound = 1 + states * (1 - floor) / floor
    rho = (bound - 1) / (bound + 1)
    distance = hilbert(p, q)
    assert (distance[1:] <= rho * distance[:-1] + 1e-9).all()
    variation = 0.5 * (p - q).abs().sum(dim=-1)
    t = torch.arange(1, 31, dtype=torch.float64)
    assert (variation[1:] <= 0.5 * rho ** (t - 1) * math.log(bound) + 1e-9).all()


@settings(max_examples=15)
@given(seed=seeds, states=st.integers(2, 5), floor=st.floats(0.02, 0.6))
def test_expected_divergence_from_a_wrong_start_falls_geometrically(seed: int, states: int, floor: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    symbols, steps, runs = 3, 12, 20_000
    transitions = dither(random_rows(1, 1, states, states, generator=generator), floor)
    emissions = random_rows(states, symbols, generator=generator, sharpness=1.0)
    right, wrong = random_rows(2, states, generator=generator, sharpness=1.0)
    state = torch.multinomial(right, runs, replacement=True, generator=generator)
    tokens = []
    for _ in range(steps):
        state = torch.multinomial(transitions[0, 0, state], 1, generator=generator)[:, 0]
        tokens.append(torch.multinomial(emissions[state], 1, generator=generator)[:, 0])
    evidence = clip_evidence(emissions.log().T[torch.stack(tokens, dim=1)], 1e9)[:, :, None]
    gates = torch.ones(runs, steps, 1, 1)
    p, q = (run_filter(start.expand(runs, 1, -1), gates, evidence, transitions)[:, :, 0].double() for start in (right, wrong))
    divergence = (p * (p.log() - q.log())).sum(dim=-1)
    mean, error = divergence.mean(dim=0), divergence.std(dim=0) / runs**0.5
    first = (right * (right.log() - wrong.log())).sum().double()
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    assert (mean - 5 * error <= (1 - floor) ** t * first).all()
    assert mean[0] > 0


def test_long_sequences_stay_finite_and_normalized() -> None:
    steps, states = 10_000, 100
    generator = torch.Generator().manual_seed(0)
    transitions = dither(random_rows(1, 1, states, states, generator=generator, sharpness=20.0), 1e-3)
    evidence = clip_evidence(-1000 * torch.rand(1, steps, 1, states, generator=generator), 20.0)
    start = torch.full((1, 1, states), 1 / states)
    beliefs = run_filter(start, torch.ones(1, steps, 1, 1), evidence, transitions)
    assert beliefs.isfinite().all()
    assert (beliefs.sum(dim=-1) - 1).abs().max() < 1e-5
    assert beliefs.min() >= 0


@pytest.mark.usefixtures("loop")
def test_episode_starts_make_the_belief_forget() -> None:
    generator = torch.Generator().manual_seed(0)
    transitions = dither(random_rows(1, 2, 4, 4, generator=generator), 1e-3)
    gates = random_rows(3, 9, 1, 2, generator=generator)
    evidence = -5 * torch.rand(3, 9, 1, 4, generator=generator)
    start = random_rows(1, 4, generator=generator)
    episode_start = torch.zeros(3, 9, dtype=torch.bool)
    episode_start[1, 4] = True
    whole = run_filter(start.expand(3, -1, -1), gates, evidence, transitions, start=start, episode_start=episode_start)
    second = run_filter(start[None], gates[1:2, 4:], evidence[1:2, 4:], transitions)
    torch.testing.assert_close(whole[1, 4:], second[0])
    plain = run_filter(start.expand(3, -1, -1), gates, evidence, transitions)
    torch.testing.assert_close(whole[[0, 2]], plain[[0, 2]])
    assert (whole[1, 4:] - plain[1, 4:]).abs().max() > 1e-3


@pytest.mark.usefixtures("loop")
def test_mutation_jumps_at_its_rate_to_single_states() -> None:
    transitions = dither(torch.full((1, 1, 5, 5), 0.2), 1e-3)
    torch.manual_seed(0)
    plain = torch.full((200, 1, 5), 0.2)
    mutated = run_filter(plain, torch.ones(200, 100, 1, 1), torch.zeros(200, 100, 1, 5), transitions, mutation=0.3)
    jumped = mutated.amax(dim=-1) == 1
    assert abs(float(jumped.float().mean()) - 0.3) < 0.02
    assert (mutated[jumped].sum(dim=0) / jumped.sum() - 0.2).abs().max() < 0.03
    assert (mutated[~jumped] - 0.2).abs().max() < 1e-6


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize("matrices", [1, 3])
def test_the_loop_is_predict_and_correct_step_after_step(matrices: int) -> None:
    generator = torch.Generator().manual_seed(0)
    belief = random_rows(5, 2, 4, generator=generator)
    gates = random_rows(5, 30, 2, matrices, generator=generator)
    evidence = -9 * torch.rand(5, 30, 2, 4, generator=generator)
    transitions = random_rows(2, matrices, 4, 4, generator=generator)
    fused = run_filter(belief, gates, evidence, transitions)
    for t in range(30):
        belief = correct(predict(propagate(belief, transitions), gates[:, t]), evidence[:, t])
        torch.testing.assert_close(fused[:, t], belief, atol=1e-6, rtol=1e-5)


def test_taking_a_steps_one_matrix_is_weighing_all_with_one_hot_gates() -> None:
    generator = torch.Generator().manual_seed(0)
    belief, start = random_rows(5, 2, 4, generator=generator), random_rows(2, 4, generator=generator)
    evidence = -9 * torch.rand(5, 30, 2, 4, generator=generator)
    transitions = random_rows(2, 7, 4, 4, generator=generator).requires_grad_()
    which = torch.randint(7, (5, 30), generator=generator)
    gates = torch.nn.functional.one_hot(which, 7).float()[:, :, None].expand(-1, -1, 2, -1)
    episode_start = torch.rand(5, 30, generator=generator) < 0.1
    weights = torch.rand(5, 30, 2, 4, generator=generator)
    found = []
    for some in ((gates, None), (torch.ones(5, 30, 2, 1), which)):
        beliefs = run_filter(
            belief, some[0], evidence, transitions, start=start, episode_start=episode_start, matrix_index=some[1]
        )
        found.append((beliefs, *torch.autograd.grad((beliefs * weights).sum(), transitions)))
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize("matrices", [1, 3])
@pytest.mark.parametrize("chunk", [1, 2**17])
def test_gradients_are_those_of_the_filter(matrices: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filter_kernels, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    episode_start = torch.zeros(2, 5, dtype=torch.bool)
    episode_start[1, 3] = True
    inputs = [
        random_rows(2, 2, 3, generator=generator),
        random_rows(2, 5, 2, matrices, generator=generator),
        -5 * torch.rand(2, 5, 2, 3, generator=generator),
        random_rows(2, matrices, 3, 3, generator=generator),
        random_rows(2, 3, generator=generator),
    ]

    def beliefs(initial: Tensor, gates: Tensor, evidence: Tensor, transitions: Tensor, start: Tensor) -> Tensor:
        torch.manual_seed(1)  # the same jumps every time
        return run_filter(initial, gates, evidence, transitions, start=start, episode_start=episode_start, mutation=0.2)

    assert torch.autograd.gradcheck(beliefs, [x.double().requires_grad_() for x in inputs])


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize(("floor", "dtype"), [(0.0, torch.float64), (1e-3, torch.float64), (1e-6, torch.float32)])
@pytest.mark.parametrize("one_matrix", [False, True])
def test_a_scan_has_the_beliefs_and_the_gradients_of_the_loop(
    floor: float, dtype: torch.dtype, one_matrix: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    initial, start = random_rows(3, 2, 6, generator=generator), random_rows(2, 6, generator=generator)
    transitions = dither(random_rows(2, 4, 6, 6, generator=generator, sharpness=8.0), floor)
    gates = torch.ones(3, 150, 2, 1) if one_matrix else random_rows(3, 150, 2, 4, generator=generator)
    which = torch.randint(4, (3, 150), generator=generator) if one_matrix else None
    evidence = -20 * torch.rand(3, 150, 2, 6, generator=generator)
    initial, gates, evidence, transitions, start = (x.to(dtype) for x in (initial, gates, evidence, transitions, start))
    inputs = [x.requires_grad_() for x in (initial, evidence, transitions, start, *([] if one_matrix else [gates]))]
    weights = torch.rand(3, 150, 2, 6, generator=generator)
    episode_start = torch.rand(3, 150, generator=generator) < 0.02
    found = []
    for scans in (False, True):
        monkeypatch.setattr(filter_kernels, "scan_pays", lambda *_, scans=scans: scans)
        beliefs = run_filter(
            initial,
            gates,
            evidence,
            transitions,
            start=start,
            episode_start=episode_start,
            mutation=0.02,
            matrix_index=which,
            generator=torch.Generator().manual_seed(1),
            scan=True,
        )
        found.append((beliefs, *torch.autograd.grad((beliefs * weights).sum(), inputs)))
    for loop, scan in zip(*found, strict=True):
        scale = float(loop.detach().abs().max())
        torch.testing.assert_close(scan, loop, atol=scale * (1e-9 if dtype == torch.float64 else 1e-5), rtol=1e-5)


def test_scans_one_after_the_other_are_one_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    transitions = dither(random_rows(1, 2, 3, 3, generator=generator), 1e-3)
    inputs = [
        random_rows(1, 2, 3, generator=generator),
        random_rows(40, 1, 2, 2, generator=generator),
        torch.rand(40, 1, 2, 3, generator=generator),
        transitions,
        random_rows(1, 1, 3, generator=generator),
    ]
    restarts = torch.rand(40, 1, 2, 1, generator=generator) < 0.1
    weights = torch.rand(40, 1, 2, 3, generator=generator)
    found = []
    for limit in (2**20, 7 * 18):
        monkeypatch.setattr(filter_kernels, "SCAN_LIMIT", limit)
        leaves = [x.clone().requires_grad_() for x in inputs]
        initial, gates, likelihood, matrices, start = leaves
        beliefs = filter_kernels.scan_filter(initial, gates, likelihood, matrices, start, restarts, None, None, None)
        found.append((beliefs, *torch.autograd.grad((beliefs * weights).sum(), leaves)))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


@settings(max_examples=10)
@given(seeds, st.booleans(), st.booleans(), st.booleans())
def test_operators_have_the_beliefs_and_the_gradients_of_the_loop(
    seed: int, restarting: bool, jumping: bool, guard: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = (
        random_rows(2, 1, 4, generator=generator),
        random_rows(2, 9, 1, 3, generator=generator),
        -5 * torch.rand(2, 9, 1, 4, generator=generator),
        dither(random_rows(1, 3, 4, 4, generator=generator), 1e-3),
        random_rows(1, 4, generator=generator),
    )
    episode_start = torch.rand(2, 9, generator=generator) < 0.3 if restarting else None
    weights = torch.rand(2, 9, 1, 4, generator=generator)
    found = []
    for operators in (False, True):
        leaves = [x.clone().requires_grad_() for x in inputs]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(filter_ops, "operators_pay", lambda _, operators=operators: operators)
            beliefs = run_filter(
                *leaves[:4],
                start=leaves[4],
                episode_start=episode_start,
                mutation=0.2 if jumping else 0.0,
                generator=torch.Generator().manual_seed(seed),
                scan=not guard,
            )
        gradients = torch.autograd.grad((beliefs * weights).sum(), leaves, materialize_grads=True)
        found.append((beliefs, *gradients))
    for loop, operator in zip(*found, strict=True):
        torch.testing.assert_close(operator, loop, atol=1e-5, rtol=1e-4)


def test_new_chains_stay_for_dwell_times_from_a_few_steps_to_the_dithers_limit() -> None:
    chain = HMMLayer(DHMMConfig(vocab_size=6, matrices=2, control="all"))
    stay = chain.transitions[0].diagonal(dim1=-2, dim2=-1)
    assert ((1 / (1 - stay[:, 0])) < 5).all()
    assert ((1 / (1 - stay[:, -1])) > 300).all()
    assert chain.cached_parameters().log_emissions.exp().sub(1 / 6).abs().max() < 0.1

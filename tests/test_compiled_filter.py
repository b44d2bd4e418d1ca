"""The filter's compiled loop: it equals the loop in Python, is not needed, and loads when a sequence is filtered."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dhmm_rl.model import compiled_filter
from dhmm_rl.model.bayes_filter import run_filter
from tests.test_filter import random_rows

numba = pytest.importorskip("numba")


def beliefs_and_gradients(seed: int, shape: tuple[int, ...], restarts: float, mutation: float, guard: bool) -> list[Tensor]:
    """Filter random sequences, and return the beliefs and the gradients at all inputs of a random sum of the beliefs."""
    batch, steps, chains, matrices, states = shape
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        "initial": random_rows(batch, chains, states, generator=generator),
        "gates": random_rows(batch, steps, chains, matrices, generator=generator),
        "evidence": -20 * torch.rand(batch, steps, chains, states, generator=generator),
        "transitions": random_rows(chains, matrices, states, states, generator=generator),
        "start": random_rows(chains, states, generator=generator),
    }
    for x in inputs.values():
        x.requires_grad_()
    episode_start = torch.rand(batch, steps, generator=generator) < restarts
    weights = torch.randn(batch, steps, chains, states, generator=generator)
    jumps = torch.Generator().manual_seed(seed)
    beliefs = run_filter(**inputs, episode_start=episode_start, mutation=mutation, generator=jumps, scan=not guard)
    return [beliefs, *torch.autograd.grad((beliefs * weights).sum(), list(inputs.values()), materialize_grads=True)]


@given(
    st.integers(0, 2**31),
    st.tuples(st.integers(1, 5), st.integers(2, 40), st.integers(1, 3), st.integers(1, 4), st.integers(1, 12)),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.booleans(),
)
def test_it_has_the_beliefs_and_the_gradients_of_the_loop_in_python(
    seed: int, shape: tuple[int, ...], restarts: float, mutation: float, guard: bool
) -> None:
    compiled = beliefs_and_gradients(seed, shape, restarts, mutation, guard)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_filter, "can_compile", lambda: False)
        expected = beliefs_and_gradients(seed, shape, restarts, mutation, guard)
    for x, y in zip(compiled, expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-6 + 1e-5 * float(y.detach().abs().max()), rtol=0)


def test_it_runs_with_numbers_of_one_type_on_a_cpu_for_several_steps_and_few_states() -> None:
    def pays(steps: int = 2, states: int = 8, dtype: torch.dtype = torch.float32, device: str = "cpu") -> bool:
        inputs = [
            torch.zeros(3, 1, states, dtype=dtype, device=device),
            torch.zeros(3, steps, 1, 4, dtype=dtype, device=device),
        ]
        inputs.append(torch.zeros(3, steps, 1, states, dtype=dtype, device=device))
        return compiled_filter.compilation_pays(tuple(inputs))

    assert pays()
    assert pays(dtype=torch.float64)
    assert not pays(steps=1)
    assert not pays(states=compiled_filter.STATES_LIMIT + 1)
    assert not pays(dtype=torch.bfloat16)
    assert not pays(device="meta")
    assert not compiled_filter.compilation_pays((torch.zeros(1), torch.zeros(1), torch.zeros(1, 2, 1, 2).double()))


def test_what_is_no_number_stays_none() -> None:
    evidence = torch.zeros(1, 3, 1, 2, requires_grad=True)
    broken = evidence * torch.tensor([1.0, torch.nan, 1.0])[None, :, None, None]
    beliefs = run_filter(torch.full((1, 1, 2), 0.5), torch.ones(1, 3, 1, 1), broken, torch.full((1, 1, 2, 2), 0.5))
    assert beliefs.isfinite().all(dim=-1).flatten().tolist() == [True, False, False]
    (gradient,) = torch.autograd.grad(beliefs.sum(), evidence)
    assert gradient.isnan().any()


@pytest.mark.parametrize("missing", ["module", "switched off"])
def test_without_numba_the_loop_in_python_filters(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = beliefs_and_gradients(0, (2, 9, 1, 2, 4), 0.1, 0.0, False)
    if missing == "module":
        monkeypatch.setitem(sys.modules, "numba", None)
    else:
        monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    monkeypatch.setattr(compiled_filter, "can_compile", compiled_filter.can_compile.__wrapped__)
    monkeypatch.setattr(compiled_filter, "load_kernels", None)
    torch.testing.assert_close(beliefs_and_gradients(0, (2, 9, 1, 2, 4), 0.1, 0.0, False), expected)


@pytest.mark.parametrize("fault", ["read-only", "full", "damaged"])
def test_faults_of_the_cache_are_no_errors(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(f"the disk is {fault}")

    load = compiled_filter.load_kernels.__wrapped__
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    if fault == "read-only":
        monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    elif fault == "full":
        monkeypatch.setattr(os, "replace", fail)
    else:
        load(torch.float32)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(files) == 4
        for path in files:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if fault != "damaged":
        with pytest.raises((OSError, RuntimeError)):
            numba.njit("float32(float32)", cache=True)(_double)
    monkeypatch.setattr(compiled_filter, "load_kernels", load)
    beliefs = run_filter(torch.full((1, 1, 2), 0.5), torch.ones(1, 3, 1, 1), torch.zeros(1, 3, 1, 2), torch.eye(2)[None, None])
    torch.testing.assert_close(beliefs, torch.full((1, 3, 1, 2), 0.5))


def _double(x: float) -> float:
    return 2 * x


def test_numba_is_imported_when_the_first_sequence_is_filtered_and_the_cache_serves_other_processes() -> None:
    code = """
import sys
import torch
from dhmm_rl import DHMMGPT2, SequencePPO
model = DHMMGPT2(vocab_size=9, num_states=2)
ids = torch.zeros(3, 2, dtype=torch.long)
model.step(ids[:, 0], model.initial_state(batch=3))
assert "numba" not in sys.modules
model(ids)
assert "numba" in sys.modules
from dhmm_rl.model.compiled_filter import load_kernels
for kernel in load_kernels(torch.float32):
    assert sum(kernel.stats.cache_hits.values()) == 1
"""
    compiled_filter.load_kernels(torch.float32)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

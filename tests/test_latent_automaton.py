"""The automaton that a latent chain has learned, read from chains that were built by hand, and drawn."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dhmm_rl.languages import (
    Automaton,
    Counting,
    Dyck,
    EvenProcess,
    HiddenProcess,
    Language,
    Mess3,
    Parity,
    WordProblem,
    latent_automaton,
)
from dhmm_rl.languages.latent_automaton import LatentAutomaton, read_automaton
from dhmm_rl.languages.plots import save_automaton
from dhmm_rl.model import DHMMGPT2

SURE = 30.0
"""A logit."""

Floats = NDArray[np.float64]


def chain_of(language: Language[Any], transitions: Floats, shown: Floats, start: Floats) -> DHMMGPT2:
    """Return a model of a chain with these probabilities: transitions (M, K, K), emissions (K, V), start (K,)."""
    matrices, states, _ = transitions.shape
    model = DHMMGPT2(len(language.tokens), layers=0, num_states=states, matrices=matrices, dither=1e-6)
    assert model.hmm is not None
    parts = model.hmm.transition_logits, model.hmm.emission_logits, model.hmm.start_logits
    for part, probabilities in zip(parts, (transitions[None], shown.T[:, None], start[None]), strict=True):
        part.data = torch.from_numpy(np.log(probabilities + 1e-12)).float()
    return model


def automaton_chain(language: Automaton, copies: int, spare: int, rng: np.random.Generator) -> DHMMGPT2:
    """
    Return a chain that runs an automaton. An input chooses a matrix that moves; padding chooses the matrix that stays.

    Each state of the automaton has several latent states. Some latent states are not in use.
    """
    states, inputs = len(language.states), len(language.inputs)
    stands_for = np.concatenate([np.repeat(np.arange(states), copies), rng.integers(states, size=spare)])
    unused = np.arange(len(stands_for)) >= states * copies
    order = rng.permutation(len(stands_for))
    stands_for, unused = stands_for[order], unused[order]
    transitions = np.tile(np.eye(len(stands_for)), (inputs + 1, 1, 1))
    for source, state in enumerate(stands_for):
        for i, after in enumerate(language.table[state]):
            targets = ~unused & (stands_for == after if after >= 0 else True)
            transitions[i, source] = targets * rng.random(len(targets))
    transitions /= transitions.sum(axis=-1, keepdims=True)
    shown = np.zeros((len(stands_for), len(language.tokens)))
    shown[np.arange(len(stands_for)), inputs + stands_for] = 1
    model = chain_of(language, transitions, shown, (~unused & (stands_for == 0)) / copies)
    assert model.hmm is not None
    gates = torch.zeros(len(language.tokens), 1, inputs + 1)
    gates[:inputs, 0, :inputs] = 2 * SURE * torch.eye(inputs)
    model.hmm.gate_weight = torch.nn.Parameter(gates)
    model.hmm.gate_bias = torch.nn.Parameter(SURE * torch.eye(inputs + 1)[-1:])
    return model


def instances(language: Language[Any], size: int = 40, count: int = 100) -> list[Any]:
    rng = np.random.default_rng(0)
    return [language.instance(size, rng) for _ in range(count)]


def is_the_automaton(found: LatentAutomaton | None, language: Language[Any]) -> bool:
    """Return whether states are named by their predictions and tokens lead exactly where the table says."""
    if found is None or not isinstance(language, Automaton):
        return False
    named = [language.tokens[int(row.argmax())] for row in found.predicted]
    arrows = {(s, token, t) for (s, t), tokens in found.arrows().items() for token in tokens}
    wanted = {
        (named.index(state), i, named.index(language.states[after]))
        for state, row in zip(language.states, language.table, strict=True)
        for i, after in enumerate(row)
        if after >= 0
    }
    return sorted(named) == sorted(language.states) and arrows == wanted


@pytest.mark.parametrize("language", [Counting(n=3), Dyck(depth=4), WordProblem(group="S3")], ids=["counting", "dyck", "s3"])
@pytest.mark.parametrize("copies", [1, 3])
def test_automata_are_read_back_whatever_their_states_are_called(language: Automaton, copies: int) -> None:
    model = automaton_chain(language, copies, spare=4, rng=np.random.default_rng(copies))
    found = read_automaton(model, language, instances(language))
    assert is_the_automaton(found, language)
    assert found is not None
    assert [len(members) for members in found.members] == [copies] * len(language.states)
    assert len(set(itertools.chain(*found.members))) == copies * len(language.states)


@pytest.mark.parametrize("process", [EvenProcess(p=0.6), Mess3()], ids=["even-process", "mess3"])
def test_processes_are_read_back_with_their_probabilities(process: HiddenProcess) -> None:
    symbols, states, _ = process.matrices.shape
    # A latent state for each state and symbol shown on the way to it; START says nothing.
    move = np.tile(process.matrices.transpose(1, 0, 2).reshape(1, states, -1), (1, symbols, 1))
    shown = np.repeat(np.eye(len(process.tokens))[1:], states, axis=0)
    start = np.einsum("i,xij->xj", process.stationary, process.matrices).ravel()
    found = read_automaton(chain_of(process, move, shown, start), process, instances(process))
    assert found is not None
    assert len(found.members) == states
    joint = (found.predicted[..., None] * found.moves)[:, 1:].permute(1, 0, 2).numpy()
    named = [list(order) for order in itertools.permutations(range(states))]
    assert min(np.abs(joint[:, order][:, :, order] - process.matrices).max() for order in named) < 1e-3


def test_what_is_no_small_chain_is_no_automaton(monkeypatch: pytest.MonkeyPatch) -> None:
    language = Counting(n=3)
    words = instances(language, count=3)
    ids = len(language.tokens)
    for model in (DHMMGPT2(ids, num_states=0), DHMMGPT2(ids, chains=2)):
        assert read_automaton(model, language, words) is None
    model = automaton_chain(language, 1, 0, np.random.default_rng(0))
    monkeypatch.setattr(latent_automaton, "MAX_IN_USE", 2)
    assert read_automaton(model, language, words) is None


class Dollars(Parity):
    states = ("$even", "\\odd$")


@pytest.mark.parametrize("language", [Dollars(), Counting(n=8), EvenProcess()])
def test_any_automaton_is_drawn(language: Language[Any], tmp_path: Path) -> None:
    states, ids = len(language.states) if isinstance(language, Automaton) else 1, len(language.tokens)
    moves = (torch.eye(states) + torch.eye(states).roll(1, 0))[:, None].expand(-1, ids, -1)
    found = LatentAutomaton((tuple(range(8)),) * states, torch.rand(states, ids), moves)
    save_automaton(found, language, tmp_path / "automaton.png")
    assert (tmp_path / "automaton.png").read_bytes().startswith(b"\x89PNG")

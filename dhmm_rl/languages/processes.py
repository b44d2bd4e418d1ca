"""
Stochastic processes as languages: Markov chains and hidden ones whose best predictor is known exactly.

Shapes: B sequences, T symbols, S symbols of the alphabet, K hidden states.
"""

from abc import abstractmethod
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhmm_rl.errors import InputError
from dhmm_rl.languages.language import IllegalTrace, Language

Floats = NDArray[np.float64]
Word = tuple[int, ...]

TOKEN_STATES = 4
"""Latent states for every token of chains drawn anew."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Process(Language[Word]):
    """
    What the languages of stochastic processes have in common: ``START``, then symbols.

    Size: how many symbols. A trace is legal while no symbol has probability 0, given those before it.
    """

    sizes: tuple[int, int] = (64, 64)
    """The smallest and the largest size in training."""

    deterministic = False

    @cached_property
    @abstractmethod
    def symbols(self) -> tuple[str, ...]:
        """The S symbols."""

    @abstractmethod
    def predict(self, words: NDArray[np.integer[Any]]) -> Floats:
        """
        The best predictor there is: probabilities of each symbol given the symbols before it.

        :param words: numbers of symbols, (B, T)
        :return: (B, T, S)
        """

    def nats(self, words: NDArray[np.integer[Any]]) -> Floats:
        """What the best predictor loses on each symbol of words (B, T), in nats, (B, T)."""
        found = np.take_along_axis(self.predict(words), np.asarray(words)[..., None], axis=-1)[..., 0]
        with np.errstate(divide="ignore"):
            nats: Floats = -np.log(found)
        return nats

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """``START`` and the symbols."""
        return ("START", *self.symbols)

    def prompt(self, instance: Word) -> list[str]:
        """``START``"""
        return ["START"]

    def trace(self, instance: Word) -> list[str]:
        """The symbols that were drawn."""
        return [self.symbols[number] for number in instance]

    def parse(self, text: str) -> Word:
        """A sequence of symbols, such as ``A B A`` or ``START A B A``."""
        return tuple(id_ - 1 for id_ in self.encode(text.removeprefix("START").split()) if id_ > 0)

    def execute(self, instance: Word, trace: Sequence[str]) -> Word:
        """
        See that the process can produce these symbols.

        :raises IllegalTrace: for a symbol of probability 0
        """
        word = []
        for place, token in enumerate(trace):
            if token not in self.symbols:
                raise IllegalTrace(place, token, "a symbol must stand here")
            word.append(self.symbols.index(token))
        if word:
            impossible = np.isinf(self.nats(np.array([word])))[0]
            if impossible.any():
                place = int(impossible.argmax())
                raise IllegalTrace(place, trace[place], "it has probability 0 after what stands before it")
        return tuple(word)


@dataclass(frozen=True)
class HiddenProcess(Process):
    """
    A hidden Markov process with labeled transitions: from state i it moves to j and shows symbol x with T[x, i, j].

    It begins in its stationary distribution.
    """

    @property
    def model(self) -> dict[str, Any]:
        """
        The latent layer alone, with one transition matrix: an HMM.

        Its states show their own symbols, so it needs one for every symbol with a state moved to; with no more than it needs,
        learning can end in a worse optimum. Fast learning, since only large logits make a symbol sure.
        """
        needed = int(self.matrices.any(axis=1).sum())
        return {"layers": 0, "matrices": 1, "num_states": needed + len(self.stationary), "latent_rate": 30.0}

    @property
    def training(self) -> dict[str, Any]:
        """Shorter than other languages."""
        return {"steps": 600}

    @cached_property
    @abstractmethod
    def matrices(self) -> Floats:
        """The labeled transition matrices T, (S, K, K); summed over x they are row-stochastic."""

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """Letters."""
        return tuple(LETTERS[: len(self.matrices)])

    @cached_property
    def stationary(self) -> Floats:
        """The stationary distribution of the states, (K,)."""
        transition = self.matrices.sum(axis=0)
        equations = np.concatenate([transition.T - np.eye(len(transition)), np.ones((1, len(transition)))])
        solution: Floats = np.linalg.lstsq(equations, np.eye(len(equations))[-1], rcond=None)[0]
        return solution

    def instance(self, size: int, rng: np.random.Generator) -> Word:
        """``size`` symbols."""
        start, rows = self._cumulative
        symbols = len(self.matrices)
        draws = rng.random(size + 1).tolist()
        state, word = bisect(start, draws.pop()), []
        for draw in draws:
            state, symbol = divmod(bisect(rows[state], draw), symbols)
            word.append(symbol)
        return tuple(word)

    @cached_property
    def _cumulative(self) -> tuple[list[float], list[list[float]]]:
        """Cumulative probabilities, without the last, of the first state, and of what follows each state: j · S + x."""
        joint = self.matrices.transpose(1, 2, 0).reshape(self.matrices.shape[1], -1)
        return np.cumsum(self.stationary)[:-1].tolist(), np.cumsum(joint, axis=1)[:, :-1].tolist()

    def beliefs(self, words: NDArray[np.integer[Any]]) -> Floats:
        """
        The true filter: the distribution of the hidden state after each symbol.

        :param words: numbers of symbols, (B, T)
        :return: (B, T, K); NaN from an impossible symbol on
        """
        return self._filter(words)[0]

    def predict(self, words: NDArray[np.integer[Any]]) -> Floats:
        """The true filter's predictions, (B, T, S)."""
        return self._filter(words)[1]

    def _filter(self, words: NDArray[np.integer[Any]]) -> tuple[Floats, Floats]:
        words = np.asarray(words)
        belief = np.broadcast_to(self.stationary, (len(words), len(self.stationary)))
        beliefs, predictions = np.empty((*words.shape, belief.shape[1])), np.empty((*words.shape, len(self.matrices)))
        for t in range(words.shape[1]):
            joint = np.einsum("bi,xij->bxj", belief, self.matrices)
            predictions[:, t] = joint.sum(axis=-1)
            here = joint[np.arange(len(words)), words[:, t]]
            with np.errstate(invalid="ignore"):
                belief = here / here.sum(axis=-1, keepdims=True)
            beliefs[:, t] = belief
        return beliefs, np.nan_to_num(predictions)

    def entropy_rate(self, block: int | None = None) -> tuple[float, float]:
        """
        Bounds of the entropy rate in nats per symbol.

        H(X_n | X_1 … X_{n-1}, state 0) and H(X_n | X_1 … X_{n-1}) for n = ``block`` (Cover and Thomas, "Elements of information
        theory", section 4.5). Where symbol and state determine the next state, the lower bound is the rate itself, whatever n,
        and both are it.

        :param block: n; costs S ** n. The largest that leaves a million words when ``None``
        """
        if ((self.matrices > 0).sum(axis=2) <= 1).all():
            shown = self.matrices.sum(axis=2)  # of each symbol in each state, (S, K)
            rate = float(self.stationary @ _entropies(shown.T))
            return rate, rate
        if block is None:
            block = max(int(np.log(1e6) / np.log(max(len(self.matrices), 2))), 1)
        conditions = [*np.eye(len(self.stationary)), self.stationary]
        added = np.array([self._last_entropy(start, block) for start in conditions])
        return float(self.stationary @ added[:-1]), float(added[-1])

    def _last_entropy(self, start: Floats, block: int) -> float:
        """H(X_n | X_1 … X_{n-1}) when the states begin as ``start`` (K,) says."""
        words, entropies = start[None], [0.0, 0.0]
        for _ in range(block):  # joint probability of each word and the state after it, (words, K)
            words = np.einsum("wi,xij->wxj", words, self.matrices).reshape(-1, len(start))
            entropies.append(float(_entropies(words.sum(axis=1)[None])[0]))
        return entropies[-1] - entropies[-2]


@dataclass(frozen=True)
class MarkovChain(HiddenProcess):
    """A fixed Markov chain, each row of its transition matrix drawn once from a flat Dirichlet distribution."""

    states: int = 5
    """How many symbols."""
    seed: int = 0
    """Of the matrix."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_symbols(self.states)
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; it must not be negative")

    @cached_property
    def matrix(self) -> Floats:
        """The transition matrix, (S, S)."""
        return np.random.default_rng(self.seed).dirichlet(np.ones(self.states), self.states)

    @cached_property
    def matrices(self) -> Floats:
        """The symbol is the state moved to."""
        return self.matrix[None] * np.eye(self.states)[:, None, :]


@dataclass(frozen=True)
class Mess3(HiddenProcess):
    """
    Mess3: three states on a circle; the beliefs of its filter form a fractal (Marzen and Crutchfield 2017; Shai et al. 2024,
    arXiv 2405.15943, appendix). It moves to either other state with x, and shows the symbol of the state it is then in with a.
    """

    x: float = 0.05
    """Probability of moving to each of the other two states."""
    a: float = 0.85
    """Probability of showing the state's own symbol."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.x <= 0.5 and 0 <= self.a <= 1):
            raise InputError(f"x = {self.x} and a = {self.a} are no Mess3; x is at most 1/2 and a at most 1, neither negative")

    @cached_property
    def matrices(self) -> Floats:
        """Move, then show."""
        move = self.x + (1 - 3 * self.x) * np.eye(3)
        show = (1 - self.a) / 2 + (self.a - (1 - self.a) / 2) * np.eye(3)
        return move[None] * show.T[:, None, :]


@dataclass(frozen=True)
class EvenProcess(HiddenProcess):
    """
    The even process: between two A stands an even number of B (Weiss 1973). Whether that number is even so far must be
    remembered for as long as B follow, so no Markov chain of any order is it. With p = 1/2 its rate is 2/3 bit.
    """

    p: float = 0.5
    """Probability of A where A may stand."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p < 1:
            raise InputError(f"p is {self.p}; it is a probability between 0 and 1")

    @cached_property
    def matrices(self) -> Floats:
        """States: an even number of B so far, an odd one."""
        return np.array([[[self.p, 0], [0, 0]], [[0, 1 - self.p], [1, 0]]])


@dataclass(frozen=True)
class InContextChains(Process):
    """
    Markov chains drawn anew for every sequence: each row of the matrix from a symmetric Dirichlet distribution, the first
    symbol uniformly. What follows what can only be learned from the sequence itself.
    """

    sizes: tuple[int, int] = (128, 128)
    """The smallest and the largest size in training."""
    states: int = 3
    """How many symbols."""
    concentration: float = 1.0
    """α of the Dirichlet distribution."""

    @property
    def model(self) -> dict[str, Any]:
        """
        One block of attention, and a latent layer that tells it what stood before each symbol.

        Whoever predicts by what followed the same symbol earlier must know, at every place, the symbol before it. A
        transformer needs a block of its own for that (induction heads; Edelman et al. 2024, arXiv 2402.11004); random
        transitions, one matrix a token and one for none, hold it from the start.
        """
        latent = {"num_states": TOKEN_STATES * len(self.tokens), "matrices": len(self.tokens) + 1}
        return latent | {"layers": 1, "latent_init": "automaton", "latent_rate": 30.0}

    @property
    def training(self) -> dict[str, Any]:
        """Shorter than other languages."""
        return {"steps": 400}

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_symbols(self.states)
        if not 0 < self.concentration < np.inf:
            raise InputError(f"concentration is {self.concentration}; it must be positive and finite")

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """Letters."""
        return tuple(LETTERS[: self.states])

    def instance(self, size: int, rng: np.random.Generator) -> Word:
        """``size`` symbols of a new chain."""
        matrix = rng.dirichlet(np.full(self.states, self.concentration), self.states)
        rows = np.cumsum(matrix, axis=1)[:, :-1].tolist()
        word = [int(rng.integers(self.states))]
        for draw in rng.random(size - 1).tolist():
            word.append(bisect(rows[word[-1]], draw))
        return tuple(word)

    def predict(self, words: NDArray[np.integer[Any]]) -> Floats:
        """
        The Bayes-optimal predictor: (n_ij + α) / (n_i + S α), n_ij being how often j has followed i.

        It is the posterior mean of the Dirichlet distribution of each row; 1 / S for the first symbol.
        """
        words = np.asarray(words)
        one_hot = np.eye(self.states)[words]
        follows = one_hot[:, :-1, :, None] * one_hot[:, 1:, None, :]  # (B, T - 1, S, S)
        counts = np.cumsum(follows, axis=1) - follows  # before each transition
        row = np.einsum("bti,btij->btj", one_hot[:, :-1], counts) + self.concentration
        predictions = row / row.sum(axis=-1, keepdims=True)
        return np.concatenate([np.full_like(one_hot[:, :1], 1 / self.states), predictions], axis=1)


def _entropies(p: Floats) -> Floats:
    """Entropy in nats of each row."""
    entropies: Floats = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)
    return entropies


def _check_symbols(states: int) -> None:
    if not 2 <= states <= len(LETTERS):
        raise InputError(f"states is {states}; it must lie between 2 and {len(LETTERS)}")

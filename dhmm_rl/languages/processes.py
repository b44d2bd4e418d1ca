"""
Stochastic processes as languages: Markov chains and hidden Markov processes, for which the best predictor is known.

Shapes: B sequences, T symbols in a sequence, S symbols in the alphabet, K hidden states.
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
"""Number of latent states per token, in the language of chains that differ for each sequence."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Process(Language[Word]):
    """
    Base class of the languages of stochastic processes: ``START``, then symbols.

    The size is the number of symbols. A trace is legal if no symbol has probability 0 after the symbols before it.
    """

    sizes: tuple[int, int] = (64, 64)
    """The smallest and the largest size in training."""

    deterministic = False

    @cached_property
    @abstractmethod
    def symbols(self) -> tuple[str, ...]:
        """Symbols of the alphabet, S of them."""

    @abstractmethod
    def predict(self, words: NDArray[np.integer[Any]]) -> Floats:
        """
        Return the predictions of the best possible predictor: probabilities of each symbol given the symbols before it.

        :param words: indices of symbols, shape (B, T)
        :return: probabilities, shape (B, T, S)
        """

    def nats(self, words: NDArray[np.integer[Any]]) -> Floats:
        """Return the loss of the best predictor on each symbol of words (B, T), in nats, shape (B, T)."""
        probabilities = np.take_along_axis(self.predict(words), np.asarray(words)[..., None], axis=-1)[..., 0]
        with np.errstate(divide="ignore"):
            nats: Floats = -np.log(probabilities)
        return nats

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """All tokens: ``START`` and the symbols."""
        return ("START", *self.symbols)

    def prompt(self, instance: Word) -> list[str]:
        """Return ``START``."""
        return ["START"]

    def trace(self, instance: Word) -> list[str]:
        """Return the symbols that were drawn."""
        return [self.symbols[number] for number in instance]

    def parse(self, text: str) -> Word:
        """Parse a sequence of symbols, such as ``A B A`` or ``START A B A``."""
        return tuple(id_ - 1 for id_ in self.encode(text.removeprefix("START").split()) if id_ > 0)

    def execute(self, instance: Word, trace: Sequence[str]) -> Word:
        """
        Check that the process can produce these symbols.

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
    A hidden Markov process with labeled transitions: from state i it moves to j and shows symbol x with probability T[x, i, j].

    It starts in its stationary distribution.
    """

    @property
    def model(self) -> dict[str, Any]:
        """
        The latent layer alone, with one transition matrix: an HMM.

        The states of this HMM determine the distribution of their own symbols, so it needs one state for each pair of a symbol
        and the state moved to. It gets some more, because otherwise learning can end in a worse optimum. The learning rate is
        high, because only large logits make a symbol certain.
        """
        needed = int(self.matrices.any(axis=1).sum())
        return {"layers": 0, "matrices": 1, "num_states": needed + len(self.stationary), "latent_rate": 30.0}

    @property
    def training(self) -> dict[str, Any]:
        """Training is shorter than in other languages."""
        return {"steps": 600}

    @cached_property
    @abstractmethod
    def matrices(self) -> Floats:
        """Labeled transition matrices T, shape (S, K, K). Their sum over x is row-stochastic."""

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """Symbols are letters."""
        return tuple(LETTERS[: len(self.matrices)])

    @cached_property
    def stationary(self) -> Floats:
        """Stationary distribution of the states, shape (K,)."""
        transition = self.matrices.sum(axis=0)
        equations = np.concatenate([transition.T - np.eye(len(transition)), np.ones((1, len(transition)))])
        solution: Floats = np.linalg.lstsq(equations, np.eye(len(equations))[-1], rcond=None)[0]
        return solution

    def instance(self, size: int, rng: np.random.Generator) -> Word:
        """Draw ``size`` symbols."""
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
        """Cumulative probabilities, without the last one, of the first state and, for each state, of the next j · S + x."""
        joint = self.matrices.transpose(1, 2, 0).reshape(self.matrices.shape[1], -1)
        return np.cumsum(self.stationary)[:-1].tolist(), np.cumsum(joint, axis=1)[:, :-1].tolist()

    def beliefs(self, words: NDArray[np.integer[Any]]) -> Floats:
        """
        Return the beliefs of the true filter: the distribution of the hidden state after each symbol.

        :param words: indices of symbols, shape (B, T)
        :return: beliefs, shape (B, T, K); NaN from the first impossible symbol on
        """
        return self._filter(words)[0]

    def predict(self, words: NDArray[np.integer[Any]]) -> Floats:
        """Return the predictions of the true filter, shape (B, T, S)."""
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
        Return a lower and an upper bound of the entropy rate in nats per symbol.

        The bounds are H(X_n | X_1 … X_{n-1}, state 0) and H(X_n | X_1 … X_{n-1}) for n = ``block`` (Cover and Thomas, "Elements
        of information theory", section 4.5). If symbol and state determine the next state, the lower bound is the rate itself
        for every n, and both results are equal to it.

        :param block: number of symbols n, at a cost of S ** n; the largest with at most a million words when ``None``
        """
        if ((self.matrices > 0).sum(axis=2) <= 1).all():
            shown = self.matrices.sum(axis=2)  # probability of each symbol in each state, (S, K)
            rate = float(self.stationary @ _entropies(shown.T))
            return rate, rate
        if block is None:
            block = max(int(np.log(1e6) / np.log(max(len(self.matrices), 2))), 1)
        conditions = [*np.eye(len(self.stationary)), self.stationary]
        added = np.array([self._last_entropy(start, block) for start in conditions])
        return float(self.stationary @ added[:-1]), float(added[-1])

    def _last_entropy(self, start: Floats, block: int) -> float:
        """Return H(X_n | X_1 … X_{n-1}) for an initial distribution ``start`` of the state, shape (K,)."""
        words, entropies = start[None], [0.0, 0.0]
        for _ in range(block):  # joint probability of each word and the state after it, (words, K)
            words = np.einsum("wi,xij->wxj", words, self.matrices).reshape(-1, len(start))
            entropies.append(float(_entropies(words.sum(axis=1)[None])[0]))
        return entropies[-1] - entropies[-2]


@dataclass(frozen=True)
class MarkovChain(HiddenProcess):
    """A fixed Markov chain, each row of its transition matrix drawn once from a flat Dirichlet distribution."""

    states: int = 5
    """Number of symbols."""
    seed: int = 0
    """Seed of the matrix."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_symbols(self.states)
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; it must not be negative")

    @cached_property
    def matrix(self) -> Floats:
        """Transition matrix, shape (S, S)."""
        return np.random.default_rng(self.seed).dirichlet(np.ones(self.states), self.states)

    @cached_property
    def matrices(self) -> Floats:
        """The symbol is the state that the chain moves to."""
        return self.matrix[None] * np.eye(self.states)[:, None, :]


@dataclass(frozen=True)
class Mess3(HiddenProcess):
    """
    Mess3: three states on a circle. The beliefs of its filter form a fractal (Marzen and Crutchfield 2017; Shai et al. 2024,
    arXiv 2405.15943, appendix). It moves to each other state with probability x, and then shows the symbol of its state with
    probability a.
    """

    x: float = 0.05
    """Probability of moving to each of the other two states."""
    a: float = 0.85
    """Probability of showing the state's own symbol."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.x <= 0.5 and 0 <= self.a <= 1):
            raise InputError(f"x is {self.x} and a is {self.a}; x must be between 0 and 1/2, a between 0 and 1")

    @cached_property
    def matrices(self) -> Floats:
        """The process moves first, then it shows a symbol."""
        move = self.x + (1 - 3 * self.x) * np.eye(3)
        show = (1 - self.a) / 2 + (self.a - (1 - self.a) / 2) * np.eye(3)
        return move[None] * show.T[:, None, :]


@dataclass(frozen=True)
class EvenProcess(HiddenProcess):
    """
    The even process: between two A there is an even number of B (Weiss 1973). A predictor must remember whether the number of B
    so far is even, for as long as B follow, so the process is not a Markov chain of any order. With p = 1/2 its entropy rate is
    2/3 bit.
    """

    p: float = 0.5
    """Probability of A where A is possible."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p < 1:
            raise InputError(f"p is {self.p}; it is a probability between 0 and 1")

    @cached_property
    def matrices(self) -> Floats:
        """The states are an even and an odd number of B so far."""
        return np.array([[[self.p, 0], [0, 0]], [[0, 1 - self.p], [1, 0]]])


@dataclass(frozen=True)
class InContextChains(Process):
    """
    Markov chains that differ for each sequence: each row of the matrix is drawn from a symmetric Dirichlet distribution, the
    first symbol uniformly. The transition probabilities can only be inferred from the sequence itself.
    """

    sizes: tuple[int, int] = (128, 128)
    """The smallest and the largest size in training."""
    states: int = 3
    """Number of symbols."""
    concentration: float = 1.0
    """Parameter α of the Dirichlet distribution."""

    @property
    def model(self) -> dict[str, Any]:
        """
        One block of attention, and a latent layer that provides the symbol before each symbol.

        Predicting by what followed the same symbol earlier requires the previous symbol at every position. A transformer needs
        another block for that (induction heads; Edelman et al. 2024, arXiv 2402.11004). The belief has this information from
        the start, with random transitions: one matrix per token, and one for an unknown token.
        """
        latent = {"num_states": TOKEN_STATES * len(self.tokens), "matrices": len(self.tokens) + 1}
        return latent | {"layers": 1, "latent_init": "automaton", "latent_rate": 30.0}

    @property
    def training(self) -> dict[str, Any]:
        """Training is shorter than in other languages."""
        return {"steps": 400}

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_symbols(self.states)
        if not 0 < self.concentration < np.inf:
            raise InputError(f"concentration is {self.concentration}; it must be positive and finite")

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """Symbols are letters."""
        return tuple(LETTERS[: self.states])

    def instance(self, size: int, rng: np.random.Generator) -> Word:
        """Draw a new chain, and ``size`` symbols of it."""
        matrix = rng.dirichlet(np.full(self.states, self.concentration), self.states)
        rows = np.cumsum(matrix, axis=1)[:, :-1].tolist()
        word = [int(rng.integers(self.states))]
        for draw in rng.random(size - 1).tolist():
            word.append(bisect(rows[word[-1]], draw))
        return tuple(word)

    def predict(self, words: NDArray[np.integer[Any]]) -> Floats:
        """
        Return the Bayes-optimal predictions: (n_ij + α) / (n_i + S α), where n_ij is the number of times that j has followed i.

        This is the posterior mean of the Dirichlet distribution of each row. For the first symbol it is 1 / S.
        """
        words = np.asarray(words)
        one_hot = np.eye(self.states)[words]
        follows = one_hot[:, :-1, :, None] * one_hot[:, 1:, None, :]  # (B, T - 1, S, S)
        counts = np.cumsum(follows, axis=1) - follows  # transitions before each one
        row = np.einsum("bti,btij->btj", one_hot[:, :-1], counts) + self.concentration
        predictions = row / row.sum(axis=-1, keepdims=True)
        return np.concatenate([np.full_like(one_hot[:, :1], 1 / self.states), predictions], axis=1)


def _entropies(p: Floats) -> Floats:
    """Return the entropy of each row in nats."""
    entropies: Floats = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)
    return entropies


def _check_symbols(states: int) -> None:
    if not 2 <= states <= len(LETTERS):
        raise InputError(f"states is {states}; it must be between 2 and {len(LETTERS)}")

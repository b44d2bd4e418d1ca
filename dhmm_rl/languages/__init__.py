"""Algorithms, stochastic processes and environments as token languages."""

from typing import Any

from dhmm_rl.languages.addition import Addition, Sum
from dhmm_rl.languages.automata import Automaton, Counting, Dyck, Parity, WordProblem
from dhmm_rl.languages.datasets import FixedSentences, FreshSentences, make_batch
from dhmm_rl.languages.evaluation import ReadOut, Score, linear_r2, read_out_belief, score, write_traces
from dhmm_rl.languages.language import IllegalTrace, Language, Sentence, TraceReader, Verdict, whole_numbers
from dhmm_rl.languages.processes import EvenProcess, HiddenProcess, InContextChains, MarkovChain, Mess3, Process
from dhmm_rl.languages.sorting import BubbleSort, InsertionSort, Sorting
from dhmm_rl.languages.streams import Stream

LANGUAGES: dict[str, Language[Any]] = {
    "addition": Addition(),
    "bubble-sort": BubbleSort(),
    "insertion-sort": InsertionSort(),
    "markov-chain": MarkovChain(),
    "in-context-chains": InContextChains(),
    "mess3": Mess3(),
    "even-process": EvenProcess(),
    "parity": Parity(),
    "counting": Counting(),
    "s3": WordProblem(group="S3"),
    "a4": WordProblem(group="A4"),
    "a5": WordProblem(group="A5"),
    "dyck": Dyck(),
    "stream": Stream(),
}
"""The languages that ship, as their defaults have them."""

__all__ = [
    "LANGUAGES",
    "Addition",
    "Automaton",
    "BubbleSort",
    "Counting",
    "Dyck",
    "EvenProcess",
    "FixedSentences",
    "FreshSentences",
    "HiddenProcess",
    "IllegalTrace",
    "InContextChains",
    "InsertionSort",
    "Language",
    "MarkovChain",
    "Mess3",
    "Parity",
    "Process",
    "ReadOut",
    "Score",
    "Sentence",
    "Sorting",
    "Stream",
    "Sum",
    "TraceReader",
    "Verdict",
    "WordProblem",
    "linear_r2",
    "make_batch",
    "read_out_belief",
    "score",
    "whole_numbers",
    "write_traces",
]

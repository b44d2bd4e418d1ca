"""
An algorithm as a language of your own: reverse a word, and know when to stop.

A language says what its tokens are and how an instance is drawn, written, read and executed. Training, generation and the
verdict on each generated trace come with the base class. ``python -m dhmm_rl.languages examples.own_language:Reversal`` trains
on it with logs, checkpoints and a table of results.
"""

from dataclasses import dataclass

import numpy as np
import torch

from dhmm_rl import DHMMGPT2
from dhmm_rl.languages import FreshSentences, Language, TraceReader, score

STEPS = 1_000


@dataclass(frozen=True)
class Reversal(Language[str]):
    """``b a c |`` and then ``c a b END``; the size is the length of the word."""

    sizes: tuple[int, int] = (1, 6)
    tokens = ("a", "b", "c", "|", "END")
    end = "END"

    def instance(self, size: int, rng: np.random.Generator) -> str:
        return "".join(rng.choice(["a", "b", "c"], size))

    def prompt(self, instance: str) -> list[str]:
        return [*instance, "|"]

    def trace(self, instance: str) -> list[str]:
        return [*reversed(instance), "END"]

    def parse(self, text: str) -> str:
        return text.replace(" ", "").removesuffix("|")

    def execute(self, instance: str, trace: list[str]) -> str:
        reader, written = TraceReader(trace), ""
        while (token := reader.take(["a", "b", "c", "END"], "a letter or END must stand here")) != "END":
            written += token
        reader.finish()
        return written

    def answer(self, instance: str) -> str:
        return instance[::-1]


if __name__ == "__main__":
    language = Reversal()
    model = DHMMGPT2(len(language.tokens), embed_size=64, window=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    sentences = FreshSentences(language, count=64 * STEPS, seed=0)
    for first in range(0, len(sentences), 64):
        batch = sentences[range(first, first + 64)]
        optimizer.zero_grad()
        model(batch.input_ids, batch.labels).loss.backward()
        optimizer.step()
    words = [language.instance(6, np.random.default_rng(seed)) for seed in range(200)]
    print(score(model, language, words))

"""``python -m benchmarks.few_sums``: how many three-digit sums does it take to learn addition?"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from benchmarks.ablate import fit, run_all
from dhmm_rl.cli import check_counts, run_command
from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write
from dhmm_rl.languages import Addition, FixedSentences, score
from dhmm_rl.languages.addition import Sum
from dhmm_rl.languages.language import Coupling
from dhmm_rl.languages.run import HELD_OUT, draw, model_settings
from dhmm_rl.model import DHMMGPT2
from dhmm_rl.recipes.schema import TrainingSettings

Format = Literal["plain", "reversed"]

COUPLINGS: tuple[Coupling, ...] = ("none", "relative")
DIGITS = 3
PUBLISHED = {"plain": (0.0, 0.004, 0.017, 0.811), "reversed": (0.0, 0.016, 0.306, 0.998)}
"""Shares for a GPT-2 of 10.6 million parameters with 500, 1,000, 2,000 and 5,000 sums: Lee et al. 2023, arXiv 2307.03381."""


@dataclass
class Args:
    """
    Train on a fixed set of three-digit sums for many epochs, and evaluate on unseen sums.

    Each run is a process of its own on one thread. Complete runs are not repeated.
    """

    sums: tuple[int, ...] = (500, 1000, 2000, 5000)
    """Numbers of sums to train on."""
    steps: int = 1000
    """Gradient steps of every run."""
    seeds: int = 3
    """Number of seeds; the first is 0."""
    num_eval_examples: int = 1000
    """Number of unseen sums on which a model is evaluated."""
    jobs: int = 2
    """Number of runs at the same time."""
    out: Path = Path("runs/few-sums")
    """Folder for the results of the runs, the table of runs (runs.csv) and the report (report.md)."""


class Job(NamedTuple):
    """One run; its result is written to ``path``."""

    format: Format
    coupling: Coupling
    sums: int
    steps: int
    num_eval_examples: int
    seed: int
    path: Path


def main(args: Args) -> None:
    """Run the command."""
    check_counts(args, "steps", "seeds", "num_eval_examples", "jobs")
    if not args.sums or min(args.sums) < 1:
        raise InputError("sums must be numbers of at least 1")
    jobs = []
    for format_ in get_args(Format):
        for coupling in COUPLINGS:
            for sums in args.sums:
                for seed in range(args.seeds):
                    name = f"{format_}-{coupling}-{sums}-{args.steps}-{args.num_eval_examples}-{seed}.json"
                    jobs.append(
                        Job(format_, coupling, sums, args.steps, args.num_eval_examples, seed, args.out / "runs" / name)
                    )
    write(args.out, run_all(run, jobs, args.jobs))
    print((args.out / "report.md").read_text(encoding="utf-8"))


def draw_sums(language: Addition, job: Job) -> tuple[list[Sum], list[Sum], list[Sum]]:
    """Draw three disjoint sets of sums: to train on, to choose the best step with, and to evaluate on."""
    known = list(dict.fromkeys(draw(language, [DIGITS] * 2 * job.sums, job.seed)))[: job.sums]
    drawn = draw(language, [DIGITS] * 2 * (job.num_eval_examples + HELD_OUT), job.seed + 1)
    learned = set(known)
    others = [instance for instance in drawn if instance not in learned]
    return known, others[:HELD_OUT], others[HELD_OUT:][: job.num_eval_examples]


def run(job: Job) -> dict[str, Any]:
    """Train a model and evaluate it."""
    language = Addition(sizes=(DIGITS, DIGITS), format=job.format, coupling=job.coupling)
    known, held_out, judged = draw_sums(language, job)
    torch.manual_seed(job.seed)
    model = DHMMGPT2(len(language.tokens), **model_settings(language, []))
    settings = TrainingSettings(steps=job.steps, eval_every=max(job.steps // 10, 1), patience=job.steps)
    train_set, chosen_by = FixedSentences(language, known, job.seed), FixedSentences(language, held_out)
    fit(model, train_set, chosen_by, settings, job.path.with_suffix(""), job.seed)
    keys = ("format", "coupling", "sums", "steps", "seed")
    return {key: getattr(job, key) for key in keys} | {"exact": score(model, language, judged).exact}


def write(out: Path, results: list[dict[str, Any]]) -> None:
    """Write the table of runs and the report."""
    with atomic_write(out / "runs.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(results[0]))
        writer.writeheader()
        writer.writerows(results)
    sums = list(dict.fromkeys(result["sums"] for result in results))
    lines = ["Unseen sums that are right, mean and worst seed.", ""]
    lines += [
        "| format | positions | " + " | ".join(f"{number:,} sums" for number in sums) + " |",
        "| --- " * (2 + len(sums)) + "|",
    ]
    for format_ in get_args(Format):
        for coupling in COUPLINGS:
            cells = []
            for number in sums:
                wanted = (format_, coupling, number)
                exact = [run["exact"] for run in results if (run["format"], run["coupling"], run["sums"]) == wanted]
                cells.append(f"{np.mean(exact):.1%}, {min(exact):.1%}")
            lines.append(f"| {format_} | {'counted' if coupling == 'none' else 'coupled'} | " + " | ".join(cells) + " |")
        if tuple(sums) == Args.sums:
            lines.append(f"| {format_} | published | " + " | ".join(f"{share:.1%}" for share in PUBLISHED[format_]) + " |")
    with atomic_write(out / "report.md") as temporary:
        temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    run_command(main, Args, "benchmarks.few_sums", {"instances": "num-eval-examples"})

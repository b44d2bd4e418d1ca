"""``python -m benchmarks.ablate``: what each part of DHMM-GPT2 does, on token languages."""

import csv
import json
import multiprocessing
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from tqdm import tqdm

from benchmarks.lstm import LSTMLanguageModel
from dhmm_rl.cli import check_counts, run_command, set_up
from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write
from dhmm_rl.languages import LANGUAGES, FixedSentences, FreshSentences, Language, Process, score
from dhmm_rl.languages.run import draw, draw_held_out, model_settings
from dhmm_rl.model import DHMMGPT2
from dhmm_rl.plotting import save_figure
from dhmm_rl.pretraining.trainer import SequenceDataset, train_language_model
from dhmm_rl.recipes.schema import TrainingSettings
from dhmm_rl.validation import did_you_mean


class Study(NamedTuple):
    """
    A language to learn, and for how long.

    :param language: name of the language
    :param options: options of the language that differ from its defaults
    :param sizes: sizes of the evaluated instances; the first is the largest size of the training
    :param steps: gradient steps
    :param states: latent states of the models that have them
    """

    language: str
    options: dict[str, Any]
    sizes: tuple[int, ...]
    steps: int
    states: int


STUDIES = {
    study.language: study
    for study in (
        Study("parity", {}, (40, 128, 512), 1500, 16),
        Study("counting", {}, (40, 128, 512), 1500, 20),
        Study("s3", {}, (40, 128, 512), 1500, 24),
        Study("a4", {}, (40, 128, 512), 1500, 48),
        Study("a5", {}, (40, 128, 512), 1000, 240),
        Study("bubble-sort", {"sizes": (2, 6)}, (6, 8, 12), 1000, 16),
        Study("addition", {}, (10, 20, 50), 750, 8),
        Study("in-context-chains", {}, (128, 256), 400, 16),
    )
}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "DHMM-GPT2": {},
    "GPT-2 (K = 0)": {"num_states": 0},
    "HMM (no transformer)": {"layers": 0},
    "no dither": {"dither": 0.0},
    "mutation 0.01": {"mutation": 0.01},
    "LSTM": None,
}
"""Changed keywords of DHMM-GPT2. ``None`` is the LSTM, which has about as many parameters as DHMM-GPT2."""


@dataclass
class Args:
    """
    Compare DHMM-GPT2 with variants that lack one of its parts, trained on the same sentences for equally many steps.

    Each run is a process of its own on one thread. Complete runs are not repeated.
    """

    languages: tuple[str, ...] = tuple(STUDIES)
    """Languages to learn."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Models to compare."""
    seeds: int = 3
    """Number of seeds; the first is 0."""
    steps: int | None = None
    """Gradient steps. Default: those of each language's study."""
    num_eval_examples: int = 200
    """Number of instances of each size on which a model is evaluated."""
    jobs: int = 2
    """Number of runs at the same time."""
    out: Path = Path("runs/ablation")
    """Folder for the results of the runs, the table of runs (runs.csv), the report (report.md) and the plot."""


class Job(NamedTuple):
    """One run; its result is written to ``path``."""

    study: Study
    variant: str
    seed: int
    num_eval_examples: int
    path: Path


class SavedJob(Protocol):
    """A job with a seed, whose result is written to ``path``."""

    @property
    def seed(self) -> int: ...

    @property
    def path(self) -> Path: ...


AnyJob = TypeVar("AnyJob", bound=SavedJob)


def main(args: Args) -> None:
    """Run the command."""
    write(args.out, run_all(run, plan(args, STUDIES, VARIANTS), args.jobs))
    print((args.out / "report.md").read_text(encoding="utf-8"))


def plan(args: Args, studies: Mapping[str, Study], variants: Collection[str]) -> list[Job]:
    """
    List the runs that the arguments ask for.

    :raises InputError: for a number below 1 and for an unknown name
    """
    check_counts(args, "seeds", "jobs", "num_eval_examples")
    for given, known in ((args.languages, studies), (args.variants, variants)):
        for name in given:
            if name not in known:
                raise InputError(f"{name!r} is not compared{did_you_mean(name, list(known))}")
    jobs = []
    for language in args.languages:
        study = studies[language]
        study = study if args.steps is None else study._replace(steps=args.steps)
        for seed in range(args.seeds):
            for variant in args.variants:
                path = args.out / "runs" / f"{language}-{variant}-{seed}-{study.steps}-{args.num_eval_examples}.json"
                jobs.append(Job(study, variant, seed, args.num_eval_examples, path))
    return jobs


def run_all(do: Callable[[AnyJob], dict[str, Any]], jobs: Sequence[AnyJob], processes: int) -> list[dict[str, Any]]:
    """Return the results of jobs in the order of the jobs, from several processes. Complete jobs are not repeated."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn) as pool, tqdm(total=len(jobs), desc="runs", unit="run", disable=None) as bar:
        results = []
        for result in pool.map(partial(complete, do), jobs):
            results.append(result)
            bar.update()
    return results


def complete(do: Callable[[AnyJob], dict[str, Any]], job: AnyJob) -> dict[str, Any]:
    """Do one job, or read its result if it is complete."""
    if job.path.exists():
        found: dict[str, Any] = json.loads(job.path.read_text(encoding="utf-8"))
        return found
    set_up("cpu", 1, job.seed)
    result = do(job)
    with atomic_write(job.path) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def train(study: Study, variant: str, seed: int, folder: Path) -> tuple[Language[Any], Any]:
    """
    Train a variant's model on a study's language.

    :param folder: folder for the state of the training
    :return: the language and the model
    """
    language = replace(LANGUAGES[study.language], **study.options)
    torch.manual_seed(seed)
    model = make_model(language, study, variant)
    own = {"steps": study.steps, "eval_every": max(study.steps // 5, 1), "patience": study.steps}
    settings = TrainingSettings(**language.training | own)
    train_set = FreshSentences(language, settings.steps * settings.batch_size, seed)
    fit(model, train_set, FixedSentences(language, draw_held_out(language, seed)), settings, folder, seed)
    return language, model


def fit(
    model: Any, train_set: SequenceDataset, held_out: SequenceDataset, settings: TrainingSettings, folder: Path, seed: int
) -> None:
    """Train a model without logs. An interrupted training resumes from the state in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    train_language_model(model, train_set, held_out, settings, folder=folder, logger=Logger(None, []), seed=seed)


def run(job: Job) -> dict[str, Any]:
    """Train a model and evaluate it."""
    study = job.study
    began = time.process_time()
    language, model = train(study, job.variant, job.seed, job.path.with_suffix(""))
    result: dict[str, Any] = {"language": study.language, "variant": job.variant, "seed": job.seed, "steps": study.steps}
    result |= {"parameters": count(model), "seconds": time.process_time() - began, "sizes": {}}
    for size in study.sizes:
        instances = draw(language, [size] * job.num_eval_examples, job.seed + size)
        found = score(model, language, instances)._asdict()
        if isinstance(language, Process):
            found["above_best"] = found["nats"] - float(language.nats(np.array(instances)).mean())
        result["sizes"][str(size)] = found
    return result


def make_model(language: Language[Any], study: Study, variant: str) -> Any:
    """Make the model of a variant. The window of each holds the longest sentence."""
    keywords = model_settings(language, study.sizes) | {"layers": 1, "num_states": study.states}
    changed = VARIANTS[variant]
    if changed is not None:
        return DHMMGPT2(len(language.tokens), **keywords | changed)
    return LSTMLanguageModel.of_size(len(language.tokens), count(DHMMGPT2(len(language.tokens), **keywords)))


def count(model: torch.nn.Module) -> int:
    """Return the number of trained parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def write(out: Path, results: list[dict[str, Any]]) -> None:
    """Write the table of runs, the report and the plot."""
    with atomic_write(out / "runs.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["language", "variant", "seed", "steps", "parameters", "seconds", "size", "exact", "tokens", "nats"])
        for result in results:
            one = [result[name] for name in ("language", "variant", "seed", "steps", "parameters", "seconds")]
            writer.writerows([*one, size, *list(found.values())[:3]] for size, found in result["sizes"].items())
    languages = dict.fromkeys(result["language"] for result in results)
    variants = list(dict.fromkeys(result["variant"] for result in results))
    lines = []
    columns = min(len(languages), 4)
    rows = -(-len(languages) // columns)
    with save_figure(out / "ablation.png", (4 * columns, 3.5 * rows)) as figure:
        for place, language in enumerate(languages):
            some = [result for result in results if result["language"] == language]
            sizes = list(some[0]["sizes"])
            measure = "above_best" if "above_best" in some[0]["sizes"][sizes[0]] else "tokens"
            what = (
                "nats above the best predictor" if measure == "above_best" else "right tokens (in brackets: whole traces exact)"
            )
            lines += [f"### {language}: {what}, mean and worst seed", ""]
            lines += ["| model | parameters | seconds | " + " | ".join(f"size {size}" for size in sizes) + " |"]
            lines += ["| --- " * (3 + len(sizes)) + "|"]
            axes = figure.add_subplot(rows, columns, place + 1)
            for number, variant in enumerate(variants):
                color = f"C{number}"
                runs = [result for result in some if result["variant"] == variant]
                if not runs:
                    continue
                cells = []
                values = np.array([[result["sizes"][size][measure] for result in runs] for size in sizes])
                for size, row in zip(sizes, values, strict=True):
                    if measure == "above_best":
                        cells.append(f"{row.mean():.4f}, {row.max():.4f}")
                    else:
                        exact = np.mean([result["sizes"][size]["exact"] for result in runs])
                        cells.append(f"{row.mean():.2%}, {row.min():.2%} ({exact:.1%})")
                seconds = np.mean([result["seconds"] for result in runs])
                lines.append(f"| {variant} | {runs[0]['parameters']:,} | {seconds:.0f} | " + " | ".join(cells) + " |")
                axes.plot(range(len(sizes)), values.mean(axis=1), marker="o", label=variant, color=color)
                axes.fill_between(range(len(sizes)), values.min(axis=1), values.max(axis=1), color=color, alpha=0.15)
            axes.set(title=language, xticks=range(len(sizes)), xticklabels=sizes, xlabel="size", ylabel=what.split(" (")[0])
            lines.append("")
        figure.axes[0].legend(fontsize="small")
    lines += ["Whether mutation explores other traces than temperature does: `python -m benchmarks.explore`.", ""]
    with atomic_write(out / "report.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    run_command(main, Args, "benchmarks.ablate", {"instances": "num-eval-examples"})

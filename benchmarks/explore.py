"""
``python -m benchmarks.explore``: right traces where the likeliest trace is wrong: found by mutation, found by temperature.

Shapes: I instances, n traces drawn for each.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import comb
from pathlib import Path
from statistics import fmean as mean
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray

from benchmarks import ablate
from benchmarks.ablate import Job, Study, plan, run_all, train
from dhmm_rl.cli import check_counts, run_command
from dhmm_rl.files import atomic_write
from dhmm_rl.languages import Language, write_traces
from dhmm_rl.languages.run import draw
from dhmm_rl.model import DHMMGPT2
from dhmm_rl.plotting import save_figure

STUDIES = {
    study.language: study
    for study in (
        Study("bubble-sort", {"sizes": (2, 4), "values": 10}, (4,), 100, 16),
        Study("addition", {"sizes": (1, 3), "format": "carry", "coupling": "learned", "max_position": 12}, (4,), 600, 16),
    )
}
"""Instances for which the likeliest trace is often wrong: sorting after a short training, addition of longer numbers."""
VARIANTS = ("DHMM-GPT2", "mutation 0.01")
KS = (1, 4, 16, 64)
BATCH = 1024
"""Number of traces that are generated at the same time."""
Rows = Sequence[dict[str, Any]]
"""Rows of the table of runs, one for each run and sampling configuration."""


class SamplingConfig(NamedTuple):
    """
    How traces are sampled.

    :param temperature: temperature of the tokens; 0 takes the likeliest
    :param mutation: probability per step that the belief jumps to a random state
    """

    temperature: float
    mutation: float


WAYS = (
    *(SamplingConfig(0.0, mutation) for mutation in (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6)),
    *(SamplingConfig(temperature, 0.0) for temperature in (0.3, 0.6, 1.0, 1.5, 2.0)),
    *(SamplingConfig(temperature, mutation) for temperature in (0.6, 1.0, 1.5) for mutation in (0.01, 0.1)),
)
COLORS = {(False, False): "Greys", (True, False): "Reds", (False, True): "Blues", (True, True): "Greens"}
"""Color maps of the plot's lines, by whether temperature is above 0 and whether mutation is."""


@dataclass
class Args(ablate.Args):
    """
    Train models, sample traces of every instance in several ways, and count the instances that at least one of k traces solves.

    Each run is a process of its own on one thread. Complete runs are not repeated.
    """

    languages: tuple[str, ...] = tuple(STUDIES)
    """Languages to learn."""
    variants: tuple[str, ...] = VARIANTS
    """Models to compare: one trained without mutation, one trained with it."""
    num_eval_examples: int = 50
    """Number of instances on which a model is evaluated."""
    draws: int = 64
    """Number of traces that are sampled for each instance in each way."""
    out: Path = Path("runs/exploration")
    """Folder for the results of the runs, the table of runs (runs.csv), the report (report.md) and the plot."""


def main(args: Args) -> None:
    """Run the command."""
    check_counts(args, "draws")
    jobs = [job._replace(path=job.path.with_stem(f"{job.path.stem}-{args.draws}")) for job in plan(args, STUDIES, VARIANTS)]
    write(args.out, run_all(partial(explore, draws=args.draws), jobs, args.jobs))
    print((args.out / "report.md").read_text(encoding="utf-8"))


def explore(job: Job, draws: int) -> dict[str, Any]:
    """Train a model, sample traces in every way, and count the right ones."""
    study = job.study
    language, model = train(study, job.variant, job.seed, job.path.with_suffix(""))
    instances = draw(language, [study.sizes[0]] * job.num_eval_examples, job.seed + study.sizes[0])
    generator = torch.Generator().manual_seed(job.seed)
    result: dict[str, Any] = {"language": study.language, "variant": job.variant, "seed": job.seed, "steps": study.steps}
    ways = [{**way._asdict(), **tally(model, language, instances, way, draws, generator)._asdict()} for way in WAYS]
    return result | {"size": study.sizes[0], "draws": draws, "ways": ways}


class Tally(NamedTuple):
    """
    Counts over the n traces of each instance; every list has I entries.

    :param solved: number of traces that are legal and come to the right result
    :param legal: number of traces that the executor performs to their end
    :param different: number of distinct traces
    """

    solved: list[int]
    legal: list[int]
    different: list[int]


def tally(
    model: DHMMGPT2,
    language: Language[Any],
    instances: Sequence[Any],
    way: SamplingConfig,
    draws: int,
    generator: torch.Generator,
) -> Tally:
    """Sample traces of every instance and execute them."""
    steps = max(len(language.trace(instance)) for instance in instances)
    repeated = [instance for instance in instances for _ in range(draws)]
    traces: list[list[str]] = []
    for first in range(0, len(repeated), BATCH):
        traces += write_traces(
            model,
            language,
            repeated[first : first + BATCH],
            steps=steps,
            greedy=way.temperature == 0,
            temperature=way.temperature,
            mutation=way.mutation,
            generator=generator,
        )
    found = Tally([], [], [])
    for i, instance in enumerate(instances):
        counts = Counter(map(tuple, traces[i * draws : (i + 1) * draws]))
        verdicts = [(language.check(instance, trace), times) for trace, times in counts.items()]
        found.solved.append(sum(times for verdict, times in verdicts if verdict.solved))
        found.legal.append(sum(times for verdict, times in verdicts if verdict.illegal is None))
        found.different.append(len(counts))
    return found


def solved_at(k: int, draws: int, solved: int) -> float:
    """
    Estimate the probability that at least one of k traces is right, from n sampled traces.

    This is the unbiased estimator of pass@k, ``1 - C(n - c, k) / C(n, k)`` (Chen et al. 2021, arXiv 2107.03374, section 2.1).

    :param draws: n, the number of sampled traces
    :param solved: c, the number of right ones among them
    """
    return 1 - comb(draws - solved, k) / comb(draws, k)


def write(out: Path, results: list[dict[str, Any]]) -> None:
    """Write the table of runs, the report and the plot."""
    draws = results[0]["draws"]
    ks = [k for k in KS if k <= draws]
    names = ["language", "variant", "seed", "steps", "size", "draws"]
    rows = [
        {name: result[name] for name in names}
        | {name: way[name] for name in SamplingConfig._fields}
        | {f"solved@{k}": mean(solved_at(k, draws, solved) for solved in way["solved"]) for k in ks}
        | {"legal": mean(way["legal"]) / draws, "different": mean(way["different"])}
        for result in results
        for way in result["ways"]
    ]
    with atomic_write(out / "runs.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with atomic_write(out / "report.md") as temporary:
        temporary.write_text(table(rows, ks), encoding="utf-8")
    plot(out / "exploration.png", rows, ks)


def group(rows: Rows, *names: str) -> dict[Any, Rows]:
    """Group rows by their values in the columns of these names."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return dict(found)


def shares(rows: Rows, ks: Sequence[int]) -> NDArray[np.float64]:
    """Return the shares of instances that the best of k traces solves, (rows x ks)."""
    return np.array([[row[f"solved@{k}"] for k in ks] for row in rows])


def table(rows: Rows, ks: Sequence[int]) -> str:
    """Return a Markdown table with a row for each model and sampling configuration."""
    head = ["language", "model", *SamplingConfig._fields, *(f"k = {k}" for k in ks), "legal", "different"]
    seeds = {row["seed"] for row in rows}
    lines = [
        "### Share of the instances that the best of k traces solves",
        "",
        f"Of {rows[0]['draws']} traces for each instance; mean over {len(seeds)} seeds. Bold: a model's best.",
        "In brackets: percentage points above the best way without mutation at this k, in the worst and the best seed.",
        "Temperature 0 takes the likeliest token. Legal: share of the traces that the executor performs to the end.",
        "Different: how many of an instance's traces are.",
        "",
        "| " + " | ".join(head) + " |",
        "| --- " * len(head) + "|",
    ]
    for model, of_model in group(rows, "language", "variant").items():
        ways = group(of_model, *SamplingConfig._fields)
        columns = {way: shares(runs, ks).T for way, runs in ways.items()}  # (ks x seeds)
        for way, runs in ways.items():
            cells = [*model, *(f"{value:g}" for value in way)]
            for i, found in enumerate(columns[way]):
                unmutated = max((column[i] for (_, mutation), column in columns.items() if mutation == 0), key=mean)
                above = 100 * (found - unmutated)
                mark = "**" if mean(found) == max(mean(column[i]) for column in columns.values()) else ""
                cells.append(f"{mark}{mean(found):.1%}{mark} ({round(above.min()):+d} to {round(above.max()):+d})")
            cells.append(f"{mean([row['legal'] for row in runs]):.1%}")
            cells.append(f"{mean([row['different'] for row in runs]):.1f}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(path: Path, rows: Rows, ks: Sequence[int]) -> None:
    """Plot the same shares against k, in one panel for each model. Higher temperatures and mutation rates are darker."""
    models = group(rows, "language", "variant")
    with save_figure(path, (3 * len(models) + 2.5, 3.5)) as figure:
        for place, ((language, variant), of_model) in enumerate(models.items()):
            axes = figure.add_subplot(1, len(models), place + 1)
            ways = group(of_model, *SamplingConfig._fields)
            for explored, colors in COLORS.items():
                alike = [way for way in ways if (way[0] > 0, way[1] > 0) == explored]
                for way, strength in zip(alike, np.linspace(1, 0.4, len(alike))[::-1], strict=True):
                    label = f"temperature {way[0]:g}, mutation {way[1]:g}"
                    axes.plot(ks, shares(ways[way], ks).mean(axis=0), ".-", color=colormaps[colors](strength), label=label)
            axes.set(title=f"{language}: {variant}", xlabel="traces k", xscale="log", xticks=ks, xticklabels=ks, ylim=(0, 1))
            axes.minorticks_off()
        figure.axes[0].set_ylabel("instances solved by the best of k")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")


if __name__ == "__main__":
    run_command(main, Args, "benchmarks.explore", {"instances": "num-eval-examples"})

"""``python -m benchmarks.figure``: the README's figure, from committed runs."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from benchmarks.report import Results, interquartile_mean
from benchmarks.run import SERIES
from dhmm_rl.cli import run_command
from dhmm_rl.plotting import save_figure

LABELS = {
    "dhmm-gpt2": "DHMM-GPT2 (SequencePPO)",
    "lstm": "LSTM (sb3-contrib's RecurrentPPO)",
    "mlp-framestack": "MLP on 4 stacked frames (SB3's PPO)",
}
POINTS = 100
"""Number of points in time at which returns are averaged over seeds."""


@dataclass
class Args:
    """Draw return against environment steps and against seconds of training, for agents with and without memory."""

    runs: Path = Path("benchmarks/results/cartpole-no-velocities/runs.csv")
    """Table of runs that `python -m benchmarks.run` wrote."""
    out: Path = Path("docs/cartpole-no-velocities.png")
    """Path of the figure."""


def main(args: Args) -> None:
    """Run the command."""
    results = read_runs(args.runs)
    with save_figure(args.out, (11, 4)) as figure:
        by_steps, by_seconds = figure.subplots(1, 2, sharey=True)
        draw(by_steps, results, "eval_steps")
        draw(by_seconds, results, "eval_seconds")
        by_steps.set(xlabel="environment steps", ylabel="return", title="CartPole without velocities")
        by_seconds.set(xlabel="seconds of training on one core", title="interquartile mean and 95 % interval")
        by_steps.legend(loc="lower right", fontsize="small")
    print(f"figure: {args.out}")


def read_runs(path: Path) -> Results:
    """The runs of a table, with the series of their evaluations as lists of numbers."""
    with path.open(newline="", encoding="utf-8") as file:
        return [row | {name: [float(value) for value in row[name].split()] for name in SERIES} for row in csv.DictReader(file)]


def draw(axes: Axes, results: Results, horizontal: str) -> None:
    """
    Draw the interquartile mean of the return over seeds, and its interval, for every agent.

    :param horizontal: quantity on the horizontal axis, ``eval_steps`` or ``eval_seconds``
    """
    for agent in dict.fromkeys(run["agent"] for run in results):
        runs = [run for run in results if run["agent"] == agent]
        first, last = max(run[horizontal][0] for run in runs), min(run[horizontal][-1] for run in runs)
        grid = np.linspace(first, last, POINTS)
        estimates = np.array([interquartile_mean(returns) for returns in returns_at(grid, runs, horizontal).T])
        axes.plot(grid, estimates[:, 0], label=f"{LABELS.get(agent, agent)}, {len(runs)} seeds")
        axes.fill_between(grid, estimates[:, 1], estimates[:, 2], alpha=0.2, linewidth=0)


def returns_at(grid: NDArray[np.float64], runs: list[dict[str, Any]], horizontal: str) -> NDArray[np.float64]:
    """Returns of the runs at points between their evaluations, by linear interpolation, (runs, points)."""
    return np.array([np.interp(grid, run[horizontal], run["eval_returns"]) for run in runs])


if __name__ == "__main__":
    run_command(main, Args, "benchmarks.figure")

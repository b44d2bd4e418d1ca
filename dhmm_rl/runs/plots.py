"""Plots of a single run: the learning curve of an agent, and the losses of a language model."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dhmm_rl.plotting import save_figure
from dhmm_rl.runs.run import Run

MAX_VALUE = 1e100
"""Larger values in a log are not plotted, because axes overflow."""
SIZE = (7, 4)
"""Size of a figure in inches."""


def plot_curve(run: Run, result: dict[str, Any], returns: list[list[float]]) -> None:
    """
    Plot the learning curve in ``curve.png``: mean and quartiles of the returns of each evaluation against environment steps.

    :param run: run of an agent
    :param result: content of the run's ``result.json``
    :param returns: returns of the episodes of each evaluation
    """
    with save_figure(run.folder / "curve.png", SIZE) as figure:
        axes = figure.add_subplot()
        steps = result["eval_steps"]
        if steps:
            lower, upper = np.array([np.percentile(episodes, [25, 75]) for episodes in returns]).T
            axes.fill_between(steps, lower, upper, alpha=0.25, linewidth=0, label="middle half of the episodes")
            axes.plot(steps, [np.mean(episodes) for episodes in returns], marker=".", label="mean of an evaluation")
        axes.plot(
            result["pretraining_steps"] + result["ppo_steps"],
            result["final_return"],
            marker="*",
            markersize=12,
            linestyle="none",
            label=f"last agent, {result['final_episodes']} episodes",
        )
        if run.env.solved_at is not None:
            axes.axhline(run.env.solved_at, color="gray", linestyle=":", label=f"solved at {run.env.solved_at:g}")
        if result["pretraining_steps"]:
            axes.axvspan(0, result["pretraining_steps"], color="gray", alpha=0.2, linewidth=0, label="pretraining rollouts")
        axes.set(xlabel="environment steps", ylabel="return", title=f"{run.agent.name} on {run.env.name}, seed {run.seed}")
        axes.legend()


def plot_losses(rows: Sequence[dict[str, str]], path: Path, title: str) -> None:
    """
    Plot the held-out loss of a language model against gradient steps and, if they were logged, the fractions that are right.

    :param rows: rows of its log, see :func:`~dhmm_rl.runs.logs.read_log`
    :param path: path of the PNG file
    :param title: title of the figure
    """
    steps = _numbers(rows, "pretrain/steps")
    shares = {"held_out/exact": "whole sentences", "held_out/right_tokens": "tokens"}
    shares = {key: label for key, label in shares.items() if any(key in row for row in rows)}
    with save_figure(path, SIZE) as figure:
        loss, *below = figure.subplots(1 + bool(shares), 1, sharex=True, squeeze=False)[:, 0]
        loss.plot(steps, _numbers(rows, "pretrain/held_out_loss"), marker=".")
        scale = "log" if shares else "linear"  # the loss of a deterministic language goes to 0
        loss.set(ylabel="nats per token", yscale=scale, title=f"{title}: held-out sentences")
        for axes in below:
            for key, label in shares.items():
                axes.plot(steps, _numbers(rows, key), marker=".", label=label)
            axes.set(ylabel="share that is right", ylim=(-0.05, 1.05))
            axes.legend()
        figure.axes[-1].set_xlabel("gradient steps")


def _numbers(rows: Sequence[dict[str, str]], key: str) -> list[float]:
    """Return a column of a log, with NaN, which is not plotted, for damaged values."""
    numbers = []
    for row in rows:
        try:
            value = float(row[key])
        except (KeyError, ValueError):
            value = math.nan
        numbers.append(value if abs(value) < MAX_VALUE else math.nan)
    return numbers

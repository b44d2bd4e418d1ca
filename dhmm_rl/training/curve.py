"""The learning curve of one run, as a picture."""

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dhmm_rl.files import atomic_write
from dhmm_rl.training.runs import Run


def plot_curve(run: Run, result: dict[str, Any], returns: list[list[float]]) -> None:
    """
    Write ``curve.png``: mean return and its quartiles over the episodes of each evaluation, against environment steps.

    :param result: with ``eval_steps``, ``pretraining_steps``
    :param returns: of every episode of every evaluation
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = result["eval_steps"]
    if steps:
        lower, upper = np.percentile(returns, [25, 75], axis=1)
        axes.fill_between(steps, lower, upper, alpha=0.25, linewidth=0, label="middle half of the episodes")
        axes.plot(steps, np.mean(returns, axis=1), marker=".", label="mean of an evaluation")
    axes.plot(
        result["pretraining_steps"] + result["ppo_steps"],
        result["final_return"],
        marker="*",
        markersize=12,
        linestyle="none",
        label="final agent, 100 episodes",
    )
    if run.env.solved_at is not None:
        axes.axhline(run.env.solved_at, color="grey", linestyle=":", label=f"solved at {run.env.solved_at:g}")
    if result["pretraining_steps"]:
        axes.axvspan(0, result["pretraining_steps"], color="grey", alpha=0.2, linewidth=0, label="pretraining rollouts")
    axes.set(xlabel="environment steps", ylabel="return", title=f"{run.agent.name} on {run.env.name}, seed {run.seed}")
    axes.legend()
    with atomic_write(run.folder / "curve.png") as temporary:
        figure.savefig(temporary, dpi=120)

"""
Tables and plots of runs: interquartile means and 95 % bootstrap intervals over seeds (the conventions of Agarwal et al. 2021,
arXiv 2108.13264).

Shapes: S seeds, E evaluations.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dhmm_rl.files import atomic_write
from dhmm_rl.plotting import save_figure

Results = Sequence[dict[str, Any]]


class Estimate(NamedTuple):
    """
    A mean with its interval.

    :param mean: interquartile mean
    :param low: lower end of the 95 % interval, NaN when there are too few runs for one
    :param high: upper end of the 95 % interval
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = "" if np.isnan(self.low) else f" [{format_number(self.low)}, {format_number(self.high)}]"
        return format_number(self.mean) + interval


def interquartile_mean(values: NDArray[np.float64]) -> Estimate:
    """
    Mean of the middle half of the seeds with its percentile bootstrap interval. A single seed has no interval.

    :param values: one value for each seed, (S,)
    """
    mean = float(stats.trim_mean(values, 0.25))
    if len(values) < 2 or np.ptp(values) == 0:
        return Estimate(mean, mean, mean)
    interval = stats.bootstrap(
        (values,), lambda x, axis: stats.trim_mean(x, 0.25, axis=axis), method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high))


def steps_to_stay(result: dict[str, Any], threshold: float) -> float:
    """Environment steps from which on every evaluation reaches the threshold; infinite if the last one does not."""
    below = [i for i, value in enumerate(result["eval_returns"]) if value < threshold]
    first = below[-1] + 1 if below else 0
    return float(result["eval_steps"][first]) if first < len(result["eval_steps"]) else np.inf


def seconds_to_stay(result: dict[str, Any], threshold: float) -> float:
    """Seconds of training, without evaluations, until :func:`steps_to_stay`."""
    steps = steps_to_stay(result, threshold)
    return float(result["eval_seconds"][result["eval_steps"].index(steps)]) if np.isfinite(steps) else np.inf


def first_steps(result: dict[str, Any], threshold: float) -> float:
    """Environment steps of the first evaluation that reaches the threshold; infinite if none does."""
    reached = [step for step, value in zip(result["eval_steps"], result["eval_returns"], strict=True) if value >= threshold]
    return float(reached[0]) if reached else np.inf


def write_report(out: Path, results: Results, solved_at: Mapping[str, float | None]) -> None:
    """
    Write ``report.md`` and a plot for every environment.

    :param solved_at: mean return at which an environment counts as solved, by the name of the environment
    """
    sections = []
    for env in dict.fromkeys(result["env"] for result in results):
        of_env = [result for result in results if result["env"] == env]
        sections.append(table(env, of_env, solved_at[env]))
        plot(out / f"{env}.png", env, of_env)
    with atomic_write(out / "report.md") as temporary:
        temporary.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def table(env: str, results: Results, threshold: float | None) -> str:
    """Return a Markdown table of one environment's agents; ``threshold`` is the mean return at which it counts as solved."""
    lines = [
        f"### {env}",
        "",
        "Interquartile mean and 95 % bootstrap interval over seeds. Environment steps include those of pretraining rollouts.",
        "",
    ]
    head = ["agent", "seeds", "return of the final agent", "worst seed", "environment steps", "seconds", "steps/s"]
    if threshold is not None:
        head += [f"first {threshold:g}", f"stays ≥ {threshold:g} from", "after seconds", "seeds that stay"]
    lines += ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for agent in dict.fromkeys(result["agent"] for result in results):
        runs = [result for result in results if result["agent"] == agent]
        final = np.array([run["final_return"] for run in runs])
        steps = np.array([run["pretraining_steps"] + run["ppo_steps"] for run in runs])
        seconds = np.array([run["training_seconds"] for run in runs])
        row = [
            agent,
            str(len(runs)),
            str(interquartile_mean(final)),
            format_number(float(final.min())),
            f"{np.median(steps):,.0f}",
        ]
        row += [str(interquartile_mean(seconds)), f"{np.median(steps / seconds):,.0f}"]
        if threshold is not None:
            stays = np.array([steps_to_stay(run, threshold) for run in runs])
            first = np.array([first_steps(run, threshold) for run in runs])
            after = np.array([seconds_to_stay(run, threshold) for run in runs])
            row += [_steps(first), _steps(stays), _steps(after), f"{np.isfinite(stays).sum()} of {len(runs)}"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def plot(path: Path, env: str, results: Results) -> None:
    """Plot the interquartile mean of the return and its interval against environment steps."""
    with save_figure(path, (8, 4.5)) as figure:
        axes = figure.add_subplot()
        for agent in dict.fromkeys(result["agent"] for result in results):
            runs = [result for result in results if result["agent"] == agent]
            evaluations = min(len(run["eval_steps"]) for run in runs)
            if evaluations == 0:
                continue
            returns = np.array([run["eval_returns"][:evaluations] for run in runs])
            estimates = np.array([interquartile_mean(column) for column in returns.T])
            steps = np.mean([run["eval_steps"][:evaluations] for run in runs], axis=0)
            axes.plot(steps, estimates[:, 0], label=f"{agent} ({len(runs)} seeds)")
            axes.fill_between(steps, estimates[:, 1], estimates[:, 2], alpha=0.2, linewidth=0)
        axes.set(
            xlabel="environment steps, pretraining included", ylabel="return", title=f"{env}: interquartile mean, 95 % interval"
        )
        if axes.lines:
            axes.legend()


def format_number(value: float) -> str:
    """Format a number with three digits, or with all digits before the decimal point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _steps(values: NDArray[np.float64]) -> str:
    """Format the interquartile mean of steps. A seed that never got there counts as infinite, so the mean can be infinite."""
    with np.errstate(invalid="ignore"):
        middle = np.sort(values)[len(values) // 4 : len(values) - len(values) // 4]
    return (
        str(interquartile_mean(values))
        if np.isfinite(values).all()
        else ("∞" if not np.isfinite(middle).all() else f"{middle.mean():,.0f}")
    )

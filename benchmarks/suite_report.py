"""
The report of a suite: tables and a plot of whatever runs there are.

Returns are those of greedy actions at the end of the training (final), or MMER.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from benchmarks import stratified
from benchmarks.report import Estimate, format_number, interquartile_mean
from benchmarks.stratified import Floats
from benchmarks.suite import Cell, Reference, Row, Suite
from dhmm_rl.files import atomic_write
from dhmm_rl.plotting import save_figure

Score = Callable[[Row], float]
PROFILE_POINTS = 101
"""Number of thresholds of a performance profile."""
MISSING_SHOWN = 6
"""Largest number of missing runs of an agent that the report names."""


def _final(row: Row) -> float:
    return row.final_return


def _sampled(row: Row) -> float:
    return row.final_sampled_return


def _mmer(row: Row) -> float:
    return row.mmer


class Results:
    """
    The rows of a suite by agent and environment.

    :param suite: the suite
    :param rows: rows of complete runs
    """

    def __init__(self, suite: Suite, rows: Sequence[Row]) -> None:
        self.suite = suite
        self.rows = [row for row in rows if row.env in suite.envs]
        self.agents = list(dict.fromkeys(row.agent for row in self.rows))
        self._runs: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            self._runs.setdefault((row.env, row.agent), []).append(row)

    def runs(self, env: str, agent: str) -> list[Row]:
        """The runs of an agent in an environment."""
        return self._runs.get((env, agent), [])

    def shared_envs(self, agents: Sequence[str]) -> list[str]:
        """The environments in which all of the agents have a run."""
        return [env for env in self.suite.envs if all(self.runs(env, agent) for agent in agents)]

    def scores(self, agent: str, envs: Sequence[str], score: Score) -> list[Floats]:
        """Scores of an agent by environment; runs in which no episode ended have no MMER and count as lowest."""
        return [np.nan_to_num([score(row) for row in self.runs(env, agent)], nan=-np.inf) for env in envs]

    def scores_at_equal_seconds(self, agent: str, envs: Sequence[str]) -> list[Floats]:
        """Mean training returns at the time at which the fastest agent in the environment has taken all its steps."""
        scores = []
        for env in envs:
            seconds = min(np.mean([row.seconds for row in self.runs(env, other)]) for other in self.agents)
            at_that_time = [row.return_at(min(1.0, float(seconds) / row.seconds)) for row in self.runs(env, agent)]
            scores.append(np.nan_to_num(at_that_time, nan=-np.inf))
        return scores


def write_suite_report(suite: Suite, rows: Sequence[Row], expected: Iterable[Cell], out: Path) -> None:
    """
    Write ``report.md`` and ``report.png``.

    :param suite: the suite
    :param rows: rows of complete runs
    :param expected: all runs of the suite, to say which are missing
    :param out: folder to write to
    """
    expected = list(expected)
    first = dict.fromkeys(cell.agent for cell in expected)
    order = {agent: number for number, agent in enumerate(first)}
    results = Results(suite, sorted(rows, key=lambda row: order.get(row.agent, len(order))))
    sections = [f"# {suite.title}", suite.notes, missing_runs(results, expected), "![all environments](report.png)"]
    if suite.same_scale:
        sections.append(aggregate_table(results))
    sections.append(pairs_table(results))
    for heading, envs in suite.groups.items():
        sections += [f"## {heading}", returns_table(results, envs), goal_counts(results, envs)]
    sections.append(f"## Every environment and agent\n\n{runs_table(results)}")
    plot(out / "report.png", results)
    with atomic_write(out / "report.md") as temporary:
        temporary.write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8")


def missing_runs(results: Results, expected: Sequence[Cell]) -> str:
    """Say which runs are missing, and which agents were run with different settings."""
    done = {row.cell for row in results.rows}
    missing = [cell for cell in expected if cell not in done]
    lines = [f"{len(expected) - len(missing)} of {len(expected)} runs are complete." + (" Missing:" if missing else "")]
    agents: dict[tuple[str, ...], list[str]] = {}  # agents by the runs that they lack
    for agent in dict.fromkeys(cell.agent for cell in missing):
        cells = tuple(f"{cell.env} seed {cell.seed}" for cell in missing if cell.agent == agent)
        agents.setdefault(cells, []).append(agent)
    for cells, names in agents.items():
        shown = "; ".join(cells[:MISSING_SHOWN]) + (" and others" if len(cells) > MISSING_SHOWN else "")
        lines.append(f"* {', '.join(names)}: {len(cells)} runs{' each' if len(names) > 1 else ''} ({shown})")
    for agent in results.agents:
        mixed = [env for env in results.suite.envs if len({row.settings for row in results.runs(env, agent)}) > 1]
        if mixed:
            lines.append(f"* {agent}: seeds were run with different settings in {', '.join(mixed)}")
    return "\n".join(lines)


def aggregate_table(results: Results) -> str:
    """All environments together: interquartile means over the runs of the environments in which all agents have runs."""
    envs = results.shared_envs(results.agents)
    text = "## All environments together\n\n"
    if not envs:
        return text + f"No environment has runs of all of {', '.join(results.agents)} yet."
    text += (
        f"Interquartile mean over the runs of the {len(envs)} environments in which every agent has runs, with the 95 % "
        "interval of a bootstrap that is stratified by environment (none with one seed). At equal seconds: mean training "
        "return at the time at which the fastest agent of each environment has taken all its steps."
    )
    rows = []
    for agent in results.agents:
        columns = [results.scores(agent, envs, score) for score in (_final, _sampled, _mmer)]
        columns.append(results.scores_at_equal_seconds(agent, envs))
        hours = sum(row.seconds for env in envs for row in results.runs(env, agent)) / 3600
        count = sum(len(results.runs(env, agent)) for env in envs)
        rows.append([agent, str(count), *(_show(stratified.interquartile_mean(one)) for one in columns), format_number(hours)])
    head = ["agent", "runs", "final return, greedy", "final return, sampled", "MMER", "return at equal seconds", "core-hours"]
    return text + "\n\n" + _format_table(head, rows)


def pairs_table(results: Results) -> str:
    """The first agent against each of the others."""
    text = "## Agent against agent\n\n"
    first, *others = results.agents
    rows = []
    for other in others:
        envs = results.shared_envs([first, other])
        if not envs:
            continue
        ours, rest = results.scores(first, envs, _final), results.scores(other, envs, _final)
        probability = stratified.probability_of_improvement(ours, rest)
        verdicts = {env: verdict(a, b) for env, a, b in zip(envs, ours, rest, strict=True)}
        names = [[env for env, said in verdicts.items() if said == one] for one in ("above", "below")]
        counts = [str(len(names[0])), str(len(envs) - len(names[0]) - len(names[1])), ", ".join(names[1]) or "none"]
        rows.append([other, str(len(envs)), str(probability), *counts])
    head = [f"{first} against", "environments", "probability of a higher final return", "above", "undecided", "below"]
    text += (
        "The probability is the mean over environments of the fraction of pairs of runs, with a stratified bootstrap "
        "interval. Above and below: the 95 % interval of the difference of the mean final returns does not contain 0. One "
        "seed decides nothing."
    )
    return f"{text}\n\n{_format_table(head, rows)}" if rows else ""


def goal_counts(results: Results, envs: Sequence[str]) -> str:
    """Say in how many of the environments each agent is above the suite's goal, and equal to it."""
    goals = results.suite.goals
    lines = []
    for agent in results.agents:
        known = [env for env in envs if env in goals and results.runs(env, agent)]
        counts = []
        for name, score in (("final return", _final), ("MMER", _mmer)):
            ahead = [_mean(results, env, agent, score).mean - goals[env] for env in known]
            counts.append(f"{name} above it in {sum(x > 0 for x in ahead)}, equal in {sum(x == 0 for x in ahead)}")
        if known:
            lines.append(f"* {agent} against {results.suite.goal} in {len(known)} environments: {'; '.join(counts)}")
    return "\n".join(lines)


def verdict(first: Floats, second: Floats) -> str:
    """Return whether the scores of one agent are above or below another's by more than the 95 % interval, or undecided."""
    estimate = stratified.difference(first, second)
    return "above" if estimate.low > 0 else "below" if estimate.high < 0 else "undecided"


def returns_table(results: Results, envs: Sequence[str]) -> str:
    """A row for each environment: final return with its interval and MMER of each agent, and the known results."""
    rows = []
    for env in envs:
        cells = []
        for agent in results.agents:
            final, mmer = (_mean(results, env, agent, score) for score in (_final, _mmer))
            cells.append(f"{_show(final)} / {_show(mmer._replace(low=np.nan))}" if results.runs(env, agent) else "–")
        for known in results.suite.references.values():
            cells.append(_show_reference(known[env]) if env in known else "–")
        rows.append([env, *cells])
    head = ["environment", *(f"{agent}: final / MMER" for agent in results.agents), *results.suite.references]
    return _format_table(head, rows)


def runs_table(results: Results) -> str:
    """A row for each environment and agent with runs: returns, steps, seconds and the discount factor."""
    rows = []
    for env in results.suite.envs:
        for agent in results.agents:
            runs = results.runs(env, agent)
            if runs:
                returns = [_show(_mean(results, env, agent, score)) for score in (_final, _sampled, _mmer)]
                steps, seconds = (np.median([getattr(row, name) for row in runs]) for name in ("steps", "seconds"))
                episodes = str(min(row.final_episodes for row in runs))
                discount = ", ".join(dict.fromkeys(f"{row.discount:g}" for row in runs))
                row = [env, agent, str(len(runs)), *returns, episodes, f"{steps:,.0f}", f"{seconds:,.0f}", discount]
                rows.append(row)
    head = ["environment", "agent", "seeds", "final return, greedy", "final return, sampled", "MMER", "episodes", "steps"]
    return _format_table([*head, "seconds", "discount"], rows)


def plot(path: Path, results: Results) -> None:
    """
    Plot all environments together.

    Where returns have one scale: interquartile means, the performance profile and the training curves. Otherwise the
    probability that the first agent has a higher return than each of the others.
    """
    with save_figure(path, (14, 4) if results.suite.same_scale else (7, 3)) as figure:
        if not results.suite.same_scale:
            _draw_probabilities(figure.add_subplot(), results)
            return
        envs = results.shared_envs(results.agents)
        means, profile, training = figure.subplots(1, 3)
        for number, agent in enumerate(results.agents if envs else []):
            _draw_means(means, -number, results, agent, envs)
            _draw_profile(profile, results, agent, envs)
            _draw_training(training, results, agent, envs)
        means.set(
            xlabel="interquartile mean", title=f"{len(envs)} environments", yticks=[-n for n in range(len(results.agents))]
        )
        means.set_yticklabels(results.agents)
        profile.set(xlabel="final return", ylabel="fraction of runs above it", title="performance profile")
        training.set(xlabel="fraction of the steps", ylabel="interquartile mean", title="mean training return")
        for axes in (means, profile):
            if envs:
                axes.legend(fontsize="small")


def _draw_means(axes: Axes, height: int, results: Results, agent: str, envs: Sequence[str]) -> None:
    for offset, color, name, score in ((0.15, "C0", "final return", _final), (-0.15, "C1", "MMER", _mmer)):
        estimate = stratified.interquartile_mean(results.scores(agent, envs, score))
        if np.isfinite(estimate.low):
            axes.plot([estimate.low, estimate.high], [height + offset] * 2, color=color, linewidth=6, alpha=0.4)
        axes.plot(estimate.mean, height + offset, "o", color=color, label=name if height == 0 else None)


def _draw_profile(axes: Axes, results: Results, agent: str, envs: Sequence[str]) -> None:
    every = np.concatenate([np.concatenate(results.scores(one, envs, _final)) for one in results.agents])
    thresholds = np.linspace(every.min(), every.max(), PROFILE_POINTS)
    fraction, low, high = stratified.performance_profile(results.scores(agent, envs, _final), thresholds)
    axes.plot(thresholds, fraction, label=agent)
    axes.fill_between(thresholds, low, high, alpha=0.2, linewidth=0)


def _draw_training(axes: Axes, results: Results, agent: str, envs: Sequence[str]) -> None:
    rows = [row for env in envs for row in results.runs(env, agent)]
    fractions = np.linspace(0.05, 1, 20)
    curves = np.array([[row.return_at(fraction) for fraction in fractions] for row in rows])
    axes.plot(fractions, stats.trim_mean(curves, 0.25, axis=0), label=agent)


def _draw_probabilities(axes: Axes, results: Results) -> None:
    first, *others = results.agents
    for number, other in enumerate(others):
        envs = results.shared_envs([first, other])
        if envs:
            scores = [results.scores(agent, envs, _final) for agent in (first, other)]
            estimate = stratified.probability_of_improvement(*scores)
            if np.isfinite(estimate.low):
                axes.plot([estimate.low, estimate.high], [-number] * 2, color="C0", linewidth=6, alpha=0.4)
            axes.plot(estimate.mean, -number, "o", color="C0")
    axes.axvline(0.5, color="gray", linewidth=1)
    axes.set(
        xlim=(0, 1), xlabel=f"probability that {first} has the higher final return", yticks=[-n for n in range(len(others))]
    )
    axes.set_yticklabels(others)


def _mean(results: Results, env: str, agent: str, score: Score) -> Estimate:
    """Interquartile mean over the seeds; NaN without runs. One seed has no interval."""
    values = np.array([score(row) for row in results.runs(env, agent)])
    if len(values) == 0:
        return Estimate(np.nan, np.nan, np.nan)
    if len(values) == 1 or not np.isfinite(values).all():
        return Estimate(float(values.mean()), np.nan, np.nan)
    return interquartile_mean(values)


def _show(estimate: Estimate) -> str:
    """Format an estimate; a dash where no episode ended."""
    return str(estimate) if np.isfinite(estimate.mean) else "–"


def _show_reference(reference: Reference) -> str:
    """Format a known result, with who reached it."""
    return format_number(reference.value) + (f" ({reference.note})" if reference.note else "")


def _format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])

"""
Suites: agents × environments × seeds with the same budget for all agents, and their results, one row for each run.
"""

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write, reading
from dhmm_rl.validation import did_you_mean


class Cell(NamedTuple):
    """One run of a suite: an environment, an agent and a seed."""

    env: str
    agent: str
    seed: int


class Reference(NamedTuple):
    """A known result in an environment, and who reached it."""

    value: float
    note: str = ""


@dataclass(frozen=True)
class Suite:
    """
    Environments on which all agents have the same budget.

    :param title: title of the report
    :param notes: text about the suite for the report, in Markdown
    :param groups: environments by the heading of their table; the first group runs first
    :param steps: environment steps of a run, by environment
    :param references: known results by column of the tables and by environment
    :param goal: name of the results that agents are counted against
    :param goals: these results, by environment
    :param same_scale: whether returns of different environments can be averaged
    :param env_argument: function that returns what ``--env`` takes for an environment, given a folder for recipes
    """

    title: str
    notes: str
    groups: Mapping[str, Sequence[str]]
    steps: Mapping[str, int]
    references: Mapping[str, Mapping[str, Reference]]
    goal: str
    goals: Mapping[str, float]
    same_scale: bool
    env_argument: Callable[[str, Path], str]

    @property
    def envs(self) -> list[str]:
        """All environments in the order of the groups."""
        return [env for group in self.groups.values() for env in group]


@dataclass(frozen=True)
class Row:
    """Result of a run, a row of ``runs.csv``."""

    env: str
    agent: str
    seed: int
    budget: int
    """Environment steps that the run was given."""
    steps: int
    """Environment steps that it took: whole rollouts, and random steps before the training."""
    seconds: float
    """Seconds of training, evaluations excluded."""
    discount: float
    final_return: float
    """Mean return of the last agent's greedy actions."""
    final_return_std: float
    final_sampled_return: float
    """Mean return of the last agent's sampled actions."""
    final_sampled_return_std: float
    final_episodes: int
    """Number of episodes behind each of the two."""
    mmer: float
    """Largest mean return of the latest 100 training episodes; see `training_returns` of the runner."""
    curve: tuple[float, ...]
    """Mean return of the latest 100 training episodes after each twentieth of the steps; empty if no episode ended."""
    settings: str
    """Checksum of the settings of the environment and the agent."""
    versions: str
    """Versions of the packages."""

    @property
    def cell(self) -> Cell:
        """The run that this is the result of."""
        return Cell(self.env, self.agent, self.seed)

    def return_at(self, fraction: float) -> float:
        """Mean training return after a fraction of the run; NaN if no episode ended."""
        if not self.curve:
            return math.nan
        return float(np.interp(fraction, np.arange(1, len(self.curve) + 1) / len(self.curve), self.curve))


def order_cells(suite: Suite, envs: Sequence[str], agents: Sequence[str], seeds: int) -> list[Cell]:
    """
    Return the runs in their order: all of a seed before the next seed, the groups and the agents in order.

    :param suite: the suite
    :param envs: environments to run; all when empty
    :param agents: agents to run
    :param seeds: number of seeds
    :raises InputError: for an environment that the suite does not have
    """
    for env in envs:
        if env not in suite.envs:
            raise InputError(f"{suite.title} has no environment {env!r}{did_you_mean(env, suite.envs)}")
    chosen = set(envs or suite.envs)
    return [
        Cell(env, agent, seed)
        for seed in range(seeds)
        for group in suite.groups.values()
        for agent in agents
        for env in group
        if env in chosen
    ]


def read_rows(path: Path) -> list[Row]:
    """
    Return the rows of a table of runs, or an empty list if the file does not exist.

    :param path: path of the table
    :raises InputError: if it cannot be read
    """
    if not path.is_file():
        return []
    with reading(path), path.open(newline="", encoding="utf-8") as file:
        return [_parse_row(row) for row in csv.DictReader(file)]


def _parse_row(row: dict[str, str]) -> Row:
    values: dict[str, Any] = {}
    for field in fields(Row):
        text = row[field.name]
        if field.type in (int, float, str):
            values[field.name] = field.type(text)
        else:
            values[field.name] = tuple(map(float, text.split()))
    return Row(**values)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a table of runs."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Row))
        for row in rows:
            writer.writerow(" ".join(map(str, value)) if isinstance(value, tuple) else value for value in vars(row).values())


def add_row(suite: Suite, path: Path, row: Row) -> None:
    """
    Add a row to a table of runs in the order of the suite's environments. It replaces the row of the same run.

    :param suite: the suite
    :param path: path of the table
    :param row: the row
    """
    rows = [one for one in read_rows(path) if one.cell != row.cell] + [row]
    position = {env: number for number, env in enumerate(suite.envs)}
    write_rows(path, sorted(rows, key=lambda one: (position.get(one.env, len(position)), one.agent, one.seed)))

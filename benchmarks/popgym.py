"""
``python -m benchmarks.popgym``: one configuration on all environments of popgym, next to baselines with the same budget.

Environments are used by their plain ids, so recipes change nothing for them. popgym has 48 environments; the six of
LabyrinthExplore and LabyrinthEscape need the package mazelib (popgym's extra ``navigation``), and are left out without it.
"""

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium as gym

from benchmarks.suite import Reference, Suite
from benchmarks.suite_runner import SuiteArgs, run_suite
from dhmm_rl.cli import run_command
from dhmm_rl.recipes.imports import find_env

STEPS = 300_000
"""Environment steps of every run."""
PREFIX, SUFFIX = "popgym-", "-v0"
LEVELS = ("Easy", "Medium", "Hard")
HEADROOM = (
    "RepeatFirstHard",
    "RepeatPreviousMedium",
    "RepeatPreviousHard",
    *(
        f"{family}{level}"
        for family in ("Autoencode", "CountRecall", "MultiarmedBandit", "Concentration", "Battleship")
        for level in LEVELS
    ),
)
"""Environments in which more than the published results is known to be possible. They are run first."""
GRU, BEST = "GRU, published", "best published"
PUBLISHED = Path(__file__).parent / "popgym_published.csv"
"""Published results and ceilings."""
NOTES = """\
One configuration for all environments, which have no recipes here. All agents have the same number of steps and the
same rule for the discount factor: 0 where twin episodes show that actions change only the next reward, else 0.99. Final
returns are means of the last agent's greedy episodes; MMER is popgym's measure, the largest mean return of the latest
100 training episodes, which is biased upwards. Cells are interquartile means over seeds with 95 % bootstrap intervals.

Published results are MMER after 15 million steps: GRU and best of 13 models from Morad et al., *POPGym* (ICLR 2023),
with SHM from Le et al., *Stable Hadamard Memory* (ICLR 2025), and FFM from Morad et al., *Fast and Forgetful Memory*
(NeurIPS 2023). Ceilings are returns of reference players that were simulated for this project, so they are lower bounds
of the optimum; those of HigherLower are exact. "–" means that no source was found. The six environments of
LabyrinthExplore and LabyrinthEscape need the package mazelib and are left out without it."""


@dataclass
class Args(SuiteArgs):
    """
    Train agents on all environments of popgym with the same budget, and report.

    The environments with the most to gain are run first, and all runs of a seed before those of the next one. A row of results
    is written as a run ends. The same command again repeats no complete run and resumes interrupted ones.
    """

    agents: tuple[str, ...] = ("dhmm-gpt2", "gpt2", "mingru", "lstm", "mlp-framestack")
    """Agents; the others are compared with the first."""
    out: Path = Path("runs/popgym")
    """Folder for the runs, their logs and checkpoints."""
    results: Path = Path("benchmarks/results/popgym")
    """Folder for the table of runs (runs.csv), the report (report.md) and its plot."""


def main(args: Args) -> None:
    """Run the command."""
    envs = tuple(env.removeprefix(PREFIX).removesuffix(SUFFIX) for env in args.envs)
    run_suite(make_suite(), replace(args, envs=envs))


def make_suite() -> Suite:
    """
    Return the suite of the environments that the installed popgym registers.

    :raises InputError: if popgym is not installed
    """
    find_env(f"{PREFIX}{HEADROOM[0]}{SUFFIX}")  # imports popgym, which registers its environments
    envs = [name.removeprefix(PREFIX).removesuffix(SUFFIX) for name in gym.registry if name.startswith(PREFIX)]
    others = [env for env in envs if env not in HEADROOM and env.endswith(LEVELS)]
    families = list(dict.fromkeys(env.removesuffix(level) for env in others for level in LEVELS if env.endswith(level)))
    others = [f"{family}{level}" for family in families for level in LEVELS if f"{family}{level}" in others]
    references = read_published()
    published = [references[column] for column in (GRU, BEST)]
    return Suite(
        title="popgym",
        notes=NOTES,
        groups={"Environments with known headroom": HEADROOM, "The other environments": tuple(others)},
        steps=dict.fromkeys([*HEADROOM, *others], STEPS),
        references=references,
        goal="the best published result",
        goals={env: max(one[env].value for one in published if env in one) for one in published for env in one},
        same_scale=True,
        env_argument=lambda env, folder: f"{PREFIX}{env}{SUFFIX}",
    )


def read_published() -> dict[str, dict[str, Reference]]:
    """Return the published results and the ceilings, by column of the tables and by environment."""
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = {
        "GRU, published": ("gru", ""),
        "best published": ("best", "best_agent"),
        "ceiling": ("ceiling", "ceiling_player"),
    }
    return {
        title: {row["env"]: Reference(float(row[value]), row.get(note, "")) for row in rows if row[value]}
        for title, (value, note) in columns.items()
    }


if __name__ == "__main__":
    run_command(main, Args, "benchmarks.popgym")

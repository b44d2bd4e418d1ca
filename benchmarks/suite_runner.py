"""Runs suites, by :mod:`benchmarks.run`, and collects their results."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from benchmarks import run
from benchmarks.run import Job, end_if_failed, find_run, run_jobs
from benchmarks.suite import Cell, Row, Suite, add_row, order_cells, read_rows
from benchmarks.suite_report import write_suite_report
from dhmm_rl.cli import check_counts
from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write, read_json
from dhmm_rl.recipes import load_recipes
from dhmm_rl.recipes.schema import AlgorithmSettings
from dhmm_rl.recipes.tables import Table, format_table
from dhmm_rl.runs.evaluation import FINAL_EPISODES, check_share
from dhmm_rl.runs.logs import read_log
from dhmm_rl.runs.run import locked

NEVER = 10**9
"""Environment steps between evaluations during training: the suites evaluate at the end only."""
TRAINING_EPISODES = AlgorithmSettings.stats_window_size
"""Number of latest episodes in a mean training return."""
POINTS = 20
"""Number of points of a training curve."""
AGENTS = Path(__file__).parent / "agents"
"""Recipes of agents that only benchmarks use."""


@dataclass
class SuiteArgs:
    """Options of the suites."""

    envs: tuple[str, ...] = ()
    """Environments to run. Default: all."""
    agents: tuple[str, ...] = ()
    """Agents to run."""
    seeds: int = 3
    """Number of seeds; the first is 0."""
    steps: int | None = None
    """Environment steps that every agent takes. Default: the suite's budget of each environment."""
    jobs: Annotated[int, tyro.conf.arg(aliases=("--processes",))] = 2
    """Number of runs at the same time. With more runs than cores, wall-clock times mean nothing."""
    eval_share: float = math.inf
    """Share of the seconds of training that the final evaluation may take. Without a limit it has all its episodes."""
    final_episodes: int = FINAL_EPISODES
    """Number of episodes of the final evaluation, with greedy and with sampled actions each."""
    report_only: bool = False
    """Run nothing; write the report of the runs that are in the results."""
    out: Path = Path("runs/suite")
    """Folder for the runs, their logs and checkpoints."""
    results: Path = Path("runs/suite")
    """Folder for the table of runs (runs.csv), the report (report.md) and its plot."""


def run_suite(suite: Suite, args: SuiteArgs) -> None:
    """
    Do the runs of a suite that are missing in the results, and write the report.

    A row is written as its run ends. Runs that are in the results are not repeated, unless the settings of their agent have
    changed since.

    :param suite: the suite
    :param args: arguments of the command
    :raises InputError: for unknown names, and if the results are of other budgets
    :raises SystemExit: with status 1 when runs failed, after the others have been reported
    """
    check_counts(args, "seeds", "jobs", "final_episodes", *(["steps"] if args.steps is not None else []))
    check_share("eval_share", args.eval_share)
    for agent in args.agents:
        load_recipes("CartPole-v1", agent_argument(agent))  # before any file is written
    cells = order_cells(suite, args.envs, args.agents, args.seeds)
    path = args.results / "runs.csv"
    failures: list[str] = []
    if not args.report_only:
        run_missing(suite, args, cells, failures)
    rows = read_rows(path)
    if rows:
        write_suite_report(suite, rows, order_cells(suite, (), args.agents, args.seeds), args.results)
        print(f"report: {args.results / 'report.md'}\nruns:   {path}")
    else:
        print(f"no run is complete; {path} does not exist yet")
    end_if_failed(failures, len(cells))


def run_missing(suite: Suite, args: SuiteArgs, cells: Sequence[Cell], failures: list[str]) -> None:
    """
    Do the runs without a row, and those of agents with other settings than in their row. Write each row as its run ends.

    :param suite: the suite
    :param args: arguments of the command
    :param cells: runs of the command, in order
    :param failures: list to which the reasons of failed runs are added
    :raises InputError: if rows are of other budgets
    """
    path = args.results / "runs.csv"
    earlier = {row.cell: row for row in read_rows(path)}
    budgets = {cell: args.steps or suite.steps[cell.env] for cell in cells}
    for cell, budget in budgets.items():
        if cell in earlier and earlier[cell].budget != budget:
            raise InputError(
                f"{path} has {cell.env} with {earlier[cell].budget:,} steps, not {budget:,}; give another --results and --out"
            )
    options = run.Args(
        jobs=args.jobs, eval_share=args.eval_share, eval_every=NEVER, final_episodes=args.final_episodes, out=args.out
    )
    args.out.mkdir(parents=True, exist_ok=True)
    with locked(args.out):
        jobs: dict[Job, Cell] = {}
        for cell in cells:
            env = suite.env_argument(cell.env, args.out / "recipes")
            job = Job(env, agent_argument(cell.agent), cell.seed, budgets[cell])
            if cell not in earlier or earlier[cell].settings != settings_checksum(job):
                jobs[job] = cell
        print(f"{len(jobs)} runs to do, {len(cells) - len(jobs)} of {len(cells)} are in {path}")
        for job, result in run_jobs(list(jobs), options, failures):
            folder = find_run(job, options)
            assert folder is not None
            add_row(suite, path, make_row(jobs[job], job, result, folder))


def agent_argument(agent: str) -> str:
    """Return what ``--agent`` takes for an agent: the path of a recipe that only benchmarks use, or the name itself."""
    path = AGENTS / f"{agent}.toml"
    return str(path) if path.is_file() else agent


def write_facts(env: str, folder: Path) -> str:
    """
    Write a recipe with the facts about an environment: neither settings of agents nor of tokens.

    :param env: name of a recipe
    :param folder: folder to write to
    :return: path of the new recipe
    """
    facts = replace(load_recipes(env, "mlp")[0], agents={}, tokens={})
    path = folder / f"{env}.toml"
    text = format_table(asdict(facts)) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return str(path)


def settings_checksum(job: Job) -> str:
    """Return a checksum of everything that the recipes of a run say about how it is done."""
    env, agent = load_recipes(job.env, job.agent)
    agent_settings: Table = {**asdict(agent), "name": "", "description": ""}
    env_settings = {name: getattr(env, name) for name in ("id", "kwargs", "eval_kwargs", "wrappers", "tokens")}
    return hashlib.sha256(json.dumps([env_settings, agent_settings], sort_keys=True).encode()).hexdigest()[:8]


def make_row(cell: Cell, job: Job, result: dict[str, Any], folder: Path) -> Row:
    """
    Return the row of a run.

    :param cell: the run
    :param job: the job of the runner that did it
    :param result: content of the run's ``result.json``
    :param folder: folder of the run
    """
    description = read_json(folder / "run.json")
    mmer, curve = training_returns(folder, result["ppo_steps"])
    assert job.steps is not None
    kept = {name: result[name] for name in (field.name for field in fields(Row)) if name.startswith("final_")}
    return Row(
        *cell,
        budget=job.steps,
        steps=result["pretraining_steps"] + result["ppo_steps"],
        seconds=round(result["training_seconds"], 1),
        discount=description["agent"]["ppo"].get("gamma", AlgorithmSettings.gamma),
        **kept,
        mmer=mmer,
        curve=curve,
        settings=settings_checksum(job),
        versions=" ".join(f"{name}={value}" for name, value in description["versions"].items()),
    )


def training_returns(folder: Path, steps: int) -> tuple[float, tuple[float, ...]]:
    """
    Read the mean returns of a run's training episodes from its log.

    The mean of the latest 100 episodes counts from the 100th episode on: a mean of few episodes can be high by luck. If fewer
    have ended, the last mean counts.

    :param folder: folder of the run
    :param steps: environment steps of PPO
    :return: the largest mean return (MMER), and the training curve; NaN and no curve if no episode ended
    """
    names = ("time/total_timesteps", "rollout/ep_rew_mean", "rollout/ep_len_mean")
    rows = [[float(row[name]) for name in names] for row in read_log(folder, "ppo") if all(row.get(name) for name in names)]
    if not rows:
        return math.nan, ()
    at, returns, lengths = np.array(rows).T
    full = at >= TRAINING_EPISODES * lengths
    curve = np.interp(np.arange(1, POINTS + 1) / POINTS * steps, at, returns)
    return float(returns[full].max() if full.any() else returns[-1]), tuple(round(float(value), 4) for value in curve)

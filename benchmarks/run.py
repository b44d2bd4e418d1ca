"""``python -m benchmarks.run``: agents × environments × seeds, then tables and plots."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks.report import write_report
from dhmm_rl.cli import check_counts, run_command
from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write
from dhmm_rl.recipes import load_recipes
from dhmm_rl.training.runs import Run


@dataclass
class Args:
    """
    Train every agent on every environment with every seed, by `python -m dhmm_rl.ppo`, and report.

    Each run is a process of its own on one thread. Runs that are complete are not repeated, runs that were interrupted are
    resumed: the same command again always goes on.
    """

    envs: tuple[str, ...] = ("CartPole-v1",)
    """Environments."""
    agents: tuple[str, ...] = ("dhmm-gpt2", "mlp")
    """Agents; 'dhmm-gpt2:none' is dhmm-gpt2 without pretraining."""
    seeds: int = 10
    """How many seeds, from 0 on."""
    steps: int | None = None
    """Environment steps that PPO takes. Default: the recipes' budgets."""
    jobs: int = 2
    """Runs side by side; more than there are cores makes every wall-clock time worthless."""
    out: Path = Path("runs/benchmark")
    """Folder for the runs, the table of runs (runs.csv), the report (report.md) and the plots."""


SERIES = ("eval_steps", "eval_returns", "eval_seconds")
"""What a run's row holds as lists, one entry an evaluation."""


class Job(NamedTuple):
    """One run to be done: ``agent`` may end in ``:none``."""

    env: str
    agent: str
    seed: int


def main(args: Args) -> None:
    """Run the command."""
    check_counts(args, "seeds", "jobs")
    jobs = [Job(env, agent, seed) for env in args.envs for seed in range(args.seeds) for agent in args.agents]
    for job in jobs:
        load_recipes(job.env, job.agent.removesuffix(":none"))
    with ThreadPoolExecutor(args.jobs) as pool, tqdm(total=len(jobs), desc="runs", unit="run", disable=None) as bar:
        results = []
        for result in pool.map(lambda job: run_job(job, args), jobs):
            results.append(result)
            bar.update()
            write_runs(args.out / "runs.csv", results)
    write_report(args.out, results)
    print((args.out / "report.md").read_text(encoding="utf-8"))
    print(f"report: {args.out / 'report.md'}\nruns:   {args.out / 'runs.csv'}")


def run_job(job: Job, args: Args) -> dict[str, Any]:
    """
    Do one run, or go on with it, or read it when it is complete.

    :raises InputError: when the run fails, with the last line that it said
    """
    root = args.out / "runs" / Path(job.agent.replace(":", "-")).name / f"seed{job.seed}"
    agent = job.agent.removesuffix(":none")
    env_recipe, agent_recipe = load_recipes(job.env, agent)
    folder = root / env_recipe.name / agent_recipe.name / "1"
    if (folder / "run.json").exists() and (steps := Run.open(folder).args["steps"]) != args.steps:
        raise InputError(f"{folder} is a run of --steps {steps}, not {args.steps}; give another --out, or remove it")
    if not (folder / "result.json").exists():
        command = [sys.executable, "-m", "dhmm_rl.ppo", "--quiet"]
        if (folder / "run.json").exists():
            command += ["--resume", str(folder)]
        else:
            pretrained = "none" if job.agent.endswith(":none") else "auto"  # in a folder of its own: as the recipe says
            command += ["--env", job.env, "--agent", agent, "--seed", str(job.seed), "--runs", str(root)]
            command += ["--pretrained", pretrained, *(["--steps", str(args.steps)] if args.steps else [])]
        log = root / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False)
        if done.returncode != 0:
            raise InputError(
                f"{' '.join(command[2:])} failed: {log.read_text(encoding='utf-8').strip().splitlines()[-1]} (see {log})"
            )
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result | {"agent": job.agent}


def write_runs(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """One row per run."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = [
            "env",
            "agent",
            "seed",
            "pretraining_steps",
            "ppo_steps",
            "training_seconds",
            "final_return",
            "final_return_std",
        ]
        writer.writerow([*columns, *SERIES])
        for result in results:
            series = [" ".join(f"{value:g}" for value in result[name]) for name in SERIES]
            writer.writerow([*(result[column] for column in columns), *series])


if __name__ == "__main__":
    run_command(main, Args, "benchmarks.run")

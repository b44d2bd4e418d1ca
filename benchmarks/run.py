"""``python -m benchmarks.run``: agents × environments × seeds, then tables and plots."""

import csv
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks.report import write_report
from dhmm_rl.cli import check_counts, run_command
from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write, read_json
from dhmm_rl.recipes import AgentRecipe, load_recipes
from dhmm_rl.runs.evaluation import FINAL_EPISODES, check_share
from dhmm_rl.runs.run import Run, locked, newest_first


@dataclass
class Args:
    """
    Train every agent on every environment with every seed, by `python -m dhmm_rl.ppo`, and report.

    Each run is a process of its own on one thread. Runs that are complete are not repeated, runs that were interrupted are
    resumed when the same command is given again. When a run fails, the others are still done. The command then lists the
    failures and exits with status 1.
    """

    envs: tuple[str, ...] = ("CartPole-v1",)
    """Environments to train on."""
    agents: tuple[str, ...] = ("dhmm-gpt2", "mlp")
    """Agents; 'dhmm-gpt2:none' is dhmm-gpt2 without pretraining."""
    seeds: int = 10
    """Number of seeds; the first is 0."""
    steps: int | None = None
    """Environment steps that PPO takes. Default: the recipes' budgets."""
    jobs: int = 2
    """Number of runs at the same time. With more runs than cores, wall-clock times mean nothing."""
    eval_share: float = math.inf
    """Share of the seconds of training that evaluations may take, see `python -m dhmm_rl.ppo --help`. Without a limit all
    evaluations of the recipes take place, whatever the machine's speed."""
    eval_every: int | None = None
    """Environment steps from one evaluation to the next. Default: the environment recipe's."""
    final_episodes: int = FINAL_EPISODES
    """Largest number of episodes of each evaluation at the end."""
    out: Path = Path("runs/benchmark")
    """Folder for the runs, the table of runs (runs.csv), the report (report.md) and the plots."""


COLUMNS = (
    "env",
    "agent",
    "seed",
    "pretraining_steps",
    "ppo_steps",
    "training_seconds",
    "final_return",
    "final_return_std",
)
"""Columns with one value per run."""
SERIES = ("eval_steps", "eval_returns", "eval_seconds")
"""Columns with a list per run, one entry for each evaluation."""


class Job(NamedTuple):
    """
    One run to do.

    :param env: name or path of the environment's recipe, or a Gymnasium id
    :param agent: name or path of the agent's recipe; it may end in ``:none``
    :param seed: seed of the run
    :param steps: environment steps that PPO takes; the recipes' budget when ``None``
    """

    env: str
    agent: str
    seed: int
    steps: int | None = None


def main(args: Args) -> None:
    """
    Run the command.

    :raises SystemExit: with status 1 when runs failed, after the others have been reported
    """
    check_counts(args, "seeds", "jobs")
    check_share("eval_share", args.eval_share)
    jobs = [Job(env, agent, seed, args.steps) for env in args.envs for seed in range(args.seeds) for agent in args.agents]
    solved_at: dict[str, float | None] = {}
    for job in jobs:
        env_recipe, _ = load_recipes(job.env, job.agent.removesuffix(":none"))
        solved_at[env_recipe.name] = env_recipe.solved_at
    args.out.mkdir(parents=True, exist_ok=True)
    finished: dict[Job, dict[str, Any]] = {}
    failures: list[str] = []
    with locked(args.out):
        for job, result in run_jobs(jobs, args, failures):
            finished[job] = result
            write_runs(args.out / "runs.csv", [finished[job] for job in jobs if job in finished])
        if finished:
            write_report(args.out, [finished[job] for job in jobs if job in finished], solved_at)
            print((args.out / "report.md").read_text(encoding="utf-8"))
            print(f"report: {args.out / 'report.md'}\nruns:   {args.out / 'runs.csv'}")
    end_if_failed(failures, len(jobs))


def run_jobs(jobs: Sequence[Job], args: Args, failures: list[str]) -> Iterator[tuple[Job, dict[str, Any]]]:
    """
    Do runs, several at the same time, in the order of the list, and yield each run with its result as it ends.

    :param jobs: runs to do
    :param args: arguments of the command; ``jobs``, ``out`` and the settings of evaluations count
    :param failures: list to which the reasons of failed runs are added
    """
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {pool.submit(run_job, job, args): job for job in jobs}
        try:
            for future in tqdm(as_completed(futures), total=len(jobs), desc="runs", unit="run", disable=None):
                try:
                    result = future.result()
                except (InputError, OSError) as error:
                    failures.append(str(error))
                else:
                    yield futures[future], result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def end_if_failed(failures: Sequence[str], jobs: int) -> None:
    """
    Print the failures.

    :param failures: reasons of the failed runs
    :param jobs: number of all runs
    :raises SystemExit: with status 1 when there are failures
    """
    if failures:
        print(f"{len(failures)} of {jobs} runs failed:", *failures, sep="\n", file=sys.stderr)
        sys.exit(1)


def job_folder(job: Job, args: Args) -> Path:
    """Return the folder of a job. It holds the job's log, named after the environment, and the folder of its run."""
    return args.out / "runs" / Path(job.agent.replace(":", "-")).name / f"seed{job.seed}"


def find_run(job: Job, args: Args) -> Path | None:
    """Return the folder of a job's run, ``None`` if the run has not begun."""
    env_recipe, agent_recipe = load_recipes(job.env, job.agent.removesuffix(":none"))
    found = newest_first((job_folder(job, args) / env_recipe.name / agent_recipe.name).glob("*/run.json"))
    return found[0].parent if found else None


def run_job(job: Job, args: Args) -> dict[str, Any]:
    """
    Do one run, resume it, or read its result if it is complete.

    :raises InputError: if the run fails, with the last line that it printed, or if it was begun with another number of steps
        or with other settings of the agent
    """
    env_recipe, agent_recipe = load_recipes(job.env, job.agent.removesuffix(":none"))
    folder = find_run(job, args)
    run = None if folder is None else Run.open(folder, trust=True)  # nothing that it names is imported
    if run is not None and (steps := run.args["steps"]) != job.steps:
        raise InputError(f"{folder} is a run of --steps {steps}, not {job.steps}; give another --out, or remove it")
    if run is not None and not has_settings(run.agent, agent_recipe):
        raise InputError(f"{folder} is a run with other settings of its agent; give another --out, or remove it")
    if folder is not None and (result := read_result(folder)) is not None:
        return result | {"agent": job.agent}
    command = ["dhmm_rl.ppo", "--quiet"]
    if folder is not None:
        (folder / "result.json").unlink(missing_ok=True)  # it may be damaged
        named = (env_recipe.id, env_recipe.wrappers)
        trust = run is not None and (run.env.id, run.env.wrappers) == named  # the user named them, too
        command += ["--resume", str(folder), *(["--trust"] if trust else [])]
    else:
        agent, none = job.agent.removesuffix(":none"), job.agent.endswith(":none")
        command += ["--env", job.env, "--agent", agent, "--seed", str(job.seed), "--runs", str(job_folder(job, args))]
        command += ["--eval-share", str(args.eval_share), "--final-episodes", str(args.final_episodes)]
        command += ["--eval-every", str(args.eval_every)] if args.eval_every else []
        # The run has a folder of its own, so `auto` finds no earlier model and does what the recipe says.
        command += ["--pretrained", "none" if none else "auto", *(["--steps", str(job.steps)] if job.steps else [])]
    log = job_folder(job, args) / f"{env_recipe.name}.txt"  # runs in other environments have other logs
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a+b") as file:
        start = file.tell()
        child = [sys.executable, "-m", "benchmarks.child", *command]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with subprocess.Popen(child, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, env=environment) as process:
            status = process.wait()
        file.seek(start)
        lines = file.read().decode("utf-8", errors="replace").strip().splitlines()
    folder = find_run(job, args)
    result = None if folder is None else read_result(folder)
    if status != 0 or result is None:
        reason = lines[-1] if lines else "it printed nothing"
        raise InputError(f"python -m {' '.join(command)} failed with status {status}: {reason} (see {log})")
    return result | {"agent": job.agent}


def has_settings(agent: AgentRecipe, recipe: AgentRecipe) -> bool:
    """
    Return whether an agent is built as a recipe says.

    :param agent: the agent as a run has saved it, with the discount factor that was found if the recipe has none
    :param recipe: the recipe
    """
    ppo = {key: value for key, value in agent.ppo.items() if key != "gamma" or key in recipe.ppo}
    return replace(agent, ppo=ppo) == recipe


def read_result(folder: Path) -> dict[str, Any] | None:
    """Read the result of a run; ``None`` if the run is not complete or its result cannot be read."""
    try:
        result = read_json(folder / "result.json")
    except (FileNotFoundError, ValueError):
        return None
    try:
        series = [[float(value) for value in result[name]] for name in SERIES]
        [float(result[name]) for name in COLUMNS[2:]]
        complete = result["env"] == folder.parts[-3] and len({len(values) for values in series}) == 1
    except (KeyError, TypeError, ValueError):
        return None
    return result if complete else None


def write_runs(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Write the table of runs, one row per run."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *SERIES])
        for result in results:
            series = [" ".join(f"{value:g}" for value in result[name]) for name in SERIES]
            writer.writerow([*(result[column] for column in COLUMNS), *series])


if __name__ == "__main__":
    run_command(main, Args, "benchmarks.run")

"""
``python -m benchmarks.general``: one configuration on environments of many kinds, next to SB3's MLP with SB3's defaults.

These are the environments that have a recipe, except popgym's, and ten that have none. Of a recipe only the facts about the
environment count: id, keywords, wrappers and budget.
"""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.suite import Reference, Suite
from benchmarks.suite_runner import SuiteArgs, run_suite, write_facts
from dhmm_rl.cli import run_command
from dhmm_rl.recipes import EnvRecipe, list_recipes, load_recipes
from dhmm_rl.runs.evaluation import EVAL_SHARE

WITHOUT_RECIPE = {
    "MiniGrid-DoorKey-6x6-v0": 200_000,
    "MiniGrid-KeyCorridorS3R1-v0": 200_000,
    "MiniGrid-MemoryS9-v0": 300_000,
    "BipedalWalker-v3": 300_000,
    "Hopper-v5": 200_000,
    "HalfCheetah-v5": 200_000,
    "InvertedDoublePendulum-v5": 200_000,
    "CliffWalking-v1": 100_000,
    "Blackjack-v1": 100_000,
    "CarRacing-v3": 100_000,
}
"""Environments without recipes, with the environment steps of a run."""
FULLY_OBSERVED = (
    "CartPole-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Pendulum-v1",
    "LunarLander-v3",
    "FrozenLake-v1",
    "Taxi-v4",
    "InvertedPendulum-v5",
    "BipedalWalker-v3",
    "Hopper-v5",
    "HalfCheetah-v5",
    "InvertedDoublePendulum-v5",
    "CliffWalking-v1",
    "Blackjack-v1",
    "CarRacing-v3",
)
"""Environments whose observations show the state, or nearly."""
NOTES = """\
One configuration for all environments: their recipes' settings of agents and of tokens are left out. All agents have
the same number of steps and the same rule for the discount factor: 0 where twin episodes show that actions change only
the next reward, else 0.99. `mlp-sb3` is SB3's `PPO("MlpPolicy", env)` with SB3's own defaults. Final returns are means
of the last agent's greedy episodes; MMER is the largest mean return of the latest 100 training episodes. Cells are
interquartile means over seeds with 95 % bootstrap intervals."""


@dataclass
class Args(SuiteArgs):
    """
    Train agents on environments of many kinds with the same budget, and report.

    All runs of a seed are done before those of the next one. A row of results is written as a run ends. The same command
    again repeats no complete run and resumes interrupted ones.
    """

    agents: tuple[str, ...] = ("dhmm-gpt2", "mlp-sb3")
    """Agents; the others are compared with the first."""
    eval_share: float = EVAL_SHARE
    """Share of the seconds of training that the final evaluation may take. 'inf' sets no limit."""
    out: Path = Path("runs/general")
    """Folder for the runs, their logs and checkpoints."""
    results: Path = Path("benchmarks/results/general")
    """Folder for the table of runs (runs.csv), the report (report.md) and its plot."""


def main(args: Args) -> None:
    """Run the command."""
    run_suite(make_suite(), args)


def make_suite() -> Suite:
    """Return the suite. Its environments are named like their recipes, or by their ids."""
    recipes = {name: recipe for name in list_recipes("envs") if (recipe := _load(name)) is not None}
    envs = [*recipes, *WITHOUT_RECIPE]
    solved_at = {name: Reference(recipe.solved_at) for name, recipe in recipes.items() if recipe.solved_at is not None}
    return Suite(
        title="Environments of many kinds",
        notes=NOTES,
        groups={
            "Fully observed": FULLY_OBSERVED,
            "Partially observed": tuple(env for env in envs if env not in FULLY_OBSERVED),
        },
        steps={name: recipe.budget for name, recipe in recipes.items()} | WITHOUT_RECIPE,
        references={"solved at": solved_at},
        goal="the return that counts as solved",
        goals={name: solved.value for name, solved in solved_at.items()},
        same_scale=False,
        env_argument=lambda env, folder: write_facts(env, folder) if env in recipes else env,
    )


def _load(name: str) -> EnvRecipe | None:
    """Return the recipe of an environment; ``None`` if it is popgym's."""
    recipe = load_recipes(name, "mlp")[0]
    return None if recipe.id.startswith("popgym") else recipe


if __name__ == "__main__":
    run_command(main, Args, "benchmarks.general")

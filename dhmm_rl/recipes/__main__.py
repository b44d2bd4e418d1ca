"""``python -m dhmm_rl.recipes`` lists the recipes that ship."""

from dataclasses import dataclass

from dhmm_rl.cli import run_command
from dhmm_rl.recipes import list_recipes, recipe_folder


@dataclass
class Args:
    """List the agents and environments that have a recipe."""


def main(args: Args) -> None:
    """Run the command."""
    for kind in ("agents", "envs"):
        print(f"{kind} ({recipe_folder(kind)})")
        for name, description in list_recipes(kind).items():
            print(f"  {name:<16} {description}")


if __name__ == "__main__":
    run_command(main, Args, "dhmm_rl.recipes")

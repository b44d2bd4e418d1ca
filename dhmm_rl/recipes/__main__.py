"""``python -m dhmm_rl.recipes``: lists the recipes that ship, shows or checks a recipe, and writes the reference page."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from dhmm_rl.cli import run_command
from dhmm_rl.errors import InputError
from dhmm_rl.recipes import list_recipes, load_recipes, recipe_folder
from dhmm_rl.recipes.reference import format_reference
from dhmm_rl.recipes.tables import read_table


@dataclass
class List:
    """List the agents and environments that have a recipe."""


@dataclass
class Show:
    """Show an environment's spaces and fields, and the recipes of environment and agent with everything resolved."""

    env: Annotated[str, tyro.conf.Positional]
    """Environment: a recipe's name, the path of a recipe of your own (.toml), or any Gymnasium id."""
    agent: str = "dhmm-gpt2"
    """Agent: a recipe's name or path."""


@dataclass
class Check:
    """Check a recipe of your own. The exit status is 2, after one line, if something in it is wrong."""

    file: Annotated[Path, tyro.conf.Positional]
    """Path of the recipe (.toml)."""


@dataclass
class Reference:
    """Print the reference page of all keys of recipes, docs/recipe-reference.md."""


@dataclass
class Args:
    """List, show and check recipes. Without a subcommand, the recipes that ship are listed."""

    command: tyro.conf.OmitSubcommandPrefixes[
        Annotated[List, tyro.conf.subcommand("list")]
        | Annotated[Show, tyro.conf.subcommand("show")]
        | Annotated[Check, tyro.conf.subcommand("check")]
        | Annotated[Reference, tyro.conf.subcommand("reference")]
    ] = field(default_factory=List)


def main(args: Args) -> None:
    """Run the command."""
    match args.command:
        case Show(env, agent):
            from dhmm_rl.recipes.show import format_recipes  # imports torch, which the other subcommands do not need

            print(format_recipes(env, agent))
        case Check(file):
            print(check_recipe(file))
        case Reference():
            print(format_reference(), end="")
        case _:
            for kind in ("agents", "envs"):
                recipes = list_recipes(kind)
                width = max(map(len, recipes))
                print(f"{kind} ({recipe_folder(kind)})")
                for name, description in recipes.items():
                    print(f"  {name:<{width}}  {description}")


def check_recipe(file: Path) -> str:
    """
    Check a recipe of an agent or of an environment, and what it names.

    :param file: path of the recipe
    :return: line that says what the recipe describes
    :raises InputError: if something in it is wrong
    """
    if file.suffix != ".toml" or not file.is_file():
        raise InputError(f"there is no recipe {file}; a recipe is a file that ends in .toml")
    table = read_table(file)
    if "policy" in table or "extends" in table:  # keys that only an agent's recipe has
        _, agent = load_recipes("CartPole-v1", str(file))
        return f"{file} is a valid recipe of an agent: {agent.description}"
    env, _ = load_recipes(str(file), "dhmm-gpt2")
    return f"{file} is a valid recipe of an environment: {env.description}"


if __name__ == "__main__":
    run_command(main, Args, "dhmm_rl.recipes")

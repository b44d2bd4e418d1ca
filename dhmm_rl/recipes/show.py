"""A readable description of an environment and of the recipes that it is used with."""

from dataclasses import asdict

from dhmm_rl.recipes.environments import EnvFactory, unfitted_tokenizer
from dhmm_rl.recipes.loading import load_recipes
from dhmm_rl.recipes.tables import format_table
from dhmm_rl.tokens.reports import group_by_array


def format_recipes(env: str, agent: str) -> str:
    """
    Describe an environment's spaces and fields, and the resolved recipes of the environment and of an agent, as TOML.

    :param env: name or path of a recipe, or any id that Gymnasium can make
    :param agent: name or path of a recipe
    :raises InputError: for unknown or invalid recipes, and for spaces that cannot be tokenized
    """
    env_recipe, agent_recipe = load_recipes(env, agent)
    factory = EnvFactory(env_recipe, seed=0, agent=agent_recipe)
    lines = [
        f"# observation space: {_one_line(factory.observation_space)}",
        f"# action space: {_one_line(factory.action_space)}",
    ]
    if agent_recipe.reads_tokens:
        tokenizer = unfitted_tokenizer(env_recipe, factory)
        names = [slot.name for slot in tokenizer.slots]
        titles = [title for title, _ in group_by_array(names, range(len(names)))]
        lines.append(f"# fields: {', '.join(titles)}")
    changes = asdict(env_recipe) | {"agents": {}}  # the agent's recipe below has them already
    lines += ["", "# environment", format_table(changes)]
    lines += ["", "# agent, as the environment changes it", format_table(asdict(agent_recipe))]
    return "\n".join(lines)


def _one_line(value: object) -> str:
    return " ".join(str(value).split())

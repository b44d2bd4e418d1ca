"""Recipes: TOML files that describe agents and environments, and what is built from them."""

from dhmm_rl.recipes.loading import (
    MODEL_KEYS,
    AgentRecipe,
    EnvRecipe,
    agent_from_table,
    check_model_size,
    env_from_table,
    list_recipes,
    load_recipes,
    recipe_folder,
)
from dhmm_rl.recipes.tables import Table

__all__ = [
    "MODEL_KEYS",
    "AgentRecipe",
    "EnvRecipe",
    "Table",
    "agent_from_table",
    "check_model_size",
    "env_from_table",
    "list_recipes",
    "load_recipes",
    "recipe_folder",
]

"""
Recipes: TOML files that describe how an agent is built and how an environment is used.

The recipes that ship are in ``agents/`` and ``envs/``: next to this package in a checkout, inside it in an installed wheel. A
recipe of the user's own is given by its path, which ends in ``.toml``.
"""

import re
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from dhmm_rl.errors import InputError
from dhmm_rl.model.config import DEFAULT_WINDOW, ModelSettings
from dhmm_rl.recipes.algorithms import ALGORITHMS
from dhmm_rl.recipes.imports import find_env, load_policy, load_wrapper
from dhmm_rl.recipes.schema import (
    LARGEST_MODEL,
    PretrainSettings,
    Steps,
    TokenSettings,
)
from dhmm_rl.recipes.tables import Table, merge_tables, read_table
from dhmm_rl.validation import Matching, Range, TableOf, check, check_table, did_you_mean, one_of

Name = Annotated[str, Matching(r"(?![.\s])[^/\\\0\r\n]+", "a name that a folder can have")]
PolicyName = Annotated[str, Matching(r"\w+|\w+(\.\w+)*:\w+(\.\w+)*", "the name of a policy, or a class: module:Class")]

LARGEST_ROLLOUT = 2**26
"""A rollout of more environment steps than this is refused."""
MODEL_KEYS = tuple(f.name for f in fields(ModelSettings))


@dataclass(frozen=True)
class AgentRecipe:
    """How an agent is built."""

    name: Name
    """Name of the agent. Default: the name of the file."""
    description: str
    """Description in one line."""
    policy: PolicyName
    """Policy: ``DHMMPolicy``, one of SB3's by its name, or a class of your own: ``module:Class``."""
    algorithm: Annotated[str, one_of(*ALGORITHMS)] = "SequencePPO"
    """Name of the algorithm. SequencePPO and SequenceA2C act on the cached state of DHMM-GPT2."""
    model: Annotated[Table, TableOf(ModelSettings)] = field(default_factory=dict)
    """Hyperparameters of DHMM-GPT2, for agents that read tokens."""
    pretrain: Annotated[Table, TableOf(PretrainSettings)] = field(default_factory=dict)
    """Pretraining before PPO, for agents that read tokens. It needs ``data`` or a number of ``episodes``."""
    ppo: Table = field(default_factory=dict)
    """Settings of the algorithm, with the keys of its own table."""
    n_envs: Annotated[int, Range(1, 10_000)] = 8
    """Number of environments that are stepped together."""
    frame_stack: Annotated[int, Range(1, 1000)] = 1
    """Number of latest observations that the agent sees, for agents that read no tokens."""
    normalize_reward: bool = False
    """Normalize rewards by the running deviation of returns (SB3's VecNormalize)."""
    normalize_observation: bool = False
    """Normalize observations by their running mean and deviation (SB3's VecNormalize), for agents that read no tokens."""
    budget: Steps | None = None
    """Number of environment steps that the agent may take. Default: the environment's."""
    extends: str | None = None
    """Recipe that this one is based on: the name of an agent that ships, or a path relative to this file. This recipe's keys
    replace those of the base, key by key within tables. What an environment's recipe changes for the base applies here, too."""

    @property
    def reads_tokens(self) -> bool:
        """Whether the agent acts on a token stream. If ``policy`` names a class, this imports it."""
        if ":" not in self.policy:
            return self.policy == "DHMMPolicy"
        from dhmm_rl.common import DHMMPolicy  # imports torch, which reading recipes does without

        return issubclass(load_policy(self.policy), DHMMPolicy)


@dataclass(frozen=True)
class EnvRecipe:
    """How an environment is used."""

    name: Name
    """Name of the environment in runs and tables. Default: the name of the file."""
    description: str
    """Description in one line."""
    id: str
    """Name that ``gymnasium.make`` takes; ``module:id`` imports the module first. Default: the name of the file."""
    kwargs: Table = field(default_factory=dict)
    """Keywords of ``gymnasium.make``."""
    eval_kwargs: Table = field(default_factory=dict)
    """Keywords that replace those of ``kwargs`` in evaluations."""
    wrappers: dict[str, Table] = field(default_factory=dict)
    """Wrappers of the environment, the innermost first: each key is a class, ``module:Class``, and its value a table of
    keywords."""
    vectorization: Annotated[str, one_of("dummy", "subproc", "gymnasium")] = "dummy"
    """Vector environment: ``dummy`` is SB3's DummyVecEnv; ``subproc`` gives each environment a process; ``gymnasium`` is
    the one of ``gymnasium.make_vec``, which steps all environments in one NumPy call where the environment supports it."""
    budget: Steps = 100_000
    """Number of environment steps that an agent may take, those of pretraining rollouts included."""
    solved_at: float | None = None
    """Mean return at which the environment counts as solved."""
    eval_every: Steps = 5_000
    """Number of environment steps between evaluations."""
    eval_episodes: Annotated[int, Range(1, 100_000)] = 20
    """Number of episodes of an evaluation during training."""
    tokens: Annotated[Table, TableOf(TokenSettings)] = field(default_factory=dict)
    """Settings of the tokenizer, where it should not choose by itself."""
    agents: dict[str, Table] = field(default_factory=dict)
    """Changes for single agents, by their names: tables with the keys of an agent's recipe. With ``extends``, the changes are
    to the agent's recipe of that name instead of the agent's own."""

    @property
    def for_evaluation(self) -> "EnvRecipe":
        """The same recipe with the keywords of evaluations."""
        return replace(self, kwargs=self.kwargs | self.eval_kwargs)


def recipe_folder(kind: str) -> Path:
    """
    Return the folder of the recipes that ship.

    :param kind: ``agents`` or ``envs``
    """
    installed = Path(__file__).parent / "shipped" / kind
    return installed if installed.is_dir() else Path(__file__).parents[2] / kind


def list_recipes(kind: str) -> dict[str, str]:
    """
    Return the names and descriptions of the recipes that ship.

    :param kind: ``agents`` or ``envs``
    """
    return {path.stem: read_table(path)["description"] for path in sorted(recipe_folder(kind).glob("*.toml"))}


def load_recipes(env: str, agent: str) -> tuple[EnvRecipe, AgentRecipe]:
    """
    Load the recipes of an environment and of an agent, and apply the environment's changes for this agent.

    All keys are checked before anything that they name is imported.

    :param env: name or path of a recipe, or any id that Gymnasium can make
    :param agent: name or path of a recipe
    :raises InputError: for an unknown name or key, and for a value of the wrong type or out of its range
    """
    env_path = _find("envs", env)
    if env_path is not None:
        env_table = {"name": env_path.stem, "id": env_path.stem, **read_table(env_path)}
    else:
        env_table = {"name": re.sub(r"[^\w.-]+", "-", env).strip("-.") or "env", "id": env, "description": "without a recipe"}
    env_recipe = env_from_table(env_table, f"the recipe {env}")
    agent_recipe = _load_agent(agent, env, env_recipe)

    # All keys are checked now. The rest imports what they name.
    env_recipe = _import_names(env_recipe, env, has_recipe=env_path is not None)
    check_policy(agent_recipe, f"the recipe {agent}")
    if agent_recipe.reads_tokens:
        agent_recipe = replace(agent_recipe, model={"window": DEFAULT_WINDOW, **agent_recipe.model})
    return env_recipe, agent_recipe


def _load_agent(agent: str, env: str, env_recipe: EnvRecipe) -> AgentRecipe:
    """Load an agent's recipe with those that it extends, and apply the environment's changes for each of them in order."""
    path = _find("agents", agent)
    if path is None:
        raise InputError(f"unknown agent {agent!r}{did_you_mean(agent, list(list_recipes('agents')))}")
    plain_table: Table = {}
    changed_table: Table = {}
    for name, table in _read_chain(path):
        plain_table = merge_tables(plain_table, table)
        changes = dict(env_recipe.agents.get(name, {}))
        base = changes.pop("extends", None)
        if base is not None:  # the changes are to another recipe than the agent's own
            named = {key: table[key] for key in ("name", "description") if key in table}
            table = {}
            for _, other in _read_chain(_find_base(path, base, f"the recipe {env}")):
                table = merge_tables(table, other)
            table = table | named
        changed_table = merge_tables(merge_tables(changed_table, table), changes)
    recipe = agent_from_table(plain_table, f"the recipe {agent}")
    if changed_table != plain_table:
        recipe = agent_from_table(changed_table, f"the recipe {agent}, as {env} changes it,")
    return recipe


def _read_chain(path: Path) -> list[tuple[str, Table]]:
    """
    Read an agent's recipe and the recipes that it extends; return each file's name and table, the last base first.

    :raises InputError: if a base does not exist, or if recipes extend each other in a circle
    """
    chain: list[tuple[str, Table]] = []
    paths: list[Path] = []
    while True:
        if path.resolve() in paths:
            circle = " extends ".join(one.name for one in [*paths[paths.index(path.resolve()) :], path])
            raise InputError(f"recipes extend each other in a circle: {circle}")
        paths.append(path.resolve())
        table = {"name": path.stem, **read_table(path)}
        base = table.pop("extends", None)
        chain.insert(0, (path.stem, table))
        if base is None:
            return chain
        path = _find_base(path, base, f"the recipe {path}")


def _find_base(path: Path, base: Any, where: str) -> Path:
    """
    Return the path of the recipe that a recipe extends.

    :param path: path of the recipe that extends it
    :param base: its name, or its path from the folder of ``path``
    :param where: description of the recipe that extends it, for messages
    :raises InputError: if there is no such recipe
    """
    if not isinstance(base, str):
        raise InputError(f"{where} has extends = {base!r}; it must be the name or the path of an agent's recipe")
    found = path.parent / base if base.endswith(".toml") else recipe_folder("agents") / f"{base}.toml"
    if not found.is_file():
        hint = "" if base.endswith(".toml") else did_you_mean(base, list(list_recipes("agents")))
        raise InputError(f"{where} extends {base!r}, which does not exist{hint}")
    return found


def _import_names(recipe: EnvRecipe, name: str, has_recipe: bool) -> EnvRecipe:
    """
    Import what an environment's recipe names; return it with the id that Gymnasium knows.

    :param recipe: the recipe
    :param name: name or path that the user gave, for messages
    :param has_recipe: whether there is a file of the recipe, for messages
    """
    try:
        recipe = replace(recipe, id=find_env(recipe.id, list(list_recipes("envs"))))
    except InputError as error:
        if not has_recipe:
            raise
        raise InputError(f"the recipe {name} names an environment that Gymnasium does not know: {error}") from error
    for wrapper in recipe.wrappers:
        try:
            load_wrapper(wrapper)
        except InputError as error:
            raise InputError(f"the recipe {name}: {error}") from error
    return recipe


def env_from_table(table: Any, where: str) -> EnvRecipe:
    """
    Make an environment's recipe from its keys and values, without importing what it names.

    :param table: the keys and values
    :param where: description of the table, for messages
    :raises InputError: for an unknown key, and for a value of the wrong type or out of its range
    """
    check_table(table, EnvRecipe, where)
    for name, changes in table.get("agents", {}).items():
        algorithm = changes.get("algorithm") if isinstance(changes, dict) else None
        algorithm = _algorithm_of(name) if algorithm is None else algorithm
        _check_agent(changes, where, f"agents.{name}", algorithm, partial=True)
    return EnvRecipe(**table)


def agent_from_table(table: Any, where: str) -> AgentRecipe:
    """
    Make an agent's recipe from its keys and values.

    :param table: the keys and values, with those of the recipes that it extends
    :param where: description of the table, for messages
    :raises InputError: for an unknown key, for a value of the wrong type or out of its range, and for values that do not fit
        together
    """
    algorithm = table.get("algorithm", AgentRecipe.algorithm) if isinstance(table, dict) else None
    _check_agent(table, where, "", algorithm, partial=False)
    recipe = AgentRecipe(**table)
    if ":" not in recipe.policy:
        known = ALGORITHMS[recipe.algorithm].policies
        if recipe.policy not in known:
            raise InputError(
                f"{where}: Policy {recipe.policy} unknown; {recipe.algorithm} takes {', '.join(known)}, "
                "or a class of your own: 'module:Class'"
            )
        check_policy(recipe, where)
    check_model_size(recipe.model, where)
    steps = recipe.n_envs * recipe.ppo.get("n_steps", 1)
    if steps > LARGEST_ROLLOUT:
        raise InputError(f"{where} has n_envs times ppo.n_steps = {steps:,}; it must be at most {LARGEST_ROLLOUT:,}")
    return recipe


def check_policy(recipe: AgentRecipe, where: str) -> None:
    """
    Check what an agent's recipe says of observations against its policy. If ``policy`` names a class, this imports it.

    :param recipe: recipe of the agent
    :param where: name of the recipe, for messages
    :raises InputError: for keys that the policy does not have, and for a class that cannot be imported or is not a policy
    """
    if recipe.reads_tokens:
        for key, value in (("frame_stack", recipe.frame_stack > 1), ("normalize_observation", recipe.normalize_observation)):
            if value:
                raise InputError(f"{where} has {key} with policy = {recipe.policy!r}; it is for agents that read no tokens")
    elif recipe.model or recipe.pretrain:
        key = "model" if recipe.model else "pretrain"
        raise InputError(f"{where} has {key} with policy = {recipe.policy!r}; it is for agents that read tokens")


def check_model_size(model: Table, where: str) -> None:
    """
    Check that a model fits into memory.

    :param model: hyperparameters of the model
    :param where: description of what holds them, for the message
    :raises InputError: if the model has too many parameters
    """
    parameters = ModelSettings(**model).parameters
    if parameters > LARGEST_MODEL:
        raise InputError(
            f"{where} describes a model of about {parameters:.2g} parameters; at most {LARGEST_MODEL:.2g} are possible"
        )


def _check_agent(table: Any, where: str, key: str, algorithm: str | None, partial: bool) -> None:
    """Check the keys of an agent's recipe; without an algorithm, the table ``ppo`` must be valid for one of all algorithms."""
    check(table, AgentRecipe, where, key, partial)
    if table.get("extends") is not None and not partial:
        raise InputError(f"{where} has {key + '.' if key else ''}extends; only the files of recipes can have it")
    errors = []
    for name, known in ALGORITHMS.items():
        if algorithm in (name, None):
            try:
                check(table.get("ppo", {}), known.settings, where, f"{key}.ppo" if key else "ppo")
                return
            except InputError as error:
                errors.append(error)
    raise errors[0]


@cache
def _algorithm_of(agent: str) -> str | None:
    """Return the algorithm of an agent that ships; ``None`` for another."""
    path = recipe_folder("agents") / f"{agent}.toml"
    if not path.is_file():
        return None
    algorithm: str = AgentRecipe.algorithm
    for _, table in _read_chain(path):
        algorithm = table.get("algorithm", algorithm)
    return algorithm


def _find(kind: str, name: str) -> Path | None:
    """Return the path of a recipe, ``None`` for a name that no recipe has."""
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise InputError(f"there is no recipe {name}")
        return Path(name)
    path = recipe_folder(kind) / f"{name}.toml"
    return path if path.is_file() else None

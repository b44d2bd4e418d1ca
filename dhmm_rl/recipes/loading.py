"""
Recipes: TOML files that say how an agent is built and how an environment is treated.

``agents/`` and ``envs/`` beside this package in a checkout are the ones that ship; in an installed wheel they lie inside it. A
recipe of the user's own is a path that ends in ``.toml``.
"""

import re
import tomllib
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from dhmm_rl.common.sequence_policy import DEFAULT_WINDOW
from dhmm_rl.errors import InputError
from dhmm_rl.model.config import ModelSettings
from dhmm_rl.recipes.algorithms import ALGORITHMS
from dhmm_rl.recipes.imports import find_env, load_policy, load_wrapper
from dhmm_rl.recipes.schema import (
    LARGEST_MODEL,
    PretrainSettings,
    Steps,
    TokenSettings,
)
from dhmm_rl.validation import Matching, Range, TableOf, check, check_table, did_you_mean, one_of

Table = dict[str, Any]
Name = Annotated[str, Matching(r"(?![.\s])[^/\\\0\r\n]+", "a name that a folder can have")]
PolicyName = Annotated[str, Matching(r"\w+|\w+(\.\w+)*:\w+(\.\w+)*", "the name of a policy, or a class: module:Class")]

LARGEST_ROLLOUT = 2**26
"""A rollout of more environment steps than this is refused."""
MODEL_KEYS = tuple(f.name for f in fields(ModelSettings))


@dataclass(frozen=True)
class AgentRecipe:
    """How an agent is built."""

    name: Name
    """Its name: the file's."""
    description: str
    """One line for people."""
    policy: PolicyName
    """``DHMMPolicy``, the name of a policy of SB3, or a class of your own: ``module:Class``."""
    algorithm: Annotated[str, one_of(*ALGORITHMS)] = "SequencePPO"
    """``SequencePPO``, ``SequenceA2C``, SB3's ``PPO``, or sb3-contrib's ``RecurrentPPO`` or ``MaskablePPO``."""
    model: Annotated[Table, TableOf(ModelSettings)] = field(default_factory=dict)
    """Keywords of DHMMGPT2, beside those that the tokenizer gives; the window is 16 steps where they do not say."""
    pretrain: Annotated[Table, TableOf(PretrainSettings)] = field(default_factory=dict)
    """Pretraining before PPO: ``data``, sources of rollouts as ``python -m dhmm_rl.pretrain --data`` has them, random ones
    where there is none; how many ``episodes`` to collect; ``field_weights`` by name; and fields of TrainingSettings. None if
    empty, or if ``episodes = 0``."""
    ppo: Table = field(default_factory=dict)
    """Keywords of the algorithm; ``lin_0.001`` is a value that falls linearly to 0 over the budget."""
    n_envs: Annotated[int, Range(1, 10_000)] = 8
    """Environments side by side."""
    frame_stack: Annotated[int, Range(1, 1000)] = 1
    """How many observations are shown at once, by VecFrameStack; for agents that read no tokens."""
    normalize_reward: bool = False
    """Learn on returns normalized by VecNormalize."""
    normalize_observation: bool = False
    """Learn on observations normalized by VecNormalize; for agents that read no tokens."""
    budget: Steps | None = None
    """Environment steps, if not the environment's."""

    @property
    def reads_tokens(self) -> bool:
        """Whether the agent acts on a token stream. If ``policy`` names a class, this imports it."""
        if ":" not in self.policy:
            return self.policy == "DHMMPolicy"
        from dhmm_rl.common import DHMMPolicy  # imports torch, which reading recipes does without

        return issubclass(load_policy(self.policy), DHMMPolicy)


@dataclass(frozen=True)
class EnvRecipe:
    """How an environment is treated."""

    name: Name
    """Its name: the file's."""
    description: str
    """One line for people."""
    id: str
    """What ``gymnasium.make`` calls it; ``module:id`` imports the module first."""
    kwargs: Table = field(default_factory=dict)
    """Keywords for ``gymnasium.make``."""
    eval_kwargs: Table = field(default_factory=dict)
    """Keywords that are different where an agent is not trained but evaluated."""
    wrappers: dict[str, Table] = field(default_factory=dict)
    """Wrappers of the environment, the innermost first: ``module:class`` and its keywords."""
    vectorization: Annotated[str, one_of("dummy", "subproc", "gymnasium")] = "dummy"
    """How environments stand side by side: in SB3's DummyVecEnv (``dummy``), each in a process (``subproc``), or as
    ``gymnasium.make_vec`` has them (``gymnasium``): all in one NumPy call where there is such a form, as of CartPole-v1."""
    budget: Steps = 100_000
    """Environment steps an agent may take, those of pretraining rollouts included."""
    solved_at: float | None = None
    """Mean return at which it counts as solved."""
    eval_every: Steps = 5_000
    """Environment steps from one evaluation to the next."""
    eval_episodes: Annotated[int, Range(1, 100_000)] = 20
    """Episodes of an evaluation."""
    tokens: Annotated[Table, TableOf(TokenSettings)] = field(default_factory=dict)
    """``bins`` of real fields, and ``fields``: by name, ``bins``, ``low``, ``high``, ``scale``."""
    agents: dict[str, Table] = field(default_factory=dict)
    """What is different for an agent, by its name: the same keys as in the agent's own recipe."""

    @property
    def evaluated(self) -> "EnvRecipe":
        """The same, with the environment as it is in evaluations."""
        return replace(self, kwargs=self.kwargs | self.eval_kwargs)


def recipe_folder(kind: str) -> Path:
    """
    Where the recipes that ship lie.

    :param kind: ``agents`` or ``envs``
    """
    installed = Path(__file__).parent / "shipped" / kind
    return installed if installed.is_dir() else Path(__file__).parents[2] / kind


def list_recipes(kind: str) -> dict[str, str]:
    """Names and descriptions of the recipes that ship."""
    return {path.stem: _read(path)["description"] for path in sorted(recipe_folder(kind).glob("*.toml"))}


def load_recipes(env: str, agent: str) -> tuple[EnvRecipe, AgentRecipe]:
    """
    The recipes of an environment and of an agent, with what the environment's changes for this agent.

    All keys are checked before anything that they name is imported.

    :param env: a recipe's name or path, or any id that Gymnasium can make
    :param agent: a recipe's name or path
    :raises InputError: for an unknown name or key, and for a value of the wrong kind or out of its range
    """
    env_path = _find("envs", env)
    if env_path is not None:
        env_table = {"name": env_path.stem, "id": env_path.stem, **_read(env_path)}
    else:
        env_table = {"name": re.sub(r"[^\w.-]+", "-", env).strip("-.") or "env", "id": env, "description": "without a recipe"}
    env_recipe = env_from_table(env_table, f"the recipe {env}")
    agent_path = _find("agents", agent)
    if agent_path is None:
        raise InputError(f"unknown agent {agent!r}{did_you_mean(agent, list(list_recipes('agents')))}")
    agent_table = {"name": agent_path.stem, **_read(agent_path)}
    agent_recipe = agent_from_table(agent_table, f"the recipe {agent}")
    changes = env_recipe.agents.get(agent_path.stem)
    if changes:
        agent_recipe = agent_from_table(_merge(agent_table, changes), f"the recipe {agent}, as {env} changes it,")
    try:
        env_recipe = replace(env_recipe, id=find_env(env_recipe.id, list(list_recipes("envs"))))
    except InputError as error:
        if env_path is None:
            raise
        raise InputError(f"the recipe {env} names an environment that Gymnasium does not know: {error}") from error
    for wrapper in env_recipe.wrappers:
        try:
            load_wrapper(wrapper)
        except InputError as error:
            raise InputError(f"the recipe {env}: {error}") from error
    check_policy(agent_recipe, f"the recipe {agent}")
    if agent_recipe.reads_tokens:
        agent_recipe = replace(agent_recipe, model={"window": DEFAULT_WINDOW, **agent_recipe.model})
    return env_recipe, agent_recipe


def env_from_table(table: Any, where: str) -> EnvRecipe:
    """
    An environment's recipe from its keys and values; what it names is not imported.

    :param where: what the table is, for messages
    :raises InputError: for an unknown key, and for a value of the wrong kind or out of its range
    """
    check_table(table, EnvRecipe, where)
    for name, changes in table.get("agents", {}).items():
        algorithm = changes.get("algorithm") if isinstance(changes, dict) else None
        algorithm = _algorithm_of(name) if algorithm is None else algorithm
        _check_agent(changes, where, f"agents.{name}", algorithm, partial=True)
    return EnvRecipe(**table)


def agent_from_table(table: Any, where: str) -> AgentRecipe:
    """
    An agent's recipe from its keys and values.

    :param where: what the table is, for messages
    :raises InputError: for an unknown key, for a value of the wrong kind or out of its range, and for values that do not fit
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
    """:raises InputError: for keywords of a model that would not fit into memory"""
    parameters = ModelSettings(**model).parameters
    if parameters > LARGEST_MODEL:
        raise InputError(
            f"{where} describes a model of about {parameters:.2g} parameters; at most {LARGEST_MODEL:.2g} are possible"
        )


def _check_agent(table: Any, where: str, key: str, algorithm: str | None, partial: bool) -> None:
    """Check an agent's recipe, or what a table says of it; its ``ppo`` with an unknown algorithm against those of all."""
    check(table, AgentRecipe, where, key, partial)
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
    """The algorithm of an agent that ships; ``None`` for another."""
    path = recipe_folder("agents") / f"{agent}.toml"
    return _read(path).get("algorithm", AgentRecipe.algorithm) if path.is_file() else None


def _find(kind: str, name: str) -> Path | None:
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise InputError(f"there is no recipe {name}")
        return Path(name)
    path = recipe_folder(kind) / f"{name}.toml"
    return path if path.is_file() else None


def _read(path: Path) -> Table:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"the recipe {path} is not valid TOML: {error}") from error


def _merge(table: Table, changes: Table) -> Table:
    merged = dict(table)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merge(old if isinstance(old, dict) else {}, value) if isinstance(value, dict) else value
    return merged

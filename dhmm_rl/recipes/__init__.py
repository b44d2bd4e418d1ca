"""
Recipes: TOML files that say how an agent is built and how an environment is treated.

``agents/`` and ``envs/`` beside this package in a checkout are the ones that ship; in an installed wheel they lie inside it. A
recipe of the user's own is a path that ends in ``.toml``.
"""

import importlib
import inspect
import tomllib
import typing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from dhmm_rl.errors import InputError, fits, said, suggest
from dhmm_rl.model import DHMMGPT2
from dhmm_rl.sequence_ppo.policies import DEFAULT_WINDOW

Table = dict[str, Any]

POSITIVE = ("n_envs", "frame_stack", "budget", "eval_every", "eval_episodes")

ALGORITHMS = ("SequencePPO", "PPO", "RecurrentPPO", "MaskablePPO")
VECTORIZATIONS = ("dummy", "subproc", "gymnasium")
FROM_THE_TOKENIZER = ("self", "vocab_size", "slots", "action_slots", "reset_id")
MODEL_KEYS = tuple(key for key in inspect.signature(DHMMGPT2.__init__).parameters if key not in FROM_THE_TOKENIZER)


@dataclass(frozen=True)
class AgentRecipe:
    """How an agent is built."""

    name: str
    """Its name: the file's."""
    description: str
    """One line for people."""
    policy: str
    """``DHMMPolicy``, or a policy of SB3's by its name."""
    algorithm: str = "SequencePPO"
    """``SequencePPO``, SB3's ``PPO`` or sb3-contrib's ``RecurrentPPO`` or ``MaskablePPO``."""
    model: Table = field(default_factory=dict)
    """Keywords of DHMMGPT2, beside those that the tokenizer gives; the window is 16 steps where they do not say."""
    pretrain: Table = field(default_factory=dict)
    """Pretraining before PPO: ``data``, sources of rollouts as ``python -m dhmm_rl.pretrain --data`` has them, random ones
    where there is none; how many ``episodes`` to collect; ``field_weights`` by name; and fields of TrainingSettings. None if
    empty, or if ``episodes = 0``."""
    ppo: Table = field(default_factory=dict)
    """Keywords of the algorithm; ``lin_0.001`` is a value that falls linearly to 0 over the budget."""
    n_envs: int = 8
    """Environments side by side."""
    frame_stack: int = 1
    """How many observations are shown at once, by VecFrameStack; for agents that read no tokens."""
    normalize_reward: bool = False
    """Learn on returns normalised by VecNormalize."""
    normalize_observation: bool = False
    """Learn on observations normalised by VecNormalize; for agents that read no tokens."""
    budget: int | None = None
    """Environment steps, if not the environment's."""

    @property
    def reads_tokens(self) -> bool:
        """Whether the agent acts on a token stream."""
        return self.policy == "DHMMPolicy"


@dataclass(frozen=True)
class EnvRecipe:
    """How an environment is treated."""

    name: str
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
    vectorization: str = "dummy"
    """How environments stand side by side: in SB3's DummyVecEnv (``dummy``), each in a process (``subproc``), or as
    ``gymnasium.make_vec`` has them (``gymnasium``): all in one NumPy call where there is such a form, as of CartPole-v1."""
    budget: int = 100_000
    """Environment steps an agent may take, those of pretraining rollouts included."""
    solved_at: float | None = None
    """Mean return at which it counts as solved."""
    eval_every: int = 5_000
    """Environment steps from one evaluation to the next."""
    eval_episodes: int = 20
    """Episodes of an evaluation."""
    tokens: Table = field(default_factory=dict)
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
    installed = Path(__file__).parent / kind
    return installed if installed.is_dir() else Path(__file__).parents[2] / kind


def list_recipes(kind: str) -> dict[str, str]:
    """Names and descriptions of the recipes that ship."""
    return {path.stem: _read(path)["description"] for path in sorted(recipe_folder(kind).glob("*.toml"))}


def load_recipes(env: str, agent: str) -> tuple[EnvRecipe, AgentRecipe]:
    """
    The recipes of an environment and of an agent, with what the environment's changes for this agent.

    :param env: a recipe's name or path, or any id that Gymnasium can make
    :param agent: a recipe's name or path
    :raises InputError: for an unknown name or key
    """
    env_path = _find("envs", env)
    if env_path is not None:
        env_table = {"name": env_path.stem, "id": env_path.stem, **_read(env_path)}
    elif _registered(env):
        env_table = {"name": env.replace("/", "-").replace(":", "-"), "id": env, "description": "without a recipe"}
    else:
        raise InputError(f"unknown environment {env!r}{suggest(env, [*list_recipes('envs'), *gym.registry])}")
    env_recipe = EnvRecipe(**_checked(env_table, EnvRecipe, env))
    if not _registered(env_recipe.id):
        raise InputError(f"the recipe {env} names an environment {env_recipe.id!r} that Gymnasium does not know")
    for wrapper in env_recipe.wrappers:
        try:
            load_env_creator(wrapper)
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(f"the recipe {env} has a wrapper {wrapper!r} that is no 'module:class' ({error})") from error

    agent_path = _find("agents", agent)
    if agent_path is None:
        raise InputError(f"unknown agent {agent!r}{suggest(agent, list(list_recipes('agents')))}")
    agent_table = _merge({"name": agent_path.stem, **_read(agent_path)}, env_recipe.agents.get(agent_path.stem, {}))
    agent_recipe = AgentRecipe(**_checked(agent_table, AgentRecipe, agent))
    for key in agent_recipe.model:
        if key not in MODEL_KEYS:
            raise InputError(f"the recipe {agent} has a key model.{key}{suggest(key, list(MODEL_KEYS))}")
    if agent_recipe.reads_tokens:
        agent_recipe = replace(agent_recipe, model={"window": DEFAULT_WINDOW, **agent_recipe.model})
    return env_recipe, agent_recipe


def _registered(env_id: str) -> bool:
    """Whether Gymnasium knows an id, once the module before its colon has been imported."""
    module, colon, name = env_id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InputError(f"the module {module} of the environment {env_id} cannot be imported ({error})") from error
    return name in gym.registry


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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"the recipe {path} is not valid TOML: {error}") from error


def _checked(table: Table, kind: type[Any], name: str) -> Table:
    known = {f.name for f in fields(kind)}
    for key in table:
        if key not in known:
            raise InputError(f"the recipe {name} has a key {key!r}{suggest(key, sorted(known))}")
    for key, choices in (("algorithm", ALGORITHMS), ("vectorization", VECTORIZATIONS)):
        if table.get(key, choices[0]) not in choices:
            raise InputError(f"the recipe {name} has {key} = {table[key]!r}; known are {', '.join(choices)}")
    hints = typing.get_type_hints(kind)
    for key, value in table.items():
        if not fits(value, hints[key]):
            raise InputError(f"the recipe {name} has {key} = {value!r}; it must be {said(hints[key])}")
        if key in POSITIVE and value is not None and value < 1:
            raise InputError(f"the recipe {name} has {key} = {value}; it must be at least 1")
    missing = {"description", "policy"} & known - set(table)
    if missing:
        raise InputError(f"the recipe {name} lacks {sorted(missing)[0]!r}")
    return table


def _merge(table: Table, changes: Table) -> Table:
    merged = dict(table)
    for key, value in changes.items():
        merged[key] = _merge(merged.get(key, {}), value) if isinstance(value, dict) else value
    return merged

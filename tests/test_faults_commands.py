"""Faults of what users write, in recipes and on the command line, and of the terminal that a command runs in."""

import ast
import dataclasses
import importlib
import inspect
import io
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
import tomllib
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

from dhmm_rl.cli import run_command
from dhmm_rl.common import DHMMPolicy
from dhmm_rl.errors import InputError, install_command, python_command
from dhmm_rl.languages import LANGUAGES
from dhmm_rl.languages.run import LanguageRun
from dhmm_rl.model import DHMMGPT2
from dhmm_rl.model.config import ModelSettings
from dhmm_rl.pretraining.teachers import load_teacher
from dhmm_rl.recipes import (
    AgentRecipe,
    EnvRecipe,
    Table,
    agent_from_table,
    env_from_table,
    list_recipes,
    load_recipes,
    recipe_folder,
)
from dhmm_rl.recipes.agents import make_agent
from dhmm_rl.recipes.algorithms import ALGORITHMS
from dhmm_rl.recipes.environments import make_envs, make_tokenizer, wrap
from dhmm_rl.recipes.schema import FieldSettings, PolicySettings, TrainingSettings
from dhmm_rl.runs.run import Run

ROOT = Path(__file__).parents[1]


@dataclass
class Args:
    """A command without arguments."""


def test_text_files_are_utf_8_in_every_locale() -> None:
    """Every file that is opened as text names its encoding."""
    for path in [*(ROOT / "dhmm_rl").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            mode = next((arg.value for arg in node.args if isinstance(arg, ast.Constant) and arg.value in MODES), "")
            if name in ("read_text", "write_text") or (name == "open" and mode):
                assert any(keyword.arg == "encoding" for keyword in node.keywords), f"{path}:{node.lineno}"


MODES = ("r", "w", "a", "x")


def test_terminals_without_a_character_get_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "argv", ["command"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    run_command(lambda args: print("1.0 ± 0.1"), Args, "command")
    assert written.getvalue() == b"1.0 \\xb1 0.1\n"


def test_a_reader_that_goes_away_ends_a_command_without_a_word() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "dhmm_rl.recipes"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize("module", ["dhmm_rl.ppo", "benchmarks.run"])
def test_ctrl_c_while_a_command_is_imported_prints_one_line(module: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", module, "--help"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells let background jobs ignore it
    ) as process:
        assert process.stderr is not None
        imported = iter(process.stderr.readline, "")
        next(line for line in imported if "dhmm_rl._interrupts" in line)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said = [line for line in imported if not line.startswith("import time:")]
    assert said == ["interrupted\n"]
    assert process.returncode == 130


def test_hints_name_the_python_that_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(Path.cwd() / ".venv/bin/python"))
    assert python_command() == ".venv/bin/python"
    monkeypatch.setenv("PATH", str(tmp_path / ".venv/bin"))
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").touch(mode=0o755)
    assert python_command() == "python"
    monkeypatch.setattr(sys, "executable", "/opt/my python/bin/python")
    assert python_command() == "'/opt/my python/bin/python'"


@pytest.mark.parametrize("extra", ["images", "minari", "minigrid", "popgym"])
def test_hints_say_how_to_install_what_an_extra_requires(extra: str) -> None:
    """The command names packages that an index has, which this project is not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    words = shlex.split(install_command(extra))
    assert words[1:4] == ["-m", "pip", "install"]
    names = [requirement.partition(">=")[0] for requirement in words[4:]]  # the bounds are those of the installed version
    assert names == [requirement.partition(">=")[0] for requirement in project["optional-dependencies"][extra]]


# Values of recipes. What a key may hold is written here a second time, key by key, so that the schema cannot be wrong unseen.

FLAGS = {
    *("normalize_reward", "normalize_observation", "dither of pretrain", "amsgrad", "ortho_init", "full_std", "use_expln"),
    *("squash_output", "share_features_extractor", "normalize_images", "shared_lstm", "enable_critic_lstm", "bias"),
    *("normalize_advantage", "use_sde", "normalized_image"),
}
TEXTS = {"name", "description", "policy", "id"}
CHOICES = {"algorithm", "vectorization", "positions", "control", "latent_init", "activation_fn", "action_head"}
TABLES = {"model", "pretrain", "ppo", "kwargs", "eval_kwargs", "wrappers", "tokens", "fields", "agents", "field_weights"}
TABLES |= {"policy_kwargs", "features_extractor_kwargs", "optimizer_kwargs", "lstm_kwargs"}
LISTS = {"values", "data", "reach", "head_slopes", "betas", "pi", "vf"}
COUNTS = {
    *("n_envs", "frame_stack", "budget", "eval_every", "eval_episodes", "embed_size", "heads", "ff_hidden", "max_len"),
    *("window", "matrices", "chains", "steps", "batch_size", "length", "patience", "features_dim", "cnn_output_dim"),
    *("lstm_hidden_size", "n_lstm_layers", "n_steps", "n_epochs", "stats_window_size"),
}
COUNTS_FROM = {
    "layers": 0,
    "sum_heads": 0,
    "num_states": 0,
    "episodes": 0,
    "warmup": 0,
    "critic_warmup": 0,
    "verbose": 0,
    "patch": 0,
}
COUNTS_FROM |= {"bins": 2, "codes": 2, "sde_sample_freq": -1, **dict.fromkeys(COUNTS, 1)}
POSITIVE = {"learning_rate", "critic_warmup_lr", "max_grad_norm", "target_kl", "latent_rate", "scale", "eps"}
POSITIVE |= {"clip_range", "clip_range_vf"}
NOT_NEGATIVE = {
    "evidence_floor",
    "weight_decay",
    "ent_coef",
    "vf_coef",
    "prior_kl",
    "uniform_kl",
    "next_token_coef",
    "desired_kl",
}
SHARES = {"gamma", "gae_lambda", "prior_kl_decay"}
BELOW_1 = {"dither", "mutation", "dropout"}
FINITE = {"solved_at", "low", "high", "log_std_init"}
WRONG: list[Any] = [
    *("x", "", "lin_x", "..:x", 1.5, -1, 0, 10**12, 10**400, True, math.nan, math.inf, -math.inf, 1e300),
    *([], ["x"], [-1], {}, {"x": "x"}, {"x": {"x": -1}}),
]


def may_hold(path: tuple[str, ...], value: Any) -> bool:
    """Return whether a key may have one of the values of :data:`WRONG`."""
    parent, name = ("", *path)[-2:]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    finite = number and abs(value) < 1e301
    if {"kwargs", "eval_kwargs"} & set(path[:-1]) or "wrappers" in path[:-2]:
        return True  # keywords of environments and wrappers, which check them
    if parent in ("wrappers", "agents", "fields"):
        return value == {} or (parent == "wrappers" and isinstance(value, dict))
    if parent == "field_weights" or name in NOT_NEGATIVE:
        return finite and 0 <= value < 1e9
    if name in FLAGS or (name == "dither" and "pretrain" in path):
        return isinstance(value, bool)
    if name == "extends":
        return isinstance(value, str)  # whether there is such a recipe is checked where an agent is loaded
    if name == "policy":
        return isinstance(value, str) and path[0] == "agents"  # where the agent's algorithm need not be known
    if name in TEXTS:
        return isinstance(value, str) and (name != "name" or value in ("x", "lin_x"))
    if name in CHOICES or name == "held_out":
        return False
    if name == "net_arch":
        return value in ([], {})
    if name in TABLES:
        return (
            value == {}
            or (name in ("kwargs", "eval_kwargs") and isinstance(value, dict))
            or (name == "wrappers" and value == {"x": {"x": -1}})
        )
    if name in LISTS:
        return (value, name) in (([], "pi"), ([], "vf"), (["x"], "data"), ([-1], "values"))
    if name in COUNTS_FROM:
        return isinstance(value, int) and number and COUNTS_FROM[name] <= value < 1e9
    if name in POSITIVE:
        return finite and value > 0 and (value < 1e9 or name in ("max_grad_norm", "target_kl", "scale", "eps"))
    if name in SHARES:
        return finite and 0 <= value <= 1
    if name in BELOW_1:
        return finite and 0 <= value < 1
    assert name in FINITE, f"the test does not know {path}"
    return finite and (name != "log_std_init" or abs(value) <= 100)


def paths_of(table: Table) -> list[tuple[str, ...]]:
    """Yield the paths of all keys of a table, including those of tables inside it."""
    found = []
    for key, value in table.items():
        found += [(key,), *((key, *path) for path in (paths_of(value) if isinstance(value, dict) else []))]
    return found


def paths_of_schema(kind: Any) -> list[tuple[str, ...]]:
    """Yield the paths of all keys of a dataclass of the schema, including those of dataclasses inside it."""
    found: list[tuple[str, ...]] = []
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        found.append((name,))
        for part in (hint, *typing.get_args(hint), *getattr(hint, "__metadata__", ())):
            inner = getattr(part, "kind", part)
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                found += [(name, *path) for path in paths_of_schema(inner)]
    return found


def with_value(table: Table, path: tuple[str, ...], value: Any) -> Table:
    """Return a copy of a table with another value for one key."""
    first, *rest = path
    return table | {first: with_value(table.get(first, {}), tuple(rest), value) if rest else value}


def recipes_with_keys() -> Iterator[tuple[Callable[[Any, str], Any], Table, tuple[str, ...]]]:
    """Yield every key of the shipped recipes and of the schema: a function that reads it, a valid table, and its path."""
    for kind, read in (("envs", env_from_table), ("agents", agent_from_table)):
        for name in list_recipes(kind):
            table = {"name": name, **({"id": name} if kind == "envs" else {})}
            table |= tomllib.loads((recipe_folder(kind) / f"{name}.toml").read_text(encoding="utf-8"))
            yield from ((read, table, path) for path in paths_of(table))
    env: Table = {"name": "x", "description": "x", "id": "CartPole-v1"}
    yield from ((env_from_table, env, path) for path in paths_of_schema(EnvRecipe))
    for field in dataclasses.fields(FieldSettings):
        yield env_from_table, env, ("tokens", "fields", "observation[0]", field.name)
    for name, algorithm in ALGORITHMS.items():
        agent: Table = {"name": "x", "description": "x", "policy": algorithm.policies[-1], "algorithm": name}
        paths = [*paths_of_schema(AgentRecipe), *(("ppo", *path) for path in paths_of_schema(algorithm.settings))]
        yield from ((agent_from_table, agent, path) for path in paths)
        yield from ((env_from_table, env, ("agents", "x", *path)) for path in paths if path != ("ppo",))


def test_wrong_values_of_every_key_are_refused_in_one_line() -> None:
    tried = 0
    wrong: list[Any] = []
    for read, table, path in recipes_with_keys():
        for value in WRONG:
            tried += 1
            try:
                read(with_value(table, path, value), "the recipe")
            except InputError as error:
                if "\n" in str(error) or len(str(error)) > 500:
                    wrong.append((path, value, error))
            else:
                if not may_hold(path, value):
                    wrong.append((path, value, None))
    assert not wrong, wrong[:20]
    assert tried > 5_000


def test_right_values_at_the_ends_of_their_ranges_are_accepted() -> None:
    agent: Table = {"name": "x", "description": "x", "policy": "DHMMPolicy"}
    for path, value in (
        (("ppo", "gamma"), 0),
        (("ppo", "gamma"), 1.0),
        (("ppo", "learning_rate"), "lin_0.001"),
        (("ppo", "clip_range_vf"), 0.2),
        (("ppo", "ent_coef"), 0),
        (("ppo", "policy_kwargs"), {"net_arch": {"vf": [64]}, "optimizer_kwargs": {"betas": [0.9, 0.99]}}),
        (("model", "layers"), 0),
        (("model", "evidence_floor"), 0.0),
        (("model", "window"), None),
        (("pretrain", "episodes"), 0),
        (("pretrain", "data"), ["random"]),
        (("budget",), None),
    ):
        agent_from_table(with_value(agent, path, value), "the recipe")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "RecurrentPPO"}, "Policy DHMMPolicy unknown; RecurrentPPO takes MlpLstmPolicy"),
        ({"policy": "MlpPolice", "algorithm": "PPO"}, "Policy MlpPolice unknown; PPO takes DHMMPolicy, MlpPolicy"),
        ({"frame_stack": 4}, "for agents that read no tokens"),
        ({"normalize_observation": True}, "for agents that read no tokens"),
        ({"policy": "MlpPolicy", "algorithm": "PPO", "model": {"layers": 1}}, "for agents that read tokens"),
        ({"policy": "MlpPolicy", "algorithm": "PPO", "pretrain": {"steps": 1}}, "for agents that read tokens"),
        ({"model": {"layers": 900, "embed_size": 4096}}, "parameters"),
        ({"model": {"num_states": 2**14, "chains": 64}}, "parameters"),
        ({"n_envs": 10_000, "ppo": {"n_steps": 2**20}}, "n_envs times ppo.n_steps"),
        ({"ppo": {"n_step": 3}}, "has a key ppo.n_step; did you mean 'n_steps'"),
        ({"ppo": {"use_sde": True}}, "has a key ppo.use_sde"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(changes: Table, message: str) -> None:
    with pytest.raises(InputError, match=message):
        agent_from_table({"name": "x", "description": "x", "policy": "DHMMPolicy"} | changes, "the recipe")


OF_THE_TOKENIZER = {"self", "vocab_size", "slots", "action_slots", "reset_id"}
IN_CODE = {"self", "policy", "env", "seed", "device", "pretrained", "tensorboard_log", "_init_setup_model"}
"""Keywords of algorithms that commands give."""
NOT_IN_FILES = {"rollout_buffer_class", "rollout_buffer_kwargs", "features_extractor_class", "optimizer_class", "use_sde"}
"""Keywords that are classes, or that the algorithm gives."""


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_schema_has_the_keywords_and_defaults_of_algorithms(algorithm: str) -> None:
    known = inspect.signature(ALGORITHMS[algorithm].load_class().__init__).parameters
    settings: Any = ALGORITHMS[algorithm].settings()
    fields = {field.name for field in dataclasses.fields(settings)}
    left_out = NOT_IN_FILES | ({"sde_sample_freq"} if algorithm == "SequencePPO" else set())
    assert fields == known.keys() - IN_CODE - (left_out - fields)
    assert {name: getattr(settings, name) for name in fields} == {name: known[name].default for name in fields}


def test_the_schema_has_the_keywords_and_defaults_of_the_model_and_of_policies() -> None:
    known = inspect.signature(DHMMGPT2.__init__).parameters
    fields = {field.name: field.default for field in dataclasses.fields(ModelSettings)}
    assert fields == {name: known[name].default for name in known.keys() - OF_THE_TOKENIZER}
    taken: dict[str, Any] = {}
    for kind in (RecurrentActorCriticPolicy, DHMMPolicy):
        taken |= inspect.signature(kind.__init__).parameters
    of_policies = {field.name for field in dataclasses.fields(PolicySettings)}
    assert of_policies == taken.keys() - {"self", "observation_space", "action_space", "lr_schedule", "kwargs"} - NOT_IN_FILES


# What recipes and runs' folders import

MARKER = "raise SystemExit(__import__('pathlib').Path('marker').touch())"
HOSTILE: dict[str, tuple[str, Table]] = {
    "an environment's module": ("env", {"id": "evil:CartPole-v1"}),
    "an environment's class": ("env", {"id": "evil:Env"}),
    "a package that is not installed": ("env", {"id": "evil_package.inside:CartPole-v1"}),
    "a folder that looks like a package": ("env", {"id": "evil_folder.inside:CartPole-v1"}),
    "an installed package, shadowed": ("env", {"id": "minigrid:MiniGrid-Empty-5x5-v0"}),
    "an installed package, shadowed and not named": ("env", {"id": "MiniGrid-Empty-5x5-v0"}),
    "a relative module": ("env", {"id": ".evil:CartPole-v1"}),
    "a path": ("env", {"id": "./evil.py:CartPole-v1"}),
    "a wrapper's module": ("env", {"wrappers": {"evil:Wrapper": {}}}),
    "a function of the standard library": ("env", {"wrappers": {"pydoc:pipepager": {"cmd": "touch marker"}}}),
    "a function of an installed package": ("env", {"wrappers": {"numpy:save": {"arr": 1}}}),
    "a wrapper without a module": ("env", {"wrappers": {"eval": {}}}),
    "a module that runs a script": ("env", {"wrappers": {"this:Wrapper": {}}}),
    "a wrapper that writes a log": ("env", {"wrappers": {"stable_baselines3.common.monitor:Monitor": {"filename": "marker"}}}),
    "a wrapper that writes videos": ("env", {"wrappers": {"gymnasium.wrappers:RecordVideo": {"video_folder": "marker"}}}),
    "a policy's module": ("agent", {"policy": "evil:Policy"}),
    "a policy's path": ("agent", {"policy": "./evil.py:Policy"}),
    "a name that is a path": ("env", {"name": "../marker"}),
    "an agent's name that is a path": ("agent", {"name": "../../marker"}),
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    env, agent = load_recipes("CartPole-v1", "mlp")
    run = Run.create(tmp_path_factory.mktemp("run"), "ppo", env, agent, 0, {"steps": 64, "pretrained": "none"})
    Run.open(run.folder)
    return run.folder


def without_checksum(path: Path) -> Table:
    """Return the content of a JSON file without its checksum, which anybody who changes the file can leave out."""
    content: Table = json.loads(path.read_text())
    assert content.pop("checksum")
    return content


def work_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder the current one, and let Python import from it, as ``python -m`` does."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))


def hostile_folder(tmp_path: Path, run_folder: Path, part: str, changes: Table) -> None:
    """A folder with modules that create a marker when they are imported, and with a run that names them."""
    for place in ("evil.py", "evil_package/__init__.py", "evil_package/inside.py", "evil_folder/inside.py", "minigrid.py"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(MARKER)
    description = without_checksum(run_folder / "run.json")
    description[part] |= changes
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(json.dumps(description))


@pytest.mark.parametrize("what", HOSTILE)
def test_a_runs_folder_imports_nothing_that_is_not_installed(
    what: str, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile_folder(tmp_path, run_folder, *HOSTILE[what])
    work_in(tmp_path, monkeypatch)
    for name in [name for name in sys.modules if name.partition(".")[0] == "minigrid"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError) as caught:
        make_envs(Run.open("run").env, 1, 0)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("**/marker*"))


def test_trust_is_what_keeps_a_module_from_being_imported(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile_folder(tmp_path, run_folder, "env", {"id": "evil:CartPole-v1"})
    work_in(tmp_path, monkeypatch)
    with pytest.raises(InputError, match="add --trust"):
        Run.open("run")
    with pytest.raises(InputError, match="cannot be imported"):
        make_envs(Run.open("run", trust=True).env, 1, 0)
    assert (tmp_path / "marker").exists()


def test_a_run_of_a_language_of_the_current_folder_needs_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text(MARKER)
    work_in(tmp_path, monkeypatch)
    language = LANGUAGES["parity"]
    run = LanguageRun.create(Path("runs"), "parity", language, {"window": 8}, TrainingSettings(), (8,), 1, 0)
    description = without_checksum(run.folder / "run.json")
    (run.folder / "run.json").write_text(json.dumps(description | {"name": "evil:Language"}))
    with pytest.raises(InputError, match="add --trust"):
        LanguageRun.open(run.folder)
    assert not (tmp_path / "marker").exists()


def test_a_teacher_imports_no_policy_that_is_not_installed(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile_folder(tmp_path, run_folder, "agent", {"policy": "evil:Policy"})
    work_in(tmp_path, monkeypatch)
    with pytest.raises(InputError, match="names evil:Policy, which would import evil from outside"):
        load_teacher("run", make_envs(load_recipes("CartPole-v1", "mlp")[0], 1, 0))
    assert not (tmp_path / "marker").exists()


POLICIES = """
from stable_baselines3.common.policies import ActorCriticPolicy
from dhmm_rl.common import SequencePolicy

class Tokens(SequencePolicy):
    pass

class Plain(ActorCriticPolicy):
    pass
"""


def test_a_recipe_may_name_a_policy_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_policies.py").write_text(POLICIES)
    monkeypatch.syspath_prepend(str(tmp_path))

    def recipe(text: str) -> AgentRecipe:
        path = tmp_path / "mine.toml"
        path.write_text(f'description = "x"\n{text}\n[ppo]\nn_steps = 32\n')
        return load_recipes("CartPole-v1", str(path))[1]

    env, _ = load_recipes("CartPole-v1", "mlp")
    tokens = recipe('policy = "own_policies:Tokens"')
    plain = recipe('policy = "own_policies:Plain"\nalgorithm = "PPO"')
    assert (tokens.reads_tokens, plain.reads_tokens) == (True, False)
    assert tokens.model["window"] == 16
    for agent in (tokens, plain):
        venv = make_envs(env, 2, 0, agent)
        tokenizer = make_tokenizer(env, venv) if agent.reads_tokens else None
        made = make_agent(agent, wrap(venv, agent, tokenizer, training=True), 0, "cpu", None)
        assert agent.policy == f"own_policies:{type(made.policy).__name__}"
        made.learn(64)
    with pytest.raises(InputError, match="has frame_stack with policy = 'own_policies:Tokens'"):
        recipe('policy = "own_policies:Tokens"\nframe_stack = 2')
    with pytest.raises(InputError, match="SequencePPO needs a SequencePolicy, not Plain"):
        make_agent(dataclasses.replace(plain, algorithm="SequencePPO"), make_envs(env, 1, 0), 0, "cpu", None)


@pytest.mark.parametrize("policy", ["pydoc:pipepager", "builtins:eval", "gymnasium:Env", "math:pi"])
def test_a_policy_is_made_only_if_it_is_one(policy: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'description = "x"\npolicy = "{policy}"\n')
    with pytest.raises(InputError, match=r"is not a subclass of stable_baselines3\.common\.policies\.BasePolicy"):
        load_recipes("CartPole-v1", str(path))


@pytest.mark.parametrize("wrapper", ["pydoc:pipepager", "builtins:eval", "gymnasium:make", "gymnasium:Env", "math:pi"])
def test_a_wrapper_is_called_only_if_it_is_one(wrapper: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'description = "x"\nid = "CartPole-v1"\n[wrappers]\n"{wrapper}" = {{}}\n')
    with pytest.raises(InputError, match=r"not a subclass of gymnasium.Wrapper"):
        load_recipes(str(path), "mlp")


def test_what_a_run_says_of_itself_is_checked_like_a_recipe(run_folder: Path, tmp_path: Path) -> None:
    description = without_checksum(run_folder / "run.json")
    for path, value in (
        (("agent", "ppo", "n_steps"), "x"),
        (("agent", "ppo", "gamma"), math.nan),
        (("env", "eval_every"), 0),
        (("env",), []),
        (("seed",), -1),
        (("command",), "rm"),
        (("args",), None),
        (("args",), {}),
        (("args", "steps"), 1.5),
        (("args", "pretrained"), 3),
    ):
        (tmp_path / "run.json").write_text(json.dumps(with_value(description, path, value)))
        with pytest.raises(InputError, match=path[-1]):
            Run.resume(tmp_path, "ppo")


# Environments by name


OWN = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

class Mine(CartPoleEnv):
    pass

class NotRegistered(CartPoleEnv):
    pass

gym.register("Mine-v0", Mine, max_episode_steps=7)
"""


@pytest.mark.parametrize("vectorization", ["dummy", "subproc", "gymnasium"])
@pytest.mark.parametrize("env_id", ["own_env:Mine", "own_env:Mine-v0", "own_env:NotRegistered"])
def test_an_environment_of_ones_own_is_named_by_id_or_by_class(
    env_id: str, vectorization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_env.py").write_text(OWN)
    work_in(tmp_path, monkeypatch)
    env = dataclasses.replace(load_recipes(env_id, "mlp")[0], vectorization=vectorization)
    venv = make_envs(env, 2, 0)
    assert np.asarray(venv.reset()).shape == (2, 4)
    venv.close()


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("./mypkg/__init__.py:MyEnv", "from this folder that is mypkg"),
        ("mypkg/envs.py:MyEnv-v0", "from this folder that is mypkg.envs"),
        ("gymnasium.envs.classic_control:CartPoleEnvv", "did you mean 'gymnasium.envs.classic_control:CartPoleEnv'"),
        ("json:MyEnv", "registers no environment"),
        ("broken_env:MyEnv", r"cannot be imported \(ZeroDivisionError: division by zero, .*broken_env.py, line 1\)"),
        ("ending_env:MyEnv", "cannot be imported"),
        ("ALE/Nothing-v5", "pip install ale-py"),
        ("a b:c", "such as package.module"),
        ("", "unknown environment"),
    ],
)
def test_names_of_no_environment_are_told_what_is_right(
    env_id: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_env.py").write_text("1 / 0")
    (tmp_path / "ending_env.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=message):
        load_recipes(env_id, "mlp")


@pytest.mark.parametrize("env_id", ["popgym-CountRecallEasy-v0", "MiniGrid-MemoryS9-v0"])
def test_packages_that_are_installed_need_not_be_named(env_id: str) -> None:
    env, _ = load_recipes(env_id, "mlp")
    assert env.name == env_id
    assert env.id.endswith(f":{env_id}")
    make_envs(env, 1, 0).close()


def test_this_projects_environments_are_known_in_processes_of_a_notebook() -> None:
    """The start of a fork server imports this package, so its processes need not be told."""
    code = "import dhmm_rl, stable_baselines3.common.vec_env as v, gymnasium as g;"
    code += "e = v.SubprocVecEnv([lambda: g.make('dhmm_rl/CartPoleNoVel-v1')]); print(e.reset().shape); e.close()"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "(1, 4)\n", done.stderr


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        ("dhmm_rl.play", ["x", "--episodes", "0"], "episodes is 0; it must be at least 1"),
        ("dhmm_rl.ppo", ["--threads", "0"], "threads is 0; it must be at least 1"),
        ("dhmm_rl.ppo", ["--threads", "1000000"], "it must be at least 1 and at most 10,000"),
        ("dhmm_rl.pretrain", ["--learning-rate", "inf"], "learning_rate of pretraining is inf"),
        ("dhmm_rl.pretrain", ["--length", "1000000000000"], "length of pretraining is 1000000000000"),
        ("dhmm_rl.pretrain", ["--top", "nan"], "top is nan"),
        ("dhmm_rl.collect", ["--to", "x", "--n-envs", "-1"], "n_envs is -1"),
        ("dhmm_rl.collect", ["--to", "x", "--seed", "-1"], "seed is -1"),
        ("dhmm_rl.collect", ["--to", "x", "--episodes", "1000000000000"], "episodes is 1000000000000"),
        ("dhmm_rl.languages.__main__", ["--num-eval-examples", "0"], "num_eval_examples is 0"),
        ("dhmm_rl.languages.__main__", ["--extrapolate", "-1"], "extrapolate is -1"),
        (
            "dhmm_rl.languages.__main__",
            ["--model", "layers=1000000000000"],
            "parameters; at most 1.1e+09 are possible",
        ),
        ("dhmm_rl.languages.__main__", ["--model", "dither=1e999"], "dither"),
        ("benchmarks.run", ["--jobs", "0"], "jobs is 0"),
    ],
)
def test_options_out_of_their_range_are_refused(
    module: str,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [module, *options])
    command = importlib.import_module(module)
    with pytest.raises(SystemExit) as ended:
        run_command(command.main, command.Args, module)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said
    assert not list(tmp_path.iterdir())


def test_a_long_tmpdir_is_told_where_processes_are_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    code = "import sys; from dhmm_rl.recipes.environments import make_envs; from dhmm_rl.recipes import EnvRecipe as E;"
    code += "from dhmm_rl.cli import run_command; from dataclasses import make_dataclass as m; A = m('A', []); A.__doc__ = 'x';"
    code += "e = E('x', 'x', 'CartPole-v1', vectorization='subproc'); run_command(lambda a: make_envs(e, 2, 0), A, 'x')"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TMPDIR": str(folder)},
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "set TMPDIR to a shorter one" in done.stderr

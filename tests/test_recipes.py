"""Every shipped recipe loads and builds; errors name invalid recipes."""

import inspect
import itertools
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from sb3_contrib.common.maskable.utils import get_action_masks

from dhmm_rl.common import SequenceOnPolicyAlgorithm
from dhmm_rl.errors import InputError
from dhmm_rl.model import DHMMGPT2
from dhmm_rl.model.config import ModelSettings
from dhmm_rl.ppo import try_agent
from dhmm_rl.pretraining.settings import training_settings
from dhmm_rl.recipes import AgentRecipe, EnvRecipe, list_recipes, load_recipes, recipe_folder
from dhmm_rl.recipes.__main__ import Args, Check, Show, check_recipe, main
from dhmm_rl.recipes.agents import make_agent
from dhmm_rl.recipes.algorithms import ALGORITHMS
from dhmm_rl.recipes.environments import EnvFactory, make_envs, make_tokenizer, wrap
from dhmm_rl.recipes.reference import format_reference
from dhmm_rl.recipes.schema import FieldSettings, PolicySettings, PretrainSettings, TokenSettings


@pytest.mark.parametrize(("env", "agent"), [*itertools.product(list_recipes("envs"), list_recipes("agents"))])
def test_every_agent_builds_on_every_environment(env: str, agent: str) -> None:
    env_recipe, agent_recipe = load_recipes(env, agent)
    training_settings(agent_recipe).check()
    venv = make_envs(env_recipe, agent_recipe.n_envs, 0, agent_recipe)
    tokenizer = make_tokenizer(env_recipe, venv) if agent_recipe.reads_tokens else None
    built = make_agent(agent_recipe, wrap(venv, agent_recipe, tokenizer, training=True), 0, "cpu", None)
    assert built.get_vec_normalize_env() is not None or not agent_recipe.normalize_reward
    if tokenizer is not None:
        assert isinstance(built.policy.language_model, DHMMGPT2)


def test_names_without_a_recipe_are_looked_up_in_gymnasium() -> None:
    env, _ = load_recipes("Acrobot-v1", "mlp")
    assert env.id == "Acrobot-v1"


def test_an_environments_recipe_changes_an_agents(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('description = "x"\nid = "CartPole-v1"\n[agents.dhmm-gpt2.model]\nlayers = 3\n')
    _, changed = load_recipes(str(path), "dhmm-gpt2")
    _, plain = load_recipes("PendulumNoVel-v1", "dhmm-gpt2")
    assert changed.model == plain.model | {"layers": 3}


def test_an_environments_recipe_can_change_another_recipe_instead_of_the_agents_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'description = "x"\nid = "CartPole-v1"\n[agents.dhmm-gpt2]\nextends = "dhmm-gpt2-small"\n'
        "[agents.dhmm-gpt2.ppo]\ngamma = 0.9\n"
    )
    _, changed = load_recipes(str(path), "dhmm-gpt2")
    _, small = load_recipes("PendulumNoVel-v1", "dhmm-gpt2-small")
    _, own = load_recipes("PendulumNoVel-v1", "dhmm-gpt2")
    assert (changed.name, changed.description) == ("dhmm-gpt2", own.description)
    assert changed.model == small.model != own.model
    assert changed.ppo == small.ppo | {"gamma": 0.9}
    path.write_text('description = "x"\nid = "CartPole-v1"\n[agents.dhmm-gpt2]\nextends = "dhmm-gpt2-smal"\n')
    with pytest.raises(InputError, match="extends 'dhmm-gpt2-smal', which does not exist; did you mean 'dhmm-gpt2-small'"):
        load_recipes(str(path), "dhmm-gpt2")


def test_an_environment_can_be_another_in_evaluations(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'description = "x"\nid = "dhmm_rl/Copy-v0"\nkwargs = { base = 3, mixed = true }\neval_kwargs = { mixed = false }\n'
    )
    env, _ = load_recipes(str(path), "dhmm-gpt2")
    found = [make_envs(recipe, 1, 0).get_attr("unwrapped")[0] for recipe in (env, env.for_evaluation)]
    assert [(task.base, task.mixed) for task in found] == [(3, True), (3, False)]


@pytest.mark.parametrize("vectorization", ["dummy", "subproc", "gymnasium"])
def test_wrappers_are_put_on_in_their_order(vectorization: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        f'description = "x"\nid = "Taxi-v4"\nvectorization = "{vectorization}"\n[wrappers]\n'
        '"dhmm_rl.envs:InfoActionMask" = {}\n"gymnasium.wrappers:TimeLimit" = { max_episode_steps = 3 }\n'
    )
    venv = make_envs(load_recipes(str(path), "dhmm-gpt2")[0], 2, seed=0)
    observations = venv.reset()
    for t in range(7):
        masks = get_action_masks(venv)
        observations, _, dones, _ = venv.step(np.argmax(masks, axis=1))
        assert dones.tolist() == [t % 3 == 2] * 2
    taxi: Any = gym.make("Taxi-v4").unwrapped
    for mask, state in zip(get_action_masks(venv), observations, strict=True):
        np.testing.assert_array_equal(mask, taxi.action_mask(int(state)))
    venv.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("description = ", "not valid TOML"),
        ('description = "x"\nbudgt = 3', "did you mean 'budget'"),
        ("budget = 3", "lacks 'description'"),
        ('description = "x"\nid = "Nothing-v0"', "does not know"),
        (
            'description = "x"\nid = "CartPole-v1"\n[wrappers]\n"gymnasium.wrappers:TimLimt" = {}',
            "wrapper 'gymnasium",
        ),
        ('description = "x"\nid = "CartPole-v1"\n[wrappers]\n"TimeLimit" = {}', "is not of the form 'module:class'"),
        ('description = "x"\n[agents.mlp]\nextends = "lstn"', "extends 'lstn', which does not exist; did you mean 'lstm'"),
    ],
)
def test_bad_environments_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipes(str(path), "mlp")


def test_an_agents_bad_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('description = "x"\npolicy = "DHMMPolicy"\n[model]\nlayer = 2\n')
    with pytest.raises(InputError, match=r"has a key model.layer; did you mean 'layers'"):
        load_recipes("CartPole-v1", str(path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("n_steps = 0", "has ppo.n_steps = 0; it must be at least 1"),
        ("learning_rate = -1.0", "has ppo.learning_rate = -1.0; it must be a number, positive"),
        ('policy_kwargs = { activation_fn = "Relu" }', "activation_fn = 'Relu'; it must be one of Tanh, ReLU"),
    ],
)
def test_an_agents_bad_settings_are_named(settings: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(f'description = "x"\npolicy = "DHMMPolicy"\n[ppo]\n{settings}\n')
    with pytest.raises(InputError, match=message):
        load_recipes("Tiger-v0", str(path))


def test_settings_that_an_algorithm_refuses_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('description = "x"\npolicy = "MlpPolicy"\nalgorithm = "PPO"\n[ppo]\nbatch_size = 1\n')
    env, agent = load_recipes("Tiger-v0", str(path))
    with pytest.raises(InputError, match="settings of agent bad do not fit: `batch_size"):
        make_agent(agent, make_envs(env, 2, 0, agent), 0, "cpu", None)


def test_maskable_ppo_without_masks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('description = "x"\npolicy = "MlpPolicy"\nalgorithm = "MaskablePPO"\n')
    env, agent = load_recipes("Tiger-v0", str(path))
    with pytest.raises(InputError, match="needs an environment with action masks"):
        try_agent(EnvFactory(env, 0, agent), None, "cpu")


def test_the_module_before_a_colon_is_imported() -> None:
    env, _ = load_recipes("popgym:popgym-RepeatFirstEasy-v0", "mlp")
    assert env.id == "popgym:popgym-RepeatFirstEasy-v0"
    with pytest.raises(InputError, match="the module nowhere of the environment"):
        load_recipes("nowhere:Env-v0", "mlp")


def test_unknown_names_come_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="did you mean 'CartPole-v1'"):
        load_recipes("CartPoel-v1", "mlp")
    with pytest.raises(InputError, match="did you mean 'dhmm-gpt2'"):
        load_recipes("CartPole-v1", "dhmm-gpt")
    with pytest.raises(InputError, match="there is no recipe"):
        load_recipes("nowhere.toml", "mlp")


def write_agent(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def test_a_recipe_extends_another_key_by_key(tmp_path: Path) -> None:
    base = write_agent(tmp_path / "base.toml", 'extends = "dhmm-gpt2"\n[model]\nnum_states = 5\n[ppo]\nn_steps = 32\n')
    mine = write_agent(tmp_path / "sub/mine.toml", 'extends = "../base.toml"\ndescription = "mine"\n[model]\nlayers = 2\n')
    _, shipped = load_recipes("Acrobot-v1", "dhmm-gpt2")
    _, extended = load_recipes("Acrobot-v1", mine)
    assert (extended.name, extended.description, extended.extends) == ("mine", "mine", None)
    assert extended.model == shipped.model | {"num_states": 5, "layers": 2}
    assert extended.ppo == shipped.ppo | {"n_steps": 32}
    assert load_recipes("Acrobot-v1", base)[1].description == shipped.description


def test_changes_of_an_environment_for_a_base_apply_below_the_recipes_own_keys(tmp_path: Path) -> None:
    mine = write_agent(tmp_path / "mine.toml", 'extends = "dhmm-gpt2"\n[model]\nwindow = 4\n')
    env = tmp_path / "env.toml"
    env.write_text(
        'description = "x"\nid = "CartPole-v1"\n[agents.dhmm-gpt2]\nn_envs = 3\n'
        "[agents.dhmm-gpt2.model]\nwindow = 2\nlayers = 3\n[agents.mine.model]\nheads = 2\n"
    )
    _, agent = load_recipes(str(env), mine)
    assert agent.n_envs == 3
    assert (agent.model["window"], agent.model["layers"], agent.model["heads"]) == (4, 3, 2)


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ('"b.toml"', r"in a circle: a.toml extends b.toml extends a.toml$"),
        ('"a.toml"', r"in a circle: a.toml extends a.toml$"),
        ('"dhmm-gpt"', r"extends 'dhmm-gpt', which does not exist; did you mean 'dhmm-gpt2'"),
        ('"nowhere.toml"', r"extends 'nowhere.toml', which does not exist$"),
        ("3", r"has extends = 3; it must be the name or the path of an agent's recipe"),
    ],
)
def test_bases_that_do_not_exist_and_circles_are_refused(extends: str, message: str, tmp_path: Path) -> None:
    path = write_agent(tmp_path / "a.toml", f'extends = {extends}\ndescription = "x"\n')
    write_agent(tmp_path / "b.toml", 'extends = "a.toml"\n')
    with pytest.raises(InputError, match=message) as refused:
        load_recipes("CartPole-v1", path)
    assert "\n" not in str(refused.value)


def test_recipes_are_shown_as_toml_that_can_be_read_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(Args(Show("CartPole-v1", agent="lstm")))
    shown = capsys.readouterr().out
    assert "# observation space: Box(" in shown
    env_text, agent_text = shown.split("# agent, as the environment changes it\n")
    env, agent = load_recipes("CartPole-v1", "lstm")
    assert load_recipes(write_agent(tmp_path / "env.toml", env_text), "mlp")[0] == replace(env, agents={})
    assert load_recipes("Acrobot-v1", write_agent(tmp_path / "agent.toml", agent_text))[1] == agent
    main(Args(Show("Taxi-v4")))
    assert "# fields: action, observation\n" in capsys.readouterr().out


def test_recipes_are_checked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for folder, kind in (("agents", "an agent"), ("envs", "an environment")):
        for path in sorted(recipe_folder(folder).glob("*.toml")):
            assert f"is a valid recipe of {kind}: " in check_recipe(path)
    with pytest.raises(InputError, match="did you mean 'budget'"):
        check_recipe(Path(write_agent(tmp_path / "env.toml", 'description = "x"\nid = "CartPole-v1"\nbudgt = 3\n')))
    with pytest.raises(InputError, match=r"there is no recipe nowhere.toml; a recipe is a file that ends in .toml"):
        main(Args(Check(Path("nowhere.toml"))))


def test_the_reference_page_is_current() -> None:
    page = Path(__file__).parents[1] / "docs" / "recipe-reference.md"
    assert page.read_text(encoding="utf-8") == format_reference(), (
        "python -m dhmm_rl.recipes reference > docs/recipe-reference.md"
    )


def test_the_reference_page_lists_every_key() -> None:
    page = format_reference()
    kinds = [AgentRecipe, EnvRecipe, ModelSettings, PretrainSettings, TokenSettings, FieldSettings, PolicySettings]
    kinds += [algorithm.settings for algorithm in ALGORITHMS.values()]
    for kind in kinds:
        for field in fields(kind):
            assert f"| `{field.name}` |" in page, f"{kind.__name__}.{field.name}"
    for row in (line for line in page.splitlines() if line.startswith("| `")):
        key, values, default, meaning = re.split(r"(?<!\\) \| ", row.strip("| "))
        assert values, key
        assert default, key
        assert meaning.endswith("."), f"{key}: {meaning}"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_registry_of_algorithms_describes_their_classes(name: str) -> None:
    algorithm = ALGORITHMS[name]
    known = algorithm.load_class()
    assert known.__name__ == name
    assert set(algorithm.policies) <= known.policy_aliases.keys()
    assert algorithm.uses_cached_state == issubclass(known, SequenceOnPolicyAlgorithm)
    assert algorithm.takes_masks == ("action_masks" in inspect.signature(known.predict).parameters)
    assert algorithm.takes_masks or not algorithm.requires_masks

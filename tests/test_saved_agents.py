"""Files of agents: loading restores what was saved, all of one step, without pickle."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from dhmm_rl.errors import InputError
from dhmm_rl.model import DHMMGPT2, Checkpoint
from dhmm_rl.pretraining.teachers import load_teacher
from dhmm_rl.recipes import AgentRecipe, load_recipes
from dhmm_rl.recipes.agents import make_agent
from dhmm_rl.recipes.environments import make_envs, make_tokenizer, wrap
from dhmm_rl.runs.callbacks import CheckpointCallback, Clock, last_checkpoint, save_best
from dhmm_rl.runs.run import Run
from dhmm_rl.runs.saved_agents import AGENT, BEST_AGENT, SavedAgent, read_best, read_checkpoint, save_agent

SMALL = {"embed_size": 8, "heads": 1, "num_states": 2, "layers": 1, "window": 4}
PPO = {"n_steps": 16, "batch_size": 16, "n_epochs": 1}
TOKENS = {"policy": "DHMMPolicy", "model": SMALL, "normalize_reward": True}
PLAIN = {"algorithm": "PPO", "policy": "MlpPolicy", "normalize_reward": True, "normalize_observation": True}
AGENTS: dict[str, dict[str, Any]] = {
    "SequencePPO": TOKENS,
    "SequencePPO with a prior": TOKENS,
    "PPO on token streams": TOKENS | {"algorithm": "PPO"},
    "PPO": PLAIN,
    "PPO on stacked frames": PLAIN | {"frame_stack": 3},
    "MaskablePPO": PLAIN | {"algorithm": "MaskablePPO"},
    "RecurrentPPO": PLAIN | {"algorithm": "RecurrentPPO", "policy": "MlpLstmPolicy"},
}


def make(name: str, env_id: str = "CartPole-v1", seed: int = 0) -> tuple[AgentRecipe, VecEnv, Checkpoint | None]:
    recipe = AgentRecipe(name, "small", n_envs=2, ppo=PPO, **AGENTS[name])
    env_recipe, _ = load_recipes(env_id, "dhmm-gpt2")
    venv = make_envs(env_recipe, 2, seed, recipe)
    tokenizer = make_tokenizer(env_recipe, venv) if recipe.reads_tokens else None
    pretrained = None
    if name.endswith("prior"):
        assert tokenizer is not None
        pretrained = Checkpoint(DHMMGPT2.from_tokenizer(tokenizer, **SMALL), tokenizer, {"imitates": True})
    return recipe, wrap(venv, recipe, tokenizer, training=True), pretrained


def trained(name: str, *callbacks: BaseCallback, steps: int = 64) -> tuple[AgentRecipe, OnPolicyAlgorithm]:
    recipe, env, pretrained = make(name)
    agent = make_agent(recipe, env, 0, "cpu", pretrained)
    learn(agent, steps, callback=list(callbacks))
    return recipe, agent


def learn(agent: Any, steps: int, **settings: Any) -> None:
    agent.learn(steps, **settings, **({"use_masking": False} if isinstance(agent, MaskablePPO) else {}))


def weights(agent: OnPolicyAlgorithm) -> dict[str, NDArray[Any]]:
    return {name: value.numpy().copy() for name, value in agent.policy.state_dict().items()}


def optimizer(agent: OnPolicyAlgorithm) -> dict[str, Any]:
    state = agent.policy.optimizer.state_dict()
    moments = {i: {name: value.numpy() for name, value in each.items()} for i, each in state["state"].items()}
    return {"moments": moments, "settings": state["param_groups"]}


def statistics(env: VecEnv | None) -> dict[str, NDArray[Any]]:
    assert isinstance(env, VecNormalize)
    kept = {"ret": env.ret_rms} | ({"obs": env.obs_rms} if env.norm_obs else {})
    return {f"{of}.{what}": np.array(getattr(rms, what)) for of, rms in kept.items() for what in ("mean", "var", "count")}


def restored(saved: SavedAgent, name: str, recipe: AgentRecipe) -> OnPolicyAlgorithm:
    _, env, _ = make(name, seed=5)
    env = saved.restore_normalization(env, training=True)
    return saved.build(recipe, env)


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_comes_back_as_it_was_saved_and_learns_on_alike(name: str, tmp_path: Path) -> None:
    recipe, agent = trained(name)
    save_agent(agent, tmp_path / AGENT)
    again = restored(read_checkpoint(tmp_path, "cpu"), name, recipe)
    same_seed = restored(read_checkpoint(tmp_path, "cpu"), name, recipe)
    np.testing.assert_equal(weights(again), weights(agent))
    np.testing.assert_equal(statistics(again.env), statistics(agent.env))
    np.testing.assert_equal(optimizer(again), optimizer(agent))
    assert list(again.ep_info_buffer or []) == list(agent.ep_info_buffer or [])
    kept, other = (
        {key: value for key, value in vars(one).items() if isinstance(value, int | float | str)} for one in (again, agent)
    )
    for key in ("_total_timesteps", "_num_timesteps_at_start", "start_time"):  # learn sets them
        kept.pop(key), other.pop(key)
    assert kept == other
    for one in (again, same_seed):
        one.set_random_seed(7)
        learn(one, 32, reset_num_timesteps=False)
    assert again.num_timesteps == 96
    np.testing.assert_equal(weights(again), weights(same_seed))


@pytest.mark.parametrize("name", ["SequencePPO", "PPO"])
def test_what_is_kept_of_the_best_agent_and_of_a_checkpoint_is_one_file_of_one_step(name: str, tmp_path: Path) -> None:
    seen: dict[int, tuple[Any, Any]] = {}

    class Remember(BaseCallback):
        def _on_rollout_start(self) -> None:
            seen[self.num_timesteps] = weights(agent), statistics(self.model.get_vec_normalize_env())

        def _on_step(self) -> bool:
            return True

    recipe, env, pretrained = make(name)
    agent = make_agent(recipe, env, 0, "cpu", pretrained)
    agent.learn(128, callback=[Remember(), CheckpointCallback(tmp_path, 32, Clock())])
    folder = last_checkpoint(tmp_path)
    assert folder is not None
    assert folder.name == "96"
    again = restored(read_checkpoint(folder, "cpu"), name, recipe)
    np.testing.assert_equal((weights(again), statistics(again.env)), seen[96])
    save_best(agent, tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))
    again = restored(read_best(tmp_path, "cpu"), name, recipe)
    np.testing.assert_equal((weights(again), statistics(again.env)), (weights(agent), statistics(agent.env)))
    assert type(agent).load(tmp_path / "best_model.zip").num_timesteps == 128, "SB3's own load"


def test_a_file_of_another_agent_is_refused_in_a_line(tmp_path: Path) -> None:
    for name in ("SequencePPO", "PPO", "RecurrentPPO"):
        save_agent(trained(name, steps=32)[1], tmp_path / name / BEST_AGENT)
    for name in ("SequencePPO", "PPO", "RecurrentPPO"):
        for other in {"SequencePPO", "PPO", "RecurrentPPO"} - {name}:
            with pytest.raises(InputError, match="is of another run"):
                read_best(tmp_path / other, "cpu").build(make(name)[0])
    for name in ("SequencePPO", "PPO"):
        recipe, env, _ = make(name, "Acrobot-v1")
        with pytest.raises(InputError, match="is of another run: its agent sees"):
            read_best(tmp_path / name, "cpu").build(recipe, env)
        with pytest.raises(InputError, match="is of another run: its agent sees"):
            read_best(tmp_path / name, "cpu").restore_normalization(env, training=False)
    wider = make("SequencePPO")[0]
    wider.model["embed_size"] = 16
    with pytest.raises(InputError, match="cannot be read"):
        read_best(tmp_path / "SequencePPO", "cpu").build(wider)
    wider.model["embed_size"] = 8


def test_a_runs_folder_is_a_teacher_without_trust(tmp_path: Path) -> None:
    recipe, agent = trained("PPO")
    run = Run.create(
        tmp_path, "ppo", load_recipes("CartPole-v1", "dhmm-gpt2")[0], recipe, 0, {"steps": 64, "pretrained": "none"}
    )
    save_agent(agent, run.folder / BEST_AGENT)
    plain = make_envs(run.env, 2, 0)
    notices: list[str] = []
    teacher = load_teacher(run.folder, plain, "CartPole-v1", notices.append)
    assert "best_agent.pt" in notices[0]
    normalize = agent.get_vec_normalize_env()
    assert normalize is not None
    observations = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32) * 2
    np.testing.assert_array_equal(teacher.prepare(observations), normalize.normalize_obs(observations))
    ours = teacher.predict(observations, deterministic=True)[0]
    np.testing.assert_array_equal(ours, agent.predict(normalize.normalize_obs(observations), deterministic=True)[0])
    with pytest.raises(InputError, match="the teacher sees"):
        load_teacher(run.folder, make_envs(load_recipes("Acrobot-v1", "dhmm-gpt2")[0], 1, 0), "Acrobot-v1")

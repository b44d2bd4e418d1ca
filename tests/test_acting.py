"""
An actor never acts forgetfully: it does what the model would do with its state, or it refuses.

The tests of questions follow the sections of ``docs/faq.md``, in their order.
"""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from dhmm_rl import Acting, SequencePPO, VecTokenStream
from dhmm_rl.common import DHMMFeaturesExtractor, WithActionMasks
from dhmm_rl.errors import InputError
from dhmm_rl.recipes import AgentRecipe, load_recipes
from dhmm_rl.recipes.agents import make_agent
from dhmm_rl.recipes.environments import make_envs, make_tokenizer, wrap
from dhmm_rl.runs.run import Run
from dhmm_rl.runs.saved_agents import BEST_AGENT, save_agent

ENV = "dhmm_rl/CartPoleNoVel-v1"
SMALL = {"embed_size": 16, "heads": 2, "num_states": 4, "window": 4}


def streams(env: Any = ENV, n_envs: int = 3, history: int = 1, seed: int = 0) -> VecTokenStream:
    return VecTokenStream(make_vec_env(env, n_envs, seed=seed), history=history)


def agent(env: Any = None, **settings: Any) -> SequencePPO:
    """A small agent with random weights, so that its actions depend on what it remembers."""
    settings = {"n_steps": 8, "batch_size": 8} | settings
    policy_kwargs = {"features_extractor_kwargs": SMALL} | settings.pop("policy_kwargs", {})
    model = SequencePPO("DHMMPolicy", env or streams(), policy_kwargs=policy_kwargs, seed=0, **settings)
    with torch.no_grad():
        model.policy.language_model.head.add_(torch.randn_like(model.policy.language_model.head))
    return model


def played(model: Any, env: Any, steps: int = 40) -> list[Any]:
    """What ``predict`` does in wrapped environments when its state is passed back in: the actions of every step."""
    observation, state, starts, actions = env.reset(), None, np.ones(env.num_envs, dtype=bool), []
    for _ in range(steps):
        action, state = model.predict(observation, state, starts, deterministic=True)
        observation, _, starts, _ = env.step(action)
        actions.append(action)
    return actions


def acted(acting: Acting, env: Any, steps: int = 40) -> list[Any]:
    """What an actor does on raw observations."""
    observation, starts, actions = env.reset(), np.ones(env.num_envs, dtype=bool), []
    for _ in range(steps):
        action = acting.act(observation, reset=starts)
        observation, _, starts, _ = env.step(action)
        actions.append(action)
    return actions


def test_question_1_episodes_begin_where_reset_says_so_and_nowhere_else() -> None:
    model = agent()
    np.testing.assert_array_equal(acted(Acting(model), make_vec_env(ENV, 3, seed=0)), played(model, streams()))
    acting = Acting(model)
    observation: Any = make_vec_env(ENV, 3, seed=0).reset()
    with pytest.raises(InputError, match="reset=True"):
        acting.act(observation)
    with pytest.raises(InputError, match="reset=True"):
        acting.act(observation, reset=[True, False, True])
    with pytest.raises(InputError, match="3 environments"):
        acting.act(observation, reset=[True, True])
    acting.act(observation, reset=True)
    first = acting.state
    assert first is not None
    acting.act(observation + 0.1)
    acting.act(observation, reset=[True, True, True])
    assert acting.state is not None
    torch.testing.assert_close(acting.state.memory.belief, first.memory.belief)


def test_question_1_a_policy_can_require_its_state() -> None:
    model = agent(policy_kwargs={"require_state": True})
    env = streams()
    observation: Any = env.reset()
    action, state = model.predict(observation)
    observation, *_ = env.step(action)
    with pytest.raises(InputError, match="has forgotten the episode"):
        model.predict(observation)
    model.predict(observation, state)


def test_question_2_evaluate_policy_takes_actors_on_plain_environments() -> None:
    model = agent()
    found = evaluate_policy(Acting(model), make_vec_env(ENV, 3, seed=5), 6, return_episode_rewards=True)
    assert found == evaluate_policy(model, streams(seed=5), 6, return_episode_rewards=True)
    observation: Any = make_vec_env(ENV, 3, seed=0).reset()
    acting = Acting(model)
    for starts in (None, np.array([True, True, False])):
        with pytest.raises(InputError, match="without a state"):
            acting.predict(observation, episode_start=starts)
    _, state = acting.predict(observation, episode_start=np.ones(3))
    again = [acting.predict(observation, state, np.zeros(3), deterministic=True)[0] for _ in range(2)]
    np.testing.assert_array_equal(*again)  # a state can be used again


def test_question_3_memory_is_longer_than_the_segments_of_training() -> None:
    raw, stream = make_vec_env(lambda: gym.make("Pendulum-v1"), 1, seed=0), streams(lambda: gym.make("Pendulum-v1"), 1)
    model = agent(stream, n_steps=4, batch_size=4)
    acting, steps = Acting(model), []
    observation: Any = raw.reset()
    tokens, start = stream.reset(), np.ones(1, dtype=bool)
    for _ in range(30):
        steps.append(np.asarray(tokens)[:, -1])
        action = acting.act(observation, reset=start)
        observation, _, start, _ = raw.step(action)
        tokens, *_ = stream.step(action)
    whole = model.policy.language_model.hidden_states(torch.as_tensor(np.stack(steps, axis=1)))
    assert acting.state is not None
    torch.testing.assert_close(acting.state.memory.belief, whole.belief[:, -1])


def test_question_4_stacked_frames_are_part_of_what_is_remembered() -> None:
    stacked = VecFrameStack(make_vec_env(ENV, 3, seed=0), 4)
    model: Any = PPO("MlpPolicy", stacked, n_steps=8, batch_size=8, seed=0)
    expected = played(model, stacked)
    np.testing.assert_array_equal(acted(Acting(model), make_vec_env(ENV, 3, seed=0)), expected)
    with pytest.raises(InputError, match="its space has"):  # an agent with memory is shown one frame
        Acting(agent()).act(np.asarray(stacked.reset()), reset=True)
    with pytest.raises(InputError, match="shape"):
        Acting(model).act(np.asarray(stacked.reset()), reset=True)


class Masked(gym.Env[Any, Any]):
    """Of three actions one is forbidden, another one in every step."""

    observation_space, action_space = gym.spaces.Discrete(3), gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return 0, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_masks()[action]
        self.steps += 1
        return self.steps % 3, 0.0, self.steps == 7, False, {}

    def action_masks(self) -> NDArray[np.bool_]:
        masks: NDArray[np.bool_] = np.arange(3) != self.steps % 3
        return masks


def test_question_5_masks_and_memory_go_together_and_neither_is_left_out(tmp_path: Path) -> None:
    model = agent(streams(Masked))
    model.save(tmp_path / "model")
    for masked in (model, SequencePPO.load(tmp_path / "model")):
        acting, env = Acting(masked, deterministic=False), Masked()
        observation, start = env.reset()[0], True
        for _ in range(7):
            action = acting.act(observation, masks=env.action_masks(), reset=start)
            observation, start = env.step(action)[0], False
        with pytest.raises(InputError, match="masks="):
            acting.act(0)
    raw = make_vec_env(Masked, 3)
    evaluate_policy(WithActionMasks(Acting(model), raw), raw, 6, warn=False)
    plain = Acting(PPO("MlpPolicy", make_vec_env(ENV, 1), n_steps=8, batch_size=8))
    with pytest.raises(InputError, match="cannot obey action masks"):
        plain.act(np.zeros(4), masks=np.ones(2, dtype=bool), reset=True)


def test_question_6_the_number_of_environments_stays_the_same_within_episodes() -> None:
    acting = Acting(agent())
    acting.act(np.zeros((3, 4)), reset=True)
    with pytest.raises(InputError, match="remembers 3 environments and was given observations of 2"):
        acting.act(np.zeros((2, 4)))
    with pytest.raises(InputError, match="remembers 3"):
        acting.act(np.zeros(4))
    assert acting.act(np.zeros((2, 4)), reset=True).shape == (2,)
    assert np.shape(acting.act(np.zeros(4), reset=True)) == ()


def run_of(tmp_path: Path, **changes: Any) -> tuple[Run, Any, AgentRecipe]:
    """A run's folder with an agent of random weights."""
    env_recipe, _ = load_recipes("CartPole-v1", "dhmm-gpt2")
    recipe = AgentRecipe("small", "small", n_envs=2, ppo={"n_steps": 16, "batch_size": 16}, **changes)
    env = make_envs(env_recipe, 2, 0, recipe)
    tokenizer = make_tokenizer(env_recipe, env) if recipe.reads_tokens else None
    made = make_agent(recipe, wrap(env, recipe, tokenizer, training=True), 0, "cpu", None)
    made.learn(64)
    run = Run.create(tmp_path, "ppo", env_recipe, recipe, 0, {"steps": 64, "pretrained": "none"})
    save_agent(made, run.folder / BEST_AGENT)
    return run, made, recipe


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": "DHMMPolicy", "model": SMALL},
        {"policy": "DHMMPolicy", "model": SMALL, "algorithm": "PPO"},
        {"policy": "MlpPolicy", "algorithm": "PPO", "frame_stack": 3, "normalize_observation": True},
        {"policy": "MlpLstmPolicy", "algorithm": "RecurrentPPO", "normalize_observation": True},
    ],
    ids=["SequencePPO", "PPO on windows", "stacked frames", "LSTM"],
)
def test_question_7_a_saved_agent_acts_as_it_did(changes: dict[str, Any], tmp_path: Path) -> None:
    run, made, recipe = run_of(tmp_path, **changes)
    env = make_vec_env("CartPole-v1", 3, seed=0)
    np.testing.assert_array_equal(acted(Acting(run.folder), env), acted(Acting(made), make_vec_env("CartPole-v1", 3, seed=0)))
    # The environments as the commands wrap them, and the state as SB3 passes it.
    tokenizer = getattr(made.observation_space, "tokenizer", None)
    wrapped = wrap(make_envs(run.env, 3, 0, recipe), recipe, tokenizer, training=False)
    if isinstance(wrapped, VecNormalize):
        wrapped.obs_rms = made.get_vec_normalize_env().obs_rms
    expected = played(made, wrapped)
    np.testing.assert_array_equal(acted(Acting(run.folder), make_vec_env("CartPole-v1", 3, seed=0)), expected)


def test_question_7_training_in_the_middle_of_an_episode_ends_what_is_remembered(tmp_path: Path) -> None:
    model = agent()
    acting = Acting(model)
    acting.act(np.zeros(4), reset=True)
    model.learn(24)
    with pytest.raises(InputError, match="was trained in the middle"):
        acting.act(np.zeros(4))
    acting.act(np.zeros(4), reset=True)
    with pytest.raises(InputError, match="trained agent"):
        Acting(Run.create(tmp_path, "ppo", *load_recipes("CartPole-v1", "dhmm-gpt2"), 0, {}).folder)
    with pytest.raises(InputError, match="needs a trained model"):
        Acting(model.policy)


def test_question_8_the_stream_continues_with_the_action_that_was_taken() -> None:
    model = agent()
    acting, env = Acting(model, deterministic=False), streams(n_envs=1)
    acting.model.set_random_seed(0)
    tokens, observation, start = np.asarray(env.reset()), make_vec_env(ENV, 1, seed=0), True
    raw = observation.reset()
    for _ in range(8):
        action = acting.act(raw, reset=start)
        assert acting.state is not None
        np.testing.assert_array_equal(acting.state.inputs, tokens)
        tokens, (raw, *_), start = np.asarray(env.step(action)[0]), observation.step(action), False
    greedy = {int(Acting(model).act(np.zeros(4), reset=True)) for _ in range(20)}
    assert len(greedy) == 1
    assert len({int(acting.act(np.zeros(4), reset=True)) for _ in range(50)}) == 2
    assert {int(acting.act(np.zeros(4), reset=True, deterministic=True)) for _ in range(20)} == greedy


@pytest.mark.parametrize("name", ["PPO", "A2C", "DQN", "RecurrentPPO"])
def test_question_9_other_policies_keep_what_they_need(name: str) -> None:
    env = make_vec_env(ENV, 3, seed=0) if name == "RecurrentPPO" else streams(history=4)
    extractor = {
        "features_extractor_class": DHMMFeaturesExtractor,
        "features_extractor_kwargs": SMALL,
        "normalize_images": False,
    }
    make: dict[str, Any] = {
        "PPO": lambda: PPO("DHMMPolicy", env, n_steps=8, batch_size=8, seed=0),
        "A2C": lambda: A2C("MlpPolicy", env, policy_kwargs=extractor, seed=0),
        "DQN": lambda: DQN("MlpPolicy", env, policy_kwargs={**extractor, "net_arch": [8]}, buffer_size=10, seed=0),
        "RecurrentPPO": lambda: RecurrentPPO("MlpLstmPolicy", env, n_steps=8, batch_size=8, seed=0),
    }
    model = make[name]()
    expected = played(model, env)
    np.testing.assert_array_equal(acted(Acting(model), make_vec_env(ENV, 3, seed=0)), expected)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_gymnasiums_vector_environments_and_one_environment_act_alike(mode: AutoresetMode) -> None:
    model = agent()
    several = gym.make_vec(ENV, 2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
    ones = [gym.make(ENV) for _ in range(2)]
    acting, alone = Acting(model), [Acting(model) for _ in ones]
    observations = several.reset(seed=0)[0]
    raw, start = [one.reset(seed=i)[0] for i, one in enumerate(ones)], np.ones(2, dtype=bool)
    starts, ended = start.copy(), np.zeros(2, dtype=bool)
    for _ in range(60):
        actions = acting.act(observations, reset=starts)
        observations, _, terminated, truncated, _ = several.step(actions)
        for i, one in enumerate(ones):
            if mode is AutoresetMode.NEXT_STEP and ended[i]:
                continue  # the step after the last one of an episode only resets
            assert alone[i].act(raw[i], reset=bool(start[i])) == actions[i]
            raw[i], _, over, late, _ = one.step(actions[i])
            start[i] = over or late
            if start[i]:
                raw[i] = one.reset()[0]
        starts, ended = (terminated | truncated if mode is AutoresetMode.SAME_STEP else ended), terminated | truncated

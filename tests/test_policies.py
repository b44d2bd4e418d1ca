"""DHMMPolicy in stock SB3."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from dhmm_rl.common import ActionTokens, DHMMPolicy, LanguageModelActor
from dhmm_rl.envs import TokenSpace, TokenStream, VecTokenStream
from dhmm_rl.errors import InputError
from dhmm_rl.model import DHMMGPT2, HiddenStates
from dhmm_rl.sequence_ppo import SequencePPO
from dhmm_rl.tokens import Tokenizer

SMALL = {"embed_size": 32, "heads": 2, "num_states": 4}


def small(**settings: Any) -> dict[str, Any]:
    return {"features_extractor_kwargs": SMALL | settings}


class RepeatCue(gym.Env[np.int64, np.int64]):
    """The first of three steps shows a cue; repeating it at the last step gives reward 1. Without memory the mean is 1/2."""

    observation_space = spaces.Discrete(3)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.int64, dict[str, Any]]:
        super().reset(seed=seed)
        self.cue, self.t = np.int64(self.np_random.integers(2)), 0
        return self.cue, {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.int64(2), float(self.t == 3 and action == self.cue), self.t == 3, False, {}


@pytest.mark.parametrize("algorithm", [PPO, A2C])
@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_stock_algorithms_take_it_by_name_and_save_and_load_it(algorithm: type[Any], name: str, tmp_path: Path) -> None:
    env = VecNormalize(make_vec_env(lambda: TokenStream(gym.make(name), history=4), 2, seed=0), norm_obs=False)
    model = algorithm("DHMMPolicy", env, n_steps=32, seed=0, policy_kwargs=small())
    evaluation = make_vec_env(lambda: TokenStream(gym.make(name), history=4), 2, seed=1)
    callback = EvalCallback(
        VecNormalize(evaluation, norm_obs=False, norm_reward=False, training=False), n_eval_episodes=2, eval_freq=32, verbose=0
    )
    model.learn(128, callback=callback)
    assert np.isfinite(callback.last_mean_reward)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=env)
    observation = env.reset()
    assert (loaded.predict(observation, deterministic=True)[0] == model.predict(observation, deterministic=True)[0]).all()
    assert loaded.observation_space.tokenizer == model.observation_space.tokenizer
    model.policy.save(str(tmp_path / "policy"))
    policy = DHMMPolicy.load(str(tmp_path / "policy"))
    assert (policy.predict(observation, deterministic=True)[0] == model.predict(observation, deterministic=True)[0]).all()
    loaded.learn(64)
    returns, _ = evaluate_policy(loaded, evaluation, n_eval_episodes=2)
    assert np.isfinite(returns)


@pytest.mark.filterwarnings("ignore:rich is experimental")  # SB3 asks for that bar
def test_progress_bar_works(capfd: pytest.CaptureFixture[str]) -> None:
    env = TokenStream(gym.make("CartPole-v1"), history=4)
    PPO("DHMMPolicy", env, n_steps=32, batch_size=32, n_epochs=1, policy_kwargs=small()).learn(32, progress_bar=True)
    out, err = capfd.readouterr()
    assert "100%" in out + err


def test_a_model_refuses_streams_of_another_tokenizer(tmp_path: Path) -> None:
    env = gym.make("CartPole-v1")
    PPO("DHMMPolicy", TokenStream(env, history=4), n_steps=64, policy_kwargs=small()).save(tmp_path / "model")
    finer = Tokenizer(env.observation_space, env.action_space, bins=20)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        PPO.load(tmp_path / "model", env=TokenStream(env, finer, history=4))


def test_plain_observations_are_refused_with_what_to_do() -> None:
    with pytest.raises(InputError, match="wrap the environment in TokenStream"):
        PPO("DHMMPolicy", gym.make("CartPole-v1"))
    with pytest.raises(InputError, match="gSDE"):
        PPO("DHMMPolicy", TokenStream(gym.make("Pendulum-v1")), use_sde=True)


def test_normalized_ids_are_refused_not_read_as_other_ids() -> None:
    """By default, VecNormalize normalizes observations too."""
    env = VecNormalize(make_vec_env(lambda: TokenStream(gym.make("CartPole-v1"), history=4), 2, seed=0))
    with pytest.raises(InputError, match="norm_obs=False"):
        PPO("DHMMPolicy", env, n_steps=16, batch_size=32, policy_kwargs=small()).learn(32)
    model = SequencePPO("DHMMPolicy", env, n_steps=16, batch_size=32, policy_kwargs=small())
    with pytest.raises(InputError, match="norm_obs=False"):
        model.predict(np.asarray(env.reset()))
    with pytest.raises(InputError, match="norm_obs=False"):
        model.learn(32)


def test_the_same_seed_gives_the_same_agent() -> None:
    agents = []
    for seed in (3, 3, 4):
        env = make_vec_env(lambda: TokenStream(gym.make("CartPole-v1"), history=4), 2, seed=seed)
        agents.append(PPO("DHMMPolicy", env, n_steps=64, n_epochs=2, seed=seed, policy_kwargs=small()).learn(256))
    first, second, other = (torch.cat([p.detach().flatten() for p in agent.policy.parameters()]) for agent in agents)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_probability_ratio_is_one_before_the_first_gradient_step() -> None:
    env = VecTokenStream(make_vec_env("CartPole-v1", 4, seed=0), history=6)
    model = PPO(DHMMPolicy, env, n_steps=64, policy_kwargs=small(), seed=0)
    _, callback = model._setup_learn(256)
    model.collect_rollouts(env, callback, model.rollout_buffer, 64)
    model.policy.set_training_mode(True)
    for batch in model.rollout_buffer.get(64):
        _, log_prob, _ = model.policy.evaluate_actions(batch.observations, batch.actions)
        assert ((log_prob - batch.old_log_prob).exp() - 1).abs().max() < 1e-4


def test_a_new_policy_is_uniform() -> None:
    for name in ("CartPole-v1", "Pendulum-v1"):
        env = TokenStream(gym.make(name), history=4)
        policy = PPO("DHMMPolicy", env).policy
        window, _ = env.reset(seed=0)
        entropy = policy.get_distribution(policy.obs_to_tensor(window)[0]).entropy()
        assert entropy is not None
        assert abs(entropy.item() - np.log(2 if name == "CartPole-v1" else 10)) < 0.01


def test_actions_of_several_fields_are_a_normalized_distribution() -> None:
    space = spaces.Box(-1, 1, (2,))
    tokenizer = Tokenizer(spaces.Discrete(3), space, bins=4)
    model = DHMMGPT2.from_tokenizer(tokenizer, embed_size=16, heads=2, num_states=3)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    grid = np.array([[x, y] for x in (-0.75, -0.25, 0.25, 0.75) for y in (-0.75, -0.25, 0.25, 0.75)])
    hidden, belief, parameters = model.hidden_states(torch.as_tensor(tokenizer.first_step(np.zeros(1)))[None])
    distribution = ActionTokens(model, tokenizer).proba_distribution(
        HiddenStates(hidden.expand(16, -1, -1), belief.expand(16, -1, -1, -1), parameters)
    )
    probability = distribution.log_prob(torch.as_tensor(grid)).exp()
    assert abs(probability.sum().item() - 1) < 1e-5
    assert probability.std() > 0.005
    many = ActionTokens(model, tokenizer).proba_distribution(
        HiddenStates(hidden.expand(40_000, -1, -1), belief.expand(40_000, -1, -1, -1), parameters)
    )
    drawn = many.sample().numpy()
    found = np.array([(np.abs(drawn - action).max(axis=1) < 1e-6).mean() for action in grid])
    assert np.abs(found - probability.detach().numpy()).max() < 0.01
    exact = -(probability * probability.log()).sum().item()
    entropy = many.entropy()
    assert abs(entropy.mean().item() - exact) < 0.02


def test_distance_from_uniform() -> None:
    model = DHMMGPT2.from_tokenizer(tokenizer := Tokenizer(spaces.Discrete(3), spaces.Discrete(4)), embed_size=16, heads=2)
    states = model.hidden_states(torch.as_tensor(tokenizer.first_step(np.int64(1)))[None, None])
    for mask in ([True] * 4, [True, False, True, True], [False, False, True, False]):
        legal = torch.tensor([mask])
        distribution = ActionTokens(model, tokenizer).proba_distribution(states, legal)
        assert distribution.kl_from_uniform().abs() < 0.001  # a new policy is almost uniform
    with torch.no_grad():
        model.head[2:6] += torch.randn(4, 16)
    distribution = ActionTokens(model, tokenizer).proba_distribution(states, torch.tensor([[True, False, True, True]]))
    log_probs = distribution.slot_log_probs()
    ours = torch.distributions.Categorical(logits=log_probs[log_probs.isfinite()])
    theirs = torch.distributions.kl_divergence(torch.distributions.Categorical(probs=torch.ones(3)), ours)
    assert theirs > 0.01
    assert abs(distribution.kl_from_uniform().item() - theirs.item()) < 1e-5


def test_only_the_pull_to_uniform_reaches_a_policy_that_is_certain() -> None:
    model = DHMMGPT2.from_tokenizer(tokenizer := Tokenizer(spaces.Discrete(3), spaces.Discrete(2)), embed_size=16, heads=2)
    states = model.hidden_states(torch.as_tensor(tokenizer.first_step(np.int64(1)))[None, None])
    with torch.no_grad():
        model.head[2] += 15 * states.hidden[0, 0] / states.hidden.square().sum()  # so much likelier than the other
    distribution = ActionTokens(model, tokenizer).proba_distribution(states)
    pulls = []
    for loss in (-distribution.entropy(), distribution.kl_from_uniform()):
        (gradient,) = torch.autograd.grad(loss, model.head, retain_graph=True)
        pulls.append(gradient[2:4].norm().item())
    assert pulls[0] < 1e-4 * pulls[1]


def test_gradients_reach_every_part_of_the_model() -> None:
    env = VecTokenStream(make_vec_env("CartPole-v1", 4, seed=0), history=6)
    model = PPO(DHMMPolicy, env, n_steps=32, policy_kwargs=small())
    window = torch.as_tensor(env.reset())
    for _ in range(20):
        window = torch.as_tensor(env.step(env.action_space.sample()[None].repeat(4))[0])
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    values, log_prob, _ = model.policy.evaluate_actions(window, torch.tensor([0, 1, 1, 0]))
    torch.autograd.backward(values.sum() + log_prob.sum())
    for name, parameter in model.policy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("num_states", [0, 4])
def test_it_learns_what_needs_memory(seed: int, num_states: int) -> None:
    env = make_vec_env(lambda: TokenStream(RepeatCue(), history=4), 8, seed=seed)
    model = PPO(
        "DHMMPolicy",
        env,
        n_steps=32,
        batch_size=64,
        n_epochs=4,
        learning_rate=LinearSchedule(1e-3, 0.0, 1.0),
        ent_coef=0.01,
        seed=seed,
        policy_kwargs=small(num_states=num_states),
    )
    model.learn(5_000)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=200, warn=False)
    assert np.mean(mean) >= 0.95


def test_a_policy_starts_from_a_pretrained_model_of_the_same_build_only(cartpole: Tokenizer) -> None:
    model = PPO("DHMMPolicy", TokenStream(gym.make("CartPole-v1"), cartpole), policy_kwargs=small())
    pretrained = DHMMGPT2.from_tokenizer(cartpole, **SMALL)
    assert isinstance(model.policy, DHMMPolicy)
    model.policy.load_language_model(pretrained)
    assert torch.equal(model.policy.language_model.embedding.weight, pretrained.embedding.weight)
    with pytest.raises(InputError, match="embed_size = 64"):
        model.policy.load_language_model(DHMMGPT2.from_tokenizer(cartpole, **SMALL | {"embed_size": 64}))


def test_the_language_model_acts_as_the_parallel_pass_says(cartpole: Tokenizer) -> None:
    model = DHMMGPT2.from_tokenizer(cartpole, **SMALL, window=5).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    actor = LanguageModelActor(model, cartpole)
    env = make_vec_env("CartPole-v1", 2, seed=0)
    observation: NDArray[Any] = np.asarray(env.reset())
    start, state = np.ones(2, dtype=bool), None
    streams: list[list[NDArray[np.int64]]] = [[], []]
    action = np.zeros(2, dtype=int)
    chosen = set()
    for _ in range(60):
        for i in range(2):
            step = cartpole.first_step(observation[i]) if start[i] else cartpole.next_step(action[i], observation[i])
            streams[i] = [step] if start[i] else [*streams[i], step]
        action, state = actor.predict(observation, state, start)
        for i in range(2):
            logits = model(torch.as_tensor(np.stack(streams[i]))[None]).logits[0, -1, 0]
            assert action[i] == int(logits[1] < logits[2]) == cartpole.decode_action([2 + int(logits[1:3].argmax())])
        chosen |= set(action.tolist())
        observation, _, start, _ = env.step(action)  # type: ignore[assignment]
    assert isinstance(TokenStream(gym.make("CartPole-v1")).observation_space, TokenSpace)
    mean, _ = evaluate_policy(actor, env, n_eval_episodes=4)  # type: ignore[arg-type]
    assert np.mean(mean) > 0

"""SequencePPO: acting on a cached state and training on segments are the same computation."""

import warnings
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecVideoRecorder

from dhmm_rl import DHMMGPT2, InputError, SequencePPO, Tokenizer, TokenStream, VecTokenStream
from dhmm_rl.common import (
    ActionTokens,
    EvalCallbackWithMasks,
    LanguageModelActor,
    SequenceOnPolicyAlgorithm,
    WithActionMasks,
)
from dhmm_rl.data import collect as collect_episodes
from dhmm_rl.model import Checkpoint
from dhmm_rl.sequence_ppo.sequence_ppo import FACTOR_STEP, LOWEST_FACTOR
from tests.test_policies import SMALL, RepeatCue, small

Algorithm = TypeVar("Algorithm", bound=SequenceOnPolicyAlgorithm)


def streams(name: str = "CartPole-v1", n_envs: int = 4, max_episode_steps: int = 15, history: int = 1) -> VecEnv:
    return VecTokenStream(make_vec_env(lambda: TimeLimit(gym.make(name), max_episode_steps), n_envs, seed=0), history=history)


def shaken(model: Algorithm) -> Algorithm:
    """Return the agent with random weights, so that every part of the model matters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def collect(model: SequenceOnPolicyAlgorithm) -> None:
    _, callback = model._setup_learn(10**6, reset_num_timesteps=False)
    assert model.env is not None
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


BUILDS = [
    {"layers": 1, "window": 8, "num_states": 4},
    {"layers": 2, "window": 20, "num_states": 0},  # the burn-in is longer than a rollout
    {"layers": 2, "window": 20, "num_states": 4, "chains": 2, "control": "all"},
    {"layers": 2, "window": 10, "num_states": 4, "positions": "both"},
    {"layers": 0, "num_states": 6},
    {"layers": 1, "window": 20, "num_states": 0, "positions": "learned", "max_len": 16},  # an episode has at most 16 steps
    {"layers": 1, "window": 8, "num_states": 4, "latent": "mingru"},
    {"layers": 2, "window": 10, "num_states": 4, "mixer": "alibi"},
    {"layers": 2, "window": 10, "num_states": 4, "sum_heads": 1, "head_slopes": [0.5]},
]


@pytest.mark.parametrize("build", BUILDS, ids=str)
@pytest.mark.parametrize(
    ("name", "head"), [("CartPole-v1", "tokens"), ("Pendulum-v1", "tokens"), ("Pendulum-v1", "gaussian")], ids=str
)
def test_probability_ratio_is_one_before_the_first_gradient_step(build: dict[str, Any], name: str, head: str) -> None:
    model = SequencePPO(
        "DHMMPolicy", streams(name), n_steps=32, batch_size=64, seed=0, policy_kwargs=small(**build) | {"action_head": head}
    )
    shaken(model)
    for _ in range(3):
        collect(model)
        buffer = model.rollout_buffer
        assert buffer.episode_starts[1:].any()
        for count in (1, 4):
            read = []
            for samples in buffer.segments(2, *model._segment_starts(count)):
                values, log_prob, *_ = model.policy.evaluate_segments(samples)
                assert ((log_prob - samples.old_log_prob).exp() - 1).abs().max() < 1e-4
                assert (values - samples.old_values).abs().max() < 1e-4
                # Episodes end after at most 15 steps, and what was before them is not read
                assert samples.tokens.shape[1] <= min(buffer.burn_in, 14) + 32 / count
                read += samples.returns.tolist()
            assert sorted(read) == sorted(buffer.returns.flatten().tolist())  # every step once
        model._update_current_progress_remaining(0, 1)
        model.train()


class Stop(BaseCallback):
    """Stops a rollout after some steps."""

    def _on_step(self) -> bool:
        return self.n_calls % 20 != 0


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_a_rollout_that_was_broken_off_is_gone_on_with(build: dict[str, Any]) -> None:
    """This also holds when the agent starts within an episode."""
    model = shaken(SequencePPO("DHMMPolicy", streams(), n_steps=32, batch_size=64, seed=0, policy_kwargs=small(**build)))
    for broken_off in (True, False, True):
        if broken_off:
            model.learn(128, Stop(), reset_num_timesteps=False)
        else:
            assert model.env is not None
            model.set_env(model.env, force_reset=False)
        collect(model)
        for samples in model.rollout_buffer.segments(4, *model._segment_starts(1)):
            values, log_prob, *_ = model.policy.evaluate_segments(samples)
            assert ((log_prob - samples.old_log_prob).exp() - 1).abs().max() < 1e-4
            assert (values - samples.old_values).abs().max() < 1e-4
        last = model.rollout_buffer.tokens[model.rollout_buffer.burn_in :, 0, 0]
        assert (last >= 0).all()


def test_rollouts_continue_the_stream_as_though_the_model_had_read_all_of_it() -> None:
    """In one endless stream under fixed weights, the burn-in must replace everything before it."""
    model = shaken(
        SequencePPO(
            "DHMMPolicy", streams("Pendulum-v1", 2, 10**6), n_steps=16, batch_size=32, policy_kwargs=small(window=5, layers=2)
        )
    )
    rows, values = [], []
    for _ in range(4):
        collect(model)
        buffer = model.rollout_buffer
        rows.append(buffer.tokens[buffer.burn_in :].copy())
        values.append(buffer.values.copy())
    whole = torch.from_numpy(np.concatenate(rows)).long().transpose(0, 1)
    policy = model.policy
    expected = policy.values(policy.features(policy.language_model.hidden_states(whole)))
    assert (expected.detach().numpy().T - np.concatenate(values)).__abs__().max() < 1e-4


def test_truncated_episodes_bootstrap_from_their_final_observation_in_its_state() -> None:
    """Pendulum does not terminate, and time limits are not part of its state: truncation must not change the value."""
    rewards = []
    final = []
    for limit in (12, 10**6):
        model = shaken(
            SequencePPO(
                "DHMMPolicy",
                streams("Pendulum-v1", 1, limit),
                n_steps=12,
                batch_size=12,
                gamma=0.9,
                seed=0,
                policy_kwargs=small(),
            )
        )
        torch.manual_seed(0)
        collect(model)
        rewards.append(model.rollout_buffer.rewards[:, 0])
        final.append(model.rollout_buffer.returns[:, 0])
    assert (rewards[0][:-1] == rewards[1][:-1]).all()
    assert rewards[0][-1] != rewards[1][-1]
    np.testing.assert_allclose(final[0], final[1], rtol=1e-5)


def test_predict_remembers_what_rollouts_remember() -> None:
    env = streams("CartPole-v1", 3, 20)
    model = shaken(SequencePPO("DHMMPolicy", env, policy_kwargs=small(window=6)))
    observation: Any = env.reset()
    state: Any = None
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(40):
            seen.append(observation[:, -1])
            before, kept = state, None if state is None else state[:]
            action, state = model.predict(observation, state, deterministic=True)
            if before is not None and kept is not None:
                assert torch.equal(before.cache.layers[0].keys, kept.cache.layers[0].keys), (
                    "predict must leave the state alone that it was given"
                )
            policy = model.policy
            features = policy.features(policy.language_model.hidden_states(torch.as_tensor(np.stack(seen, axis=1)), last=1))
            assert (policy.distribution(features[:, 0]).mode().numpy() == action).all()
            observation, *_ = env.step(action)


def test_forgetting_the_state_is_said() -> None:
    env = streams(max_episode_steps=500)
    model = SequencePPO("DHMMPolicy", env, policy_kwargs=small())
    observation: Any = env.reset()
    action, _ = model.predict(observation)
    observation, *_ = env.step(action)
    with pytest.warns(UserWarning, match=r"model.predict\(observation, state"):
        model.predict(observation)
    single = TokenStream(gym.make("CartPole-v1"), history=1)
    action, state = model.predict(single.reset(seed=0)[0])
    assert single.action_space.contains(action)
    action, state = model.predict(single.step(action)[0], state)
    with pytest.raises(InputError, match="wrap the environment"):
        model.predict(np.zeros((1, 4)))
    with pytest.raises(InputError, match="state is of 1 environments, the observations are of 4"):
        model.predict(observation, state)


def test_it_works_as_any_sb3_algorithm_does(tmp_path: Path) -> None:
    env = VecNormalize(streams(), norm_obs=False)
    evaluation = VecNormalize(streams(), norm_obs=False, norm_reward=False, training=False)
    model = SequencePPO(
        "DHMMPolicy", env, n_steps=32, batch_size=64, seed=0, policy_kwargs=small(), clip_range_vf=0.2, target_kl=0.05
    )
    callback = EvalCallback(evaluation, n_eval_episodes=2, eval_freq=32, best_model_save_path=str(tmp_path), verbose=0)
    model.learn(256, callback=callback)
    assert np.isfinite(callback.last_mean_reward)
    model.save(tmp_path / "model")
    loaded = SequencePPO.load(tmp_path / "model", env=env, device="cpu")
    observation: Any = env.reset()
    assert (loaded.predict(observation, deterministic=True)[0] == model.predict(observation, deterministic=True)[0]).all()
    loaded.learn(128, reset_num_timesteps=False)
    assert loaded.num_timesteps == 384
    with pytest.raises(InputError, match="batch_size 64 is less than one segment"):
        SequencePPO.load(tmp_path / "model", env=env, n_steps=128)
    other = SequencePPO.load(tmp_path / "best_model", device="cpu")
    other.set_env(streams())
    other.learn(128)
    returns, _ = evaluate_policy(other, evaluation, n_eval_episodes=2)
    assert np.isfinite(returns)


def test_the_same_seed_gives_the_same_agent() -> None:
    def weights(seed: int) -> torch.Tensor:
        model = SequencePPO("DHMMPolicy", streams(), n_steps=32, batch_size=64, seed=seed, policy_kwargs=small()).learn(256)
        return torch.cat([p.detach().flatten() for p in model.policy.parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_schedules_fall_and_an_update_ends_at_its_target() -> None:
    def trained(**settings: Any) -> SequencePPO:
        model = SequencePPO("DHMMPolicy", streams(), n_steps=16, batch_size=32, policy_kwargs=small(), seed=0, **settings)
        return model.learn(4 * 64)

    falling = trained(learning_rate=LinearSchedule(4e-3, 0.0, 1.0), clip_range=LinearSchedule(0.4, 0.0, 1.0), clip_range_vf=0.3)
    logged = falling.logger.name_to_value
    assert logged["train/learning_rate"] == logged["train/clip_range"] == 0  # SB3 counts the rollout that was made
    assert logged["train/clip_range_vf"] == 0.3
    assert logged["train/clip_fraction"] > 0
    assert falling._n_updates == 4 * falling.n_epochs
    assert trained(learning_rate=1e-2, target_kl=1e-4)._n_updates == 4


def test_the_learning_rate_falls_while_updates_change_the_policy_too_much(tmp_path: Path) -> None:
    def rate(model: SequencePPO) -> float:
        return float(model.policy.optimizer.param_groups[0]["lr"])

    def trained(desired_kl: float) -> SequencePPO:
        build: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "policy_kwargs": small(), "seed": 0}
        return SequencePPO("DHMMPolicy", streams(), 1e-3, desired_kl=desired_kl, **build).learn(6 * 64)

    # No update of six changes the policy this little, or this much; the sixth counts for the seventh
    falling = trained(1e-12)
    assert rate(falling) == pytest.approx(1e-3 / FACTOR_STEP**5)
    assert rate(trained(100.0)) == rate(trained(0.0)) == 1e-3
    # A loaded agent continues from there, down to the smallest factor, and its rate rises again when updates may change more
    falling.save(tmp_path / "agent")
    resumed = SequencePPO.load(tmp_path / "agent", env=streams())
    assert rate(resumed.learn(8 * 64)) == pytest.approx(1e-3 * LOWEST_FACTOR)
    resumed.desired_kl = 100.0
    assert rate(resumed.learn(14 * 64)) == pytest.approx(1e-3)


def test_a_rollout_takes_four_bytes_a_token_and_little_else() -> None:
    env = streams("CartPole-v1", 64)
    model = SequencePPO("DHMMPolicy", env, n_steps=128, policy_kwargs=small(window=64))
    buffer = model.rollout_buffer
    arrays = [value for value in vars(buffer).values() if isinstance(value, np.ndarray)]
    tokens = 128 * 64 * 5
    assert sum(array.nbytes for array in arrays) <= 2**20 + 4 * tokens


class Masked(RepeatCue):
    """Three choices, one of which is illegal at any time: before the last step, that of the cue."""

    action_space = spaces.Discrete(3)

    def action_masks(self) -> np.ndarray[Any, Any]:
        return np.array([choice != (2 if self.t == 2 else self.cue) for choice in range(3)])

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        assert self.action_masks()[action], "an illegal action was taken"
        return super().step(action)


def test_illegal_actions_are_never_taken_and_have_no_part_in_updates(tmp_path: Path) -> None:
    env = make_vec_env(lambda: TokenStream(Masked(), history=1), 4, seed=0)
    model = SequencePPO(
        "DHMMPolicy", env, n_steps=32, batch_size=64, learning_rate=3e-3, seed=0, policy_kwargs=small(), ent_coef=0.01
    )
    model.learn(2_000)
    collect(model)
    for samples in model.rollout_buffer.segments(2, *model._segment_starts(1)):
        _, log_prob, distribution, *_ = model.policy.evaluate_segments(samples)
        assert ((log_prob - samples.old_log_prob).exp() - 1).abs().max() < 1e-4
        assert samples.masks is not None
        assert isinstance(distribution, ActionTokens)
        probability = distribution.slot_log_probs()[:, 0, 1:].exp()  # the first id of slot 0 is DONE
        assert (probability[~samples.masks] == 0).all()
        torch.testing.assert_close(probability.sum(dim=-1), torch.ones(len(probability)))
    evaluate_policy(WithActionMasks(model, env), env, n_eval_episodes=20, warn=False)
    model.learn(64, EvalCallbackWithMasks(env, n_eval_episodes=20, eval_freq=8, verbose=0, warn=False))
    model.save(tmp_path / "model")
    for forgetful in (model, SequencePPO.load(tmp_path / "model")):
        with pytest.warns(UserWarning, match="without the environment's action masks"):
            forgetful.predict(np.asarray(env.reset()))
    with pytest.raises(InputError, match="forbids every action"):
        model.predict(np.asarray(env.reset()), action_masks=np.zeros((4, 3), dtype=bool))
    with pytest.raises(InputError, match="4 environments of 3 choices"):
        model.predict(np.asarray(env.reset()), action_masks=np.ones((4, 2), dtype=bool))


def test_illegal_actions_are_neither_collected_nor_taken_by_a_language_model() -> None:
    env = make_vec_env(Masked, 4, seed=0)
    rollouts = collect_episodes(env, episodes=50, imitate=True)
    tokenizer = Tokenizer(env.observation_space, env.action_space)
    actor = LanguageModelActor(DHMMGPT2.from_tokenizer(tokenizer, **SMALL), tokenizer)
    collect_episodes(env, WithActionMasks(actor, env), episodes=50, imitate=True)
    evaluate_policy(WithActionMasks(actor, env), env, n_eval_episodes=20, deterministic=False, warn=False)
    collect_episodes(env, MaskablePPO("MlpPolicy", env, n_steps=16, batch_size=16), episodes=50, imitate=True)
    rows = np.setdiff1d(np.arange(len(rollouts.actions)), rollouts.starts[:-1])
    assert set(rollouts.actions[rows].tolist()) == {0, 1, 2}


def pretrained(imitates: bool) -> tuple[VecEnv, Checkpoint]:
    env = streams(n_envs=4, max_episode_steps=100)
    tokenizer = Tokenizer(gym.make("CartPole-v1").observation_space, env.action_space)
    torch.manual_seed(0)
    model = DHMMGPT2.from_tokenizer(tokenizer, **SMALL, window=4)
    with torch.no_grad():
        model.head[2:4] += torch.randn(2, model.embed_size)
    return env, Checkpoint(model, tokenizer, {"imitates": imitates})


def test_warm_up_trains_nothing_but_the_critic() -> None:
    env, checkpoint = pretrained(imitates=True)
    model = SequencePPO("DHMMPolicy", env, n_steps=32, batch_size=64, pretrained=checkpoint, critic_warmup=2, seed=0)
    model.learn(2 * 32 * 4)
    for name, parameter in model.policy.language_model.named_parameters():
        assert torch.equal(parameter, checkpoint.model.get_parameter(name)), name
    critic = model.policy.value_net.weight.clone()
    model.learn(32 * 4, reset_num_timesteps=False)
    assert not torch.equal(model.policy.language_model.head, checkpoint.model.head)
    assert not torch.equal(model.policy.value_net.weight, critic)


def test_a_strong_prior_holds_the_policy_and_fades() -> None:
    env, checkpoint = pretrained(imitates=True)

    def distance(prior_kl: float) -> float:
        model = SequencePPO(
            "DHMMPolicy", env, learning_rate=1e-3, n_steps=32, batch_size=64, pretrained=checkpoint, critic_warmup=0,
            prior_kl=prior_kl, prior_kl_decay=0.9, seed=0,
        )  # fmt: skip
        model.learn(8 * 32 * 4)
        assert model.prior_kl_now == prior_kl * 0.9**8
        found = model.logger.name_to_value
        assert found["train/prior_kl_coef"] == pytest.approx(prior_kl * 0.9**7)
        return float(found["train/prior_kl"])

    held, free = distance(5.0), distance(1e-6)
    assert held < 0.3 * free


def test_a_prior_stands_in_place_of_the_entropy_bonus() -> None:
    def head(ent_coef: float, imitates: bool) -> torch.Tensor:
        env, checkpoint = pretrained(imitates)
        model = SequencePPO(
            "DHMMPolicy", env, n_steps=32, batch_size=64, pretrained=checkpoint, critic_warmup=0, ent_coef=ent_coef, seed=0
        )
        return model.learn(256).policy.language_model.head

    assert torch.equal(head(0.0, imitates=True), head(1.0, imitates=True))
    assert not torch.equal(head(0.0, imitates=False), head(1.0, imitates=False))


def test_the_pull_to_uniform_keeps_the_policy_from_certainty() -> None:
    def distance(uniform_kl: float) -> float:
        model = SequencePPO("DHMMPolicy", streams(), 3e-3, n_steps=32, batch_size=64, uniform_kl=uniform_kl, seed=0)
        return float(np.mean(model.learn(8 * 32 * 4)._update()["uniform_kl"]))

    assert distance(10.0) < 0.3 * distance(1e-9)


def test_models_that_imitate_nobody_are_no_prior() -> None:
    env, checkpoint = pretrained(imitates=False)
    model = SequencePPO("DHMMPolicy", env, n_steps=32, batch_size=64, pretrained=checkpoint)
    assert model.policy.prior is None
    assert not model.warming_up
    assert torch.equal(model.policy.language_model.head, checkpoint.model.head)


def test_a_prior_is_saved_and_loaded(tmp_path: Path) -> None:
    env, checkpoint = pretrained(imitates=True)
    model = SequencePPO("DHMMPolicy", env, n_steps=32, batch_size=64, pretrained=checkpoint, critic_warmup=1).learn(256)
    assert model.rollout_buffer.prior_log_probs is not None
    assert model.rollout_buffer.prior_log_probs.shape == (
        4,
        32,
        1,
        3,
    )  # DONE and two actions, however many bins observations have
    model.save(tmp_path / "model")
    loaded = SequencePPO.load(tmp_path / "model", env=env)
    assert loaded.policy.prior is not None
    assert torch.equal(loaded.policy.prior.head, checkpoint.model.head)
    assert loaded.prior_kl_now == model.prior_kl_now
    loaded.learn(128)


def test_next_token_loss_learns_the_observations() -> None:
    model = SequencePPO(
        "DHMMPolicy", streams(), n_steps=32, batch_size=64, learning_rate=3e-3, next_token_coef=1.0, policy_kwargs=small()
    )
    model.learn(128)
    first = model.logger.name_to_value["train/next_token_loss"]
    model.learn(2_000)
    assert model.logger.name_to_value["train/next_token_loss"] < 0.6 * first


def test_rollouts_of_one_step_train() -> None:
    model = SequencePPO("DHMMPolicy", streams(), n_steps=1, batch_size=1, next_token_coef=1.0, policy_kwargs=small()).learn(16)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize(
    "memory",
    [{"num_states": 0, "window": 3}, {"num_states": 4, "window": 1}, {"num_states": 4, "layers": 0, "control": "all"}],
    ids=["attention", "belief", "hmm"],
)
def test_it_learns_what_needs_memory(seed: int, memory: dict[str, Any]) -> None:
    env = make_vec_env(lambda: TokenStream(RepeatCue(), history=1), 16, seed=seed)
    model = SequencePPO(
        "DHMMPolicy", env, LinearSchedule(3e-3, 0.0, 1.0), n_steps=32, batch_size=128, ent_coef=0.01, seed=seed,
        policy_kwargs=small(**memory),
    )  # fmt: skip
    model.learn(20_000)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=200, warn=False)
    assert np.mean(mean) >= 0.95


def test_without_memory_it_does_not() -> None:
    env = make_vec_env(lambda: TokenStream(RepeatCue(), history=1), 16, seed=0)
    model = SequencePPO("DHMMPolicy", env, 3e-3, n_steps=32, batch_size=128, policy_kwargs=small(num_states=0, window=1)).learn(
        5_000
    )
    mean, _ = evaluate_policy(model, env, n_eval_episodes=400, warn=False)
    assert np.mean(mean) < 0.7


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="batch_size 16 is less than one segment"):
        SequencePPO("DHMMPolicy", streams(), n_steps=32, batch_size=16)
    with pytest.raises(InputError, match="n_steps 32 must be a multiple of segment_length 5"):
        SequencePPO("DHMMPolicy", streams(), n_steps=32, segment_length=5, batch_size=16)
    with pytest.raises(InputError, match="wrap the environment in TokenStream"):
        SequencePPO("DHMMPolicy", gym.make("CartPole-v1"))
    with pytest.raises(InputError, match="past max_len 8"):
        SequencePPO("DHMMPolicy", streams(), policy_kwargs=small(positions="learned", max_len=8)).learn(64)
    with pytest.raises(InputError, match="gaussian"):
        SequencePPO("DHMMPolicy", streams(), policy_kwargs=small() | {"action_head": "gaussian"})
    _, checkpoint = pretrained(imitates=True)
    finer = Tokenizer(gym.make("CartPole-v1").observation_space, spaces.Discrete(2), bins=20)
    env = VecTokenStream(make_vec_env("CartPole-v1", 2), finer, history=1)
    with pytest.raises(InputError, match="another tokenizer"):
        SequencePPO("DHMMPolicy", env, pretrained=checkpoint)


def test_sb3_records_videos_of_it(tmp_path: Path) -> None:
    env = VecTokenStream(make_vec_env("CartPole-v1", 1, seed=0, env_kwargs={"render_mode": "rgb_array"}), history=1)
    recorder = VecVideoRecorder(env, str(tmp_path), record_video_trigger=lambda step: step == 0, video_length=10)
    model = SequencePPO("DHMMPolicy", env, policy_kwargs=small())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*without the state.*")
        evaluate_policy(model, recorder, n_eval_episodes=2, warn=False)
    recorder.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]

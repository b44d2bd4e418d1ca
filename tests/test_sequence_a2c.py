"""SequenceA2C: a second algorithm on the base class of SequencePPO, which differs from it by its loss only."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule

from dhmm_rl import InputError, SequenceA2C, SequencePPO, TokenStream, ppo
from dhmm_rl.common import DHMMPolicy, WithActionMasks
from tests.test_policies import RepeatCue, small
from tests.test_sequence_ppo import Masked, collect, pretrained, shaken, streams


def weights(model: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_what_needs_memory(seed: int) -> None:
    """Without memory the best mean return is 1/2."""
    env = make_vec_env(lambda: TokenStream(RepeatCue(), history=1), 16, seed=seed)
    model = SequenceA2C(
        "DHMMPolicy", env, LinearSchedule(5e-3, 0.0, 1.0), n_steps=8, ent_coef=0.01, seed=seed,
        policy_kwargs=small(num_states=0, window=3),
    )  # fmt: skip
    model.learn(12_000)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=200, warn=False)
    assert np.mean(mean) >= 0.95


@pytest.mark.parametrize("head", ["tokens", "gaussian"])
def test_its_step_is_that_of_ppo_where_the_ratio_is_one(head: str) -> None:
    """The gradient of PPO's clipped objective is the policy gradient where new and old policy are the same."""
    policy_kwargs = small(window=6) | {"action_head": head, "optimizer_class": torch.optim.SGD}
    settings: dict[str, Any] = {
        "n_steps": 16, "learning_rate": 0.1, "gae_lambda": 0.9, "ent_coef": 0.02, "vf_coef": 0.3, "seed": 0,
        "normalize_advantage": False, "policy_kwargs": policy_kwargs,
    }  # fmt: skip
    a2c = SequenceA2C("DHMMPolicy", streams("Pendulum-v1"), **settings)
    before = weights(a2c)
    a2c.learn(64)
    same = SequencePPO("DHMMPolicy", streams("Pendulum-v1"), batch_size=64, n_epochs=1, **settings).learn(64)
    torch.testing.assert_close(weights(a2c), weights(same), atol=1e-6, rtol=1e-5)
    assert (weights(a2c) - before).norm() > 0.01
    assert a2c._n_updates == 1


def test_segments_are_read_as_they_were_acted_on() -> None:
    model = shaken(SequenceA2C("DHMMPolicy", streams(), n_steps=32, seed=0, policy_kwargs=small(window=6)))
    for _ in range(3):
        collect(model)
        assert model.rollout_buffer.episode_starts[1:].any()
        for samples in model.rollout_buffer.segments(4, *model._segment_starts(1)):
            values, log_prob, *_ = model.policy.evaluate_segments(samples)
            torch.testing.assert_close(log_prob, samples.old_log_prob, atol=1e-4, rtol=0.0)
            torch.testing.assert_close(values, samples.old_values, atol=1e-4, rtol=0.0)
        model._update_current_progress_remaining(0, 1)
        model.train()


def test_it_is_saved_loaded_and_trained_further(tmp_path: Path) -> None:
    env = streams()
    model = SequenceA2C("DHMMPolicy", env, n_steps=16, seed=0, policy_kwargs=small()).learn(256)
    again = SequenceA2C("DHMMPolicy", streams(), n_steps=16, seed=0, policy_kwargs=small()).learn(256)
    assert torch.equal(weights(model), weights(again)), "the same seed gives the same agent"
    model.save(tmp_path / "model")
    loaded = SequenceA2C.load(tmp_path / "model", env=env, device="cpu")
    assert torch.equal(weights(model), weights(loaded))
    observation: Any = env.reset()
    assert (loaded.predict(observation, deterministic=True)[0] == model.predict(observation, deterministic=True)[0]).all()
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 320
    assert not torch.equal(weights(model), weights(loaded))


def test_it_starts_from_a_pretrained_model_and_keeps_no_prior() -> None:
    env, checkpoint = pretrained(imitates=True)
    model = SequenceA2C("DHMMPolicy", env, n_steps=8, pretrained=checkpoint)
    assert torch.equal(model.policy.language_model.head, checkpoint.model.head)
    assert model.policy.prior is None
    model.learn(64)
    assert not torch.equal(model.policy.language_model.head, checkpoint.model.head)


def test_it_obeys_action_masks() -> None:
    env = make_vec_env(lambda: TokenStream(Masked(), history=1), 4, seed=0)
    model = SequenceA2C("DHMMPolicy", env, n_steps=32, seed=0, policy_kwargs=small()).learn(1_000)
    evaluate_policy(WithActionMasks(model, env), env, n_eval_episodes=20, warn=False)


def test_errors_name_it() -> None:
    class Forgetful(DHMMPolicy):
        """A policy without memory."""

    with pytest.raises(InputError, match="SequenceA2C needs a SequencePolicy, not Forgetful"):
        SequenceA2C(Forgetful, streams())


def test_a_recipe_trains_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ppo.main(ppo.Args(agent="sequence-a2c", steps=512, final_episodes=2, quiet=True))
    assert (tmp_path / "runs/CartPole-v1/sequence-a2c/1/best_agent.pt").is_file()

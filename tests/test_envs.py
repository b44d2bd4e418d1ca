"""Environments as token streams."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from dhmm_rl.envs import TokenSpace, TokenStream, VecTokenStream
from dhmm_rl.errors import InputError
from dhmm_rl.tokens import PAD_ID, RESET, Tokenizer


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0", "Acrobot-v1"])
@pytest.mark.filterwarnings("ignore:Your observation .* has an unconventional shape")
@pytest.mark.filterwarnings("ignore:We recommend you to use a symmetric and normalized Box action space")  # Pendulum's own
def test_sb3s_checker_passes(name: str) -> None:
    check_env(TokenStream(gym.make(name)))


def test_history_is_the_last_steps_of_the_stream(cartpole: Tokenizer) -> None:
    env = TokenStream(gym.make("CartPole-v1"), cartpole, history=4)
    window, _ = env.reset(seed=0)
    assert (window[:-1] == PAD_ID).all()
    assert window[-1, 0] == RESET
    plain = gym.make("CartPole-v1")
    observation, _ = plain.reset(seed=0)
    stream = [cartpole.first_step(observation)]
    for t in range(8):
        window, reward, terminated, truncated, _ = env.step(t % 2)
        observation, *expected, _ = plain.step(t % 2)
        stream.append(cartpole.next_step(t % 2, observation))
        assert (window[-len(stream) :] == np.stack(stream)[-4:]).all()
        assert [reward, terminated, truncated] == expected
        assert env.observation_space.contains(window)


@pytest.mark.parametrize("venv", [DummyVecEnv, SubprocVecEnv])
def test_vector_wrapper_gives_what_the_single_one_does(venv: type[Any]) -> None:
    def single() -> gym.Env[Any, Any]:
        return TokenStream(gym.make("CartPole-v1"), history=5)

    def vector(make: list[Callable[[], gym.Env[Any, Any]]]) -> Any:
        return venv(make, start_method="fork") if venv is SubprocVecEnv else venv(make)

    ours = VecTokenStream(vector([lambda: gym.make("CartPole-v1")] * 3), history=5)
    theirs = DummyVecEnv([single] * 3)
    for env in (ours, theirs):
        env.seed(7)
    assert ours.observation_space == theirs.observation_space
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    rng = np.random.default_rng(0)
    ends = 0
    for _ in range(120):
        actions = rng.integers(2, size=3)
        observations, rewards, dones, infos = ours.step(actions)
        other_observations, other_rewards, other_dones, other_infos = theirs.step(actions)
        np.testing.assert_array_equal(observations, other_observations)
        np.testing.assert_array_equal(rewards, other_rewards)
        np.testing.assert_array_equal(dones, other_dones)
        for i in np.flatnonzero(dones):
            ends += 1
            assert (infos[i]["terminal_observation"] == other_infos[i]["terminal_observation"]).all()
    assert ends > 3
    ours.close()


def test_streams_of_other_tokenizers_are_other_spaces(cartpole: Tokenizer) -> None:
    finer = Tokenizer(cartpole.observation_space, cartpole.action_space, bins=10, overrides={"observation[1]": {"scale": 2}})
    assert TokenSpace(cartpole, 4) == TokenSpace(cartpole, 4)
    assert TokenSpace(cartpole, 4) != TokenSpace(finer, 4)
    assert TokenSpace(cartpole, 4) != TokenSpace(cartpole, 5)


def test_foreign_tokenizers_are_refused(cartpole: Tokenizer) -> None:
    with pytest.raises(InputError, match="observation fields"):
        TokenStream(
            gym.make("Acrobot-v1", render_mode=None), Tokenizer(cartpole.observation_space, gym.make("Acrobot-v1").action_space)
        )
    with pytest.raises(InputError, match="action"):
        VecTokenStream(make_vec_env("Pendulum-v1", 1), cartpole)

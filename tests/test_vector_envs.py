"""Gymnasium's vector environments in SB3: the same results as DummyVecEnv for every autoreset mode."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from numpy.typing import NDArray
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor

from benchmarks import vector_envs
from dhmm_rl import VecTokenStream
from dhmm_rl.envs import GymnasiumVecEnv, make_gymnasium_vec_env, reset_by_mask
from dhmm_rl.errors import InputError
from dhmm_rl.recipes import EnvRecipe
from dhmm_rl.recipes.environments import make_envs

SHORT: dict[str, Any] = {"max_episode_steps": 20}
"""So that some episodes are cut off and others end by themselves."""


def sync(mode: str, num_envs: int = 4) -> GymnasiumVecEnv:
    return GymnasiumVecEnv(gym.make_vec("CartPole-v1", num_envs, "sync", {"autoreset_mode": mode}, **SHORT))


def assert_same(ours: VecEnv, theirs: VecEnv, steps: int, seed: int = 3) -> tuple[int, int]:
    """Compare two environments under the same seed and actions. Return the numbers of terminated and truncated episodes."""
    sampler = np.random.default_rng(seed)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.seed(seed) == theirs.seed(seed)
    same_values(ours.reset(), theirs.reset())
    same_values(ours.reset_infos, theirs.reset_infos)
    terminated = truncated = 0
    returns, lengths = np.zeros(ours.num_envs), np.zeros(ours.num_envs)
    for _ in range(steps):
        actions = sampler.integers(2, size=ours.num_envs)
        observations, rewards, dones, infos = ours.step(actions)
        other_observations, other_rewards, other_dones, other_infos = theirs.step(actions)
        same_values(observations, other_observations)
        same_values([rewards, dones], [other_rewards, other_dones])
        returns, lengths = returns + rewards, lengths + 1
        told = [info.pop("episode", None) for info in infos]  # a bare DummyVecEnv has no Monitor
        for i, episode in enumerate(told):
            assert (episode is not None) == dones[i]
            if episode is not None:
                assert (episode["r"], episode["l"]) == (returns[i], lengths[i])
                returns[i] = lengths[i] = 0
        same_values(infos, other_infos)
        same_values(ours.reset_infos, theirs.reset_infos)
        cut_off = sum(info["TimeLimit.truncated"] for info in infos)
        truncated, terminated = truncated + cut_off, terminated + dones.sum() - cut_off
    return terminated, truncated


def same_values(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs) or np.ndim(ours) == np.ndim(theirs) == 0
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            same_values(ours[key], value)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            same_values(mine, other)
    else:
        np.testing.assert_array_equal(ours, theirs)
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_cartpole_is_the_same_as_in_dummy_vec_env(mode: str) -> None:
    dummy = DummyVecEnv([lambda: gym.make("CartPole-v1", **SHORT)] * 4)
    ends = assert_same(sync(mode), dummy, 10_000 if mode == "SameStep" else 1_000)
    assert min(ends) > 100


def test_cartpole_in_processes_of_its_own_is_the_same() -> None:
    env = GymnasiumVecEnv(gym.make_vec("CartPole-v1", 2, "async", {"autoreset_mode": "NextStep"}, **SHORT))
    assert min(assert_same(env, DummyVecEnv([lambda: gym.make("CartPole-v1", **SHORT)] * 2), 200)) > 2
    assert env.get_attr("render_mode") == [None, None]
    assert not env.has_attr("nonsense")
    env.set_attr("tau", 0.03)
    assert env.get_attr("tau") == [0.03, 0.03]
    env.close()


def composite(observation_space: spaces.Space[Any]) -> type[gym.Env[Any, Any]]:
    class Composite(gym.Env[Any, Any]):
        """An environment with random ends and infos that vary from step to step."""

        action_space = spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            if seed is not None:
                self.observation_space.seed(seed)
            return self.observation_space.sample(), {"first": (options or {}).get("first", 1.0)}

        def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            terminated, truncated, told = self.np_random.random(3) < (0.2, 0.1, 0.5)
            info: dict[str, Any] = {"inner": {"deep": np.arange(3) + action}} if told else {}
            return self.observation_space.sample(), float(action), bool(terminated), bool(truncated), info

        def __init__(self) -> None:
            self.observation_space = deepcopy(observation_space)

    return Composite


BOX, CARD = spaces.Box(-1, 1, (3,)), spaces.Discrete(5)


@pytest.mark.parametrize("space", [CARD, spaces.Tuple([BOX, CARD]), spaces.Dict({"box": BOX, "card": CARD})])
@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_any_observations_and_infos_are_the_same(space: spaces.Space[Any], mode: str) -> None:
    def make() -> gym.Env[Any, Any]:
        return composite(space)()

    vector = GymnasiumVecEnv(SyncVectorEnv([make] * 3, autoreset_mode=mode))
    assert_same(vector, DummyVecEnv([make] * 3), 200)


def test_one_vectorized_cartpole_goes_as_it_does_alone_without_the_steps_that_reset() -> None:
    """With N > 1 the environments share random numbers, so initial states depend on the order in which episodes end."""
    alone: VectorEnv[Any, Any, Any] = gym.make_vec("CartPole-v1", 1, "vector_entry_point", **SHORT)
    ours = make_gymnasium_vec_env("CartPole-v1", 1, **SHORT)
    ours.seed(5)
    expected, _ = alone.reset(seed=5)
    np.testing.assert_array_equal(ours.reset(), expected)
    sampler = np.random.default_rng(0)
    for _ in range(2_000):
        actions = sampler.integers(2, size=1)
        observation, reward, done, infos = ours.step(actions)
        expected, expected_reward, terminated, truncated, _ = alone.step(actions)
        assert [reward, done] == [expected_reward, terminated | truncated]
        if done:
            assert infos[0]["TimeLimit.truncated"] == (truncated and not terminated)
            np.testing.assert_array_equal(infos[0]["terminal_observation"], expected[0])
            expected = alone.step(actions)[0]
        np.testing.assert_array_equal(observation, expected)


def test_many_vectorized_cartpoles_obey_the_dynamics_of_one() -> None:
    env = make_gymnasium_vec_env("CartPole-v1", 8, **SHORT)
    assert type(env.env) is CartPoleVectorEnv
    single: Any = gym.make("CartPole-v1").unwrapped
    single.reset(seed=0)
    env.seed(0)
    before: Any = env.reset()
    age, starts = np.zeros(8), [before]
    sampler = np.random.default_rng(0)
    for _ in range(500):
        actions = sampler.integers(2, size=8)
        after: Any
        after, rewards, dones, infos = env.step(actions)
        age += 1
        assert (rewards == 1).all()
        for i in range(8):
            single.state, single.steps_beyond_terminated = before[i].astype(float), None
            expected, _, terminated, _, _ = single.step(actions[i])
            np.testing.assert_allclose(infos[i].get("terminal_observation", after[i]), expected, atol=1e-5)
            assert dones[i] == (terminated or age[i] == 20)
            assert infos[i]["TimeLimit.truncated"] == (dones[i] and not terminated)
        starts.append(after[dones])
        age[dones] = 0
        before = after
    first = np.concatenate(starts)
    assert len(first) > 150
    assert (np.abs(first) <= 0.05).all()
    assert len(np.unique(first[:, 0])) == len(first)
    assert np.abs(first.mean(axis=0)).max() < 4 * 0.05 / np.sqrt(3 * len(first))


class NextStep(VectorEnv[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]):
    """A user's vector environment: counts to 3, and resets at the step after the end."""

    num_envs = 2
    single_observation_space, observation_space = spaces.Discrete(9), spaces.MultiDiscrete([9, 9])
    single_action_space, action_space = spaces.Discrete(2), spaces.MultiDiscrete([2, 2])

    def __init__(self) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if options is None:
            self.count = np.array([0, 1])
        else:
            self.count[options["reset_mask"]] = 0
        return self.count, {}

    def step(self, actions: NDArray[np.int64]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.count += 1
        return self.count, np.ones(2), self.count == 3, np.zeros(2, dtype=bool), {}

    def double(self) -> NDArray[np.int64]:
        return 2 * self.count

    def action_masks(self) -> NDArray[np.bool_]:
        return np.eye(2, dtype=bool)


def test_other_vectorized_environments_need_a_way_to_reset_some() -> None:
    with pytest.raises(InputError, match="SB3 needs autoreset_mode SAME_STEP, or a function reset_some"):
        GymnasiumVecEnv(NextStep())
    env = GymnasiumVecEnv(NextStep(), reset_by_mask)
    counts: list[Any] = [env.reset()]
    for t in range(4):
        observations, _, dones, infos = env.step(np.zeros(2, dtype=int))
        counts.append(observations)  # the environment writes over its own
        assert [info.get("terminal_observation") for info in infos] == [3 if done else None for done in dones], t
    assert [count.tolist() for count in counts] == [[0, 1], [1, 2], [2, 0], [0, 1], [1, 2]]


def test_attributes_of_environments_that_are_one() -> None:
    env = GymnasiumVecEnv(NextStep(), reset_by_mask)
    env.reset()
    assert env.get_attr("metadata") == [{"autoreset_mode": AutoresetMode.NEXT_STEP}] * 2
    assert env.get_attr("count", indices=1) == [1]
    assert env.env_method("double") == [0, 2]
    assert (get_action_masks(env) == np.eye(2)).all()
    env.set_attr("count", np.array([2, 2]))
    assert env.get_attr("count") == [2, 2]
    assert env.env_is_wrapped(gym.Wrapper) == [False, False]
    for act in (lambda: env.set_attr("count", 0, indices=0), lambda: env.env_method("double", indices=[1])):
        with pytest.raises(InputError, match="for all of its environments only"):
            act()
    with pytest.raises(InputError, match="does not return one result for each"):
        env.env_method("close")
    for ask in (env.get_attr, env.env_method):
        with pytest.raises(AttributeError, match="nonsense"):
            ask("nonsense")


def test_attributes_of_environments_of_their_own() -> None:
    env = sync("SameStep", 3)
    env.set_attr("tau", 0.05, indices=[0, 2])
    assert env.get_attr("tau") == [0.05, 0.02, 0.05]
    assert env.env_method("has_wrapper_attr", "tau", indices=1) == [True]
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [True] * 3
    assert not is_masking_supported(env)
    with pytest.raises(AttributeError, match="nonsense"):
        env.get_attr("nonsense")


def test_masks_may_come_with_the_infos() -> None:
    env = GymnasiumVecEnv(gym.make_vec("Taxi-v4", 2, max_episode_steps=5), mask_key="action_mask")
    assert is_masking_supported(env)
    env.seed(0)
    env.reset()
    for _ in range(12):
        masks = get_action_masks(env)
        assert masks.shape == (2, 6)
        for taxi, mask in zip(env.get_attr("unwrapped"), masks, strict=True):
            assert (taxi.action_mask(taxi.s) == mask).all()
        env.step(np.array([np.flatnonzero(mask)[0] for mask in masks]))
    with pytest.raises(InputError, match="have no 'mask'"):
        GymnasiumVecEnv(gym.make_vec("Taxi-v4", 2), mask_key="mask").reset()


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_gymnasiums_statistics_come_with_the_info_of_the_step_that_ends_an_episode(mode: str) -> None:
    vector = gym.make_vec("CartPole-v1", 3, "sync", {"autoreset_mode": mode, "copy": False}, **SHORT)
    model = PPO("MlpPolicy", GymnasiumVecEnv(RecordEpisodeStatistics(vector)), n_steps=64, batch_size=64).learn(192)
    assert model.ep_info_buffer
    lengths = [info["l"] for info in model.ep_info_buffer]
    assert 0 < max(lengths) <= 20
    assert [info["r"] for info in model.ep_info_buffer] == lengths
    assert np.abs(model.rollout_buffer.observations[::64]).max() <= 0.05  # the first of each, which no step has written over


def test_a_module_before_the_id_is_imported() -> None:
    env = make_gymnasium_vec_env("tests.conftest:CartPole-v1", 2)
    assert env.num_envs == 2
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        make_gymnasium_vec_env("no_such_module:CartPole-v1", 2)


def test_options_reach_the_environments_if_they_are_the_same_for_all() -> None:
    env = GymnasiumVecEnv(SyncVectorEnv([composite(CARD)] * 2))
    env.set_options({"first": 7.0})
    env.reset()
    assert env.reset_infos == [{"first": 7.0}] * 2
    env.set_options([{"first": 1.0}, {}])
    with pytest.raises(InputError, match="one dictionary of options"):
        env.reset()


def test_token_streams_over_it_are_the_same() -> None:
    dummy = VecTokenStream(DummyVecEnv([lambda: gym.make("CartPole-v1", **SHORT)] * 4), history=3)
    assert min(assert_same(VecTokenStream(sync("SameStep"), history=3), dummy, 200)) > 5


@pytest.mark.parametrize("make", [lambda: sync("SameStep"), lambda: make_gymnasium_vec_env("CartPole-v1", 4)])
def test_sb3_learns_and_evaluates_on_it(make: Callable[[], VecEnv]) -> None:
    env = VecMonitor(make())
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, seed=0).learn(512)
    assert model.ep_info_buffer
    returns, _ = evaluate_policy(model, env, 10)
    assert np.mean(returns) > 5


def recipe(vectorization: str, env_id: str = "CartPole-v1") -> EnvRecipe:
    return EnvRecipe(env_id, "", env_id, vectorization=vectorization)


def test_recipes_say_how_environments_stand_side_by_side() -> None:
    for env_id in ("CartPole-v1", "dhmm_rl/CartPoleNoVel-v1"):
        dummy = make_envs(recipe("dummy", env_id), 2, 0)
        subproc = make_envs(recipe("subproc", env_id), 2, 0)
        assert isinstance(subproc.unwrapped, SubprocVecEnv)
        first = dummy.reset()
        np.testing.assert_array_equal(subproc.reset(), first)
        subproc.close()
        vectorized = make_envs(recipe("gymnasium", env_id), 2, 0)
        assert isinstance(vectorized.unwrapped, GymnasiumVecEnv)
        if env_id != "CartPole-v1":  # with wrappers there is no vectorized form, and seeds are each environment's own
            np.testing.assert_array_equal(vectorized.reset(), first)
    with pytest.raises(InputError, match="unknown environment"):
        make_envs(recipe("subproc", "Nothing-v0"), 2, 0)


def test_pictures_are_those_of_the_environments() -> None:
    picture = make_vec_env("CartPole-v1", 1, seed=0)
    picture.reset()
    env = make_envs(recipe("gymnasium", "CartPole-v1"), 2, 0, render_mode="rgb_array")
    env.reset()
    frame, single = env.render(), picture.render()
    assert frame is not None
    assert single is not None
    assert frame.shape[0] * frame.shape[1] >= 2 * single.shape[0] * single.shape[1]


def test_the_benchmark_prints_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    vector_envs.main(vector_envs.Args(n_envs=(2,), turns=1, seconds=0.01))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["environments", "dummy", "gymnasium"]
    assert lines[2].split()[0] == "2"
    with pytest.raises(InputError, match="must be at least 1"):
        vector_envs.main(vector_envs.Args(turns=0))

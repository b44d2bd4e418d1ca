"""Teachers of every kind, and several sources mixed."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from dhmm_rl import VecTokenStream
from dhmm_rl.data import MixedDataset, Rollouts, StreamDataset, collect
from dhmm_rl.data.episodes import Episode
from dhmm_rl.errors import InputError
from dhmm_rl.pretraining.sources import (
    CollectSettings,
    Source,
    WeightedRollouts,
    imitate_top_fraction,
    load_source,
    load_sources,
)
from dhmm_rl.pretraining.teachers import load_teacher
from dhmm_rl.pretraining.workflow import sample_episodes, train_val_split
from dhmm_rl.recipes import load_recipes
from dhmm_rl.recipes.environments import EnvFactory
from dhmm_rl.sequence_ppo import SequencePPO
from dhmm_rl.tokens import Tokenizer

SMALL = {"net_arch": [8]}
TEACHERS: list[tuple[Any, str, str]] = [
    (PPO, "MlpPolicy", "CartPole-v1"),
    (A2C, "MlpPolicy", "CartPole-v1"),
    (DQN, "MlpPolicy", "CartPole-v1"),
    (QRDQN, "MlpPolicy", "CartPole-v1"),
    (TRPO, "MlpPolicy", "CartPole-v1"),
    (ARS, "MlpPolicy", "CartPole-v1"),
    (MaskablePPO, "MlpPolicy", "CartPole-v1"),
    (RecurrentPPO, "MlpLstmPolicy", "CartPole-v1"),
    (PPO, "MlpPolicy", "Pendulum-v1"),
    (SAC, "MlpPolicy", "Pendulum-v1"),
    (TD3, "MlpPolicy", "Pendulum-v1"),
    (DDPG, "MlpPolicy", "Pendulum-v1"),
    (TQC, "MlpPolicy", "Pendulum-v1"),
    (RecurrentPPO, "MlpLstmPolicy", "Pendulum-v1"),
]


def assert_same(ours: Rollouts, theirs: Rollouts) -> None:
    np.testing.assert_array_equal(ours.observations, theirs.observations)
    np.testing.assert_array_equal(ours.actions, theirs.actions)


@pytest.mark.parametrize(("algorithm", "policy", "env_id"), TEACHERS)
def test_a_teacher_from_a_zip_acts_as_the_model_did(algorithm: Any, policy: str, env_id: str, tmp_path: Path) -> None:
    env = make_vec_env(env_id, 2, env_kwargs={"max_episode_steps": 50})
    model = algorithm(policy, env, seed=0, policy_kwargs=dict(SMALL))
    for weights in model.policy.parameters():
        torch.nn.init.normal_(weights)  # a fresh policy hardly moves
    model.save(tmp_path / "teacher.zip")
    teacher = load_teacher(tmp_path / "teacher.zip", env, env_id, trust=True)
    ours, theirs = (collect(env, actor, episodes=4, imitate=True, seed=1, deterministic=True) for actor in (teacher, model))
    assert_same(ours, theirs)
    assert env.action_space.contains(ours.actions[1])
    if env_id == "Pendulum-v1":
        assert np.abs(ours.actions).max() > 1  # scaled to the space, not to [-1, 1]


class Masked(gym.Env[Any, Any]):
    """An environment with one legal action, which changes at every step."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(5)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = int(self.np_random.integers(5))
        self.end = self.t + 10
        return self.observation_space.sample(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action == self.t % 5
        self.t += 1
        return self.observation_space.sample(), 0.0, self.t == self.end, False, {}

    def action_masks(self) -> Any:
        return np.arange(5) == self.t % 5


def test_a_masked_teacher_never_acts_against_the_masks(tmp_path: Path) -> None:
    env = make_vec_env(Masked, 2)
    MaskablePPO("MlpPolicy", env).save(tmp_path / "teacher.zip")
    rollouts = collect(
        env, load_teacher(tmp_path / "teacher.zip", env, trust=True), episodes=4, imitate=True, deterministic=True
    )
    assert rollouts.steps == 40


@pytest.mark.parametrize(
    ("model", "statistics"),
    [
        ("best_model", "best_vecnormalize"),
        ("rl_model_100_steps", "rl_model_vecnormalize_100_steps"),
        ("anything", "vecnormalize"),
        ("Pendulum-v1", "Pendulum-v1/vecnormalize"),
    ],
)
def test_a_teacher_sees_by_the_statistics_beside_it(model: str, statistics: str, tmp_path: Path) -> None:
    env = make_vec_env("Pendulum-v1", 2)
    normalize = VecNormalize(env)
    normalize.reset()
    for _ in range(100):
        normalize.step(np.array([env.action_space.sample() for _ in range(2)]))
    normalize.training = False
    trained = PPO("MlpPolicy", normalize, seed=0)
    trained.save(tmp_path / f"{model}.zip")
    plain = load_teacher(tmp_path / f"{model}.zip", env, "Pendulum-v1", trust=True)
    (tmp_path / f"{statistics}.pkl").parent.mkdir(exist_ok=True)
    normalize.save(str(tmp_path / f"{statistics}.pkl"))
    notices: list[str] = []
    teacher = load_teacher(tmp_path / f"{model}.zip", env, "Pendulum-v1", notices.append, trust=True)
    assert f"{statistics}.pkl" in notices[0]

    def as_trained(observations: Any) -> Any:
        return trained.predict(normalize.normalize_obs(observations), deterministic=True)[0]

    ours, theirs, other = (
        collect(env, actor, episodes=2, imitate=True, seed=1, deterministic=True) for actor in (teacher, as_trained, plain)
    )
    assert_same(ours, theirs)
    assert not np.array_equal(ours.actions, other.actions)

    normalize.norm_obs = False
    normalize.save(str(tmp_path / f"{statistics}.pkl"))
    assert load_teacher(tmp_path / f"{model}.zip", env, "Pendulum-v1", notices.append, trust=True).prepare(7) == 7
    (tmp_path / f"{statistics}.pkl").write_bytes(pickle.dumps("something else"))
    with pytest.raises(InputError, match=r"vecnormalize.*cannot be read"):
        load_teacher(tmp_path / f"{model}.zip", env, "Pendulum-v1", trust=True)


def test_an_agent_on_token_streams_is_no_teacher(tmp_path: Path) -> None:
    env = make_vec_env("CartPole-v1", n_envs=2)
    SequencePPO("DHMMPolicy", VecTokenStream(env, history=1), n_steps=8, batch_size=8).save(tmp_path / "agent.zip")
    with pytest.raises(InputError, match="sees token streams; a teacher sees plain observations"):
        load_teacher(tmp_path / "agent.zip", env, trust=True)


def test_a_teacher_trained_on_flat_observations_gets_them_flat(tmp_path: Path) -> None:
    flat = make_vec_env("FrozenLake-v1", 2, wrapper_class=gym.wrappers.FlattenObservation)
    model = PPO("MlpPolicy", flat, seed=0)
    model.save(tmp_path / "teacher.zip")
    plain = make_vec_env("FrozenLake-v1", 2)
    ours = collect(
        plain, load_teacher(tmp_path / "teacher.zip", plain, trust=True), episodes=4, imitate=True, seed=1, deterministic=True
    )
    theirs = collect(flat, model, episodes=4, imitate=True, seed=1, deterministic=True)
    np.testing.assert_array_equal(ours.actions, theirs.actions)
    assert (theirs.observations.argmax(axis=1) == ours.observations).all()


class Pictures(gym.Env[Any, Any]):
    """An environment with noise as images."""

    observation_space, action_space = spaces.Box(0, 255, (36, 36, 3), np.uint8), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = 3
        return self.look(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return self.look(), 0.0, self.left == 0, False, {}

    def look(self) -> Any:
        return self.np_random.integers(0, 256, (36, 36, 3), dtype=np.uint8)


def test_a_teacher_of_pictures_gets_them_as_it_was_trained(tmp_path: Path) -> None:
    env: VecEnv = make_vec_env(Pictures, 2)
    model = A2C("CnnPolicy", env, seed=0)
    model.save(tmp_path / "teacher.zip")
    ours, theirs = (
        collect(env, actor, episodes=4, imitate=True, seed=1, deterministic=True)
        for actor in (load_teacher(tmp_path / "teacher.zip", env, trust=True), model)
    )
    assert_same(ours, theirs)


def test_what_is_no_teacher_here_is_named(tmp_path: Path) -> None:
    cartpole, pendulum = make_vec_env("CartPole-v1", 1), make_vec_env("Pendulum-v1", 1)
    PPO("MlpPolicy", cartpole).save(tmp_path / "teacher.zip")
    with pytest.raises(InputError, match=r"the teacher sees .* but Pendulum-v1 shows"):
        load_teacher(tmp_path / "teacher.zip", pendulum, "Pendulum-v1", trust=True)
    other: Any = gym.make("CartPole-v1")
    other.unwrapped.action_space = spaces.Discrete(3)
    with pytest.raises(InputError, match=r"the teacher acts in Discrete\(2\), but X takes Discrete\(3\)"):
        load_teacher(tmp_path / "teacher.zip", make_vec_env(lambda: other, 1), "X", trust=True)
    whole = (tmp_path / "teacher.zip").read_bytes()
    (tmp_path / "teacher.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is not a model of SB3"):
        load_teacher(tmp_path / "teacher.zip", cartpole, trust=True)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("random", Source("random")),
        ("teacher:a@b/best.zip@weight=2@episodes=50", Source("teacher:a@b/best.zip", weight=2, episodes=50)),
        ("minari:D4RL/door/human-v2@imitate=no", Source("minari:D4RL/door/human-v2", imitate_actions=False)),
        ("some/folder@weight=0.5@imitate=yes@skip_bad=yes", Source("some/folder", 0.5, True, skip_bad=True)),
    ],
)
def test_sources_are_read_as_written(text: str, source: Source) -> None:
    assert Source.parse(text) == source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("random@wieght=2", "has an option 'wieght'; known are weight, imitate, episodes, skip_bad"),
        ("random@weight=0", "weight=0; it must be a positive number"),
        ("random@weight=nan", "must be a positive number"),
        ("random@episodes=2.5", "must be a positive number"),
        ("random@imitate=maybe", "must be yes or no"),
        ("folder@episodes=5", "is read, not collected"),
        ("minari:x-v0@skip_bad=yes", "skip_bad is for folders"),
    ],
)
def test_sources_written_wrong_are_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Source.parse(text)


def rollouts_of(returns: list[float], imitate: bool) -> Rollouts:
    """Return rollouts with these returns. Episodes have 3 steps; the observation is the number of the episode."""
    episodes = [
        Episode(np.full((4, 1), number, dtype=np.float32), np.zeros(3, dtype=np.int64), np.array([0, 0, value]), True, imitate)
        for number, value in enumerate(returns)
    ]
    return Rollouts.from_episodes(episodes, spaces.Box(0, 100, (1,)), spaces.Discrete(2), "x", 0)


def test_only_the_best_of_the_imitated_episodes_stay_imitated() -> None:
    better, random, worse = (
        rollouts_of([5, 9, 7], True),
        rollouts_of([100, 100], False),
        rollouts_of([1, 8, 6, np.nan, 0], True),
    )
    parts = [WeightedRollouts(better, 1), WeightedRollouts(random, 1), WeightedRollouts(worse, 1)]
    notices: list[str] = []
    chosen = imitate_top_fraction(parts, 0.25, notices.append)
    assert [part.rollouts.imitate.tolist() for part in chosen] == [
        [False, True, False],
        [False, False],
        [False, True, False, False, False],
    ]
    assert len(notices) == 1
    assert "1 of 8 episodes have no return" in notices[0]
    whole = imitate_top_fraction(parts, 1.0, notices.append)
    assert [part.rollouts.imitate.tolist() for part in whole] == [[True] * 3, [False] * 2, [True, True, True, False, True]]
    with pytest.raises(InputError, match="there are none"):
        imitate_top_fraction([WeightedRollouts(random, 1)], 0.5)
    with pytest.raises(InputError, match="no episode has one"):
        imitate_top_fraction([WeightedRollouts(rollouts_of([np.nan], True), 1)], 0.5)
    with pytest.raises(InputError, match="above 0 and at most 1"):
        imitate_top_fraction(parts, 0.0)


def test_the_imitated_and_the_others_are_held_out_alike() -> None:
    rollouts = rollouts_of([0] * 100, True).with_imitate(np.arange(100) < 20)
    train, held_out = train_val_split(rollouts, 0.1, seed=0)
    assert sorted([*train, *held_out]) == list(range(100))
    assert (held_out < 20).sum() == 2
    assert len(held_out) == 10
    assert (np.concatenate(train_val_split(rollouts, 0.1, seed=0)) == np.concatenate([train, held_out])).all()
    assert (train_val_split(rollouts, 0.1, seed=1)[1] != held_out).any()
    train, held_out = train_val_split(rollouts_of([0, 0], True).with_imitate(np.array([True, False])), 0.1, seed=0)
    assert [len(train), len(held_out)] == [1, 1]


def mixture(weights: list[float]) -> MixedDataset:
    rollouts = [rollouts_of([0] * 4, True), rollouts_of([0] * 20, False), rollouts_of([0] * 10, True)]
    tokenizer = Tokenizer(rollouts[0].observation_space, rollouts[0].action_space, bins=100)
    return MixedDataset([StreamDataset(part, tokenizer, 5) for part in rollouts], weights)


def test_a_mixture_holds_the_windows_of_its_parts() -> None:
    mixed = mixture([1, 1, 1])
    order = np.random.default_rng(0).permutation(len(mixed))
    batch = mixed[order]
    offset = 0
    for part in mixed.datasets:
        mine = (order >= offset) & (order < offset + len(part))
        for tensor, other in zip(batch, part[order[mine] - offset], strict=True):
            assert torch.equal(tensor[torch.from_numpy(mine)], other)
        offset += len(part)
    assert offset == len(mixed)
    tiles = mixed[mixed.eval_indices()].labels
    assert (tiles[..., 1] >= 0).sum() == sum(part.rollouts.steps for part in mixed.datasets)


@pytest.mark.parametrize("weights", [[1, 1, 1], [2, 0.3, 1.5], [0.01, 3, 1]])
def test_an_epoch_shows_each_source_as_often_as_its_weight_says(weights: list[float]) -> None:
    mixed = mixture(weights)
    seen = np.zeros(len(mixed))
    sizes = set()
    for epoch in range(200):
        order = mixed.shuffled_indices(np.random.default_rng([0, epoch]))
        assert (order == mixed.shuffled_indices(np.random.default_rng([0, epoch]))).all()
        counts = np.bincount(order, minlength=len(mixed))
        seen += counts
        sizes.add(len(order))
        offset = 0
        for part, weight in zip(mixed.datasets, weights, strict=True):
            mine = counts[offset : offset + len(part)]
            assert mine.sum() == max(1, round(weight * len(part)))
            assert mine.max() - mine.min() <= 1
            offset += len(part)
    assert len(sizes) == 1
    offset = 0
    for part, weight in zip(mixed.datasets, weights, strict=True):
        shown = max(1, round(weight * len(part))) / len(part)
        share = seen[offset : offset + len(part)] / 200  # each window's own, over the epochs
        assert np.abs(share - shown).max() < 6 * np.sqrt(0.25 / 200)
        offset += len(part)


@pytest.mark.parametrize("name", ["Copy", "DuplicatedInput", "Reverse", "RepeatCopy", "ReversedAddition", "Sort"])
def test_an_oracle_solves_every_episode_and_is_imitated(name: str) -> None:
    env, _ = load_recipes(name, "dhmm-gpt2")
    rollouts = load_source(Source("oracle"), EnvFactory(env, 0), CollectSettings(n_envs=2, episodes=8))
    assert rollouts.imitate.all()
    assert all(episode.rewards[-1] > 0 for episode in rollouts)
    assert rollouts.returns.min() > 0
    cartpole, _ = load_recipes("CartPole-v1", "dhmm-gpt2")
    with pytest.raises(InputError, match="CartPole-v1 has no oracle"):
        load_source(Source("oracle"), EnvFactory(cartpole, 0), CollectSettings(n_envs=1, episodes=1))


def test_sources_are_loaded_with_their_flags_and_saved(tmp_path: Path) -> None:
    env, _ = load_recipes("CartPole-v1", "dhmm-gpt2")
    PPO("MlpPolicy", "CartPole-v1").save(tmp_path / "teacher.zip")
    texts = [f"teacher:{tmp_path}/teacher.zip@episodes=4@weight=3", "random@episodes=6", "random@imitate=yes@episodes=5"]
    sources = [Source.parse(text) for text in texts]
    settings = CollectSettings(n_envs=2, episodes=9, trust=True)
    parts = load_sources(sources, EnvFactory(env, 3), tmp_path, settings)
    assert [(len(rollouts), rollouts.imitate.mean(), weight) for rollouts, weight in parts] == [(4, 1, 3), (6, 0, 1), (5, 1, 1)]
    (tmp_path / "teacher.zip").unlink()
    for again, first in zip(
        load_sources(sources, EnvFactory(env, 3), tmp_path, replace(settings, trust=False)), parts, strict=True
    ):
        assert_same(again.rollouts, first.rollouts)
        assert (again.rollouts.imitate == first.rollouts.imitate).all()
    assert len(sample_episodes(parts)) == 15
    assert len(sample_episodes(parts, max_rows=1)) == 3
    acrobot, _ = load_recipes("Acrobot-v1", "dhmm-gpt2")
    with pytest.raises(InputError, match=r"is not data of Acrobot-v1: .* the environment has it as categorical in \[0, 2\]"):
        load_sources([Source(str(tmp_path / "rollouts-1"))], EnvFactory(acrobot, 3), tmp_path, settings)


def test_rewards_that_are_not_known_are_told(tmp_path: Path) -> None:
    env, _ = load_recipes("CartPole-v1", "dhmm-gpt2")
    rollouts = collect(make_vec_env("CartPole-v1", 1), episodes=3, imitate=True)
    rollouts.rewards[1] = np.nan
    rollouts.save(tmp_path / "kept")
    notices: list[str] = []
    settings = CollectSettings(n_envs=1, episodes=1)
    assert len(load_source(Source(str(tmp_path / "kept")), EnvFactory(env, 0), settings, notices.append)) == 3
    assert notices == [f"note: 1 of 3 episodes of {tmp_path / 'kept'} have no return: a reward is not finite"]

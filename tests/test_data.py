"""Collecting, saving and splitting rollouts."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from dhmm_rl.data import Rollouts, StreamDataset, collect
from dhmm_rl.errors import InputError
from dhmm_rl.tokens import DONE, PAD_ID, RESET, Tokenizer


class Counter(gym.Env[NDArray[np.float32], np.int64]):
    """The observation is the number of the step. Episodes end after 3, 4, 5, … steps if asked to, else at the time limit."""

    observation_space = spaces.Box(0, 100, (1,))
    action_space = spaces.Discrete(3, start=1)

    def __init__(self, terminates: bool = True) -> None:
        self.terminates, self.length, self.t = terminates, 2, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.length, self.t = self.length + 1, 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.t += 1
        end = self.t == self.length
        return np.full(1, self.t, dtype=np.float32), float(action), end and self.terminates, end and not self.terminates, {}


def counted(episodes: int = 7, terminates: bool = True, imitate: bool = False) -> Rollouts:
    env = make_vec_env(Counter, 2, env_kwargs={"terminates": terminates})
    return collect(env, episodes=episodes, imitate=imitate, env_id="Counter")


def test_rows_are_the_steps_of_the_stream() -> None:
    rollouts = counted()
    assert len(rollouts) == 7
    for e in range(7):
        rows = slice(rollouts.starts[e], rollouts.starts[e + 1])
        seen = rollouts.observations[rows, 0]
        assert seen.tolist() == list(range(len(seen)))  # the terminal observation included
        assert (rollouts.actions[rows][1:] == rollouts.rewards[rows][1:]).all()  # the action that led here
        assert rollouts.returns[e] == rollouts.rewards[rows][1:].sum()
    assert rollouts.terminated.all()
    assert not counted(terminates=False).terminated.any()
    assert rollouts.env_steps >= rollouts.steps


def test_each_environment_contributes_its_share_however_long_its_episodes() -> None:
    env = make_vec_env("CartPole-v1", 4, seed=0)
    rollouts = collect(env, episodes=40, imitate=False, seed=0)
    alone = [collect(make_vec_env("CartPole-v1", 1), episodes=10, imitate=False, seed=s).returns.mean() for s in range(20)]
    assert abs(rollouts.returns.mean() - np.mean(alone)) < 4 * np.std(alone)


def test_recording_ends_after_so_many_steps_and_what_runs_then_is_cut_off() -> None:
    env = make_vec_env("Acrobot-v1", 4, seed=0)
    rollouts = collect(env, episodes=100, imitate=False, max_steps=1_200, seed=0)
    assert rollouts.env_steps == 1_200
    assert np.diff(rollouts.starts).tolist() == [301] * 4
    assert not rollouts.terminated.any()


def test_policies_of_any_kind_act() -> None:
    env = make_vec_env("CartPole-v1", 2)
    always = collect(env, lambda observations: np.ones(len(observations), dtype=int), episodes=3, imitate=True)
    assert (always.actions == 1).all()
    assert always.imitate.all()
    model = PPO("MlpPolicy", env, seed=0)
    by_model = collect(env, model, episodes=3, imitate=True, deterministic=True)
    predicted, _ = model.predict(by_model.observations[:-1], deterministic=True)
    inside = np.setdiff1d(np.arange(1, len(by_model.rewards)), by_model.starts)
    assert (by_model.actions[inside] == predicted[inside - 1]).all()


def test_the_same_seed_collects_the_same() -> None:
    first, second, other = (collect(make_vec_env("CartPole-v1", 3), episodes=5, imitate=False, seed=s) for s in (4, 4, 5))
    assert np.array_equal(first.observations, second.observations)
    assert not np.array_equal(first.observations[:10], other.observations[:10])


def test_kept_rollouts_are_mapped_into_memory_and_the_same(tmp_path: Path) -> None:
    rollouts = counted()
    rollouts.save(tmp_path / "rollouts")
    again = Rollouts.load(tmp_path / "rollouts")
    assert isinstance(again.observations, np.memmap)
    for name in ("observations", "actions", "rewards", "starts", "terminated", "imitate"):
        assert np.array_equal(getattr(again, name), getattr(rollouts, name))
    assert again.action_space == rollouts.action_space


def damage(folder: Path, how: str) -> None:
    if how == "cut":
        path = folder / "observations.npy"
        path.write_bytes(path.read_bytes()[:-40])
    elif how == "missing":
        (folder / "rewards.npy").unlink()
    elif how == "nan":
        values = np.load(folder / "observations.npy")
        values[5] = np.nan
        np.save(folder / "observations.npy", values)
    elif how == "short":
        np.save(folder / "actions.npy", np.load(folder / "actions.npy")[:-1])
    elif how == "narrow":
        np.save(folder / "observations.npy", np.load(folder / "observations.npy")[:, 0])
    elif how == "columns":
        np.save(folder / "rewards.npy", np.load(folder / "rewards.npy")[:, None])
    elif how == "letters":
        np.save(folder / "observations.npy", np.load(folder / "observations.npy").astype(str))
    elif how == "starts":
        np.save(folder / "starts.npy", np.load(folder / "starts.npy").astype(float))
    else:
        (folder / "rollouts.json").write_text("{" if how == "json" else "[]")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "cut short"),
        ("missing", "cut short"),
        ("nan", r"observation\[0\] is NaN in row 5"),
        ("short", "do not fit together"),
        ("narrow", r"observations .* float32 of shape \(\) each; numbers of shape \(1,\)"),
        ("columns", r"rewards .* of shape \(1,\) each; numbers of shape \(\)"),
        ("letters", "observations .* <U32"),
        ("starts", "starts .* float64; they must be integers"),
        ("json", "cannot be read"),
        ("list", "cannot be read"),
    ],
)
def test_damaged_rollouts_are_named(how: str, message: str, tmp_path: Path) -> None:
    counted().save(tmp_path / "rollouts")
    damage(tmp_path / "rollouts", how)
    with pytest.raises(InputError, match=message):
        Rollouts.load(tmp_path / "rollouts")
    with pytest.raises(InputError, match="holds no rollouts"):
        Rollouts.load(tmp_path)


@pytest.mark.parametrize("terminates", [True, False])
@pytest.mark.parametrize("length", [1, 4, 50])
def test_windows_hold_every_step_equally_often_and_never_two_episodes(terminates: bool, length: int) -> None:
    rollouts = counted(terminates=terminates)
    tokenizer = Tokenizer(rollouts.observation_space, rollouts.action_space, bins=100)
    windows = StreamDataset(rollouts, tokenizer, length)
    batch = windows[np.arange(len(windows))]
    ids, labels = batch.input_ids.numpy(), batch.labels.numpy()
    first_bin = tokenizer.slots[1].start

    for window, following in zip(ids, labels, strict=True):
        steps = window[:, 1][window[:, 1] != PAD_ID]
        assert (np.diff(steps) == 1).all()  # the counter never jumps: one episode
        assert ((window[:, 0] == RESET) == (window[:, 1] == first_bin)).all()
        inner = window[1:][window[:-1, 1] != PAD_ID]
        assert (following[:-1][window[:-1, 1] != PAD_ID] == inner).all()

    some = StreamDataset(rollouts, tokenizer, length, episodes=np.array([4, 2]))
    part = some[some.eval_indices()].labels.numpy()
    assert (part[..., 1] != PAD_ID).sum() == np.diff(rollouts.starts)[[2, 4]].sum() - 2

    is_label = labels[..., 1] != PAD_ID
    assert is_label.sum() == rollouts.steps * length
    assert (labels[..., 0] == DONE).sum() == (len(rollouts) * length if terminates else 0)
    assert (labels[..., 0] != RESET).all()
    tiles = windows[windows.eval_indices()].labels.numpy()
    assert (tiles[..., 1] != PAD_ID).sum() == rollouts.steps
    assert (tiles[..., 0] != PAD_ID).sum() == rollouts.steps + terminates * len(rollouts)


def test_actions_not_worth_imitating_have_no_weight() -> None:
    for imitate in (True, False):
        rollouts = counted(imitate=imitate)
        tokenizer = Tokenizer(rollouts.observation_space, rollouts.action_space)
        windows = StreamDataset(rollouts, tokenizer, 4, field_weights={"observation[0]": 2.5})
        weights = windows[[0, 5]].weights
        assert (weights[..., 0] == float(imitate)).all()
        assert (weights[..., 1] == 2.5).all()
    with pytest.raises(InputError, match="field weights name"):
        StreamDataset(rollouts, tokenizer, 4, field_weights={"obs": 1})


def test_dither_changes_bins_by_at_most_one_and_repeats_with_its_seed() -> None:
    rollouts = collect(make_vec_env("CartPole-v1", 1), episodes=5, imitate=False)
    tokenizer = Tokenizer(rollouts.observation_space, rollouts.action_space, bins=50).fit(rollouts.observations)
    plain, dithered, again = (StreamDataset(rollouts, tokenizer, 8, dither=d)[np.arange(40)].input_ids for d in (None, 1, 1))
    assert (dithered == again).all()
    assert (dithered != plain).any()
    assert (dithered - plain).abs().max() == 1
    assert (dithered[..., 0] == plain[..., 0]).all()
    taught = StreamDataset(rollouts.with_imitate(np.array([True, False] * 2 + [True])), tokenizer, 8, dither=1)
    windows = np.arange(len(taught))
    changed = taught[windows].input_ids != StreamDataset(rollouts, tokenizer, 8)[windows].input_ids
    of_episode = np.searchsorted(taught._ends, windows, side="right")
    assert [bool(changed[of_episode == episode].any()) for episode in range(5)] == [False, True, False, True, False]


def test_foreign_spaces_and_no_episodes_are_refused(cartpole: Tokenizer) -> None:
    with pytest.raises(InputError, match="the environment has it as"):
        StreamDataset(counted(), cartpole, 4)
    with pytest.raises(InputError, match="at least 1"):
        counted(episodes=0)


class Hands(gym.Env[Any, Any]):
    """Two cards. The first repeats the last action; the second is the number of steps until the episode ends."""

    action_space = spaces.Discrete(3)

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.observation_space = space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 6))
        return self.hand(0), {}

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return self.hand(int(action)), 1.0, self.left == 0, False, {}

    def hand(self, first: int) -> Any:
        second = np.array([self.left], dtype=np.float32)
        return (first, second) if isinstance(self.observation_space, spaces.Tuple) else {"first": first, "second": second}


CARD, LEFT = spaces.Discrete(3), spaces.Box(0, 9, (1,))


@pytest.mark.parametrize("space", [spaces.Tuple([CARD, LEFT]), spaces.Dict({"first": CARD, "second": LEFT})])
def test_observations_of_many_parts_are_kept_as_their_fields(space: spaces.Space[Any], tmp_path: Path) -> None:
    tokenizer = Tokenizer(space, spaces.Discrete(3), bins=9)
    env = make_vec_env(lambda: Hands(space), 2)
    rollouts = collect(env, episodes=20, imitate=False)
    assert rollouts.observations.shape == (len(rollouts.rewards), 2)
    for episode in rollouts:
        assert (episode.observations[1:, 0] == episode.actions).all()
        assert (np.diff(episode.observations[:, 1]) == -1).all()
        assert episode.observations[-1, 1] == 0
        assert len(episode.rewards) == episode.observations[0, 1]
    rollouts.save(tmp_path / "rollouts")
    again = Rollouts.load(tmp_path / "rollouts")
    assert again.observation_space == space
    windows = StreamDataset(again, tokenizer, 6)
    batch = windows[windows.eval_indices()[:1]]
    parts = again.observations_at(np.arange(1))
    assert (batch.input_ids[0, 0].numpy() == tokenizer.first_step(parts)[0]).all()
    tokenizer.fit(again.observations_at(np.arange(5)))


def test_one_bad_episode_can_be_left_out_of_kept_rollouts(tmp_path: Path) -> None:
    rollouts = counted()
    rollouts.save(tmp_path / "rollouts")
    damage(tmp_path / "rollouts", "nan")
    with pytest.raises(InputError, match="skip_bad leaves such episodes out"):
        Rollouts.load(tmp_path / "rollouts")
    notices: list[str] = []
    rest = Rollouts.load(tmp_path / "rollouts", skip_bad=True, notice=notices.append)
    assert [len(notice.splitlines()) for notice in notices] == [1]
    assert "1 of 7 episodes" in notices[0]
    assert r"(1): observation[0] is NaN" in notices[0]
    for mine, other in zip(rest, rollouts.select([0, 2, 3, 4, 5, 6]), strict=True):
        for part, other_part in zip(mine, other, strict=True):
            np.testing.assert_array_equal(part, other_part)


def test_rewards_that_are_not_known_are_no_hindrance(tmp_path: Path) -> None:
    rollouts = counted()
    rollouts.rewards[6] = np.nan
    rollouts.save(tmp_path / "rollouts")
    assert np.isnan(Rollouts.load(tmp_path / "rollouts").returns).tolist() == [False, True] + [False] * 5

"""Minari's datasets: both sides read what the other writes, and errors name what is wrong."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from stable_baselines3.common.env_util import make_vec_env

from dhmm_rl.data import Rollouts, collect, read_minari, write_minari
from dhmm_rl.data.episodes import Episode
from dhmm_rl.errors import InputError
from dhmm_rl.pretraining.sources import CollectSettings, Source, load_source
from dhmm_rl.recipes import load_recipes
from dhmm_rl.recipes.environments import EnvFactory
from dhmm_rl.tokens import FieldSpace, Tokenizer
from dhmm_rl.tokens.fields import flatten, unflatten
from dhmm_rl.tokens.simple_spaces import Strings

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari.utils")  # what it misses when it writes

ID = "cartpole/some-v0"
CARDS = spaces.Tuple([spaces.Discrete(5, start=2), spaces.Discrete(3)])


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


class Cards(gym.Env[Any, Any]):
    """Two cards per step; episodes are truncated after four steps."""

    observation_space, action_space = CARDS, spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = 4
        return self.cards(), {}

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return self.cards(), float(action), False, self.left == 0, {}

    def cards(self) -> tuple[int, int]:
        return int(self.np_random.integers(2, 7)), int(self.np_random.integers(3))


def rollouts_of(kind: str) -> Rollouts:
    if kind == "cards":
        return collect(make_vec_env(Cards, 2), episodes=3, imitate=True, env_id="Cards")
    rollouts = collect(make_vec_env(kind, 2), episodes=5, imitate=False, env_id=kind)
    return rollouts.with_imitate(np.array([True, False, True, True, False]))


def assert_equal(ours: Rollouts, theirs: Rollouts) -> None:
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        for part, other_part in zip(mine, other, strict=True):
            np.testing.assert_array_equal(part, other_part)


KINDS = ["CartPole-v1", "dhmm_rl/PendulumNoVel-v1", "cards"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_here_is_the_same_for_minari(kind: str) -> None:
    rollouts = rollouts_of(kind)
    write_minari(rollouts, ID, description="for a test")
    assert_equal(read_minari(ID), rollouts)
    assert list(minari.list_local_datasets()) == [ID]
    dataset = minari.load_dataset(ID)
    assert (dataset.total_episodes, dataset.total_steps) == (len(rollouts), rollouts.steps)
    for theirs, mine in zip(dataset, rollouts, strict=True):
        observations = np.stack(theirs.observations, axis=-1) if kind == "cards" else theirs.observations
        np.testing.assert_array_equal(observations, mine.observations)
        np.testing.assert_array_equal(theirs.actions, mine.actions)
        np.testing.assert_array_equal(theirs.rewards, mine.rewards)
        assert theirs.terminations.tolist() == [False] * (len(mine.rewards) - 1) + [mine.terminated]
        assert theirs.truncations.tolist() == [False] * (len(mine.rewards) - 1) + [not mine.terminated]
    if kind != "cards":
        assert dataset.recover_environment().spec.id == kind
        assert read_minari(ID).env_id == kind


FREE, ONE_OF = spaces.Text(5, charset="abc "), Strings(["a", "b c"])


def in_two_ways(mission: spaces.Space[Any], order: str = "za") -> spaces.Dict:
    """A Dict that SB3 cannot hold, because it contains another Dict and a text."""
    parts = {"z": spaces.Dict({"pair": CARDS}), "a": mission}
    return spaces.Dict([(key, parts[key]) for key in order])


def nested_rollouts(space: FieldSpace) -> Rollouts:
    def values(count: int) -> Any:
        cards = np.arange(2 * count).reshape(2, count) % 3
        texts = np.array(["a", "b c"])[np.arange(count) % 2]
        return {"z": {"pair": (cards[0] + 2, cards[1])}, "a": texts}

    episodes = [Episode(flatten(space.space, values(t + 1)), np.zeros(t, int), np.ones(t), True, True) for t in (4, 7, 2)]
    return Rollouts.from_episodes(episodes, space, spaces.Discrete(2), "Nested", 13)


@pytest.mark.parametrize("mission", [FREE, ONE_OF], ids=str)
def test_what_sb3_holds_as_fields_is_written_in_full_and_read_as_the_environment_shows_it(mission: spaces.Space[Any]) -> None:
    """MiniGrid, for example, has missions, which are strings."""
    seen = FieldSpace(in_two_ways(mission))
    rollouts = nested_rollouts(seen)
    write_minari(rollouts, ID)
    kept = read_minari(ID)
    assert isinstance(kept.observation_space, spaces.Dict)
    assert [type(kept.observation_space[key]) for key in ("z", "a")] == [spaces.Dict, spaces.Text]
    assert minari.load_dataset(ID)[0].observations["a"] == ["a", "b c", "a", "b c", "a"]
    assert_equal(kept.with_observation_space(seen), rollouts)
    for order in ("za", "az"):
        other = in_two_ways(mission, order)
        tokenizer = Tokenizer(other, spaces.Discrete(2))
        rows = np.arange(5)
        ids = tokenizer.encode_observation(kept.with_observation_space(other).observations_at(rows))
        np.testing.assert_array_equal(ids, tokenizer.encode_observation(unflatten(seen.space, rollouts.observations[rows])))
    strange = FieldSpace(in_two_ways(Strings(["a", "b"])))
    with pytest.raises(InputError, match="the string 'b c' is not one of the"):
        kept.with_observation_space(strange)
    assert kept.with_observation_space(spaces.Discrete(2)) is kept


def test_spaces_that_minari_lacks_are_refused() -> None:
    space = spaces.OneOf([spaces.Discrete(2), spaces.Discrete(3)])
    episode = Episode(np.zeros((3, 3)), np.zeros(2, int), np.zeros(2), True, True)
    with pytest.raises(InputError, match="Minari cannot store a OneOf; a folder of rollouts can"):
        write_minari(Rollouts.from_episodes([episode], space, spaces.Discrete(2), "Nested", 2), ID)
    assert minari.list_local_datasets() == {}


@pytest.mark.parametrize("vectorization", ["dummy", "gymnasium"])
def test_a_dataset_of_minigrid_is_data_of_minigrid(vectorization: str) -> None:
    pytest.importorskip("minigrid")
    env, _ = load_recipes("minigrid:MiniGrid-Empty-5x5-v0", "dhmm-gpt2")
    env = replace(env, vectorization=vectorization)
    rollouts = load_source(Source("random"), EnvFactory(env, 0), CollectSettings(n_envs=2, episodes=2))
    write_minari(rollouts, ID)
    assert_equal(
        load_source(Source(f"minari:{ID}"), EnvFactory(env, 0), CollectSettings(n_envs=1, episodes=1)),
        rollouts.with_imitate(False),
    )


Parts = dict[str, Any]


def parts_of(rollouts: Rollouts) -> list[Parts]:
    """Record episodes for Minari in the usual way."""
    episodes: list[Parts] = []
    for episode in rollouts:
        ends = np.arange(len(episode.rewards)) == len(episode.rewards) - 1
        cards = isinstance(rollouts.observation_space, spaces.Tuple)
        episodes.append(
            {
                "observations": tuple(episode.observations.T) if cards else episode.observations,
                "actions": episode.actions,
                "rewards": episode.rewards,
                "terminations": ends & episode.terminated,
                "truncations": ends & (not episode.terminated),
            }
        )
    return episodes


def write(episodes: list[Parts], rollouts: Rollouts) -> None:
    minari.create_dataset_from_buffers(
        ID,
        [EpisodeBuffer(**episode) for episode in episodes],
        observation_space=rollouts.observation_space,
        action_space=rollouts.action_space,
        algorithm_name="none",
        author="nobody",
        author_email="nobody@example.org",
        code_permalink="none",
        description="none",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_minari_writes_is_the_same_here(kind: str) -> None:
    rollouts = rollouts_of(kind)
    write(parts_of(rollouts), rollouts)
    assert_equal(read_minari(ID), rollouts.with_imitate(True))
    assert not read_minari(ID, imitate=False).imitate.any()


def test_an_episode_with_one_observation_too_few_loses_its_last_action() -> None:
    rollouts = rollouts_of("CartPole-v1")
    episodes = parts_of(rollouts)
    for number in (1, 3):
        episodes[number]["observations"] = episodes[number]["observations"][:-1]
    write(episodes, rollouts)
    notices: list[str] = []
    ours = read_minari(ID, notice=notices.append)
    assert len(notices) == 1
    assert "2 of 5 episodes of minari:cartpole/some-v0 hold T observations for T actions" in notices[0]
    for number, (mine, other) in enumerate(zip(ours, rollouts, strict=True)):
        seen = len(other.rewards) - (number in (1, 3))
        np.testing.assert_array_equal(mine.observations, other.observations[: seen + 1])
        np.testing.assert_array_equal(mine.actions, other.actions[:seen])
        assert mine.terminated == (number not in (1, 3))


def spoil(key: str, change: Callable[[Any], Any]) -> Callable[[Parts], None]:
    def spoiled(episode: Parts) -> None:
        episode[key] = change(np.array(episode[key]))

    return spoiled


def put(index: Any, value: Any) -> Callable[[Any], Any]:
    def changed(values: Any) -> Any:
        values[index] = value
        return values

    return changed


SPOILT = {
    "NaN": (spoil("observations", put((2, 1), np.nan)), "observation[1] is NaN"),
    "no category": (spoil("actions", put(3, 7)), "action is 7, which is not one of its categories"),
    "too few actions": (spoil("actions", lambda values: values[:-2]), "rewards, "),
    "wrong shape": (spoil("observations", lambda values: values[:, :3]), "its observations are not of the dataset's space"),
    "an end too early": (spoil("truncations", put(0, True)), "it goes on after an end"),
    "no step": (lambda episode: episode.update({key: part[:0] for key, part in episode.items()}), "it has no step"),
}


@pytest.mark.parametrize("what", SPOILT)
@pytest.mark.filterwarnings("ignore:.*Chunk shape must not be:UserWarning")
def test_a_bad_episode_is_left_out_and_said_why(what: str, root: Path) -> None:
    rollouts = rollouts_of("CartPole-v1")
    change, message = SPOILT[what]
    episodes = parts_of(rollouts)
    if what == "no step":
        write(episodes, rollouts)
        with h5py.File(root / ID / "data/main_data.hdf5", "a") as file:
            for key in episodes[1]:
                file["episode_1"][key].resize(0, axis=0)
    else:
        change(episodes[1])
        write(episodes, rollouts)
    notices: list[str] = []
    assert_equal(read_minari(ID, notice=notices.append), rollouts.with_imitate(True).select([0, 2, 3, 4]))
    assert len(notices) == 1
    assert "1 of 5 episodes of minari:cartpole/some-v0 are left out (1): " in notices[0]
    assert message in notices[0]


def test_an_episode_that_cannot_be_read_is_left_out(root: Path) -> None:
    rollouts = rollouts_of("CartPole-v1")
    write(parts_of(rollouts), rollouts)
    with h5py.File(root / ID / "data/main_data.hdf5", "a") as file:
        del file["episode_2"]["actions"]
        del file["episode_4"]
    notices: list[str] = []
    assert len(read_minari(ID, notice=notices.append)) == 3
    assert all("it cannot be read" in notice for notice in notices)


def test_rewards_that_are_not_known_leave_an_episode_without_return() -> None:
    rollouts = rollouts_of("CartPole-v1")
    episodes = parts_of(rollouts)
    episodes[1]["rewards"] = np.full_like(episodes[1]["rewards"], np.nan)
    write(episodes, rollouts)
    assert np.isnan(read_minari(ID).returns).tolist() == [False, True, False, False, False]


def test_nothing_usable_is_an_error(root: Path) -> None:
    rollouts = rollouts_of("CartPole-v1")
    episodes = parts_of(rollouts)
    for episode in episodes:
        episode["observations"] = np.full_like(episode["observations"], np.nan)
    write(episodes, rollouts)
    with pytest.raises(InputError, match=r"no episode of minari:cartpole/some-v0 can be used: observation\[0\] is NaN"):
        read_minari(ID)
    minari.delete_dataset(ID)
    write(parts_of(rollouts), rollouts)
    data = root / ID / "data/main_data.hdf5"
    data.write_bytes(data.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"no episode of .* can be used: it cannot be read .*truncated file"):
        read_minari(ID)
    (root / ID / "data/metadata.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_minari(ID)
    minari.delete_dataset(ID)
    write([], rollouts)
    with pytest.raises(InputError, match="holds no episodes"):
        read_minari(ID)


def test_names_that_are_wrong_or_taken_are_refused() -> None:
    with pytest.raises(InputError, match="there is no Minari dataset cartpole/some-v0"):
        read_minari(ID)
    for name in ("", "cartpole", "a b-v0"):
        with pytest.raises(InputError, match="is not the name of a Minari dataset"):
            read_minari(name)
    rollouts = rollouts_of("CartPole-v1")
    write_minari(rollouts, ID)
    with pytest.raises(InputError, match="there is a Minari dataset cartpole/some-v0 already"):
        write_minari(rollouts, ID)


def test_an_interrupted_write_leaves_no_dataset(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Rollouts, number: int) -> Any:
        raise KeyboardInterrupt

    rollouts = rollouts_of("CartPole-v1")
    monkeypatch.setattr(Rollouts, "__getitem__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_minari(rollouts, ID)
    assert minari.list_local_datasets() == {}
    assert [path.name for path in (root / "cartpole").iterdir()] == ["namespace_metadata.json"]


@pytest.mark.parametrize("missing", ["minari", "h5py"])
def test_missing_packages_are_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    for act in (lambda: read_minari(ID), lambda: write_minari(rollouts_of("CartPole-v1"), ID)):
        with pytest.raises(InputError, match=r"need the extra minari: .*pip install .*minari\[hdf5\]"):
            act()

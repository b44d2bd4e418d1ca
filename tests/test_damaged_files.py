"""Damaged files are refused in one line or read with the same result. ``make fuzz`` tries many more damages."""

import json
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from dhmm_rl.data import Rollouts
from dhmm_rl.data.episodes import Episode
from dhmm_rl.errors import InputError
from dhmm_rl.files import read_json, write_json
from tests.fuzz import FORMATS, fuzz, outcome, write_all

BOX, TWO = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders with the good files of two runs."""
    root = tmp_path_factory.mktemp("files")
    with redirect_stdout(StringIO()):
        write_all(root / "good", 0)
        write_all(root / "other", 1)
    return root / "good", root / "other"


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_refused_in_a_line_or_read_alike(name: str, folders: tuple[Path, Path]) -> None:
    found = fuzz(name, *folders, damages=10, seed=1)
    assert found.keys() <= {"refused", "same", "read"}, found
    assert found["refused"] > 0 or not FORMATS[name].checked


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "starts", "terminated", "imitate"])
def test_damaged_rollouts_of_older_versions_end_in_a_line(name: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    """They have no checksums, so a changed value may go unnoticed."""
    shutil.copytree(folders[0] / "rollouts", tmp_path / "rollouts")
    description = json.loads((tmp_path / "rollouts/rollouts.json").read_text())
    del description["checksum"], description["checksums"]
    (tmp_path / "rollouts/rollouts.json").write_text(json.dumps(description))
    path, rng = tmp_path / "rollouts" / f"{name}.npy", np.random.default_rng(0)
    original = path.read_bytes()
    assert len(Rollouts.load(tmp_path / "rollouts")) == 4
    refused = 0
    for number in range(40):
        damaged = bytearray(original[: int(rng.integers(len(original)))] if number % 2 else original)
        if damaged:
            damaged[int(rng.integers(min(len(damaged), 128)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        found = outcome(FORMATS["rollouts: rewards"], tmp_path, None)
        assert found in ("refused", "different"), found
        refused += found == "refused"
    assert refused >= 20


def test_a_json_file_that_was_edited_is_refused_until_its_checksum_is_removed(tmp_path: Path) -> None:
    content = {"seed": 1, "rate": float("nan"), "sizes": [1, 2], "text": "±"}
    write_json(tmp_path / "a.json", content)
    assert repr(read_json(tmp_path / "a.json")) == repr(content)
    edited = json.loads((tmp_path / "a.json").read_text()) | {"seed": 2}
    (tmp_path / "a.json").write_text(json.dumps(edited))
    with pytest.raises(InputError, match="remove its checksum"):
        read_json(tmp_path / "a.json")
    del edited["checksum"]
    (tmp_path / "a.json").write_text(json.dumps(edited))
    assert read_json(tmp_path / "a.json")["seed"] == 2


def test_a_changed_value_costs_its_episode_alone_with_skip_bad(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[0] / "rollouts", tmp_path / "rollouts")
    whole = Rollouts.load(folders[0] / "rollouts")
    rewards = np.load(tmp_path / "rollouts/rewards.npy")
    rewards[whole.starts[2] + 1] += 1
    np.save(tmp_path / "rollouts/rewards.npy", rewards)
    with pytest.raises(InputError, match=r"differs from what was saved .*episode 2"):
        Rollouts.load(tmp_path / "rollouts")
    notices: list[str] = []
    rest = Rollouts.load(tmp_path / "rollouts", skip_bad=True, notice=notices.append)
    assert "(2): a value differs" in notices[0]
    for mine, other in zip(rest, whole.select([0, 1, 3]), strict=True):
        np.testing.assert_array_equal(mine.observations, other.observations)


def episode(**changes: Any) -> Any:
    parts: dict[str, Any] = {"observations": np.zeros((4, 2), np.float32), "actions": np.zeros(3, int), "rewards": np.zeros(3)}
    return Episode(**(parts | changes), terminated=True, imitate=True)


BAD_EPISODES: dict[str, Any] = {
    "as many observations as actions": episode(observations=np.zeros((3, 2), np.float32)),
    "an observation too many": episode(observations=np.zeros((5, 2), np.float32)),
    "a reward too many": episode(rewards=np.zeros(4)),
    "no step": episode(observations=np.zeros((1, 2), np.float32), actions=np.zeros(0, int), rewards=np.zeros(0)),
    "observations of another width": episode(observations=np.zeros((4, 3), np.float32)),
    "observations that are dictionaries": episode(observations=[{"x": 1.0}] * 4),
    "observations of several lengths": episode(observations=[[1.0], [1.0, 2.0], [1.0], [1.0]]),
    "actions that are texts": episode(actions=np.array(["a", "b", "c"])),
    "rewards of two columns": episode(rewards=np.zeros((3, 2))),
    "a dictionary": {"observations": np.zeros((4, 2)), "actions": np.zeros(3)},
    "a number": 3,
}


@pytest.mark.parametrize("what", BAD_EPISODES)
def test_an_episode_that_is_none_is_named(what: str) -> None:
    with pytest.raises(InputError, match=r"episode 1\b") as raised:
        Rollouts.from_episodes([episode(), BAD_EPISODES[what]], BOX, TWO, "x", 6)
    assert len(str(raised.value).splitlines()) == 1
    assert len(Rollouts.from_episodes([episode(), episode()], BOX, TWO, "x", 6)) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"observations": np.zeros((7, 2))},
        {"observations": [[0.0, 0.0]] * 8},
        {"actions": np.zeros((8, 1))},
        {"rewards": np.zeros(7)},
        {"starts": np.array([0, 4.0, 8])},
        {"starts": np.array([0, 7, 8])},
        {"starts": np.array([[0, 4, 8]])},
        {"starts": np.array([0, 9, 8], np.uint64)},
        {"terminated": np.zeros(3, bool)},
        {"imitate": np.ones(2)},
        {"imitate": True},
    ],
    ids=lambda change: "-".join(change),
)
def test_rollouts_whose_parts_do_not_fit_are_refused_by_the_constructor(change: dict[str, Any]) -> None:
    parts: dict[str, Any] = dict(
        observations=np.zeros((8, 2)),
        actions=np.zeros(8, int),
        rewards=np.zeros(8),
        starts=np.array([0, 4, 8]),
        terminated=np.ones(2, bool),
        imitate=np.ones(2, bool),
        observation_space=BOX,
        action_space=TWO,
        env_id="x",
        env_steps=6,
    )
    assert len(Rollouts(**parts)) == 2
    with pytest.raises(InputError) as raised:
        Rollouts(**{**parts, **change})
    assert len(str(raised.value).splitlines()) == 1

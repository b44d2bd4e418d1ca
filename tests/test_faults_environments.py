"""Environments that break down while an agent is evaluated or plays, and environments in spawned processes."""

import multiprocessing
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from dhmm_rl import play, ppo
from dhmm_rl.cli import run_command
from dhmm_rl.errors import EnvironmentFault
from dhmm_rl.recipes import EnvRecipe
from dhmm_rl.recipes.environments import make_envs
from tests.faulty_env import Faulty
from tests.killing import AGENT, MLP

pytestmark = pytest.mark.filterwarnings("ignore:tokens hardly tell")  # of a few short episodes
RECIPE = 'description = "short episodes"\nid = "tests.faulty_env:FaultyLimited-v0"\neval_every = 128\neval_episodes = 2\n'
# What an environment does wrong, the exit status of the command that meets it, and what the command says.
FAULTS = {
    "raises in reset": (1, "in reset at the beginning of episode {}, raised ZeroDivisionError: the engine is out of oil"),
    "raises in step": (1, "in step at step 3 of episode {}, raised ZeroDivisionError: the engine is out of oil"),
    "four values": (1, "in step at step 3 of episode {}, .*it must return observation, reward, terminated, truncated and info"),
    "no reward": (1, "in step at step 3 of episode {}, returned None; the reward must be a number"),
    "no end": (1, "in step at step 3 of episode {}, returned None; terminated must be true or false"),
    "a reward of NaN": (2, "(?i)nan"),
    "an observation of NaN": (2, "(?i)nan"),
}


def error_of(command: Any, *arguments: object, capsys: pytest.CaptureFixture[str], status: int) -> list[str]:
    """Run a command to its error; return what it prints from that line on."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_command(command.main, command.Args, command.__name__)
    printed = capsys.readouterr().err.splitlines()
    assert ended.value.code == status, printed
    first = next(i for i, line in enumerate(printed) if line.startswith("error: "))
    return printed[first:]


def train(folder: Path, env: str, agent: str) -> list[object]:
    """Arguments of ``ppo`` for a short run."""
    (folder / "env.toml").write_text(RECIPE + env)
    (folder / "agent.toml").write_text(agent)
    recipes = ["--env", folder / "env.toml", "--agent", folder / "agent.toml", "--pretrained", "none"]
    return [*recipes, "--steps", 640, "--eval-share", "inf", "--final-episodes", 2, "--runs", folder, "--quiet"]


@pytest.mark.parametrize(("fault", "status"), [("raises in step", 1), ("an observation of NaN", 2)])
def test_a_fault_in_an_evaluation_leaves_the_best_agent_and_a_checkpoint(
    fault: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_evaluations = f'eval_kwargs = {{ fault = "{fault}", episode = 5 }}\n'
    lines = error_of(ppo, *train(tmp_path, in_evaluations, MLP), capsys=capsys, status=status)
    assert re.search(FAULTS[fault][1].format(5), lines[0])
    folder = tmp_path / "env/agent/1"
    assert (folder / "best_agent.pt").is_file()
    assert not (folder / "result.json").exists()
    monkeypatch.setattr(Faulty, "fails", lambda self: False)  # the user repairs it
    ppo.main(ppo.Args(resume=folder, trust=True, quiet=True))
    assert (folder / "result.json").is_file()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of an agent that reads numbers, and one of an agent that reads tokens."""
    folders = {}
    for name, agent in (("mlp", MLP), ("tokens", AGENT)):
        folder = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["ppo", *map(str, train(folder, "", agent))])
            run_command(ppo.main, ppo.Args, "dhmm_rl.ppo")
        folders[name] = folder / "env/agent/1"
    return folders


@pytest.fixture
def env_kwargs() -> Iterator[dict[str, Any]]:
    """Keywords of every environment that is made."""
    kwargs = gym.spec("FaultyLimited-v0").kwargs
    yield kwargs
    kwargs.clear()


@pytest.mark.parametrize("agent", ["mlp", "tokens"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_while_an_agent_plays_is_told_in_a_line(
    fault: str, agent: str, runs: dict[str, Path], env_kwargs: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    env_kwargs["fault"] = fault
    status, message = FAULTS[fault]
    lines = error_of(play, runs[agent], "--trust", "--episodes", 2, capsys=capsys, status=status)
    assert re.search(message.format(1), lines[0])
    assert len(lines) == 1 or lines[-1] == "ZeroDivisionError: the engine is out of oil" or "unpack" in lines[-1]


@pytest.mark.filterwarnings("ignore:.*RGB-array rendering")  # Gymnasium says it too, in a warning
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raises in render", "in render at the beginning of episode 1, raised ZeroDivisionError: the engine is out of oil"),
        ("no picture", "in render at the beginning of episode 1, returned None; it must return an image"),
        ("a picture of floats", r"in render at the beginning of episode 1, returned array\(.*; it must return an image"),
    ],
)
def test_a_fault_while_a_video_is_recorded_is_told_in_a_line(
    fault: str,
    message: str,
    runs: dict[str, Path],
    env_kwargs: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    env_kwargs["fault"] = fault
    video = tmp_path / "play.gif"
    lines = error_of(play, runs["mlp"], "--trust", "--episodes", 1, "--video", video, capsys=capsys, status=1)
    assert re.search(message, lines[0])
    assert not list(tmp_path.iterdir())


def test_a_video_of_an_environment_without_faults_is_written(
    runs: dict[str, Path], tmp_path: Path, env_kwargs: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    play.main(play.Args(runs["mlp"], trust=True, episodes=1, video=tmp_path / "play.gif"))
    assert (tmp_path / "play.gif").read_bytes().startswith(b"GIF")


def test_spawned_processes_know_this_projects_environments_and_tell_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where a process neither shares the modules of its parent nor can be forked."""
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    env = make_envs(EnvRecipe("CartPoleNoVel", "", "dhmm_rl/CartPoleNoVel-v1", vectorization="subproc"), 1, seed=0)
    assert np.asarray(env.reset()).shape == (1, 4)
    with pytest.raises(EnvironmentFault, match="CartPoleNoVel-v1, in step at step 1 of episode 1, raised AssertionError"):
        env.step(np.full(1, 7))
    env.close()

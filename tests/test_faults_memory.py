"""Memory that runs out: a command ends in one line, and what a run has made so far is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from dhmm_rl import ppo, pretrain
from dhmm_rl.cli import run_command
from dhmm_rl.errors import is_out_of_memory
from dhmm_rl.languages import __main__ as languages
from dhmm_rl.model import DHMMGPT2
from tests.failing import fail_at
from tests.killing import AGENT, ENV, MLP

pytestmark = pytest.mark.filterwarnings("ignore:tokens hardly tell")  # of a few short episodes


def fill_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a total capacity of …")


def fill_python() -> None:
    raise MemoryError


FILL: dict[str, Callable[[], object]] = {
    "torch on a CPU": lambda: torch.zeros(10**15),
    "torch on a GPU": fill_a_gpu,
    "NumPy": lambda: np.zeros(10**15),
    "Python": fill_python,
}


def run_in_too_little_memory(
    module: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str
) -> None:
    """Run a command that ends because memory runs out."""
    monkeypatch.setattr("sys.argv", ["command", *args])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_command(module.main, module.Args, module.__name__)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: there is not enough memory")


@pytest.mark.parametrize("fill", FILL.values(), ids=FILL)
def test_memory_that_runs_out_is_one_line(
    fill: Callable[[], object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "main", lambda args: fill())
    run_in_too_little_memory(pretrain, capsys, monkeypatch)


def test_other_errors_of_torch_are_not_mistaken_for_it() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2) @ torch.zeros(3)
    assert not is_out_of_memory(caught.value)


def fail_once(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    """The function, in one call of which memory runs out; the first call is 1."""
    return fail_at(call - 1, lambda: torch.zeros(10**15))(function)


def test_a_run_of_ppo_that_ran_out_of_memory_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("toy", ENV), ("mlp", MLP)):
        (tmp_path / f"{name}.toml").write_text(text)
    monkeypatch.setattr(PPO, "train", fail_once(PPO.train, 4))
    arguments = ["--env", f"{tmp_path}/toy.toml", "--agent", f"{tmp_path}/mlp.toml", "--steps", "640", "--eval-share", "inf"]
    run_in_too_little_memory(ppo, capsys, monkeypatch, *arguments, "--final-episodes", "2", "--runs", str(tmp_path), "--quiet")
    folder = tmp_path / "toy/mlp/1"
    assert (folder / "best_model.zip").is_file()
    ppo.main(ppo.Args(resume=folder, quiet=True))
    assert (folder / "result.json").is_file()


def test_pretraining_that_ran_out_of_memory_keeps_its_rollouts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.toml").write_text(AGENT)
    monkeypatch.setattr(DHMMGPT2, "forward", fail_once(DHMMGPT2.forward, 1))
    run_in_too_little_memory(
        pretrain, capsys, monkeypatch, "--agent", f"{tmp_path}/small.toml", "--runs", str(tmp_path), "--quiet"
    )
    folder = tmp_path / "CartPole-v1/pretrain/1"
    assert (folder / "rollouts").is_dir()
    pretrain.main(pretrain.Args(resume=folder, quiet=True))
    assert (folder / "pretrained.pt").is_file()


@pytest.mark.parametrize(("call", "kept"), [(1, False), (12, True)])
def test_a_language_run_that_fails_leaves_its_folder_only_if_it_holds_work(
    call: int, kept: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out in a call of the model: before the first checkpoint, or after it."""
    monkeypatch.setattr(DHMMGPT2, "forward", fail_once(DHMMGPT2.forward, call))
    small = ["--model", "embed_size=8", "--model", "heads=1", "--set", "sizes=2,4", "--num-eval-examples", "5"]
    arguments = ["parity", *small, "--steps", "12", "--eval-every", "3", "--runs", str(tmp_path), "--quiet"]
    run_in_too_little_memory(languages, capsys, monkeypatch, *arguments)
    folder = tmp_path / "parity/languages/1"
    assert folder.exists() == kept
    if kept:
        languages.main(languages.Args(resume=folder, quiet=True))
        assert (folder / "result.json").is_file()

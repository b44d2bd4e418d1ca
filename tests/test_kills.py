"""Processes that are killed: nothing that was complete is lost, nothing is left behind, and the next process takes over."""

import itertools
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from benchmarks import run as benchmark
from dhmm_rl import ppo, pretrain
from dhmm_rl.cli import run_command
from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write, remove_leftovers
from dhmm_rl.languages import LANGUAGES
from dhmm_rl.languages import __main__ as languages
from dhmm_rl.languages.run import LanguageRun, newest_run
from dhmm_rl.model import DHMMGPT2, load_checkpoint, save_checkpoint
from dhmm_rl.recipes import load_recipes
from dhmm_rl.recipes.schema import TrainingSettings
from dhmm_rl.runs import run as runs
from dhmm_rl.runs.callbacks import return_to_checkpoint
from dhmm_rl.runs.logs import make_logger, read_log
from dhmm_rl.runs.plots import plot_losses
from dhmm_rl.runs.run import Run, create_folder, pretraining_runs, writing


def killing(*arguments: object) -> None:
    """Run one case of ``tests/killing.py``."""
    command = [sys.executable, "-m", "tests.killing", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_killed_at_a_file_operation_leaves_the_old_content_or_the_new_and_is_resumed(tmp_path: Path) -> None:
    killing("quick", tmp_path)


@pytest.mark.slow
def test_commands_killed_at_their_file_operations_end_as_if_they_had_not_been(tmp_path: Path) -> None:
    killing("operations", tmp_path)


@pytest.mark.slow
def test_commands_killed_at_random_moments_are_resumed_at_the_first_try(tmp_path: Path) -> None:
    killing("moments", tmp_path, 60)


def test_what_a_living_process_writes_is_no_leftover(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file") as path:
        path.write_text("content")
        remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "content"


def test_data_reach_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int | str] = []
    move = os.replace

    def moved(*paths: Path) -> None:
        done.append("replace")
        move(*paths)

    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(os, "replace", moved)
    with atomic_write(tmp_path / "folder") as path:
        path.mkdir()
        (path / "part").write_text("content")
        written = [path.stat().st_ino, (path / "part").stat().st_ino]
    assert done == [*written, "replace", tmp_path.stat().st_ino]


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    path, model = tmp_path / "model.pt", DHMMGPT2(20, embed_size=8, heads=1)
    save_checkpoint(path, model, info={"step": 1})
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size // 2, most))
    try:
        with pytest.raises(OSError, match="File too large"):  # commands print it in one line
            save_checkpoint(path, model, info={"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert load_checkpoint(path).info == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def make_run(root: Path, command: str) -> Path:
    """Return the folder of a run that has only begun."""
    if command == "languages":
        language, settings = LANGUAGES["parity"], TrainingSettings()
        return LanguageRun.create(root, "parity", language, {"window": 80}, settings, (80,), 5, 0).folder
    env, agent = load_recipes("CartPole-v1", "dhmm-gpt2")
    args: dict[str, Any] = {
        "steps": None,
        "pretrained": "new",
        "data": [],
        "episodes": None,
        "changes": {},
        "env": "CartPole-v1",
    }
    return Run.create(root, command, env, agent, 0, args | {"agent": "dhmm-gpt2"}).folder


def resume(command: str, folder: Path) -> None:
    if command == "languages":
        languages.main(languages.Args(resume=folder))
    elif command == "ppo":
        ppo.main(ppo.Args(resume=folder))
    else:
        pretrain.main(pretrain.Args(resume=folder))


@pytest.mark.parametrize("command", ["ppo", "pretrain", "languages"])
def test_two_processes_do_not_write_into_one_run(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LOCK_TIMEOUT", 0.0)
    folder = make_run(tmp_path, command)
    (folder / ".lock").write_text("process 1 on a machine that is gone")
    with writing(folder, command):
        files = sorted(folder.rglob("*"))
        with pytest.raises(InputError, match=f"process {os.getpid()} on .* is writing into {folder}"):
            resume(command, folder)
        assert sorted(folder.rglob("*")) == files
    with writing(folder, command):
        pass


def test_a_lock_goes_with_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LOCK_TIMEOUT", 0.0)
    hold = "import os, sys; from filelock import FileLock; FileLock(sys.argv[1] + '/.lock').acquire(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", hold, str(tmp_path)], check=False).returncode == -9
    with writing(tmp_path, "ppo"):
        pass


@pytest.mark.parametrize("error", [None, FileNotFoundError(2, "No such file"), RuntimeError("a writer's own error")])
def test_a_run_that_loses_its_folder_ends_in_one_line(error: Exception | None, tmp_path: Path) -> None:
    folder = make_run(tmp_path, "ppo")

    def work() -> None:
        with writing(folder, "ppo"):
            shutil.rmtree(folder)
            with atomic_write(folder / "checkpoints/1") as path:  # makes the folder again
                path.mkdir()
            if error is not None:
                raise error

    with pytest.raises(InputError, match=f"the folder {folder} was removed while"):
        work()


@pytest.mark.parametrize("again", [False, True])
def test_a_run_notices_that_its_folder_was_removed(again: bool, tmp_path: Path) -> None:
    with closing(make_logger(tmp_path / "run", "ppo")) as logger:
        shutil.rmtree(tmp_path / "run")
        if again:  # atomic_write makes folders
            (tmp_path / "run").mkdir()
        logger.record("x", 1)
        with pytest.raises(FileNotFoundError, match="was removed while it was being written"):
            logger.dump(1)


def test_an_interrupted_run_says_how_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(args: languages.Args) -> None:
        with writing(tmp_path, "languages"):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["languages"])
    with pytest.raises(SystemExit) as ended:
        run_command(interrupted, languages.Args, "dhmm_rl.languages")
    assert ended.value.code == 130
    said = capsys.readouterr().err
    assert said.startswith("interrupted; ")
    assert said.endswith(f"-m dhmm_rl.languages --resume {tmp_path} continues\n")


def test_a_run_takes_the_next_number_when_another_process_was_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "run_number", lambda folder: 0)  # neither sees the other's folder
    folders = [create_folder(tmp_path, {"seed": seed}) for seed in range(3)]
    assert [folder.name for folder in folders] == ["1", "2", "3"]
    assert [json.loads((folder / "run.json").read_text())["seed"] for folder in folders] == [0, 1, 2]


def test_the_newest_run_has_the_highest_number_whatever_the_clock_said(tmp_path: Path) -> None:
    env, _ = load_recipes("CartPole-v1", "dhmm-gpt2")
    for number in range(1, 12):
        for folder in (make_run(tmp_path, "pretrain"), make_run(tmp_path, "languages")):
            (folder / "pretrained.pt").touch()
            os.utime(folder / "pretrained.pt", (-number, -number))
    assert [run.folder.name for run in pretraining_runs(tmp_path, env)] == [str(n) for n in range(11, 0, -1)]
    assert newest_run(tmp_path, "parity").folder.name == "11"


def log(folder: Path, name: str, column: str, steps: range, start: int = 0) -> None:
    with closing(make_logger(folder, name, start)) as logger:
        for step in steps:
            logger.record(column, step, exclude="tensorboard")
            logger.record("x/a, b", 0.5)
            logger.dump(step)


@pytest.mark.parametrize("pace", [1, 0, -1], ids=["in different seconds", "within a second", "with a clock set back"])
@pytest.mark.parametrize(
    ("name", "column"), [("ppo", "time/total_timesteps"), ("pretrain", "pretrain/steps"), ("languages", "pretrain/steps")]
)
def test_what_was_logged_after_the_checkpoint_is_dropped_at_resume(
    name: str, column: str, pace: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", itertools.count(time.time(), pace).__next__)
    monkeypatch.setattr(event_file_writer._global_uid, "get", lambda: 0)  # as in the first process of a container
    log(tmp_path, "pretrain", "pretrain/steps", range(50))  # has steps of its own that must stay
    parts = [(range(3), -1), (range(5), -1), (range(1, 10), 0), (range(7, 12), 6), (range(7, 20), 6), (range(18, 22), 17)]
    for steps, start in parts:
        log(tmp_path, name, column, steps, start)
    expected = {"pretrain": 50, name: 22}
    for phase, count in expected.items():
        assert [int(row["pretrain/steps" if phase == "pretrain" else column]) for row in read_log(tmp_path, phase)] == [
            *range(count)
        ]
        folder = tmp_path / phase if phase == "pretrain" else tmp_path
        events = EventAccumulator(str(folder)).Reload().Scalars("x/a, b")
        assert [event.step for event in events] == [*range(count)]


def test_damaged_logs_are_read_and_drawn_as_far_as_they_can_be(tmp_path: Path) -> None:
    with closing(make_logger(tmp_path, "languages")) as logger:
        for step in range(1, 6):
            for key, value in (("pretrain/steps", step), ("pretrain/held_out_loss", 1 / step), ("held_out/exact", 0.5)):
                logger.record(key, value)
            logger.dump(step)
    path, rng = tmp_path / "progress_languages.csv", random.Random(0)
    whole = path.read_bytes()
    assert len(read_log(tmp_path, "languages")) == 5
    for number in range(30):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.choice([0, 10, 34, 44, 57, 101, 255])
        path.write_bytes(damaged[: rng.randrange(len(damaged))] if number % 3 == 0 else damaged)
        rows = read_log(tmp_path, "languages")
        if number % 10 == 0:
            plot_losses(rows, tmp_path / "curve.png", "damaged")
        with closing(make_logger(tmp_path, "languages", 3)):
            pass
        for part in tmp_path.glob("progress*"):
            part.unlink()


def test_a_resumed_run_starts_from_its_checkpoint_alone(tmp_path: Path) -> None:
    for step in (128, 256):
        (tmp_path / f"checkpoints/{step}").mkdir(parents=True)
        np.savez(tmp_path / f"checkpoints/{step}/evaluations.npz", timesteps=[step])
    (tmp_path / "evaluations.npz").write_bytes(b"cut sh")
    return_to_checkpoint(tmp_path, tmp_path / "checkpoints/256")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["256"]
    assert np.load(tmp_path / "evaluations.npz")["timesteps"] == [256]
    return_to_checkpoint(tmp_path, None)
    assert not (tmp_path / "evaluations.npz").exists()


RESULT: dict[str, Any] = {
    "env": "own",
    "agent": "mlp",
    "seed": 0,
    "pretraining_steps": 0,
    "ppo_steps": 128,
    "training_seconds": 1.5,
    "final_return": 10.0,
    "final_return_std": 1.0,
    "eval_steps": [64, 128],
    "eval_returns": [9.0, 10.0],
    "eval_seconds": [0.5, 1.0],
}


def test_a_benchmark_lists_failures_at_the_end_and_reports_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.toml").write_text('description = "of a user"\nid = "CartPole-v1"\nsolved_at = 9.5\n')

    def run_job(job: benchmark.Job, args: benchmark.Args) -> dict[str, Any]:
        if job.seed == 1:
            raise InputError("seed 1 failed")
        return RESULT | {"seed": job.seed}

    monkeypatch.setattr(benchmark, "run_job", run_job)
    args = benchmark.Args((str(tmp_path / "own.toml"),), ("mlp",), seeds=3, out=tmp_path / "out")
    with pytest.raises(SystemExit) as ended:
        benchmark.main(args)
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert "| mlp | 2 |" in said.out
    assert "stays ≥ 9.5" in said.out
    assert said.err.endswith("1 of 3 runs failed:\nseed 1 failed\n")
    assert len((tmp_path / "out/runs.csv").read_text().splitlines()) == 3


def test_a_benchmarks_run_that_dies_without_a_word_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = benchmark.Args(agents=("mlp",), out=tmp_path)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(InputError, match="failed with status 1: it printed nothing"):
        benchmark.run_job(benchmark.Job("CartPole-v1", "mlp", 0), args)


@pytest.mark.parametrize("state", ["no description", "no result", "damaged result", "wrong result", "complete"])
def test_a_benchmark_restarts_from_any_state(state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args, job = benchmark.Args(agents=("mlp",), out=tmp_path), benchmark.Job("CartPole-v1", "mlp", 0)
    root = benchmark.job_folder(job, args)
    (root / "CartPole-v1/mlp/1").mkdir(parents=True)  # an empty folder, as earlier versions could leave behind
    result = RESULT | {"env": "CartPole-v1"}
    if state != "no description":
        folder = Run.create(root, "ppo", *load_recipes("CartPole-v1", "mlp"), 0, {"steps": None, "pretrained": "none"}).folder
        text = {
            "damaged result": '{"env": "Car',
            "wrong result": json.dumps(result | {"eval_returns": ["none", 1.0]}),
            "complete": json.dumps(result),
        }
        if state in text:
            (folder / "result.json").write_text(text[state])
    commands = []

    class Process:
        def __init__(self, command: list[str], **options: Any) -> None:
            commands.append(command)
            folder = benchmark.find_run(job, args) or create_folder(root / "CartPole-v1/mlp", {"args": {"steps": None}})
            assert not (folder / "result.json").exists(), "ppo would say that the run is complete"
            (folder / "result.json").write_text(json.dumps(result))

        def __enter__(self) -> "Process":
            return self

        def __exit__(self, *error: object) -> None: ...

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Process)
    assert benchmark.run_job(job, args) == result
    assert [("--resume" in command, "--env" in command) for command in commands] == {
        "no description": [(False, True)],
        "complete": [],
    }.get(state, [(True, False)])


def test_a_benchmarks_child_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(600)\n")
    command = [sys.executable, "-m", "benchmarks.child", "endless"]
    environment = os.environ | {"PYTHONPATH": f"{Path.cwd()}{os.pathsep}{tmp_path}"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert child.poll() is None
        child.stdin.close()  # as the operating system does when the parent dies
        assert child.wait(60) != 0

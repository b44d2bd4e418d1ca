"""Processes that are killed: nothing that was complete is lost, and nothing is left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dhmm_rl.files import atomic_write, remove_leftovers


def killing(case: str, folder: Path) -> None:
    """Run a case of ``tests/killing.py``."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.killing", case, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_write_killed_at_any_file_operation_leaves_the_old_content_or_the_new(tmp_path: Path) -> None:
    killing("writes", tmp_path)


def test_what_a_living_process_writes_is_no_leftover(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file") as path:
        path.write_text("content")
        remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "content"


def test_data_reach_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int | str] = []
    replace = os.replace

    def replaced(*paths: Path) -> None:
        done.append("replace")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(os, "replace", replaced)
    with atomic_write(tmp_path / "folder") as path:
        path.mkdir()
        (path / "part").write_text("content")
        written = [path.stat().st_ino, (path / "part").stat().st_ino]
    assert done == [*written, "replace", tmp_path.stat().st_ino]

"""Writing so that an interruption loses nothing: a temporary name first, moved into place when complete."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dhmm_rl.errors import InputError
from dhmm_rl.plain import plain

TEMPORARY = ".dhmm-rl-"
"""Prefix of the folders that hold what is being written."""


@contextmanager
def atomic_write(path: str | Path, *, replace: bool = True) -> Iterator[Path]:
    """
    Yield a temporary path; what the block wrote there, a file or a folder, replaces ``path`` at the end.

    When the block raises, what was written is removed and ``path`` is left as it was. After a power cut ``path`` holds the
    old content or the new one. What a killed process leaves behind is removed at the next write into the same folder.

    :param path: file or folder to write
    :param replace: whether what was written may replace a folder that is not empty
    :raises FileExistsError: when it may not, and there is such a folder
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, recursive=False)
    folder, lock = _temporary_folder(path.parent)
    try:
        temporary = folder / path.name
        yield temporary
        _flush(temporary)
        if replace and path.is_dir():
            path.rename(folder / ".replaced")
        try:
            temporary.replace(path)
        except OSError as error:  # its type depends on the operating system
            raise FileExistsError(f"there is a {path} already") if path.is_dir() else error from error
        _flush(path.parent, files=False)
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path, *, recursive: bool = True) -> None:
    """
    Remove what killed processes were writing with :func:`atomic_write`.

    What a living process writes is left alone: it holds a lock, which the operating system releases when it dies.

    :param folder: folder to search
    :param recursive: whether to search the folders below, too
    """
    for temporary in list(folder.glob(f"{'**/' if recursive else ''}{TEMPORARY}*.tmp")):
        with suppress(Timeout, OSError), FileLock(temporary / ".lock", timeout=0):
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """
    Read ``path`` in the block.

    :raises InputError: naming the file, when what it holds cannot be read
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"there is no {path}") from error
    except Exception as error:  # every format raises errors of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} cannot be read ({reason}): it is cut short, or something else") from error


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """Write a JSON file that holds its own checksum; NumPy's numbers in it become Python's."""
    content = plain(content)
    with atomic_write(path) as temporary:
        text = json.dumps({**content, "checksum": _checksum(content)}, indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> dict[str, Any]:
    """
    Read what :func:`write_json` wrote. Files without a checksum, as older versions wrote them, are read, too.

    :return: the content without its checksum
    :raises InputError: when there is no such file, it is no JSON object, or it was changed after it was written
    """
    path = Path(path)
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}, no object")
        expected = content.pop("checksum", None)
        damaged = expected is not None and expected != _checksum(content)
    if damaged:
        raise InputError(f"{path} was damaged or edited after it was written; if the edit is yours, remove its checksum")
    return content


def run_checksum(folder: Path) -> str | None:
    """What tells a run from others: the checksum of its ``run.json``, ``None`` where that has none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((folder / "run.json").read_text(encoding="utf-8"))["checksum"])
    return None


def check_same_run(path: Path, checksum: str | None, folder: Path) -> None:
    """
    See that a file belongs to a run; one without a word about its run, as older versions wrote them, does.

    :param path: the file, for the error
    :param checksum: :func:`run_checksum` when the file was written
    :param folder: of the run
    :raises InputError: when it belongs to another run
    """
    expected = run_checksum(folder)
    if checksum and expected and checksum != expected:
        raise InputError(f"{path} belongs to another run than {folder}, or {folder / 'run.json'} was edited")


def _checksum(content: dict[str, Any]) -> str:
    """Of what JSON makes of the content, whatever its spaces and the order of its keys."""
    plain = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _temporary_folder(parent: Path) -> tuple[Path, FileLock]:
    """Make a temporary folder with a name of its own, and a lock that says that a living process writes in it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, suffix=".tmp", dir=parent))
        lock = FileLock(folder / ".lock")
        with suppress(Timeout, FileNotFoundError):  # another process took the folder for a leftover before it was locked
            lock.acquire(timeout=0)
            return folder, lock


def _flush(path: Path, files: bool = True) -> None:
    """Wait until a file or folder, and with ``files`` all that a folder holds, has reached the disk."""
    if os.name != "posix":  # Windows flushes neither folders nor what was opened for reading
        return
    for part in [path, *path.rglob("*")] if files else [path]:
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

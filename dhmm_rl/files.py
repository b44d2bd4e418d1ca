"""Writes files so that an interruption loses nothing: under a temporary name first, moved into place when complete."""

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
"""Prefix of the temporary folders for files that are being written."""


@contextmanager
def atomic_write(path: str | Path, *, replace: bool = True) -> Iterator[Path]:
    """
    Yield a temporary path. The file or folder that the block writes there replaces ``path`` at the end.

    If the block raises, the temporary file is removed and ``path`` does not change. After a power cut ``path`` holds the old
    content or the new one. Temporary files of killed processes are removed at the next write into the same folder.

    :param path: file or folder to write
    :param replace: whether a folder that is not empty may be replaced
    :raises FileExistsError: if there is such a folder and it may not be replaced
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
    Remove temporary files of :func:`atomic_write` that killed processes left.

    Those of living processes stay: they are locked, and the operating system releases the lock when the process dies.

    :param folder: folder to search
    :param recursive: whether to search subfolders, too
    """
    for temporary in list(folder.glob(f"{'**/' if recursive else ''}{TEMPORARY}*.tmp")):
        with suppress(Timeout, OSError), FileLock(temporary / ".lock", timeout=0):
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """
    Turn any error of the block, which reads ``path``, into an error for users.

    :param path: file that the block reads, for the message
    :raises InputError: if there is no such file, or if reading it raises any other error
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"there is no {path}") from error
    except Exception as error:  # formats raise many kinds of errors
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} cannot be read ({reason}): it is cut short, or another kind of file") from error


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """Write a JSON file with a checksum of its content; NumPy scalars are written as plain numbers."""
    content = plain(content)
    with atomic_write(path) as temporary:
        text = json.dumps({**content, "checksum": _checksum(content)}, indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> dict[str, Any]:
    """
    Read a file of :func:`write_json`. Files of older versions, which have no checksum, can be read, too.

    :return: the content without its checksum
    :raises InputError: if there is no such file, if it is not a JSON object, or if it was changed after it was written
    """
    path = Path(path)
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}, not an object")
        expected = content.pop("checksum", None)
        damaged = expected is not None and expected != _checksum(content)
    if damaged:
        raise InputError(f"{path} was damaged or edited after it was written; if the edit is yours, remove its checksum")
    return content


def run_checksum(folder: Path) -> str | None:
    """Return the checksum of a run's ``run.json``, which identifies the run; ``None`` if the file has no checksum."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((folder / "run.json").read_text(encoding="utf-8"))["checksum"])
    return None


def check_same_run(path: Path, checksum: str | None, folder: Path) -> None:
    """
    Check that a file belongs to a run. Files of older versions, which do not name their run, pass.

    :param path: file, for the message
    :param checksum: :func:`run_checksum` of the run that wrote the file; ``None`` or empty if the file does not name it
    :param folder: folder of the run
    :raises InputError: if the file belongs to another run
    """
    expected = run_checksum(folder)
    if checksum and expected and checksum != expected:
        raise InputError(f"{path} belongs to another run than {folder}, or {folder / 'run.json'} was edited")


def _checksum(content: dict[str, Any]) -> str:
    """Return a checksum that does not depend on spaces and on the order of keys in the JSON text."""
    plain = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _temporary_folder(parent: Path) -> tuple[Path, FileLock]:
    """Make a temporary folder with a unique name, and lock it for as long as this process writes in it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, suffix=".tmp", dir=parent))
        lock = FileLock(folder / ".lock")
        with suppress(Timeout, FileNotFoundError):  # another process removed the folder as a leftover before it was locked
            lock.acquire(timeout=0)
            return folder, lock


def _flush(path: Path, files: bool = True) -> None:
    """Wait until a file or folder has reached the disk; with ``files``, all files in the folder, too."""
    if os.name != "posix":  # Windows flushes neither folders nor files that are open for reading
        return
    for part in [path, *path.rglob("*")] if files else [path]:
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

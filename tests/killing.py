"""
Processes that kill themselves at a chosen file operation: ``python -m tests.killing CASE FOLDER``.

A case forks a child for every operation, so that what takes long, the imports, happens once.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from dhmm_rl.files import atomic_write, remove_leftovers

KILLED = 9
CHANGES = ("mkdir", "rename", "replace", "rmdir", "unlink", "fsync")
"""Functions of ``os`` that change what a folder holds, and the one after which a file's content is on the disk."""


def run_and_kill(work: Callable[[], object], operation: int) -> bool:
    """
    Run some work in a child that dies before its n-th file operation, as the first process of a container.

    :param operation: n, from 0 on
    :return: whether it was killed; ``False`` when the work ended before
    """
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, KILLED), f"the child ended with status {status}"
        return status == KILLED
    try:
        os.getpid = lambda: 1
        left = operation

        def counted(function: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal left
                if left == 0:
                    os._exit(KILLED)
                left -= 1
                return function(*args, **kwargs)

            return call

        for name in CHANGES:
            setattr(os, name, counted(getattr(os, name)))
        work()
        os._exit(0)
    finally:
        os._exit(1)


def every_operation(work: Callable[[], object]) -> Iterator[int]:
    """Run some work again and again, killed one file operation later each time, until it ends."""
    operation = 0
    while run_and_kill(work, operation):
        yield operation
        operation += 1


def write(folder: Path, content: str) -> None:
    """Replace a file and a folder."""
    with atomic_write(folder / "file") as path:
        path.write_text(content)
    with atomic_write(folder / "folder") as path:
        path.mkdir()
        (path / "part").write_text(content)


def writes(folder: Path) -> None:
    """A write that is killed leaves the old content or the new, and what it leaves behind can be removed."""
    write(folder, "old")
    seen = set()
    for operation in every_operation(lambda: write(folder, "new")):
        parts = [folder / "file", folder / "folder/part"]
        contents = tuple(path.read_text() if path.exists() else "" for path in parts)
        seen.add(contents)
        write(folder, "old")  # the next process has the same number, and works at the first try
        remove_leftovers(folder)
        assert {path.name for path in folder.iterdir()} == {"file", "folder"}, f"leftovers after operation {operation}"
    # Operating systems cannot exchange two folders in one step: between two renames there is none.
    assert seen == {("old", "old"), ("new", "old"), ("new", "new"), ("new", "")}, seen


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))

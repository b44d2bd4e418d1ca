"""Writing so that an interruption loses nothing: a temporary name first, moved into place when complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dhmm_rl.errors import InputError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """
    Yield a temporary path beside ``path``; what the block wrote there, a file or a folder, replaces ``path`` at the end.

    When the block raises, what was written is removed and ``path`` is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        if path.is_dir():
            _remove(path)
        temporary.replace(path)
    finally:
        _remove(temporary)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """
    Read ``path`` in the block.

    :raises InputError: naming the file, when what it holds cannot be read
    """
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"there is no {path}") from error
    except Exception as error:  # every format raises errors of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} cannot be read ({reason}): it is cut short, or something else") from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

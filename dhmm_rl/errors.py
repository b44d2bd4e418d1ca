"""Errors that are shown to users, and the command lines that their messages quote."""

import shlex
import shutil
import sys
from importlib import metadata
from pathlib import Path


class InputError(ValueError):
    """
    Raised for invalid user input: an argument, a file or an environment that cannot be used.

    The message is one line that says what is wrong and what would be right. Commands print it and exit with status 2.
    """


class EnvironmentFault(RuntimeError):
    """
    Raised when a user's environment raises an error, returns an invalid value, or loses its process.

    Commands print the line and the details, and exit with status 1.

    :param line: name of the environment, what it did, in which method and at which step of its episode
    :param details: the environment's own traceback; empty if it raised nothing
    """

    def __init__(self, line: str, details: str = "") -> None:
        super().__init__(line, details)  # both, so that pickling keeps both
        self.line, self.details = line, details

    def __str__(self) -> str:
        return self.line


def is_out_of_memory(error: BaseException) -> bool:
    """
    Return whether an error says that memory ran out.

    PyTorch raises ``torch.OutOfMemoryError`` on a GPU and a plain ``RuntimeError`` on a CPU, so its text decides.
    """
    if isinstance(error, RuntimeError):
        return any(text in str(error) for text in ("out of memory", "can't allocate memory", "not enough memory"))
    return isinstance(error, MemoryError)


def python_command() -> str:
    """Return the running Python as a shell command for the current folder: ``.venv/bin/python``, or ``python``."""
    if shutil.which("python") == sys.executable:
        return "python"
    python, here = Path(sys.executable), Path.cwd()
    return shlex.quote(str(python.relative_to(here) if python.is_relative_to(here) else python))


def install_command(extra: str) -> str:
    """
    Return the command that installs the requirements of one of this project's extras.

    It names the requirements themselves, so it works for an installed wheel and for a checkout.

    :param extra: name of the extra, such as ``minari``
    """
    requirements = [text.replace("'", '"') for text in metadata.requires("dhmm-rl") or ()]
    needed = [text.partition(";")[0].strip() for text in requirements if f'extra == "{extra}"' in text]
    return f"{python_command()} -m pip install {shlex.join(needed)}"

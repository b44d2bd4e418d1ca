"""What every command does alike: read its arguments, and end in one line when something handed in is not usable."""

import io
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import tyro

from dhmm_rl._interrupts import expect_interruptions
from dhmm_rl.errors import EnvironmentFault, InputError
from dhmm_rl.validation import Range

Args = TypeVar("Args")

MAX_SEED = 2**32 - 100_000
"""NumPy's bound, less what environments side by side and evaluations add to a seed."""


OPTIONS = {
    **dict.fromkeys(("episodes", "final_episodes", "eval_episodes", "instances", "beyond", "judge"), Range(1, 10**6)),
    **dict.fromkeys(("draws", "sums", "updates", "turns", "n_envs", "n_steps", "n_epochs"), Range(1, 10**6)),
    **dict.fromkeys(("seeds", "jobs", "threads", "embed_sizes"), Range(1, 10_000)),
    **dict.fromkeys(("seconds", "max_seconds"), Range(0, above=True)),
    "gamma": Range(0, 1, below=True),
}
"""Ranges of options, which mean the same in every command. Recipes and the settings of a training check the others."""


def run_command(main: Callable[[Args], None], arguments: type[Args], name: str) -> None:
    """
    Parse the command line into ``arguments`` and run ``main``.

    Exit status 2 and one line for bad input, and for files that cannot be read or written; 1 for an environment that raises an
    error, with a line that names it and its own traceback; 130 for an interruption from the
    keyboard; 141, without a line, when the reader of the output has gone away (``| head``). Characters that the terminal's
    encoding does not have are printed as escapes.

    :param arguments: a dataclass; its docstrings are the command's ``--help``
    :param name: of the module, as ``python -m`` takes it
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = None
    try:
        expect_interruptions()
        try:
            args = tyro.cli(arguments, prog=f"python -m {name}", config=(tyro.conf.FlagCreatePairsOff,))
            check_options(args)
            main(args)
        finally:
            sys.stdout.flush()  # here and not when Python exits, because there a closed pipe can no longer be handled
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # what a shell reports for a program that SIGPIPE ends
    except EnvironmentFault as fault:
        print(f"error: {fault}", *([fault.details] if fault.details else []), sep="\n", file=sys.stderr)
        sys.exit(1)
    except (MemoryError, torch.OutOfMemoryError) as error:
        print(f"error: there is not enough memory: {(str(error) or 'for this').splitlines()[0]}", file=sys.stderr)
        sys.exit(2)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:  # of a run, it says how to continue
        print(f"interrupted; {error}" if str(error) else "interrupted", file=sys.stderr)
        sys.exit(130)


def check_options(args: Any) -> None:
    """:raises InputError: for an option of :data:`OPTIONS` that is out of its range"""
    for name, value in vars(args).items():
        for one in value if isinstance(value, tuple) else (value,):
            if name in OPTIONS and one is not None and one not in OPTIONS[name]:
                raise InputError(f"{name} is {one}; it must be {OPTIONS[name]}")


def check_counts(args: Any, *names: str) -> None:
    """:raises InputError: for an argument of these names that is below 1"""
    for name in names:
        if getattr(args, name) < 1:
            raise InputError(f"{name} is {getattr(args, name)}; it must be at least 1")


def check_seed(seed: int) -> None:
    """:raises InputError: for a seed that NumPy does not take"""
    if seed < 0:
        raise InputError(f"seed is {seed}; it must not be negative")
    if seed > MAX_SEED:
        raise InputError(f"seed is {seed}; it must not be more than {MAX_SEED}")


def set_up(device: str, threads: int, seed: int) -> str:
    """
    Set the number of CPU threads and see that device and seed can be used.

    :return: the device
    :raises InputError: when they cannot
    """
    check_seed(seed)
    torch.set_num_threads(threads)
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"the device {device!r} cannot be used here ({str(error).splitlines()[0]}); cpu always can") from error
    return device

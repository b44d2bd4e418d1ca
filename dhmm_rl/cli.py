"""Code that the commands share: parsing arguments, checking options, and ending with one line for invalid input."""

import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import tyro

from dhmm_rl._interrupts import expect_interruptions
from dhmm_rl.errors import EnvironmentFault, InputError, is_out_of_memory
from dhmm_rl.validation import Range

Args = TypeVar("Args")

MAX_SEED = 2**32 - 100_000
"""Largest seed: NumPy's bound, less what parallel environments and evaluations add to a seed."""


OPTIONS = {
    **dict.fromkeys(("episodes", "final_episodes", "eval_episodes"), Range(1, 10**6)),
    **dict.fromkeys(("evaluate", "extrapolate", "num_eval_examples"), Range(1, 10**6)),
    **dict.fromkeys(("draws", "sums", "updates", "turns", "n_envs", "n_steps", "n_epochs"), Range(1, 10**6)),
    **dict.fromkeys(("seeds", "jobs", "threads", "embed_sizes"), Range(1, 10_000)),
    **dict.fromkeys(("seconds", "max_seconds"), Range(0, above=True)),
    "gamma": Range(0, 1, below=True),
}
"""Ranges of the options that mean the same in every command. Recipes and training settings check the other options."""


def run_command(
    main: Callable[[Args], None], arguments: type[Args], name: str, renamed: Mapping[str, str] | None = None
) -> None:
    """
    Parse the command line into ``arguments`` and run ``main``.

    The exit status is 2, after one line, for invalid input and for files that cannot be read or written. It is 1 for an
    environment that raises an error, after a line that names the environment and the environment's own traceback. It is 130
    after an interruption from the keyboard, and 141, without a line, when the reader of the output is gone (``| head``).
    Characters that the terminal's encoding lacks are printed as escapes.

    :param main: function of the command
    :param arguments: dataclass of the command's options; its docstrings are the command's ``--help``
    :param name: name of the module, as ``python -m`` takes it
    :param renamed: old names of options and the names that replace them, without dashes in front; a note names the new one
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        expect_interruptions()
        try:
            words = replace_old_options(sys.argv[1:], renamed or {})
            args = tyro.cli(arguments, prog=f"python -m {name}", args=words, config=(tyro.conf.FlagCreatePairsOff,))
            check_options(args)
            main(args)
        finally:
            sys.stdout.flush()  # Python flushes at exit too, but a closed pipe can no longer be handled there
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # the status that a shell reports for a program that SIGPIPE ends
    except EnvironmentFault as fault:
        print(f"error: {fault}", *([fault.details] if fault.details else []), sep="\n", file=sys.stderr)
        sys.exit(1)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        print("error: there is not enough memory" + (f": {reason}" if reason else ""), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:  # an interrupted run says in it how to continue
        print(f"interrupted; {error}" if str(error) else "interrupted", file=sys.stderr)
        sys.exit(130)


def replace_old_options(words: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    """
    Replace options with an old name, and print a note that names the new one.

    :param words: words of the command line
    :param renamed: old names of options and the names that replace them, without dashes in front
    """
    replaced = []
    for word in words:
        option, equals, value = word.partition("=")
        new = renamed.get(option.removeprefix("--")) if option.startswith("--") else None
        if new is not None:
            print(f"note: {option} is now called --{new}; the old name goes away in the next release", file=sys.stderr)
            word = f"--{new}{equals}{value}"
        replaced.append(word)
    return replaced


def check_options(args: Any) -> None:
    """
    Check the options of :data:`OPTIONS` among a command's arguments.

    :param args: arguments of a command
    :raises InputError: if an option is out of its range
    """
    for name, value in vars(args).items():
        for one in value if isinstance(value, tuple) else (value,):
            if name in OPTIONS and one is not None and one not in OPTIONS[name]:
                raise InputError(f"{name} is {one}; it must be {OPTIONS[name]}")


def check_counts(args: Any, *names: str) -> None:
    """
    Check that arguments are at least 1.

    :param args: arguments of a command
    :param names: names of the arguments to check
    :raises InputError: if one of them is below 1
    """
    for name in names:
        if getattr(args, name) < 1:
            raise InputError(f"{name} is {getattr(args, name)}; it must be at least 1")


def check_seed(seed: int) -> None:
    """:raises InputError: if the seed is negative or above :data:`MAX_SEED`"""
    if seed < 0:
        raise InputError(f"seed is {seed}; it must not be negative")
    if seed > MAX_SEED:
        raise InputError(f"seed is {seed}; it must not be more than {MAX_SEED}")


def set_up(device: str, threads: int, seed: int) -> str:
    """
    Set the number of CPU threads, and check the device and the seed.

    :param device: name of a torch device
    :param threads: number of CPU threads
    :param seed: seed to check
    :return: the device
    :raises InputError: if the device cannot be used here, or the seed is out of range
    """
    import torch  # here, because commands without a model do not need it

    check_seed(seed)
    torch.set_num_threads(threads)
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"the device {device!r} cannot be used here ({str(error).splitlines()[0]}); cpu always can") from error
    return device

"""A run's folder, ``runs/<env>/<agent>/<n>/``, and what lies in it."""

import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock, Timeout

from dhmm_rl.errors import InputError, python_command
from dhmm_rl.files import atomic_write, read_json, remove_leftovers, write_json
from dhmm_rl.recipes import AgentRecipe, EnvRecipe, agent_from_table, env_from_table
from dhmm_rl.recipes.imports import check_harmless, check_installed, trust_option, with_package
from dhmm_rl.recipes.schema import Steps, TrainingSettings
from dhmm_rl.validation import Range, TableOf, check, check_table

LANGUAGE_MODEL = "pretrained.pt"
"""The pretrained language model of a run."""
NO_WORK = ("run.json", ".", "tokens.", "progress_", "events.")
"""How files begin that are not worth keeping by themselves."""
LOCK = ".lock"
"""File that a process locks while it writes into a folder; it holds the process's number and machine."""

PATIENCE = 5.0
"""Seconds to wait for another process, which may be about to end, to release a folder."""


@dataclass(frozen=True)
class _Description:
    """What ``run.json`` holds; the recipes are checked apart."""

    env: Any
    agent: Any
    seed: Annotated[int, Range(0, 2**32)]
    command: Literal["pretrain", "ppo"]
    args: dict[str, Any]


DESCRIPTION_KEYS = tuple(f.name for f in fields(_Description))
ARGUMENT_KINDS: dict[str, Any] = {
    "steps": Steps | None,
    "pretrained": str,
    "data": list[str],
    "top": Annotated[float, Range(0, 1, above=True)] | None,
    "episodes": Steps | None,
    "env": str,
    "agent": str,
    "changes": Annotated[dict[str, Any], TableOf(TrainingSettings)],
}
"""What the arguments of a run must be, as far as they are checked when it is resumed."""
REQUIRED = {"pretrain": ("data", "episodes", "changes", "env", "agent"), "ppo": ("steps", "pretrained")}
"""Arguments without which a run cannot be resumed."""


@dataclass(frozen=True)
class Run:
    """
    A run: its folder and what it is a run of.

    :param folder: everything that belongs to it
    :param env: the environment's recipe, as resolved
    :param agent: the agent's recipe, as resolved
    :param seed: of everything random in it
    :param command: what makes it, ``pretrain`` or ``ppo``
    :param args: the command's further arguments
    """

    folder: Path
    env: EnvRecipe
    agent: AgentRecipe
    seed: int
    command: str
    args: dict[str, Any]

    @classmethod
    def create(cls, root: Path, command: str, env: EnvRecipe, agent: AgentRecipe, seed: int, args: dict[str, Any]) -> "Run":
        """Make the next folder: ``root/<env>/pretrain/<n>`` of pretraining, ``root/<env>/<agent>/<n>`` of an agent."""
        description = {"env": asdict(env), "agent": asdict(agent), "seed": seed, "command": command, "args": args}
        folder = create_folder(root / env.name / (agent.name if command == "ppo" else command), description)
        return cls(folder, env, agent, seed, command, args)

    @classmethod
    def open(cls, folder: str | Path, trust: bool = False) -> "Run":
        """
        A run that exists.

        :param trust: accept an environment, wrappers and a policy from outside the installed packages, and wrappers that
            write files
        :raises InputError: when the folder holds none, when its ``run.json`` holds what a recipe may not, and when that names
            modules that need trust
        """
        description, where = read_description(folder), f"{folder}/run.json"
        check_table({key: value for key, value in description.items() if key in DESCRIPTION_KEYS}, _Description, where)
        for key, value in description["args"].items():
            if key in ARGUMENT_KINDS:
                check(value, ARGUMENT_KINDS[key], where, f"args.{key}")
        env = env_from_table(description["env"], f"{where}, env,")
        agent = agent_from_table(description["agent"], f"{where}, agent,")
        if not trust:
            check_installed(with_package(env.id), where)
            check_installed(agent.policy, where)
            for wrapper in env.wrappers:
                check_harmless(wrapper, where)
        return cls(Path(folder), env, agent, description["seed"], description["command"], description["args"])

    @classmethod
    def resume(cls, folder: Path, command: str, trust: bool = False) -> "Run":
        """
        A run that a command is to go on with.

        :param trust: see :meth:`open`
        :raises InputError: when the folder holds none, or one of another command's
        """
        run = cls.open(folder, trust)
        if run.command != command:
            raise InputError(f"the run {folder} is of python -m dhmm_rl.{run.command}; that resumes it")
        for key in REQUIRED[command]:
            if key not in run.args:
                raise InputError(f"{folder}/run.json lacks 'args.{key}'")
        return run

    def writing(self) -> AbstractContextManager[None]:
        """Be the one process that writes into the folder, see :func:`writing`."""
        return writing(self.folder, self.command, self.trust_option)

    @property
    def trust_option(self) -> str:
        """Option that commands on the folder need: `` --trust``, or nothing."""
        return trust_option(with_package(self.env.id), *self.env.wrappers, self.agent.policy)

    @property
    def language_model(self) -> Path:
        """The pretrained language model, if the run has one."""
        return self.folder / LANGUAGE_MODEL


def create_folder(parent: Path, description: dict[str, Any]) -> Path:
    """
    Make the next numbered folder, ``parent/<n>``, with its ``run.json``; there is never one without the other.

    :param description: what the run is; the versions it is made with are added
    """
    versions = {name: version(name) for name in ("dhmm-rl", "torch", "stable-baselines3", "gymnasium", "numpy")}
    description = {**description, "versions": {"python": platform.python_version(), **versions}}
    remove_leftovers(parent, recursive=False)
    number = max((run_number(path) for path in parent.glob("*")), default=0)
    while True:
        number += 1
        try:
            with atomic_write(parent / str(number), replace=False) as temporary:
                temporary.mkdir()
                write_json(temporary / "run.json", description)
            return parent / str(number)
        except FileExistsError:  # another process took the number
            continue


@contextmanager
def removed_if_failed(folder: Path, new: bool) -> Iterator[None]:
    """
    Remove a run's folder when the block raises an error while the folder holds nothing but what the run is, or logs.

    :param new: whether the run begins; the folder of a resumed one, which may be another process's, is left alone
    """
    try:
        yield
    except Exception:
        if new and folder.is_dir() and all(path.is_file() and path.name.startswith(NO_WORK) for path in folder.iterdir()):
            shutil.rmtree(folder)
        raise


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """
    Keep other processes from writing into a folder during the block, and first remove what killed ones left there.

    The operating system releases the lock when its process dies.

    :return: the lock's file, which is gone when the folder was removed during the block
    :raises InputError: when another process writes into the folder
    """
    path = folder / LOCK
    lock = FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        owner = path.read_text(encoding="utf-8") or "another process"
        raise InputError(f"{owner} is writing into {folder}; wait until it ends") from error
    try:
        path.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        remove_leftovers(folder)
        yield path
    finally:
        lock.release()


@contextmanager
def writing(folder: Path, command: str, trust: str = "") -> Iterator[None]:
    """
    Be the one process that writes into a run's folder during the block.

    :param folder: of the run
    :param command: command that resumes the run, e.g. ``ppo``
    :param trust: an option that it needs, see :attr:`Run.trust_option`
    :raises InputError: when another process writes into the folder, or when the folder is removed during the block
    :raises KeyboardInterrupt: on one in the block, with a text that says how to continue
    """
    with locked(folder) as lock:
        try:
            yield
            if not lock.exists():
                raise FileNotFoundError
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(f"{python_command()} -m dhmm_rl.{command} --resume {folder}{trust} continues") from error
        except Exception as error:
            if lock.exists():
                raise
            raise InputError(f"the folder {folder} was removed while its run was writing into it") from error


def read_description(folder: str | Path) -> dict[str, Any]:
    """
    Read ``run.json``.

    :raises InputError: when the folder holds none
    """
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise InputError(f"{folder} is not the folder of a run; runs lie in runs/<env>/<agent>/<n>")
    return read_json(path)


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """Files of runs, those of the newest run first: the one with the highest number, because clocks can be set back."""
    return sorted(paths, key=lambda path: run_number(path.parent), reverse=True)


def run_number(folder: Path) -> int:
    """The number of a run's folder, 0 for a folder that has a name."""
    return int(folder.name) if folder.name.isdecimal() else 0


def pretraining_runs(root: Path, env: EnvRecipe) -> list[Run]:
    """Runs with a finished language model of an environment: first those of ``python -m dhmm_rl.pretrain``, newest first."""
    found = newest_first((root / env.name).glob(f"*/*/{LANGUAGE_MODEL}"))
    runs = []
    for folder in sorted((path.parent for path in found), key=lambda path: path.parent.name != "pretrain"):
        try:
            runs.append(Run.open(folder, trust=True))  # nothing that it names is imported
        except InputError:  # of another version, or damaged
            continue
    return runs

"""Runs and their folders: ``runs/<env>/<agent>/<n>/`` with the description ``run.json``, logs, checkpoints and results."""

import os
import platform
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
"""Name of the file with the trained language model of a run."""
RESULT = "result.json"
"""Name of the file with the results. It is the last file that a run writes."""
WORTHLESS = ("run.json", ".", "tokens.", "progress_", "events.")
"""Prefixes of the files that are not worth keeping when a run fails early."""
LOCK = ".lock"
"""Name of the file that a process locks while it writes into a folder; it holds the process id and the machine."""

LOCK_TIMEOUT = 5.0
"""Seconds to wait until another process, which may be about to end, releases a folder."""


@dataclass(frozen=True)
class _Description:
    """Content of ``run.json``. The recipes in it are checked separately."""

    env: Any
    agent: Any
    seed: Annotated[int, Range(0, 2**32)]
    command: Literal["pretrain", "ppo"]
    args: dict[str, Any]


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
"""Types of the arguments of a run that are checked when it is resumed."""
REQUIRED = {"pretrain": ("data", "episodes", "changes", "env", "agent"), "ppo": ("steps", "pretrained")}
"""Arguments without which a run cannot be resumed."""


class BaseRun(ABC):
    """
    A training with a folder of its own, which holds its description ``run.json``, its logs and its results.

    The description says what the run does, so that an interrupted run can be resumed from its folder alone.
    """

    folder: Path
    seed: int
    command: str

    @property
    @abstractmethod
    def trust_option(self) -> str:
        """Option that commands on the folder require: `` --trust``, or nothing."""

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether the run has all its results, so that it cannot be resumed."""

    @property
    def language_model(self) -> Path:
        """Path of the trained language model, whether or not it exists yet."""
        return self.folder / LANGUAGE_MODEL

    @property
    def result(self) -> Path:
        """Path of the JSON file with the results, whether or not it exists yet."""
        return self.folder / RESULT

    @contextmanager
    def writing(self, new: bool = False) -> Iterator[None]:
        """
        Write into the folder as the only process, see :func:`writing`.

        :param new: whether the run starts in this block; its folder is then removed if it fails early, see
            :func:`removed_if_failed`
        """
        with removed_if_failed(self.folder, new), writing(self.folder, self.command, self.trust_option):
            yield


@dataclass(frozen=True)
class Run(BaseRun):
    """
    A run that trains an agent, or a language model for one, in an environment.

    :param folder: folder of the run
    :param env: recipe of the environment, as resolved
    :param agent: recipe of the agent, as resolved
    :param seed: seed for data, weights, environments and actions
    :param command: command that makes the run, ``pretrain`` or ``ppo``
    :param args: further arguments of the command
    """

    folder: Path
    env: EnvRecipe
    agent: AgentRecipe
    seed: int
    command: str
    args: dict[str, Any]

    @classmethod
    def create(cls, root: Path, command: str, env: EnvRecipe, agent: AgentRecipe, seed: int, args: dict[str, Any]) -> "Run":
        """Create the next folder: ``root/<env>/pretrain/<n>`` for pretraining, ``root/<env>/<agent>/<n>`` for an agent."""
        description = {"env": asdict(env), "agent": asdict(agent), "seed": seed, "command": command, "args": args}
        folder = create_folder(root / env.name / (agent.name if command == "ppo" else command), description)
        return cls(folder, env, agent, seed, command, args)

    @classmethod
    def open(cls, folder: str | Path, trust: bool = False) -> "Run":
        """
        Open an existing run.

        :param folder: folder of the run
        :param trust: accept an environment, wrappers and a policy from outside the installed packages, and wrappers that
            write files
        :raises InputError: when the folder does not hold a run, when its ``run.json`` holds what a recipe may not hold, and
            when it names modules that require trust
        """
        description, where = read_description(folder, _Description), f"{folder}/run.json"
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
        Open a run that a command continues.

        :param folder: folder of the run
        :param command: command that continues the run
        :param trust: see :meth:`open`
        :raises InputError: when the folder does not hold a run of this command
        """
        run = cls.open(folder, trust)
        if run.command != command:
            raise InputError(f"the run {folder} is of python -m dhmm_rl.{run.command}; that resumes it")
        for key in REQUIRED[command]:
            if key not in run.args:
                raise InputError(f"{folder}/run.json lacks 'args.{key}'")
        return run

    @property
    def trust_option(self) -> str:
        """Option that commands on the folder require: `` --trust``, or nothing."""
        return trust_option(with_package(self.env.id), *self.env.wrappers, self.agent.policy)

    @property
    def complete(self) -> bool:
        """Whether the agent is evaluated or, in pretraining, the language model is saved."""
        return (self.result if self.command == "ppo" else self.language_model).exists()


def create_folder(parent: Path, description: dict[str, Any]) -> Path:
    """
    Create the next numbered folder, ``parent/<n>``, together with its ``run.json``.

    :param parent: folder of all runs of this kind
    :param description: content of ``run.json``; the versions of the packages are added
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
    Remove a run's folder when the block raises an error while the folder holds only its description and logs.

    :param folder: folder of the run
    :param new: whether the run is new; the folder of a resumed run, which may belong to another process, is never removed
    """
    try:
        yield
    except Exception:
        if new and folder.is_dir() and all(path.is_file() and path.name.startswith(WORTHLESS) for path in folder.iterdir()):
            shutil.rmtree(folder)
        raise


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """
    Lock a folder during the block, and first remove temporary files of killed processes.

    The operating system releases the lock when its process dies.

    :param folder: folder to lock
    :return: path of the lock file, which no longer exists if the folder was removed during the block
    :raises InputError: when another process writes into the folder
    """
    path = folder / LOCK
    lock = FileLock(path)
    try:
        lock.acquire(timeout=LOCK_TIMEOUT)
    except Timeout as error:
        owner = path.read_text(encoding="utf-8") or "another process"
        raise InputError(f"{owner} is writing into {folder}; wait until it ends") from error
    try:
        path.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        remove_leftovers(folder)
        remove_leftovers(folder.parent, recursive=False)  # the process that created the folder may have been killed then
        yield path
    finally:
        lock.release()


@contextmanager
def writing(folder: Path, command: str, trust: str = "") -> Iterator[None]:
    """
    Write into a run's folder during the block as the only process.

    :param folder: folder of the run
    :param command: command that resumes the run, e.g. ``ppo``
    :param trust: option that the command requires, see :attr:`BaseRun.trust_option`
    :raises InputError: when another process writes into the folder, or when the folder is removed during the block
    :raises KeyboardInterrupt: when the block is interrupted, with a text that says how to continue
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


def read_description(folder: str | Path, schema: type | None = None) -> dict[str, Any]:
    """
    Read ``run.json``.

    :param folder: folder of a run
    :param schema: dataclass of the keys to check; no key is checked when ``None``
    :raises InputError: when the folder has no ``run.json``, or when a key lacks or has a wrong type
    """
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise InputError(f"{folder} is not the folder of a run; runs are in runs/<env>/<agent>/<n>")
    description = read_json(path)
    if schema is not None:
        known = {f.name for f in fields(schema)}
        check_table({key: value for key, value in description.items() if key in known}, schema, f"{folder}/run.json")
    return description


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """Sort files of runs by the number of the run, the highest first. Times are not reliable: clocks can be set back."""
    return sorted(paths, key=lambda path: run_number(path.parent), reverse=True)


def run_number(folder: Path) -> int:
    """Return the number of a run's folder, 0 for a folder with another name."""
    return int(folder.name) if folder.name.isdecimal() else 0


def pretraining_runs(root: Path, env: EnvRecipe) -> list[Run]:
    """
    Return the runs with a finished language model of an environment.

    Runs of ``python -m dhmm_rl.pretrain`` come first. Newer runs come before older ones. Runs that cannot be read are left out.
    """
    models = newest_first((root / env.name).glob(f"*/*/{LANGUAGE_MODEL}"))
    runs = []
    for folder in sorted((path.parent for path in models), key=lambda path: path.parent.name != "pretrain"):
        try:
            runs.append(Run.open(folder, trust=True))  # opening it imports nothing that it names
        except InputError:  # written by another version, or damaged
            continue
    return runs

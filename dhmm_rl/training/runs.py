"""A run's folder, ``runs/<env>/<agent>/<n>/``, and what lies in it."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write
from dhmm_rl.recipes import AgentRecipe, EnvRecipe

LANGUAGE_MODEL = "pretrained.pt"
"""The pretrained language model of a run."""


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
        folder = next_folder(root / env.name / (agent.name if command == "ppo" else command))
        run = cls(folder, env, agent, seed, command, args)
        description = {"env": asdict(env), "agent": asdict(agent), "seed": seed, "command": command, "args": args}
        write_description(folder, description)
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """
        A run that exists.

        :raises InputError: when the folder holds none
        """
        description = read_description(folder)
        try:
            return cls(
                Path(folder),
                EnvRecipe(**description["env"]),
                AgentRecipe(**description["agent"]),
                description["seed"],
                description["command"],
                description["args"],
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"{folder}/run.json cannot be read ({error})") from error

    @classmethod
    def resume(cls, folder: Path, command: str) -> "Run":
        """
        A run that a command is to go on with.

        :raises InputError: when the folder holds none, or one of another command's
        """
        run = cls.open(folder)
        if run.command != command:
            raise InputError(f"the run {folder} is of python -m dhmm_rl.{run.command}; that resumes it")
        return run

    @property
    def language_model(self) -> Path:
        """The pretrained language model, if the run has one."""
        return self.folder / LANGUAGE_MODEL


def next_folder(parent: Path) -> Path:
    """Make the next numbered folder, ``parent/<n>``."""
    parent.mkdir(parents=True, exist_ok=True)
    number = max((int(path.name) for path in parent.iterdir() if path.name.isdigit()), default=0) + 1
    while True:
        folder = parent / str(number)
        try:
            folder.mkdir()
            return folder
        except FileExistsError:  # another process took the number
            number += 1


def write_description(folder: Path, description: dict[str, Any]) -> None:
    """Write ``run.json``: what a run is, and the versions it was made with."""
    versions = {name: version(name) for name in ("dhmm-rl", "torch", "stable-baselines3", "gymnasium", "numpy")}
    description = {**description, "versions": {"python": platform.python_version(), **versions}}
    with atomic_write(folder / "run.json") as temporary:
        temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def read_description(folder: str | Path) -> dict[str, Any]:
    """
    Read ``run.json``.

    :raises InputError: when the folder holds none
    """
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise InputError(f"{folder} is not the folder of a run; runs lie in runs/<env>/<agent>/<n>")
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    return description


def pretraining_runs(root: Path, env: EnvRecipe) -> list[Path]:
    """Finished checkpoints of ``python -m dhmm_rl.pretrain`` for an environment, newest first."""
    found = list((root / env.name / "pretrain").glob(f"*/{LANGUAGE_MODEL}"))
    return sorted(found, key=os.path.getmtime, reverse=True)

"""Runs that train a model on a language, and their folders, ``runs/<language>/languages/<n>/``."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from dhmm_rl.errors import InputError, python_command
from dhmm_rl.languages import LANGUAGES, Language, make_batch
from dhmm_rl.languages.options import find_language
from dhmm_rl.model.config import ModelSettings
from dhmm_rl.recipes.imports import check_installed, trust_option
from dhmm_rl.recipes.schema import TrainingSettings
from dhmm_rl.runs.run import LANGUAGE_MODEL, BaseRun, create_folder, newest_first, read_description
from dhmm_rl.validation import Range

COMMAND = "languages"
HELD_OUT = 256
"""Number of held-out sentences on which the model is evaluated during training."""


@dataclass(frozen=True)
class _Description:
    """Content of ``run.json``. The language checks its own options."""

    name: str
    language: dict[str, Any]
    model: ModelSettings
    settings: TrainingSettings
    beyond: list[Annotated[int, Range(1, 10**6)]]
    instances: Annotated[int, Range(1, 10**6)]
    seed: Annotated[int, Range(0, 2**32)]


@dataclass(frozen=True)
class LanguageRun(BaseRun):
    """
    A run that trains a model on a language.

    :param folder: folder of the run
    :param name: name of the language, as :func:`~dhmm_rl.languages.options.find_language` takes it
    :param language: the language with its options
    :param model: keywords of DHMMGPT2
    :param settings: training settings
    :param extrapolate: sizes larger than those of the training, for the evaluation at the end
    :param num_eval_examples: number of instances of each size in the evaluation at the end
    :param seed: seed for sentences and weights
    """

    folder: Path
    name: str
    language: Language[Any]
    model: dict[str, Any]
    settings: TrainingSettings
    extrapolate: tuple[int, ...]
    num_eval_examples: int
    seed: int

    command = COMMAND

    @classmethod
    def create(
        cls,
        root: Path,
        name: str,
        language: Language[Any],
        model: dict[str, Any],
        settings: TrainingSettings,
        extrapolate: tuple[int, ...],
        num_eval_examples: int,
        seed: int,
    ) -> "LanguageRun":
        """Create the next folder. The parameters are those of the class, but ``root`` is the folder of all runs."""
        description = {
            "command": COMMAND,
            "name": name,
            "language": asdict(language),
            "model": model,
            "settings": asdict(settings),
            "beyond": extrapolate,
            "instances": num_eval_examples,
            "seed": seed,
        }
        folder = create_folder(run_parent(root, name), description)
        return cls(folder, name, language, model, settings, extrapolate, num_eval_examples, seed)

    @classmethod
    def open(cls, folder: Path, trust: bool = False) -> "LanguageRun":
        """
        Open an existing run.

        :param folder: folder of the run
        :param trust: accept a language that is not in an installed package
        :raises InputError: when the folder holds no run or a run of another command, and when its ``run.json`` names a module
            that requires trust
        """
        where = f"{folder}/run.json"
        command = read_description(folder).get("command")
        if command != COMMAND:
            raise InputError(f"the run {folder} is of python -m dhmm_rl.{command}, not of a language")
        description = read_description(folder, _Description)
        name = description["name"]
        if not trust:
            check_installed(name, where)
        try:
            options: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in description["language"].items()
            }
            return cls(
                folder,
                name,
                replace(find_language(name, LANGUAGES), **options),
                description["model"],
                TrainingSettings(**description["settings"]),
                tuple(description["beyond"]),
                description["instances"],
                description["seed"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where} cannot be read ({error})") from error

    @property
    def trust_option(self) -> str:
        """Option that commands on the folder require: `` --trust``, or nothing."""
        return trust_option(self.name)

    @property
    def complete(self) -> bool:
        """Whether the model is trained and evaluated, and the plots are drawn."""
        return self.language_model.exists() and self.result.exists()

    def held_out(self) -> list[Any]:
        """Return the instances on which the model is evaluated during training."""
        return draw_held_out(self.language, self.seed)


def open_run(folder: Path, name: str, trust: bool = False) -> LanguageRun:
    """
    Open a run when the user has named its language. A folder that names the same language needs no trust.

    :raises InputError: see :meth:`LanguageRun.open`
    """
    return LanguageRun.open(folder, trust or read_description(folder).get("name") == name)


def newest_run(root: Path, name: str) -> LanguageRun:
    """
    Open the newest finished run of a language.

    :raises InputError: when there is no such run
    """
    find_language(name, LANGUAGES)
    models = newest_first(run_parent(root, name).glob(f"*/{LANGUAGE_MODEL}"))
    if not models:
        raise InputError(f"there is no finished run of {name}; {python_command()} -m dhmm_rl.languages {name} makes one")
    return open_run(models[0].parent, name)


def run_parent(root: Path, name: str) -> Path:
    """Return the folder of all runs of a language."""
    return root / name.replace(":", "-") / COMMAND


def model_settings(language: Language[Any], extrapolate: Sequence[int]) -> dict[str, Any]:
    """
    Return keywords of a model that sees the whole of the longest sentence in training and evaluation.

    :param language: language to learn
    :param extrapolate: sizes larger than those of the training, for the evaluation
    :raises InputError: when the longest sentence needs position ids that the language does not have
    """
    largest = max([language.sizes[1], *extrapolate])
    longest = language.longest(largest)
    settings: dict[str, Any] = {"window": longest, "max_len": longest}
    if language.coupling == "learned":
        make_batch(language, draw(language, [largest] * 20, 0))  # raises an error when there are too few position ids
        settings |= {"max_len": language.max_position, "positions": "learned"}
    elif language.relative:
        settings |= {"reach": list(language.reach)}
    return settings | language.model


def draw(language: Language[Any], sizes: Sequence[int], seed: int) -> list[Any]:
    """Draw instances from a random stream that no training uses, so that they are new to the model except by chance."""
    rng = np.random.default_rng([seed, 0, 1])
    return [language.instance(size, rng) for size in sizes]


def draw_held_out(language: Language[Any], seed: int) -> list[Any]:
    """Draw the held-out instances of a training. Their sizes are those of the training."""
    low, high = language.sizes
    return draw(language, np.random.default_rng(seed).integers(low, high + 1, HELD_OUT).tolist(), seed)

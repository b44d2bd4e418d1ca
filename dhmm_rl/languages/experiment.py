"""From a token language to a model of it."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from dhmm_rl.errors import InputError, python_command
from dhmm_rl.files import write_json
from dhmm_rl.languages import (
    LANGUAGES,
    FixedSentences,
    FreshSentences,
    HiddenProcess,
    Language,
    Process,
    make_batch,
    read_out_belief,
    score,
    write_traces,
)
from dhmm_rl.languages.latent_automaton import chain_agreement, read_automaton
from dhmm_rl.languages.options import find_language
from dhmm_rl.languages.plots import MOST_ARROWS, save_automaton
from dhmm_rl.model import DHMMGPT2, save_checkpoint
from dhmm_rl.model.config import ModelSettings
from dhmm_rl.pretraining.trainer import steps_done, train_language_model
from dhmm_rl.recipes.imports import check_installed, trust_option
from dhmm_rl.recipes.schema import TrainingSettings
from dhmm_rl.runs.logs import make_logger, read_log
from dhmm_rl.runs.plots import plot_losses
from dhmm_rl.runs.run import LANGUAGE_MODEL, create_folder, newest_first, read_description, writing
from dhmm_rl.validation import Range, check_table

COMMAND = "languages"
RESULT = "result.json"
AGREES = 0.9
"""An automaton is drawn if the chain alone predicts the model's likeliest token at least this often."""
HELD_OUT = 256
"""Sentences on which training is judged."""


@dataclass(frozen=True)
class _Description:
    """What ``run.json`` holds; the language checks its own options."""

    name: str
    language: dict[str, Any]
    model: ModelSettings
    settings: TrainingSettings
    beyond: list[Annotated[int, Range(1, 10**6)]]
    instances: Annotated[int, Range(1, 10**6)]
    seed: Annotated[int, Range(0, 2**32)]


DESCRIPTION_KEYS = tuple(f.name for f in fields(_Description))


@dataclass(frozen=True)
class LanguageRun:
    """
    A training on a language: its folder, ``runs/<language>/languages/<n>/``, and what it is a run of.

    :param name: the language's, as :func:`find_language` takes it
    :param language: with its options
    :param model: keywords of DHMMGPT2
    :param settings: of the training
    :param beyond: sizes beyond those of the training on which the model is judged, too
    :param instances: on how many of each size
    """

    folder: Path
    name: str
    language: Language[Any]
    model: dict[str, Any]
    settings: TrainingSettings
    beyond: tuple[int, ...]
    instances: int
    seed: int

    @classmethod
    def create(cls, root: Path, name: str, *parts: Any) -> "LanguageRun":
        """Make the next folder; ``parts`` are the further fields, in their order."""
        run = cls(root, name, *parts)
        description = {key: value for key, value in asdict(run).items() if key != "folder"}
        return replace(run, folder=create_folder(run_parent(root, name), {"command": COMMAND, **description}))

    @classmethod
    def open(cls, folder: Path, trust: bool = False) -> "LanguageRun":
        """
        A run that exists.

        :param trust: accept a language that is not in an installed package
        :raises InputError: when the folder holds none, or one of another command's, and when its ``run.json`` names a module
            that needs trust
        """
        found, where = read_description(folder), f"{folder}/run.json"
        if found.get("command") != COMMAND:
            raise InputError(f"the run {folder} is of python -m dhmm_rl.{found.get('command')}, not of a language")
        check_table({key: value for key, value in found.items() if key in DESCRIPTION_KEYS}, _Description, where)
        if not trust:
            check_installed(found["name"], where)
        try:
            options: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in found["language"].items()
            }
            language = replace(find_language(found["name"], LANGUAGES), **options)
            settings, beyond = TrainingSettings(**found["settings"]), tuple(found["beyond"])
            return cls(folder, found["name"], language, found["model"], settings, beyond, found["instances"], found["seed"])
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder}/run.json cannot be read ({error})") from error

    @property
    def checkpoint(self) -> Path:
        """The trained model, if the run has one."""
        return self.folder / LANGUAGE_MODEL

    @property
    def complete(self) -> bool:
        """Whether the model is trained and judged, and the pictures are drawn."""
        return self.checkpoint.exists() and (self.folder / RESULT).exists()

    def writing(self) -> AbstractContextManager[None]:
        """Be the one process that writes into the folder, see :func:`~dhmm_rl.runs.run.writing`."""
        return writing(self.folder, COMMAND, trust_option(self.name))

    def held_out(self) -> list[Any]:
        """Instances on which training is judged."""
        return draw_held_out(self.language, self.seed)


def model_settings(language: Language[Any], beyond: Sequence[int]) -> dict[str, Any]:
    """
    Keywords of a model that sees the whole of the longest sentence that it will be asked about.

    :raises InputError: when that sentence needs position ids that the language does not have
    """
    largest = max([language.sizes[1], *beyond])
    longest = language.longest(largest)
    settings: dict[str, Any] = {"window": longest, "max_len": longest}
    if language.coupling == "learned":
        make_batch(language, draw(language, [largest] * 20, 0))  # says whether there are position ids enough
        settings |= {"max_len": language.max_position, "positions": "learned"}
    elif language.relative:
        settings |= {"reach": list(language.reach)}
    return settings | language.model


def draw(language: Language[Any], sizes: Sequence[int], seed: int) -> list[Any]:
    """Instances that a training with this seed or another does not draw, except by chance."""
    rng = np.random.default_rng([seed, 0, 1])
    return [language.instance(size, rng) for size in sizes]


def draw_held_out(language: Language[Any], seed: int) -> list[Any]:
    """Instances of the training's sizes on which a training with this seed is judged."""
    low, high = language.sizes
    return draw(language, np.random.default_rng(seed).integers(low, high + 1, HELD_OUT).tolist(), seed)


def train_on_language(run: LanguageRun, *, device: str = "cpu", progress: bool = False) -> str:
    """
    Train a model on sentences drawn anew for every step, keep it in the run, and say how well it does.

    Resumes where it was interrupted.

    :return: a table: nats per token, and in a deterministic language the share of exact traces and of right tokens, inside and
        beyond the training's sizes; for a hidden process also how well its belief can be read from the model's
    """
    language, settings = run.language, run.settings
    torch.manual_seed(run.seed)
    model = DHMMGPT2(len(language.tokens), **run.model).to(device)
    held_out = run.held_out()

    def metrics() -> dict[str, float]:
        result = score(model, language, held_out)
        return {"held_out/exact": result.exact, "held_out/right_tokens": result.tokens}

    logger = make_logger(run.folder, COMMAND, steps_done(run.folder))
    try:
        trained = train_language_model(
            model,
            FreshSentences(language, settings.steps * settings.batch_size, run.seed),
            FixedSentences(language, held_out),
            settings,
            folder=run.folder,
            logger=logger,
            seed=run.seed,
            progress=progress,
            metrics=metrics if language.deterministic else None,
        )
    finally:
        logger.close()

    began = time.perf_counter()
    lines, results = judge(model, run, [*language.sizes, *run.beyond], run.instances)
    info = {
        "language": run.name,
        "held_out_loss": trained.loss,
        "gradient_steps": trained.steps,
        "best_step": trained.best_step,
    }
    info |= {"sizes": results}
    if isinstance(language, HiddenProcess) and model.latent is not None:
        words = np.array(draw(language, [language.sizes[1]] * 2 * run.instances, run.seed + language.sizes[1]))
        r2 = read_out_belief(model, language, words)
        info["true_belief_r2"] = r2._asdict()
        lines.append(f"R² of a linear read-out of the true belief: {r2.belief:.4f}; from the last symbol: {r2.last_symbol:.4f}")
    if isinstance(language, HiddenProcess):
        rates = language.entropy_rate()
        info["entropy_rate"] = rates
        lines.append(f"entropy rate: {' to '.join(dict.fromkeys(f'{rate:.4f}' for rate in rates))} nats a symbol")
    info["seconds"] = trained.seconds + time.perf_counter() - began
    save_checkpoint(run.checkpoint, model, None, info)
    return "\n".join(lines)


def judge(model: DHMMGPT2, run: LanguageRun, sizes: Sequence[int], count: int) -> tuple[list[str], list[dict[str, Any]]]:
    """
    How well a model does on instances of some sizes.

    Exact traces and right tokens are counted only where the language is deterministic: elsewhere chance decides them.

    :param count: instances of each size
    :return: a table in lines, and its rows
    """
    language = run.language
    columns = ["size", *["exact", "tokens"] * language.deterministic, "nats", *["best"] * isinstance(language, Process)]
    lines = [f"{columns[0]:>6}" + "".join(f"{column:>10}" for column in columns[1:])]
    results = []
    for size in dict.fromkeys(sizes):
        instances = draw(language, [size] * count, run.seed + size)
        found = score(model, language, instances)
        shares = {"exact": found.exact, "tokens": found.tokens} if language.deterministic else {}
        result = {"size": size, **shares, "nats": found.nats}
        line = f"{size:>6}" + "".join(f"{share:>10.2%}" for share in shares.values()) + f"{found.nats:>10.4f}"
        if isinstance(language, Process):
            result["best_nats"] = float(language.nats(np.array(instances)).mean())
            line += f"{result['best_nats']:>10.4f}"
        results.append(result)
        lines.append(line + ("" if size <= language.sizes[1] else "   beyond the training's sizes"))
    return lines, results


def write_pictures(run: LanguageRun, model: DHMMGPT2) -> list[Path]:
    """
    Draw ``curve.png``, how the training went, and ``automaton.png``, what the latent chain has become, if that says something.

    It says something when it has at least two states, few enough arrows to be read, and when the chain alone predicts what the
    model predicts: in a model with a transformer, the transformer may have learned everything instead.

    :param model: the run's
    :return: what was drawn
    """
    curve, picture = run.folder / "curve.png", run.folder / "automaton.png"
    plot_losses(read_log(run.folder, COMMAND), curve, f"{run.name}, seed {run.seed}")
    automaton = read_automaton(model, run.language, run.held_out())
    if automaton is None or len(automaton.members) < 2 or len(automaton.arrows()) > MOST_ARROWS:
        return [curve]
    if chain_agreement(model, run.language, run.held_out()) < AGREES:
        return [curve]
    save_automaton(automaton, run.language, picture)
    return [curve, picture]


def save_result(run: LanguageRun, info: dict[str, Any]) -> None:
    """Write ``result.json``, the last file of a run: one without it is not complete, and can be resumed."""
    write_json(run.folder / RESULT, info)


def show(model: DHMMGPT2, language: Language[Any], instances: Sequence[Any], goes_on: bool = False, seed: int = 0) -> str:
    """
    What a model writes for instances, and what the executor says of it.

    In a deterministic language it writes the likeliest tokens. In any other, tokens are drawn: always taking the likeliest one
    would show no typical trace.

    :param seed: seeds the drawn tokens
    :param goes_on: in a language that is not deterministic, all of an instance is given, and it goes on with as many tokens as
        the longest sentence of the training has
    """
    goes_on = goes_on and not language.deterministic
    begun = [language.trace(instance) if goes_on else [] for instance in instances]
    steps = language.longest(language.sizes[1]) if goes_on else None
    generator = torch.Generator(model.slot_ids.device).manual_seed(seed)
    traces = write_traces(
        model, language, instances, begun=begun, steps=steps, greedy=language.deterministic, generator=generator
    )
    parts = []
    for instance, trace in zip(instances, traces, strict=True):
        verdict = language.check(instance, trace)
        parts.append("\n".join([" ".join(language.prompt(instance)), *language.lines(trace), f"-> {verdict.text}"]))
    return "\n\n".join(parts)


def open_run(folder: Path, name: str, trust: bool = False) -> LanguageRun:
    """
    A run of which the user names the language: if the folder names the same, that needs no trust.

    :raises InputError: as :meth:`LanguageRun.open`
    """
    return LanguageRun.open(folder, trust or read_description(folder).get("name") == name)


def newest_run(root: Path, name: str) -> LanguageRun:
    """
    The run of a language that was finished last.

    :raises InputError: when there is none
    """
    find_language(name, LANGUAGES)
    found = newest_first(run_parent(root, name).glob(f"*/{LANGUAGE_MODEL}"))
    if not found:
        raise InputError(f"there is no finished run of {name}; {python_command()} -m dhmm_rl.languages {name} makes one")
    return open_run(found[0].parent, name)


def run_parent(root: Path, name: str) -> Path:
    """The folder of all runs of a language."""
    return root / name.replace(":", "-") / COMMAND

"""Training a model on a language, and evaluating what it writes."""

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dhmm_rl.files import write_json
from dhmm_rl.languages import (
    FixedSentences,
    FreshSentences,
    HiddenProcess,
    Language,
    Process,
    read_out_belief,
    score,
    write_traces,
)
from dhmm_rl.languages.latent_automaton import chain_agreement, read_automaton
from dhmm_rl.languages.plots import MAX_ARROWS, save_automaton
from dhmm_rl.languages.run import COMMAND, LanguageRun, draw
from dhmm_rl.model import DHMMGPT2, save_checkpoint
from dhmm_rl.pretraining.trainer import TrainResult, steps_done, train_language_model
from dhmm_rl.runs.logs import make_logger, read_log
from dhmm_rl.runs.plots import plot_losses

MIN_AGREEMENT = 0.9
"""An automaton is drawn if the latent chain alone predicts the model's most likely token at least this often."""


def train_on_language(run: LanguageRun, *, device: str = "cpu", progress: bool = False) -> str:
    """
    Train a model on newly drawn sentences, evaluate it, and save it in the run. Resumes where it was interrupted.

    :param run: run with the language and the settings
    :param device: device to train on
    :param progress: show a progress bar
    :return: table of the results, see :func:`format_results`; for a hidden process, also its entropy rate and how well its
        belief can be read from the model's
    """
    torch.manual_seed(run.seed)
    model = DHMMGPT2(len(run.language.tokens), **run.model).to(device)
    trained = _train(run, model, progress)

    began = time.perf_counter()
    results = evaluate_sizes(model, run, [*run.language.sizes, *run.extrapolate], run.num_eval_examples)
    lines = format_results(results, run.language.sizes[1])
    info = {
        "language": run.name,
        "held_out_loss": trained.loss,
        "gradient_steps": trained.steps,
        "best_step": trained.best_step,
        "sizes": results,
    }
    if isinstance(run.language, HiddenProcess):
        process_info, process_lines = _evaluate_process(model, run, run.language)
        info |= process_info
        lines += process_lines
    info["seconds"] = trained.seconds + time.perf_counter() - began
    save_checkpoint(run.language_model, model, None, info)
    return "\n".join(lines)


def _train(run: LanguageRun, model: DHMMGPT2, progress: bool) -> TrainResult:
    language, settings, held_out = run.language, run.settings, run.held_out()

    def metrics() -> dict[str, float]:
        result = score(model, language, held_out)
        return {"held_out/exact": result.exact, "held_out/right_tokens": result.tokens}

    with closing(make_logger(run.folder, COMMAND, steps_done(run.folder))) as logger:
        return train_language_model(
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


def evaluate_sizes(model: DHMMGPT2, run: LanguageRun, sizes: Sequence[int], count: int) -> list[dict[str, Any]]:
    """
    Evaluate a model on instances of several sizes.

    :param model: model to evaluate
    :param run: run with the language and the seed
    :param sizes: sizes of the instances
    :param count: number of instances of each size
    :return: one row per size, with the loss ``nats`` per token; in a deterministic language also the fractions of exact traces
        ``exact`` and of right tokens ``tokens``; for a process also the loss of the best predictor ``best_nats``
    """
    language = run.language
    results = []
    for size in dict.fromkeys(sizes):
        instances = draw(language, [size] * count, run.seed + size)
        scores = score(model, language, instances)
        result: dict[str, Any] = {"size": size}
        if language.deterministic:  # elsewhere chance decides which tokens are right
            result |= {"exact": scores.exact, "tokens": scores.tokens}
        result["nats"] = scores.nats
        if isinstance(language, Process):
            result["best_nats"] = float(language.nats(np.array(instances)).mean())
        results.append(result)
    return results


def format_results(results: Sequence[dict[str, Any]], largest: int) -> list[str]:
    """
    Format results of :func:`evaluate_sizes` as the lines of a table.

    :param results: rows of the table, all with the same columns
    :param largest: largest size in training; rows of larger sizes are marked
    """
    columns = [name.removesuffix("_nats") for name in results[0]]
    lines = [f"{columns[0]:>6}" + "".join(f"{column:>10}" for column in columns[1:])]
    for result in results:
        line = f"{result['size']:>6}"
        for name, value in result.items():
            if name in ("exact", "tokens"):
                line += f"{value:>10.2%}"
            elif name != "size":
                line += f"{value:>10.4f}"
        lines.append(line + ("" if result["size"] <= largest else "   beyond the training's sizes"))
    return lines


def _evaluate_process(model: DHMMGPT2, run: LanguageRun, process: HiddenProcess) -> tuple[dict[str, Any], list[str]]:
    """Return what the checkpoint records about a model of a hidden process, and the same as lines."""
    info: dict[str, Any] = {}
    lines = []
    if model.latent is not None:
        largest = process.sizes[1]
        words = np.array(draw(process, [largest] * 2 * run.num_eval_examples, run.seed + largest))
        r2 = read_out_belief(model, process, words)
        info["true_belief_r2"] = r2._asdict()
        lines.append(f"R² of a linear read-out of the true belief: {r2.belief:.4f}; from the last symbol: {r2.last_symbol:.4f}")
    rates = process.entropy_rate()
    info["entropy_rate"] = rates
    bounds = dict.fromkeys(f"{rate:.4f}" for rate in rates)  # a single number if both bounds are equal
    lines.append(f"entropy rate: {' to '.join(bounds)} nats a symbol")
    return info, lines


def save_plots(run: LanguageRun, model: DHMMGPT2) -> list[Path]:
    """
    Plot the losses in ``curve.png`` and, if it is informative, the automaton of the latent chain in ``automaton.png``.

    The automaton is informative when it has at least two states, few enough arrows to be read, and when the chain alone
    predicts what the model predicts. Otherwise a transformer may have learned everything instead.

    :param run: finished run
    :param model: model of the run
    :return: paths of the plots
    """
    curve, automaton_path = run.folder / "curve.png", run.folder / "automaton.png"
    plot_losses(read_log(run.folder, COMMAND), curve, f"{run.name}, seed {run.seed}")
    automaton = read_automaton(model, run.language, run.held_out())
    if automaton is None or len(automaton.members) < 2 or len(automaton.arrows()) > MAX_ARROWS:
        return [curve]
    if chain_agreement(model, run.language, run.held_out()) < MIN_AGREEMENT:
        return [curve]
    save_automaton(automaton, run.language, automaton_path)
    return [curve, automaton_path]


def save_result(run: LanguageRun, info: dict[str, Any]) -> None:
    """Write ``result.json``, the last file of a run. A run without it is not complete and can be resumed."""
    write_json(run.result, info)


def solve(
    model: DHMMGPT2, language: Language[Any], instances: Sequence[Any], continue_given: bool = False, seed: int = 0
) -> str:
    """
    Let a model write traces, execute them, and return both as text.

    In a deterministic language the model writes the most likely tokens. In other languages tokens are sampled, because the most
    likely ones would not be a typical trace.

    :param model: model of the language
    :param language: language of the instances
    :param instances: instances to solve
    :param continue_given: continue the whole given instance, with as many tokens as the longest sentence of the training has;
        ignored in a deterministic language
    :param seed: seed for the sampled tokens
    """
    continue_given = continue_given and not language.deterministic
    generator = torch.Generator(model.slot_ids.device).manual_seed(seed)
    traces = write_traces(
        model,
        language,
        instances,
        begun=[language.trace(instance) if continue_given else [] for instance in instances],
        steps=language.longest(language.sizes[1]) if continue_given else None,
        greedy=language.deterministic,
        generator=generator,
    )
    parts = []
    for instance, trace in zip(instances, traces, strict=True):
        verdict = language.check(instance, trace)
        parts.append("\n".join([" ".join(language.prompt(instance)), *language.lines(trace), f"-> {verdict.text}"]))
    return "\n\n".join(parts)

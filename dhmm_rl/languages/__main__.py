"""``python -m dhmm_rl.languages NAME``: train a model on a token language, and execute what it writes."""

import typing
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from dhmm_rl.cli import run_command, set_up
from dhmm_rl.errors import InputError, python_command
from dhmm_rl.languages import LANGUAGES
from dhmm_rl.languages.experiment import evaluate_sizes, format_results, save_plots, save_result, solve, train_on_language
from dhmm_rl.languages.options import find_language, read_options, with_options
from dhmm_rl.languages.run import LanguageRun, draw, model_settings, newest_run, open_run
from dhmm_rl.model import DHMMGPT2, load_checkpoint
from dhmm_rl.model.config import ModelSettings
from dhmm_rl.recipes import MODEL_KEYS, check_model_size
from dhmm_rl.recipes.schema import TrainingSettings

RENAMED = {"judge": "evaluate", "beyond": "extrapolate", "instances": "num-eval-examples"}
"""Options with an old name, which is accepted for one release."""


@dataclass
class Args:
    """
    Train DHMM-GPT2 on the traces of an algorithm, an automaton or a process, and execute what it writes.

    Every gradient step uses newly drawn sentences. At the end the command prints the loss and, in deterministic languages, the
    fraction of instances with an exact trace, for sizes of the training and larger ones. It also prints a few traces with the
    executor's verdict, and plots the losses and the automaton that the latent layer has learned, if it is small and predicts
    what the model predicts. An interrupted run continues with --resume.
    """

    name: tyro.conf.Positional[str] = "bubble-sort"
    """Language: addition, bubble-sort, insertion-sort, markov-chain, in-context-chains, mess3, even-process, parity, counting,
    s3, a4, a5, dyck, stream, or module:Class for your own."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Option of the language, such as form=compact, sizes=1,20, max_position=64 or growth=0.5; can be repeated."""
    model: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Keyword of the model, such as num_states=0 (GPT-2), layers=0 (an HMM) or embed_size=32; can be repeated. By default the
    window holds the longest sentence."""
    steps: int | None = None
    """Number of gradient steps. Default: what suits the language, or 2000."""
    batch_size: int | None = None
    """Number of sentences in a gradient step. Default: what suits the language, or 64."""
    learning_rate: float | None = None
    """Peak learning rate. Default: what suits the language, or 0.003."""
    eval_every: int | None = None
    """Number of gradient steps between evaluations on held-out sentences. Each one writes a checkpoint. Default: what suits the
    language, or 200."""
    extrapolate: tuple[int, ...] = ()
    """Sizes larger than those of the training, for the evaluation at the end. Default: twice the largest."""
    num_eval_examples: int = 200
    """Number of instances of each size in the evaluation at the end."""
    show: str | None = None
    """Instance to solve, such as "3 1 2", or the beginning of a process or stream to continue. Nothing is trained: the newest
    finished run of the language does it, or the run that --resume names. The language's options are those of the run."""
    evaluate: tuple[int, ...] = ()
    """Sizes to evaluate the newest finished run on, or the run that --resume names. Nothing is trained."""
    seed: int = 0
    """Seed for the sentences and the weights; with --show, for tokens that are sampled."""
    device: str = "cpu"
    """Device to train on. Training on 'cuda' uses mixed precision."""
    threads: int = 1
    """Number of CPU threads. Small models train fastest with one."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    resume: Path | None = None
    """Folder of an interrupted run to continue. All other arguments except the device are then those of the run."""
    trust: bool = False
    """With --resume: import a language that only the run's folder names and that is not in an installed package."""
    quiet: bool = False
    """Show no progress bar."""


def main(args: Args) -> None:
    """Run the command."""
    device = set_up(args.device, args.threads, args.seed)

    # With --show or --evaluate: load a finished run and train nothing
    if args.show is not None or args.evaluate:
        use_finished_run(args, device)
        return

    # Create the folder of a new run, or open the one to resume
    if args.resume is None:
        run = create_run(args)
    else:
        run = open_run(args.resume, args.name, args.trust)
        if run.complete:
            raise InputError(f"the run {run.folder} is complete: {run.language_model}")

    with run.writing(new=args.resume is None):
        # Train the model, or continue its training, and print the table of results
        print(train_on_language(run, device=device, progress=not args.quiet))
        model, _, info = load_checkpoint(run.language_model, device)

        # Two instances of the largest size, what the model writes for them, and the executor's verdicts
        examples = draw(run.language, [run.language.sizes[1]] * 2, 0)
        print("\n" + solve(model, run.language, examples, seed=run.seed))

        # Commands and plots to go on from here
        python = python_command()
        print(f"\nmodel:            {run.language_model}")
        print(f'ask it:           {python} -m dhmm_rl.languages {run.name} --resume {run.folder} --show "…"')
        print(f"watch the losses: {python} -m tensorboard.main --logdir {run.folder}")
        for plot in save_plots(run, model):
            print(f"{plot.stem + ':':<18}{plot}")

        # The results are written last: a run without them can be resumed
        save_result(run, info)


def use_finished_run(args: Args, device: str) -> None:
    """
    Let the model of a finished run solve an instance, or evaluate it on other sizes.

    :raises InputError: when there is no finished run, or the instance cannot be read
    """
    run = newest_run(args.runs, args.name) if args.resume is None else open_run(args.resume, args.name, args.trust)
    if not run.language_model.exists():
        raise InputError(f"the run {run.folder} is not finished; without --show and --evaluate, --resume continues it")
    model = load_checkpoint(run.language_model, device).model
    if args.show is not None:
        print(solve(model, run.language, [run.language.parse(args.show)], continue_given=True, seed=args.seed))
    if args.evaluate:
        check_sizes(args.evaluate, args.num_eval_examples)
        if run.model["window"] == model_settings(run.language, run.extrapolate)["window"]:
            # The window was derived from the longest sentence, so longer sentences extend it
            model.blocks.window = max(model.blocks.window, model_settings(run.language, args.evaluate)["window"])
        results = evaluate_sizes(model, run, args.evaluate, args.num_eval_examples)
        print("\n".join(format_results(results, run.language.sizes[1])))


def create_run(args: Args) -> LanguageRun:
    """
    Create the folder of a new run, after all arguments have been checked.

    :raises InputError: for an unknown language, and for options that are unknown, out of range, or do not fit together
    """
    language = with_options(find_language(args.name, LANGUAGES), args.set)
    extrapolate = args.extrapolate or (2 * language.sizes[1],)
    check_sizes(extrapolate, args.num_eval_examples)

    hints = typing.get_type_hints(ModelSettings)
    model = model_settings(language, extrapolate) | read_options(args.model, hints, MODEL_KEYS)
    check_model_size(model, "--model")
    DHMMGPT2(len(language.tokens), **model)  # raises an error for keywords that do not fit together

    # Options of the command line precede what suits the language, which precedes the defaults
    given = {name: getattr(args, name) for name in ("steps", "batch_size", "learning_rate", "eval_every")}
    changes = {name: value for name, value in given.items() if value is not None}
    settings = TrainingSettings(**{"eval_every": 200} | language.training | changes)
    if "patience" not in language.training:
        # Sentences are not repeated, so the model cannot overfit, and training need not stop early
        settings = replace(settings, patience=max(settings.steps, 1))
    settings.check()
    return LanguageRun.create(args.runs, args.name, language, model, settings, extrapolate, args.num_eval_examples, args.seed)


def check_sizes(sizes: tuple[int, ...], num_eval_examples: int) -> None:
    """:raises InputError: for a size or a number of instances below 1"""
    if min(sizes) < 1 or num_eval_examples < 1:
        raise InputError("sizes and the number of instances must be at least 1")


if __name__ == "__main__":
    run_command(main, Args, "dhmm_rl.languages", RENAMED)

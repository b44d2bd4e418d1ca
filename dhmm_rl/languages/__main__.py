"""``python -m dhmm_rl.languages NAME``: a model learns a token language, and what it writes is executed."""

import typing
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from dhmm_rl.cli import run_command, set_up
from dhmm_rl.errors import InputError, python_command
from dhmm_rl.languages import LANGUAGES
from dhmm_rl.languages.experiment import (
    LanguageRun,
    draw,
    judge,
    model_settings,
    newest_run,
    open_run,
    save_result,
    show,
    train_on_language,
    write_pictures,
)
from dhmm_rl.languages.options import find_language, read_options, with_options
from dhmm_rl.model import DHMMGPT2, load_checkpoint
from dhmm_rl.model.config import ModelSettings
from dhmm_rl.recipes import MODEL_KEYS, check_model_size
from dhmm_rl.recipes.schema import TrainingSettings
from dhmm_rl.runs.run import removed_if_failed


@dataclass
class Args:
    """
    Train DHMM-GPT2 on the traces of an algorithm, an automaton or a process, drawn anew for every step, and execute what it
    writes.

    At the end: the loss and, in deterministic languages, the share of instances whose whole trace is exact, inside and beyond
    the sizes of the training, a few traces with the executor's verdict, and pictures: the losses, and the automaton that the
    latent layer has become, if it is small and predicts what the model predicts.
    A run that was interrupted goes on with --resume.
    """

    name: tyro.conf.Positional[str] = "bubble-sort"
    """The language: addition, bubble-sort, insertion-sort, markov-chain, in-context-chains, mess3, even-process, parity,
    counting, s3, a4, a5, dyck, stream, or module:Class for one of your own."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An option of the language, such as form=compact, sizes=1,20, max_position=64 or growth=0.5; may be repeated."""
    model: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A keyword of the model, such as num_states=0 (GPT-2), layers=0 (an HMM) or embed_size=32; may be repeated. The window
    holds the longest sentence unless it is given."""
    steps: int | None = None
    """Gradient steps. Default: what suits the language, or 2000."""
    batch_size: int | None = None
    """Sentences in a gradient step. Default: what suits the language, or 64."""
    learning_rate: float | None = None
    """Peak learning rate. Default: what suits the language, or 0.003."""
    eval_every: int | None = None
    """Gradient steps from one look at held-out sentences to the next; a checkpoint is written each time. Default: what suits
    the language, or 200."""
    beyond: tuple[int, ...] = ()
    """Sizes beyond those of the training on which the model is judged, too. Default: twice the largest."""
    instances: int = 200
    """On how many instances of each size it is judged."""
    show: str | None = None
    """Let the newest finished run of this language, or the one that --resume names, solve this instance, such as "3 1 2", or
    go on with this beginning of a process or stream, and train nothing. The language's options are then that run's."""
    judge: tuple[int, ...] = ()
    """Judge the newest finished run, or the one that --resume names, on instances of these sizes, and train nothing."""
    seed: int = 0
    """Seeds the sentences and the weights; with --show, the tokens that are drawn where chance rules."""
    device: str = "cpu"
    """Device to train on; on 'cuda' in mixed precision."""
    threads: int = 1
    """CPU threads. Small models are faster with one."""
    runs: Path = Path("runs")
    """Folder under which runs are kept."""
    resume: Path | None = None
    """Folder of an interrupted run to go on with; all other arguments but the device's are then the run's own."""
    trust: bool = False
    """With --resume: import a language that only the run's folder names and that is not in an installed package."""
    quiet: bool = False
    """Show no progress bar."""


def main(args: Args) -> None:
    """Run the command."""
    device = set_up(args.device, args.threads, args.seed)
    if args.show is not None or args.judge:
        run = newest_run(args.runs, args.name) if args.resume is None else open_run(args.resume, args.name, args.trust)
        if not run.checkpoint.exists():
            raise InputError(f"the run {run.folder} is not finished; without --show and --judge, --resume goes on with it")
        model = load_checkpoint(run.checkpoint, device).model
        if args.show is not None:
            print(show(model, run.language, [run.language.parse(args.show)], goes_on=True, seed=args.seed))
        if args.judge:
            _check_sizes(args.judge, args.instances)
            if run.model["window"] == model_settings(run.language, run.beyond)["window"]:  # no other was asked for
                model.window = max(model.window, model_settings(run.language, args.judge)["window"])
            print("\n".join(judge(model, run, args.judge, args.instances)[0]))
        return
    if args.resume is None:
        run = _new(args)
    else:
        run = open_run(args.resume, args.name, args.trust)
        if run.complete:
            raise InputError(f"the run {run.folder} is complete: {run.checkpoint}")
    with removed_if_failed(run.folder, new=args.resume is None), run.writing():
        _train(run, device, not args.quiet)


def _train(run: LanguageRun, device: str, progress: bool) -> None:
    print(train_on_language(run, device=device, progress=progress))
    model, _, info = load_checkpoint(run.checkpoint, device)
    print("\n" + show(model, run.language, draw(run.language, [run.language.sizes[1]] * 2, 0), seed=run.seed))
    print(f"\nmodel:            {run.checkpoint}")
    python = python_command()
    print(f'ask it:           {python} -m dhmm_rl.languages {run.name} --resume {run.folder} --show "…"')
    print(f"watch the losses: {python} -m tensorboard.main --logdir {run.folder}")
    for picture in write_pictures(run, model):
        print(f"{picture.stem + ':':<18}{picture}")
    save_result(run, info)


def _new(args: Args) -> LanguageRun:
    language = with_options(find_language(args.name, LANGUAGES), args.set)
    beyond = args.beyond or (2 * language.sizes[1],)
    _check_sizes(beyond, args.instances)
    hints = typing.get_type_hints(ModelSettings)
    model = model_settings(language, beyond) | read_options(args.model, hints, MODEL_KEYS)
    check_model_size(model, "--model")
    DHMMGPT2(len(language.tokens), **model)  # says what does not fit together before a folder is made
    given = {name: getattr(args, name) for name in ("steps", "batch_size", "learning_rate", "eval_every")}
    chosen = {"eval_every": 200} | language.training | {name: value for name, value in given.items() if value is not None}
    settings = TrainingSettings(**chosen)
    if "patience" not in language.training:  # no sentence is seen twice: nothing is learned by heart
        settings = replace(settings, patience=max(settings.steps, 1))
    settings.check()
    return LanguageRun.create(args.runs, args.name, language, model, settings, beyond, args.instances, args.seed)


def _check_sizes(sizes: tuple[int, ...], instances: int) -> None:
    if min(sizes) < 1 or instances < 1:
        raise InputError("sizes and the number of instances must be at least 1")


if __name__ == "__main__":
    run_command(main, Args, "dhmm_rl.languages")

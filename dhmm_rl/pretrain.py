"""``python -m dhmm_rl.pretrain``: collect or load rollouts, and pretrain a language model on them."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from dhmm_rl.cli import run_command, set_up
from dhmm_rl.errors import InputError, python_command
from dhmm_rl.pretraining.gradient_step import Compile
from dhmm_rl.pretraining.settings import training_settings
from dhmm_rl.pretraining.sources import Source, check_top_fraction
from dhmm_rl.pretraining.workflow import pretrain
from dhmm_rl.recipes import load_recipes
from dhmm_rl.recipes.environments import EnvFactory
from dhmm_rl.runs.run import Run


@dataclass
class Args:
    """
    Pretrain DHMM-GPT2 on rollouts of an environment by next-token prediction.

    Without arguments, the data are 200 random episodes of CartPole-v1. At the end the command prints held-out bits per field,
    and for comparison those of a model that only knows how frequent each id is. An interrupted run continues with --resume.
    """

    env: str = "CartPole-v1"
    """Environment: name of a recipe, path of your own recipe (.toml), or any Gymnasium id."""
    data: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Source of rollouts; several sources are mixed. Default: those of the agent's recipe, or 'random'. The model imitates the
    actions of 'oracle', the environment's own method of that name; of 'teacher:PATH', the folder of a run of ppo or, with
    --trust, the zip of an SB3 model; and of 'minari:ID', a local Minari dataset. A folder that Rollouts.save wrote says itself
    whether to imitate. Options come after the source: 'teacher:best.zip@weight=2@episodes=50' shows each step twice as often;
    'minari:ID@imitate=no' teaches observations only; 'FOLDER@skip_bad=yes' leaves out damaged episodes."""
    top: float | None = None
    """Fraction of the imitated episodes to keep, those with the highest returns (0.1: the best tenth). The other episodes still
    teach observations."""
    agent: str = "dhmm-gpt2"
    """Agent to pretrain the model of: name or path of a recipe."""
    episodes: int | None = None
    """Number of episodes to collect from each source that is not loaded. Default: that of the agent's recipe."""
    steps: int | None = None
    """Largest number of gradient steps. Training stops earlier when the held-out loss stops falling. Default: that of the
    agent's recipe."""
    max_seconds: float | None = None
    """Time limit of the gradient steps. Their number follows from the duration of the first ones. Default: no limit."""
    length: int | None = None
    """Number of steps in a training window. A model that acts by itself carries its belief through whole episodes, so train it
    on long windows: 64 rather than 16. Default: that of the agent's recipe."""
    batch_size: int | None = None
    """Number of windows in a gradient step. Default: that of the agent's recipe."""
    learning_rate: float | None = None
    """Peak learning rate. Default: that of the agent's recipe."""
    seed: int = 0
    """Seed for the collected rollouts, the held-out episodes, the weights and the order of batches."""
    device: str = "cpu"
    """Device to train on. Training on 'cuda' uses mixed precision."""
    compile: Compile = "auto"
    """Compile the gradient steps by torch.compile: 'on', 'off', or 'auto', on a GPU for trainings that are long enough to gain
    from it."""
    threads: int = 1
    """Number of CPU threads. Small models train fastest with one."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    resume: Path | None = None
    """Folder of an interrupted run to continue. All other arguments are then those of the run, except device and compile."""
    trust: bool = False
    """Also read zips of SB3 models as teachers, which can run code hidden in them. The folder of a run needs no trust. With
    --resume, also import an environment and wrappers that are not in installed packages."""
    quiet: bool = False
    """Show no progress bars."""


def main(args: Args) -> None:
    """Run the command."""
    device = set_up(args.device, args.threads, args.seed)

    # Create the folder of a new run, or open the one to resume
    if args.resume is None:
        run = create_run(args)
    else:
        run = Run.resume(args.resume, "pretrain", args.trust)
        if run.complete:
            raise InputError(f"the run {run.folder} is complete: {run.language_model}")

    # Load the data, fit the tokenizer, train the model and save it, or continue where that was interrupted
    seconds = run.args.get("max_seconds")
    with run.writing(new=args.resume is None):
        checkpoint = pretrain(
            run,
            EnvFactory(run.env, run.seed),
            allowed_seconds=None if seconds is None else lambda tokenizer, needed: seconds,
            device=device,
            progress=not args.quiet,
            trust=args.trust,
            compile=args.compile,
        )

    # Commands to go on from here
    python = python_command()
    print(f"\npretrained model: {checkpoint}")
    act = f"{python} -m dhmm_rl.play {run.folder} --language-model{run.trust_option}"
    print(f"let it act:       {act}   (after a teacher's data)")
    recipes = f"--env {run.args['env']} --agent {run.args['agent']}"
    print(f"train it by PPO:  {python} -m dhmm_rl.ppo {recipes} --pretrained {checkpoint}")
    print(f"watch the losses: {python} -m tensorboard.main --logdir {run.folder}")


def create_run(args: Args) -> Run:
    """
    Create the folder of a new run, after all arguments have been checked.

    :raises InputError: for unknown recipes and sources, and for arguments that are out of range
    """
    env, agent = load_recipes(args.env, args.agent)
    given = {name: getattr(args, name) for name in ("steps", "length", "batch_size", "learning_rate")}
    changes = {name: value for name, value in given.items() if value is not None}
    training_settings(agent, **changes).check()
    for source in args.data:
        Source.parse(source)
    check_top_fraction(args.top)
    if args.max_seconds is not None and not args.max_seconds > 0:
        raise InputError(f"max_seconds is {args.max_seconds:g}; it must be positive")
    saved = {
        "data": list(args.data),
        "top": args.top,
        "episodes": args.episodes,
        "changes": changes,
        "env": args.env,
        "agent": args.agent,
        "max_seconds": args.max_seconds,
    }
    return Run.create(args.runs, "pretrain", env, agent, args.seed, saved)


if __name__ == "__main__":
    run_command(main, Args, "dhmm_rl.pretrain")

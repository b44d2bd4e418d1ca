"""``python -m dhmm_rl.pretrain``: rollouts, then a language model of them."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from dhmm_rl.cli import run_command, set_up
from dhmm_rl.errors import InputError, python_command
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

    Without arguments: 200 random episodes of CartPole-v1. Held-out bits per field are printed at the end, beside those of a
    model that knows only how frequent each id is. A run that was interrupted goes on with --resume.
    """

    env: str = "CartPole-v1"
    """Environment: a recipe's name, the path of a recipe of your own (.toml), or any Gymnasium id."""
    data: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Where rollouts come from; given more than once, they are mixed. Default: the agent recipe's, or 'random'. Actions are
    imitated of 'oracle', what the environment's own method of that name would do; of 'teacher:PATH', the folder of a run of
    ppo or, with --trust, the zip of an SB3 model; and of 'minari:ID', a local Minari dataset. A folder that Rollouts.save wrote
    says it itself. Options follow: 'teacher:best.zip@weight=2@episodes=50' shows each of its steps twice as often;
    'minari:ID@imitate=no' teaches observations alone; 'FOLDER@skip_bad=yes' leaves damaged episodes out."""
    top: float | None = None
    """Of the episodes worth imitating, imitate only this share, those of the highest returns (0.1: the best tenth). The others
    still teach observations."""
    agent: str = "dhmm-gpt2"
    """Agent whose model is trained: a recipe's name or path."""
    episodes: int | None = None
    """Episodes to collect from each source that is not read. Default: the agent recipe's."""
    steps: int | None = None
    """The most gradient steps; training stops sooner when the held-out loss stops falling. Default: the agent recipe's."""
    max_seconds: float | None = None
    """Take no more gradient steps than fit in this time, judged by the first ones. Default: no limit."""
    length: int | None = None
    """Steps in a training window. A model that is to act by itself carries its belief through whole episodes, so let it see
    long windows: 64 rather than 16. Default: the agent recipe's."""
    batch_size: int | None = None
    """Windows in a gradient step. Default: the agent recipe's."""
    learning_rate: float | None = None
    """Peak learning rate. Default: the agent recipe's."""
    seed: int = 0
    """Seeds collection, the held-out split, the weights and the order of batches."""
    device: str = "cpu"
    """Device to train on; on 'cuda' in mixed precision."""
    threads: int = 1
    """CPU threads. Small models are faster with one."""
    runs: Path = Path("runs")
    """Folder under which runs are kept."""
    resume: Path | None = None
    """Folder of an interrupted run to go on with; all other arguments but the device's are then the run's own."""
    trust: bool = False
    """Read SB3's zips as teachers, which can run code hidden in them; a run's folder as a teacher needs no trust. With
    --resume, also import an environment and wrappers that are not in installed packages."""
    quiet: bool = False
    """Show no progress bars."""


def main(args: Args) -> None:
    """Run the command."""
    device = set_up(args.device, args.threads, args.seed)
    if args.resume is None:
        env, agent = load_recipes(args.env, args.agent)
        given = {name: getattr(args, name) for name in ("steps", "length", "batch_size", "learning_rate")}
        changes = {name: value for name, value in given.items() if value is not None}
        training_settings(agent, **changes).check()
        data = list(args.data)
        for source in data:
            Source.parse(source)
        check_top_fraction(args.top)
        if args.max_seconds is not None and not args.max_seconds > 0:
            raise InputError(f"max_seconds is {args.max_seconds:g}; it must be positive")
        kept = {"data": data, "top": args.top, "episodes": args.episodes, "changes": changes, "env": args.env}
        kept |= {"agent": args.agent, "max_seconds": args.max_seconds}
        run = Run.create(args.runs, "pretrain", env, agent, args.seed, kept)
    else:
        run = Run.resume(args.resume, "pretrain", args.trust)
        if run.complete:
            raise InputError(f"the run {run.folder} is complete: {run.language_model}")
    seconds = run.args.get("max_seconds")
    with run.writing(new=args.resume is None):
        checkpoint = pretrain(
            run,
            EnvFactory(run.env, run.seed),
            allowed_seconds=None if seconds is None else lambda tokenizer, needed: seconds,
            device=device,
            progress=not args.quiet,
            trust=args.trust,
        )
    print(f"\npretrained model: {checkpoint}")
    python = python_command()
    print(
        f"let it act:       {python} -m dhmm_rl.play {run.folder} --language-model{run.trust_option}   (after a teacher's data)"
    )
    recipes = f"--env {run.args['env']} --agent {run.args['agent']}"
    print(f"train it by PPO:  {python} -m dhmm_rl.ppo {recipes} --pretrained {checkpoint}")
    print(f"watch the losses: {python} -m tensorboard.main --logdir {run.folder}")


if __name__ == "__main__":
    run_command(main, Args, "dhmm_rl.pretrain")

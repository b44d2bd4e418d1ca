"""``python -m dhmm_rl.collect``: rollouts to keep: collected, or read and written in another form."""

from dataclasses import dataclass
from pathlib import Path

from dhmm_rl.cli import check_seed, run_command
from dhmm_rl.data import write_minari
from dhmm_rl.data.minari_datasets import check_new_minari
from dhmm_rl.errors import InputError, python_command
from dhmm_rl.files import remove_leftovers
from dhmm_rl.pretraining.sources import MINARI, RANDOM, CollectSettings, Source, load_source
from dhmm_rl.recipes import load_recipes
from dhmm_rl.runs.evaluate import show_numbers


@dataclass
class Args:
    """
    Collect rollouts of an environment, or read some, and write them as a folder or as a Minari dataset.

    python -m dhmm_rl.pretrain --data takes either.
    """

    to: str
    """Where to: a folder that does not exist yet; or 'minari:ID' for a Minari dataset, e.g. minari:cartpole/random-v0, which
    will lie in MINARI_DATASETS_PATH, by default ~/.minari/datasets."""
    env: str = "CartPole-v1"
    """Environment: a recipe's name, the path of a recipe of your own (.toml), or any Gymnasium id."""
    data: str = RANDOM
    """Where rollouts come from: 'random'; 'oracle', the environment's own method of that name; 'teacher:PATH', the folder of a
    run of ppo or, with --trust, the zip of an SB3 model; 'minari:ID'; or a folder of rollouts. Options follow: '@imitate=yes'
    or '@imitate=no', whether the actions are worth imitating; after a folder '@skip_bad=yes'."""
    episodes: int = 200
    """Episodes to collect."""
    n_envs: int = 8
    """Environments side by side."""
    seed: int = 0
    """Seeds environments and random actions."""
    trust: bool = False
    """Read SB3's zips as teachers, which can run code hidden in them; a run's folder as a teacher needs no trust."""
    quiet: bool = False
    """Show no progress bar."""


def main(args: Args) -> None:
    """Run the command."""
    check_seed(args.seed)
    if args.to.startswith(MINARI):
        check_new_minari(args.to.removeprefix(MINARI))
    else:
        remove_leftovers(Path(args.to).parent, recursive=False)
        if Path(args.to).exists():
            raise InputError(f"there is a {args.to} already; rollouts are written into a new folder")
    env, _ = load_recipes(args.env, "dhmm-gpt2")
    settings = CollectSettings(
        n_envs=args.n_envs, episodes=args.episodes, seed=args.seed, progress=not args.quiet, trust=args.trust
    )
    rollouts = load_source(Source.parse(args.data), env, settings)
    if args.to.startswith(MINARI):
        write_minari(rollouts, args.to.removeprefix(MINARI), f"{args.data} on {env.id}, seed {args.seed}")
    else:
        rollouts.save(args.to)
    returns = rollouts.returns
    print(f"{rollouts}, mean return {show_numbers(returns.mean())[0]}")
    print(f"pretrain on them: {python_command()} -m dhmm_rl.pretrain --env {args.env} --data {args.to}")


if __name__ == "__main__":
    run_command(main, Args, "dhmm_rl.collect")

"""``python -m dhmm_rl.collect``: collects rollouts, or converts existing ones, and writes them."""

from dataclasses import dataclass
from pathlib import Path

from dhmm_rl.cli import check_seed, run_command
from dhmm_rl.data import write_minari
from dhmm_rl.data.minari_datasets import check_new_minari
from dhmm_rl.errors import InputError, python_command
from dhmm_rl.files import remove_leftovers
from dhmm_rl.pretraining.sources import MINARI, RANDOM, CollectSettings, Source, load_source
from dhmm_rl.recipes import load_recipes
from dhmm_rl.recipes.environments import EnvFactory
from dhmm_rl.runs.evaluate import show_numbers


@dataclass
class Args:
    """
    Collect rollouts of an environment, or read existing ones, and write them as a folder or as a Minari dataset.

    Both can be given to python -m dhmm_rl.pretrain --data.
    """

    to: str
    """Destination: a folder that does not exist yet; or 'minari:ID' for a Minari dataset, e.g. minari:cartpole/random-v0, which
    is stored under MINARI_DATASETS_PATH, by default ~/.minari/datasets."""
    env: str = "CartPole-v1"
    """Environment: a recipe's name, the path of a recipe of your own (.toml), or any Gymnasium id."""
    data: str = RANDOM
    """Source of the rollouts: 'random'; 'oracle', the environment's own method of that name; 'teacher:PATH', the folder of a
    run of ppo or, with --trust, the zip of an SB3 model; 'minari:ID'; or a folder of rollouts. Options follow the source:
    '@imitate=yes' or '@imitate=no' says whether the actions are worth imitating; '@skip_bad=yes' leaves damaged episodes of a
    folder out."""
    episodes: int = 200
    """Number of episodes to collect."""
    n_envs: int = 8
    """Number of environments that are stepped together."""
    seed: int = 0
    """Seed of the environments and of random actions."""
    trust: bool = False
    """Also read SB3's zips as teachers, which can run code hidden in them. The folder of a run needs no trust."""
    quiet: bool = False
    """Show no progress bar."""


def main(args: Args) -> None:
    """Run the command."""
    check_seed(args.seed)
    # The destination is checked first, because collecting can take long.
    if args.to.startswith(MINARI):
        check_new_minari(args.to.removeprefix(MINARI))
    else:
        remove_leftovers(Path(args.to).parent, recursive=False)
        if Path(args.to).exists():
            raise InputError(f"there is a {args.to} already; rollouts are written into a new folder")
    # Collect rollouts, or load those of another source
    env, _ = load_recipes(args.env, "dhmm-gpt2")
    settings = CollectSettings(n_envs=args.n_envs, episodes=args.episodes, progress=not args.quiet, trust=args.trust)
    rollouts = load_source(Source.parse(args.data), EnvFactory(env, args.seed), settings)
    # A Minari dataset records how it was made.
    if args.to.startswith(MINARI):
        write_minari(rollouts, args.to.removeprefix(MINARI), f"{args.data} on {env.id}, seed {args.seed}")
    else:
        rollouts.save(args.to)
    returns = rollouts.returns
    print(f"{rollouts}, mean return {show_numbers(returns.mean())[0]}")
    print(f"pretrain on them: {python_command()} -m dhmm_rl.pretrain --env {args.env} --data {args.to}")


if __name__ == "__main__":
    run_command(main, Args, "dhmm_rl.collect")

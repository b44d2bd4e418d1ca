"""``python -m benchmarks.vector_envs``: environment steps per second in the vector environments of SB3 and Gymnasium."""

import time
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl import VecTokenStream
from dhmm_rl.cli import run_command
from dhmm_rl.errors import InputError
from dhmm_rl.recipes import load_recipes
from dhmm_rl.recipes.environments import make_envs, make_tokenizer


@dataclass
class Args:
    """
    Measure environment steps per second under random actions, without an agent.

    Vector environments take turns, so that other work on the machine affects all of them alike. The figures are medians over
    the turns.
    """

    env: str = "CartPole-v1"
    """Environment to step."""
    n_envs: tuple[int, ...] = (1, 8, 64)
    """Numbers of environments."""
    ways: tuple[Literal["dummy", "subproc", "gymnasium"], ...] = ("dummy", "gymnasium")
    """Values of a recipe's key 'vectorization'. Each process of 'subproc' needs about 300 MB."""
    turns: int = 3
    """Number of measurements of each."""
    seconds: float = 1.0
    """Minimum length of a measurement, in seconds."""


def main(args: Args) -> None:
    """Run the command."""
    if args.turns < 1 or min(args.n_envs, default=0) < 1:
        raise InputError("turns and n_envs must be at least 1")
    recipe, _ = load_recipes(args.env, "dhmm-gpt2")
    print(f"{args.env}: environment steps per second, without / with VecTokenStream, medians of {args.turns}")
    print(f"{'environments':<14}" + "".join(f"{way:>22}" for way in args.ways))
    for n_envs in args.n_envs:
        plain = [make_envs(replace(recipe, vectorization=way), n_envs, seed=0) for way in args.ways]
        both = [(venv, VecTokenStream(venv, make_tokenizer(recipe, venv), history=1)) for venv in plain]
        turns = [[[speed(env, args.seconds) for env in pair] for pair in both] for _ in range(args.turns)]
        medians = np.median(turns, axis=0)
        print(f"{n_envs:<14}" + "".join(f"{without:>12,.0f} / {tokens:>7,.0f}" for without, tokens in medians))
        for venv in plain:
            venv.close()


def speed(env: VecEnv, seconds: float) -> float:
    """Measure environment steps per second."""
    actions = [np.array([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(64)]
    env.reset()
    steps, began = 0, time.perf_counter()
    while time.perf_counter() < began + seconds:
        for action in actions:
            env.step(action)
        steps += len(actions) * env.num_envs
    return steps / (time.perf_counter() - began)


if __name__ == "__main__":
    run_command(main, Args, "benchmarks.vector_envs")

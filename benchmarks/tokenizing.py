"""
The speed of tokenization, and its share of a rollout step.

``python -m benchmarks.tokenizing`` prints, for batches of CartPole and MiniGrid observations on one core: fields tokenized per
second, the time of a batch, and its share of a step of a SequencePPO rollout in as many environments. Where observations are
flattened one by one because SB3 cannot hold them (MiniGrid's texts), flattening is included.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from dhmm_rl.cli import run_command
from dhmm_rl.data import random_observations
from dhmm_rl.envs import FlattenFields, VecTokenStream, flatten_if_needed
from dhmm_rl.errors import InputError
from dhmm_rl.sequence_ppo import SequencePPO
from dhmm_rl.tokens import Tokenizer


@dataclass
class Args:
    """Measure tokenized fields per second, and the share of tokenization in a rollout step."""

    env: str | None = None
    """Environment, any Gymnasium id. Default: CartPole-v1 and minigrid:MiniGrid-DoorKey-5x5-v0."""
    envs: int | None = None
    """Environments in a batch. Default: 64 of CartPole, 16 of any other."""
    seconds: float = 2.0
    """Length of each measurement, in seconds."""


def main(args: Args) -> None:
    """Run the command."""
    torch.set_num_threads(1)
    print(f"{'environment':<36}{'batch':>6}{'fields':>8}{'µs a batch':>11}{'fields/s':>13}{'ms a step':>11}{'share':>8}")
    for env_id in [args.env] if args.env else ["CartPole-v1", "minigrid:MiniGrid-DoorKey-5x5-v0"]:
        measure(env_id, args.envs or (64 if env_id.startswith("CartPole") else 16), args.seconds)


def measure(env_id: str, envs: int, seconds: float) -> None:
    """Measure one environment and print a line."""
    try:
        venv = DummyVecEnv([lambda: flatten_if_needed(gym.make(env_id))] * envs)
    except (gym.error.Error, ImportError) as error:
        raise InputError(f"the environment {env_id} cannot be made: {str(error).splitlines()[0]}") from error
    tokenizer = Tokenizer(venv.observation_space, venv.action_space).fit(random_observations(venv))
    batches = _batches(venv)
    call = seconds_a_call(lambda i: tokenizer.encode_observation(batches[i % len(batches)]), seconds)
    env = venv.envs[0]
    if isinstance(env, FlattenFields):
        raw, _ = env.env.reset()
        call += envs * seconds_a_call(lambda _: env.observation(raw), seconds)
    fields = tokenizer.observation_codec.num_fields
    agent = SequencePPO("DHMMPolicy", VecTokenStream(venv, tokenizer, history=1), n_steps=64, batch_size=64, device="cpu")
    _, callback = agent._setup_learn(10**9)
    assert agent.env is not None
    began, rollouts = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        agent.collect_rollouts(agent.env, callback, agent.rollout_buffer, agent.n_steps)
        rollouts += 1
    step = (time.perf_counter() - began) / rollouts / agent.n_steps
    print(
        f"{env_id:<36}{envs:>6}{fields:>8}{call * 1e6:>11.0f}{envs * fields / call:>13,.0f}"
        f"{step * 1e3:>11.2f}{call / step:>8.1%}"
    )


def seconds_a_call(function: Callable[[int], Any], seconds: float) -> float:
    """Return the smallest mean over bursts of calls, which other work on the machine disturbs least."""
    best, until = np.inf, time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        for i in range(50):
            function(i)
        best = min(best, (time.perf_counter() - began) / 50)
    return float(best)


def _batches(venv: VecEnv) -> list[Any]:
    batches = [venv.reset()]
    for _ in range(50):
        actions = np.array([venv.action_space.sample() for _ in range(venv.num_envs)])
        batches.append(venv.step(actions)[0])
    return batches


if __name__ == "__main__":
    run_command(main, Args, "benchmarks.tokenizing")

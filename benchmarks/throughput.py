"""``python -m benchmarks.throughput``: environment steps per second of rollouts, of updates and of both, for several agents."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from torch.utils.flop_counter import FlopCounterMode

from dhmm_rl import SequencePPO, VecTokenStream
from dhmm_rl.cli import check_counts, run_command, set_up
from dhmm_rl.recipes import AgentRecipe, load_recipes
from dhmm_rl.recipes.agents import make_agent, rollout_size
from dhmm_rl.recipes.environments import make_envs, make_tokenizer, wrap

ENDLESS = "Pendulum-v1"


@dataclass
class Args:
    """
    Measure the environment steps per second of agents.

    Agents take turns, so that other work on the machine affects all of them alike. The figures are medians over the turns.
    """

    env: str = "CartPoleNoVel-v1"
    """Environment to train on."""
    agents: tuple[str, ...] = ("dhmm-gpt2", "gpt2", "mlp", "mlp-framestack", "lstm")
    """Agents to measure. The last one is the reference of the ratios."""
    own_settings: bool = False
    """Use the settings of each agent's recipe. Default: the settings below for all agents."""
    n_envs: int = 16
    """Number of environments."""
    n_steps: int = 64
    """Steps of each environment in a rollout."""
    batch_size: int = 256
    """Environment steps in a minibatch."""
    n_epochs: int = 5
    """Passes over a rollout in an update."""
    turns: int = 5
    """Number of measurements of every agent."""
    seconds: float = 5.0
    """Minimum length of a measurement, in seconds."""
    embed_sizes: tuple[int, ...] = (64, 128, 256)
    """Widths at which dhmm-gpt2's updates are compared with the machine's matrix products. None skips the comparison."""
    endless: int = 50_000
    """Length of one endless episode, to compare a step at its end with a step at 500. 0 skips the comparison."""
    device: str = "cpu"
    """Device to train on."""
    threads: int = 1
    """CPU threads. Small models are faster with one."""


class Speed(NamedTuple):
    """Environment steps per second."""

    rollouts: float
    updates: float
    both: float


def main(args: Args) -> None:
    """Run the command."""
    check_counts(args, "n_envs", "n_steps", "batch_size", "n_epochs", "turns")
    device = set_up(args.device, args.threads, seed=0)
    agents = {name: build(args, name, device) for name in args.agents}
    turns: dict[str, list[Speed]] = {name: [] for name in agents}
    for agent in agents.values():
        learn_for(agent, 0.0)  # the first call allocates memory and starts threads
    for _ in range(args.turns):
        for name, agent in agents.items():
            turns[name].append(learn_for(agent, args.seconds))
    settings = "each agent's own settings" if args.own_settings else f"{args.n_envs} environments × {args.n_steps} steps, "
    settings += "" if args.own_settings else f"minibatches of {args.batch_size}, {args.n_epochs} epochs"
    print(f"{args.env}, {settings}, {args.threads} thread(s), environment steps a second")
    print(f"{'agent':<16}{'rollouts':>10}{'updates':>10}{'both':>10}{'× last':>10}")
    last = np.median([speed.both for speed in turns[args.agents[-1]]])
    for name, speeds in turns.items():
        rollouts, updates, both = np.median(speeds, axis=0)
        print(f"{name:<16}{rollouts:>10,.0f}{updates:>10,.0f}{both:>10,.0f}{both / last:>10.2f}")
    if args.embed_sizes:
        print(f"\n{'embed_size':<12}{'GFLOP/s of updates':>20}{'of matrix products':>20}{'share':>8}")
        for size in args.embed_sizes:
            used, possible = update_rate(args, size, device), product_rate(device)
            print(f"{size:<12}{used / 1e9:>20.1f}{possible / 1e9:>20.1f}{used / possible:>8.0%}")
    if args.endless:
        early, late = endless(args.endless, device)
        print(f"\none endless episode of {ENDLESS}: {early:,.0f} steps/s at step 500, {late:,.0f} at step {args.endless:,}")
        print(f"ratio {late / early:.2f}")


def build(args: Args, name: str, device: str, embed_size: int | None = None) -> BaseAlgorithm:
    """Make an agent on its environments."""
    env, agent = load_recipes(args.env, name)
    if not args.own_settings:
        same = {"n_steps": args.n_steps, "batch_size": args.batch_size, "n_epochs": args.n_epochs}
        agent = replace(agent, n_envs=args.n_envs, ppo=agent.ppo | same)
    if embed_size is not None:
        agent = replace(agent, model=agent.model | {"embed_size": embed_size, "ff_hidden": 4 * embed_size})
    venv = make_envs(env, agent.n_envs, 0, agent)
    tokenizer = make_tokenizer(env, venv) if agent.reads_tokens else None
    return make_agent(_constant(agent), wrap(venv, agent, tokenizer, training=True), 0, device, None)


def _constant(agent: AgentRecipe) -> AgentRecipe:
    """Replace schedules by their initial values, because a measurement has no budget over which they could decay."""
    ppo = {
        name: float(value.removeprefix("lin_")) if str(value).startswith("lin_") else value for name, value in agent.ppo.items()
    }
    return replace(agent, ppo=ppo)


def learn_for(agent: BaseAlgorithm, seconds: float) -> Speed:
    """Let an agent learn for some seconds, or for one rollout and update if they take longer."""
    spent = {"collect_rollouts": 0.0, "train": 0.0}
    steps = 0
    while not steps or sum(spent.values()) < seconds:
        with timed(agent, spent):
            agent.learn(rollout_size(agent), reset_num_timesteps=False)
        steps += rollout_size(agent)
    return Speed(steps / spent["collect_rollouts"], steps / spent["train"], steps / sum(spent.values()))


class timed:
    """Context manager that adds up the seconds an agent spends in some of its methods."""

    def __init__(self, agent: BaseAlgorithm, spent: dict[str, float]) -> None:
        self.agent, self.spent = agent, spent

    def __enter__(self) -> None:
        for name in self.spent:
            setattr(self.agent, name, self._clocked(name, getattr(self.agent, name)))

    def __exit__(self, *_: object) -> None:
        for name in self.spent:
            delattr(self.agent, name)

    def _clocked(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = method(*args, **kwargs)
            self.spent[name] += time.perf_counter() - began
            return result

        return clocked


def update_rate(args: Args, embed_size: int, device: str) -> float:
    """Measure floating-point operations per second of dhmm-gpt2's updates in matrix products and attention."""
    agent = build(args, "dhmm-gpt2", device, embed_size)
    learn_for(agent, 0.0)
    with FlopCounterMode(display=False) as counter:
        agent.train()  # type: ignore[attr-defined]
    seconds = []
    for _ in range(args.turns):
        began = time.perf_counter()
        agent.train()  # type: ignore[attr-defined]
        seconds.append(time.perf_counter() - began)
    return float(counter.get_total_flops() / np.median(seconds))


def product_rate(device: str, size: int = 1024, times: int = 5) -> float:
    """Measure floating-point operations per second of large matrix products in single precision."""
    a, b = torch.randn(2, size, size, device=device)
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        float((a @ b)[0, 0])
        seconds.append(time.perf_counter() - began)
    return float(2 * size**3 / np.median(seconds))


def endless(last: int, device: str) -> Sequence[float]:
    """Measure steps per second around step 500 and around step ``last`` of an episode that does not end."""
    env = VecTokenStream(make_vec_env(lambda: gym.make(ENDLESS, max_episode_steps=10**9), 1), history=1)
    agent = SequencePPO("DHMMPolicy", env, device=device)
    observation: Any = env.reset()
    state, stamps = None, [time.perf_counter()]
    for _ in range(last):
        action, state = agent.predict(observation, state)
        observation, *_ = env.step(action)
        stamps.append(time.perf_counter())
    seconds = np.diff(stamps)
    return 1 / np.median(seconds[250:750]), 1 / np.median(seconds[-500:])


if __name__ == "__main__":
    run_command(main, Args, "benchmarks.throughput")

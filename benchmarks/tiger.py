"""``python -m benchmarks.tiger RUN``: an agent on the tiger problem, compared with the exact solution."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import gymnasium as gym
import numpy as np
import tyro
from numpy.typing import NDArray
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl import SequencePPO, VecTokenStream
from dhmm_rl.cli import run_command, set_up
from dhmm_rl.envs import tiger_beliefs, tiger_values
from dhmm_rl.envs.tasks.tiger import LISTEN
from dhmm_rl.errors import InputError
from dhmm_rl.runs.callbacks import last_checkpoint
from dhmm_rl.runs.run import Run
from dhmm_rl.runs.saved_agents import read_checkpoint

STEPS = 100
HORIZON = 40


@dataclass
class Args:
    """
    Compare an agent's discounted return on the tiger problem with the optimal one, and its belief with the exact one.

    The agent and the optimal policy play the same tigers and hear the same noises as long as they act alike. The difference of
    their returns is therefore known far better than either return. The agent is the one of the run's last checkpoint: the
    noise of returns is larger here than the differences between good agents, so returns hardly tell which one is best.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run on Tiger-v0 by SequencePPO."""
    episodes: int = 2_000
    """Episodes of 100 steps."""
    gamma: float = 0.95
    """Discount factor."""
    seed: int = 10_000
    """Seeds the environments."""
    threads: int = 1
    """CPU threads."""


class Episodes(NamedTuple):
    """
    One episode of every environment, E environments and T steps.

    :param returns: discounted returns (E,)
    :param actions: actions (T, E)
    :param observations: observations before each action, (T, E)
    :param beliefs: beliefs of the agent before each action, (T, E, N · K); empty for the optimal policy
    """

    returns: NDArray[np.float64]
    actions: NDArray[np.int64]
    observations: NDArray[np.int64]
    beliefs: NDArray[np.float32]


def main(args: Args) -> None:
    """Run the command."""
    if args.episodes < 2:
        raise InputError(f"episodes is {args.episodes}; it must be at least 2")
    device = set_up("cpu", args.threads, args.seed)
    run = Run.open(args.run)
    checkpoint = last_checkpoint(run.folder)
    if checkpoint is None:
        raise InputError(f"{args.run} has no checkpoint yet")
    agent = read_checkpoint(checkpoint, device).build(run.agent)
    if not isinstance(agent, SequencePPO) or run.env.id != "dhmm_rl/Tiger-v0":
        raise InputError(f"{args.run} is not a run of SequencePPO on Tiger-v0")
    best = float(tiger_values(args.gamma, horizon=HORIZON)[0][HORIZON])
    mine, optimal = play_agent(agent, args), play_optimal(args)
    difference = mine.returns - optimal.returns
    error = difference.std() / np.sqrt(args.episodes)
    print(f"optimal discounted return {best:.3f}; the optimal policy got {optimal.returns.mean():.3f} in {STEPS} steps")
    print(
        f"agent's minus optimal policy's: {difference.mean():.3f} ± {error:.3f}, {difference.mean() / best:.2%} of the optimum"
    )
    print(f"actions that are the optimal policy's given the exact belief: {agreement(mine, args):.2%}")
    if mine.beliefs.shape[-1]:
        print(f"correlation of the exact belief with its best linear read-out of the agent's: {correlation(mine):.4f}")


def environments(args: Args) -> VecEnv:
    """Make one environment for each episode; the same ones at every call."""
    return make_vec_env(lambda: gym.make("dhmm_rl/Tiger-v0", max_episode_steps=STEPS + 1), args.episodes, seed=args.seed)


def play_agent(agent: SequencePPO, args: Args) -> Episodes:
    """Let the agent take its likeliest actions."""
    env = VecTokenStream(environments(args), agent.policy.tokenizer, history=1)
    state: Any = None
    beliefs = []

    def act(tokens: Any) -> Any:
        nonlocal state
        actions, state = agent.predict(tokens, state, deterministic=True)
        beliefs.append(state.belief.flatten(1).cpu().numpy())
        return actions

    played = _play(env, act, lambda tokens: env.tokenizer.decode_observation(tokens[:, -1, env.tokenizer.action_slots :]), args)
    return played._replace(beliefs=np.stack(beliefs))


def play_optimal(args: Args) -> Episodes:
    """Let the optimal policy act, which counts the observations."""
    choices = tiger_values(args.gamma, horizon=HORIZON)[1]
    count = np.zeros(args.episodes, dtype=np.int64)
    last = np.full(args.episodes, -1)

    def act(heard: Any) -> Any:
        nonlocal count, last
        count = np.where(last == LISTEN, count + 1 - 2 * heard, 0)
        last = choices[HORIZON + count]
        return last

    return _play(environments(args), act, lambda heard: heard, args)


def _play(env: VecEnv, act: Any, heard_of: Any, args: Args) -> Episodes:
    observation: Any = env.reset()
    returns, actions, heard = np.zeros(args.episodes), [], []
    for t in range(STEPS):
        heard.append(heard_of(observation))
        actions.append(act(observation))
        observation, rewards, _, _ = env.step(actions[-1])
        returns += args.gamma**t * rewards
    return Episodes(returns, np.stack(actions), np.stack(heard), np.empty((STEPS, args.episodes, 0), dtype=np.float32))


def exact_beliefs(played: Episodes) -> NDArray[np.float64]:
    """Return the probability that the tiger is on the left before each action, (T, E)."""
    before = np.concatenate([played.actions[:1], played.actions[:-1]])
    return np.stack([tiger_beliefs(a, o) for a, o in zip(before.T, played.observations.T, strict=True)], axis=1)


def agreement(played: Episodes, args: Args) -> float:
    """Return the share of actions that are optimal given the exact belief."""
    exact = exact_beliefs(played).clip(1e-12, 1 - 1e-12)
    count = np.rint(np.log(exact / (1 - exact)) / np.log(0.85 / 0.15)).astype(int)
    return float((tiger_values(args.gamma, horizon=HORIZON)[1][HORIZON + count] == played.actions).mean())


def correlation(played: Episodes) -> float:
    """Return the correlation of the exact belief with its least-squares read-out, fitted on one half of the episodes."""
    exact, half = exact_beliefs(played), played.returns.shape[0] // 2
    inputs = np.concatenate([played.beliefs, np.ones_like(played.beliefs[..., :1])], axis=-1)
    fitted, *_ = np.linalg.lstsq(inputs[:, :half].reshape(-1, inputs.shape[-1]), exact[:, :half].ravel(), rcond=None)
    return float(np.corrcoef(inputs[:, half:].reshape(-1, inputs.shape[-1]) @ fitted, exact[:, half:].ravel())[0, 1])


if __name__ == "__main__":
    run_command(main, Args, "benchmarks.tiger")

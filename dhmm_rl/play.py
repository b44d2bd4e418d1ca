"""``python -m dhmm_rl.play``: lets a trained agent or a language model act, prints returns and writes a video."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import imageio.v3 as imageio
import numpy as np
import tyro
from numpy.typing import NDArray
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl.cli import check_counts, run_command, set_up
from dhmm_rl.common import LanguageModelActor
from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write, read_json
from dhmm_rl.model import load_checkpoint
from dhmm_rl.recipes import AgentRecipe
from dhmm_rl.recipes.agents import with_masks
from dhmm_rl.recipes.environments import EnvFactory, supports_rgb_array, wrap
from dhmm_rl.runs.evaluate import GREEDY, SAMPLED, evaluate, show_numbers
from dhmm_rl.runs.run import Run
from dhmm_rl.runs.saved_agents import SavedAgent, read_best
from dhmm_rl.runs.time_limits import eval_limit
from dhmm_rl.tokens import Tokenizer

VIDEO_SUFFIXES = (".mp4", ".gif")
MAX_ENVS = 10
"""Largest number of environments to play in at the same time."""


@dataclass
class Args:
    """
    Let a trained agent act, print its returns, and write a video if one is asked for.

    With --language-model the pretrained model acts, without any PPO: the most likely legal token of each action slot is the
    action. This makes sense for a model that was pretrained on actions worth imitating (--data teacher:PATH).
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run: runs/<env>/<agent>/<n>."""
    episodes: int = 20
    """Number of episodes to play."""
    language_model: bool = False
    """Let the pretrained language model act instead of the agent."""
    sample: bool = False
    """Sample actions from the policy. Default: the kind of actions that did better in the evaluation at the end of the run."""
    greedy: bool = False
    """Take the most likely actions of the policy."""
    video: Path | None = None
    """File for a video of one more episode, .mp4 or .gif."""
    seed: int = 1000
    """Seed of the environments and of sampled actions."""
    device: str = "cpu"
    """Device to act on."""
    threads: int = 1
    """Number of CPU threads."""
    trust: bool = False
    """Also read agents of older runs, whose files can run code hidden in them, and import an environment and wrappers that are
    not in installed packages."""


class Actor(NamedTuple):
    """
    An agent or a language model that acts, with what its environments need.

    :param policy: object with SB3's ``predict``
    :param recipe: the agent's recipe, by which the environments are wrapped; ``None`` for plain environments
    :param tokenizer: tokenizer of the token stream, if the agent reads tokens
    :param saved: file of the agent, with the statistics that normalize its observations
    """

    policy: Any
    recipe: AgentRecipe | None = None
    tokenizer: Tokenizer | None = None
    saved: SavedAgent | None = None

    def wrap(self, env: VecEnv) -> VecEnv:
        """Add the wrappers with which the agent was trained, and their statistics."""
        env = wrap(env, self.recipe, self.tokenizer, training=False)
        return env if self.saved is None else self.saved.restore_normalization(env, training=False)


def main(args: Args) -> None:
    """Run the command."""
    check_counts(args, "episodes")
    if args.sample and args.greedy:
        raise InputError("--sample draws actions, --greedy takes the likeliest; give one of them")
    if args.video is not None and args.video.suffix not in VIDEO_SUFFIXES:
        raise InputError(f"the video {args.video} must end in {' or '.join(VIDEO_SUFFIXES)}")
    device = set_up(args.device, args.threads, args.seed)
    run = Run.open(args.run, args.trust)
    actor = load_actor(run, args.language_model, device, args.trust)

    # The environments are those of evaluations, wrapped as in training.
    set_random_seed(args.seed)
    factory = EnvFactory(run.env.for_evaluation, args.seed, actor.recipe)
    env = actor.wrap(factory.make(min(args.episodes, MAX_ENVS)))
    can_render = supports_rgb_array(env)

    # The result of a complete run says which actions did better, and after how many steps its evaluations ended an episode.
    path = run.result
    result = read_json(path) if path.is_file() else {}
    if args.sample or args.greedy or args.language_model:
        greedy = not args.sample
    else:
        greedy = result.get("best_actions") != SAMPLED
    limit = eval_limit(run.env.for_evaluation)
    if limit is not None:
        limit = result.get("eval_limit") or limit
        print(f"note: {run.env.name} has no time limit; episodes end after {limit} steps here")

    # Play the episodes, and say what came out
    played = evaluate(actor.policy, env, args.episodes, greedy=greedy, limit=limit, early=False)
    env.close()
    name = "language model" if args.language_model else run.agent.name
    print(f"{name} on {run.env.name}, {GREEDY if greedy else SAMPLED} actions: {played}")
    lowest, highest = show_numbers(played.returns.min(), played.returns.max())
    print(f"from {lowest} to {highest}; mean length {played.lengths.mean():.0f} steps")
    # Record one more episode
    if args.video is not None:
        if not can_render:
            raise InputError(f"{run.env.id} has no render mode rgb_array, so there is no video of it")
        frames, fps = record_video(factory, actor, greedy, limit)
        save_video(args.video, frames, fps)
        print(f"video: {args.video}")


def load_actor(run: Run, language_model: bool, device: str, trust: bool = False) -> Actor:
    """
    Load the best agent of a run, or its language model.

    :param run: the run
    :param language_model: load the language model
    :param device: device to act on
    :param trust: also read the agent of an older run, whose file can run code
    :raises InputError: if the run has no such file, or the language model cannot act
    """
    if not language_model:
        saved = read_best(run.folder, device, trust)
        agent = saved.build(run.agent)
        return Actor(agent, run.agent, getattr(agent.observation_space, "tokenizer", None), saved)
    model, tokenizer, info = load_checkpoint(run.language_model, device)
    if tokenizer is None:
        raise InputError(f"{run.language_model} was trained on flat sequences; it cannot act")
    if not info.get("imitates", False):
        print("note: this model was pretrained on no actions worth imitating; what it does means nothing")
    return Actor(LanguageModelActor(model, tokenizer))


def record_video(factory: EnvFactory, actor: Actor, greedy: bool, limit: int | None) -> tuple[list[NDArray[np.uint8]], float]:
    """
    Let an actor play one episode, and return its frames and the number of frames per second.

    :param factory: factory of the environment
    :param actor: agent or language model that acts
    :param greedy: take the most likely actions, not sampled ones
    :param limit: number of steps after which the episode ends; no limit when ``None``
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame then draws in memory and needs no display
    env = actor.wrap(factory.make(1, render_mode="rgb_array"))
    policy = with_masks(actor.policy, env)
    observation: Any = env.reset()
    frames: list[NDArray[np.uint8]] = []
    state, start = None, np.ones(1, dtype=bool)
    while not (frames and start[0]) and len(frames) != limit:
        frame = env.render()
        assert frame is not None
        frames.append(frame)
        action, state = policy.predict(observation, state=state, episode_start=start, deterministic=greedy)
        observation, _, start, _ = env.step(action)
    fps = float(env.get_attr("metadata")[0].get("render_fps", 30))
    env.close()
    return frames, fps


def save_video(path: Path, frames: list[NDArray[np.uint8]], fps: float) -> None:
    """Write frames as a GIF or as an MP4, by the path's suffix."""
    with atomic_write(path) as temporary:
        if path.suffix == ".gif":
            imageio.imwrite(temporary, frames, duration=1000 / fps, loop=0)
        else:
            imageio.imwrite(temporary, frames, fps=fps, macro_block_size=2)


if __name__ == "__main__":
    run_command(main, Args, "dhmm_rl.play")

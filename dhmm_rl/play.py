"""``python -m dhmm_rl.play``: an agent or a language model acts, to be looked at."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import imageio.v3 as imageio
import numpy as np
import tyro
from numpy.typing import NDArray
from stable_baselines3.common.utils import set_random_seed

from dhmm_rl.cli import check_counts, run_command, set_up
from dhmm_rl.common import LanguageModelActor
from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write, read_json
from dhmm_rl.model import load_checkpoint
from dhmm_rl.recipes import AgentRecipe
from dhmm_rl.recipes.agents import with_masks
from dhmm_rl.recipes.environments import make_envs, supports_rgb_array, wrap
from dhmm_rl.runs.evaluate import GREEDY, SAMPLED, evaluate, show_numbers
from dhmm_rl.runs.run import Run
from dhmm_rl.runs.saved_agents import SavedAgent, read_best
from dhmm_rl.runs.time_limits import eval_limit
from dhmm_rl.tokens import Tokenizer

VIDEO_SUFFIXES = (".mp4", ".gif")


@dataclass
class Args:
    """
    Let a trained agent act, print its returns, and write a video if asked.

    With --language-model the pretrained model acts with no PPO at all: its likeliest legal next token at the action slots is
    the action. That is worth looking at when it was pretrained on actions worth imitating (--data teacher:PATH).
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, runs/<env>/<agent>/<n>."""
    episodes: int = 20
    """Episodes to play."""
    language_model: bool = False
    """The pretrained language model acts, not the agent."""
    sample: bool = False
    """Draw actions from the policy. Default: what the evaluation at the end of the run found better."""
    greedy: bool = False
    """Take the policy's likeliest actions."""
    video: Path | None = None
    """Write a video of one more episode here, .mp4 or .gif."""
    seed: int = 1000
    """Seeds the environments and drawn actions."""
    device: str = "cpu"
    """Device to act on."""
    threads: int = 1
    """CPU threads."""
    trust: bool = False
    """Read agents of older runs, too, whose files can run code hidden in them, and import an environment and wrappers that
    are not in installed packages."""


def main(args: Args) -> None:
    """Run the command."""
    check_counts(args, "episodes")
    if args.sample and args.greedy:
        raise InputError("--sample draws actions, --greedy takes the likeliest; give one of them")
    if args.video is not None and args.video.suffix not in VIDEO_SUFFIXES:
        raise InputError(f"the video {args.video} must end in {' or '.join(VIDEO_SUFFIXES)}")
    device = set_up(args.device, args.threads, args.seed)
    run = Run.open(args.run, args.trust)
    actor, recipe, tokenizer, saved = load_actor(run, args.language_model, device, args.trust)

    set_random_seed(args.seed)
    env = wrap(make_envs(run.env.evaluated, min(args.episodes, 10), args.seed, recipe), recipe, tokenizer, training=False)
    if saved is not None:
        env = saved.restore_normalization(env, training=False)
    path = run.folder / "result.json"
    result = read_json(path) if path.is_file() else {}  # none of a run that has not ended
    greedy = not args.sample if args.sample or args.greedy or args.language_model else result.get("best_actions") != SAMPLED
    limit = eval_limit(run.env.evaluated)
    if limit is not None:
        limit = result.get("eval_limit") or limit
        print(f"note: {run.env.name} has no time limit; episodes end after {limit} steps here")
    played = evaluate(actor, env, args.episodes, greedy=greedy, limit=limit, early=False)
    env.close()
    who = "language model" if args.language_model else run.agent.name
    print(f"{who} on {run.env.name}, {GREEDY if greedy else SAMPLED} actions: {played}")
    lowest, highest = show_numbers(played.returns.min(), played.returns.max())
    print(f"from {lowest} to {highest}; mean length {played.lengths.mean():.0f} steps")
    if args.video is not None:
        frames, fps = record(run, actor, recipe, tokenizer, saved, args.seed, greedy, limit)
        with atomic_write(args.video) as temporary:
            if args.video.suffix == ".gif":
                imageio.imwrite(temporary, frames, duration=1000 / fps, loop=0)
            else:
                imageio.imwrite(temporary, frames, fps=fps, macro_block_size=2)
        print(f"video: {args.video}")


def load_actor(
    run: Run, language_model: bool, device: str, trust: bool = False
) -> tuple[Any, AgentRecipe | None, Tokenizer | None, SavedAgent | None]:
    """
    Who acts, with the recipe and the tokenizer by which its environments are wrapped (``None``: they are left plain), and the
    file that it was read from, which has the statistics by which its observations are normalized.

    :raises InputError: when the run does not have it
    """
    if not language_model:
        saved = read_best(run.folder, device, trust)
        agent = saved.build(run.agent)
        return agent, run.agent, getattr(agent.observation_space, "tokenizer", None), saved
    model, tokenizer, info = load_checkpoint(run.language_model, device)
    if tokenizer is None:
        raise InputError(f"{run.language_model} was trained on flat sequences; it cannot act")
    if not info.get("imitates", False):
        print("note: this model was pretrained on no actions worth imitating; what it does means nothing")
    return LanguageModelActor(model, tokenizer), None, None, None


def record(
    run: Run,
    actor: Any,
    recipe: AgentRecipe | None,
    tokenizer: Tokenizer | None,
    saved: SavedAgent | None,
    seed: int,
    greedy: bool,
    limit: int | None,
) -> tuple[list[NDArray[np.uint8]], float]:
    """
    Frames of one episode and how many belong to a second.

    :raises InputError: when the environment cannot be drawn
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws in memory; it needs no display
    plain = make_envs(run.env.evaluated, 1, seed)
    drawn = supports_rgb_array(plain)
    plain.close()
    if not drawn:
        raise InputError(f"{run.env.id} draws no pictures, so there is no video of it")
    env = make_envs(run.env.evaluated, 1, seed, recipe, render_mode="rgb_array")
    env = wrap(env, recipe, tokenizer, training=False)
    if saved is not None:
        env = saved.restore_normalization(env, training=False)
    actor = with_masks(actor, env)
    observation: Any = env.reset()
    frames: list[NDArray[np.uint8]] = []
    state, start = None, np.ones(1, dtype=bool)
    while not (frames and start[0]) and len(frames) != limit:
        frame = env.render()
        assert frame is not None
        frames.append(frame)
        action, state = actor.predict(observation, state=state, episode_start=start, deterministic=greedy)
        observation, _, start, _ = env.step(action)
    fps = float(env.get_attr("metadata")[0].get("render_fps", 30))
    env.close()
    return frames, fps


if __name__ == "__main__":
    run_command(main, Args, "dhmm_rl.play")

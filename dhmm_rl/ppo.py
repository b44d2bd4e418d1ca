"""``python -m dhmm_rl.ppo``: an agent trained by PPO, from a pretrained language model where the recipe asks for one."""

import inspect
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from dhmm_rl.cli import run_command, set_up
from dhmm_rl.errors import InputError, python_command
from dhmm_rl.files import atomic_write
from dhmm_rl.model import Checkpoint, load_checkpoint
from dhmm_rl.recipes import load_recipes
from dhmm_rl.sequence_ppo import SequencePPO
from dhmm_rl.tokens.fitting import RANDOM_STEPS
from dhmm_rl.training.agents import MASKED, make_agent, rollout_size, with_masks
from dhmm_rl.training.callbacks import Clock, Evaluation, KeepCheckpoint, last_checkpoint, make_eval_callback, save_best
from dhmm_rl.training.curve import plot_curve
from dhmm_rl.training.environments import draws_pictures, make_envs, make_tokenizer, wrap
from dhmm_rl.training.logs import make_logger
from dhmm_rl.training.pretraining import find_pretrained, pretrain, pretrains
from dhmm_rl.training.runs import Run
from dhmm_rl.training.saved_agents import BEST_AGENT, read_checkpoint

FINAL_EPISODES = 100
EVAL_ENVS = 10
SEQUENCE_ONLY = inspect.signature(SequencePPO.__init__).parameters.keys() - inspect.signature(PPO.__init__).parameters.keys()
"""Settings that SB3's PPO does not have."""


@dataclass
class Args:
    """
    Train an agent on an environment by PPO, evaluating as it goes.

    The run's folder gets the best agent, a checkpoint to resume from, the evaluations, the learning curve and logs. An agent
    whose recipe asks for pretraining starts from a pretrained language model: the newest one that python -m dhmm_rl.pretrain
    made for this environment and fits, or else one that is pretrained first.
    """

    env: str = "CartPole-v1"
    """Environment: a recipe's name, the path of a recipe of your own (.toml), or any Gymnasium id."""
    agent: str = "dhmm-gpt2"
    """Agent: a recipe's name or path. 'python -m dhmm_rl.recipes' lists those that ship."""
    algo: Literal["recipe", "sequence-ppo", "ppo"] = "recipe"
    """For an agent that reads tokens: the recipe's; SequencePPO, on the cached state; or SB3's PPO, on windows."""
    seed: int = 0
    """Seeds environments, weights, actions and pretraining."""
    steps: int | None = None
    """Environment steps that PPO takes, rounded up to whole rollouts. Default: what the recipe's budget leaves after the
    pretraining rollouts."""
    pretrained: str = "auto"
    """Language model to start from: 'auto' as above, 'new' to pretrain first in any case, 'none', or a checkpoint's path."""
    device: str = "cpu"
    """Device to train on."""
    threads: int = 1
    """CPU threads. Small models are faster with one."""
    runs: Path = Path("runs")
    """Folder under which runs are kept."""
    resume: Path | None = None
    """Folder of an interrupted run to go on with; all other arguments but the device's are then the run's own."""
    trust: bool = False
    """Read files that can run code hidden in them, too: SB3's zips as teachers, and checkpoints of older runs."""
    quiet: bool = False
    """Show no progress bars."""


def main(args: Args) -> None:
    """Run the command."""
    device = set_up(args.device, args.threads, args.seed)
    run = start(args) if args.resume is None else Run.resume(args.resume, "ppo")
    if (run.folder / "result.json").exists():
        raise InputError(f"the run {run.folder} is complete; play it, or start another without --resume")
    with run.writing():
        train(run, args, device)


def train(run: Run, args: Args, device: str) -> None:
    """Train the agent of a run, from its last checkpoint if there is one, and evaluate it."""
    checkpoint = last_checkpoint(run.folder)
    venv = make_envs(run.env, run.agent.n_envs, run.seed, run.agent)
    eval_venv = make_envs(run.env.evaluated, EVAL_ENVS, run.seed + 10_000, run.agent)
    if run.agent.algorithm not in MASKED and is_masking_supported(venv):
        print(f"note: {run.env.name} masks actions; {run.agent.algorithm} takes no masks, {' and '.join(MASKED)} do")
    pretrained = get_pretrained(run, device, not args.quiet, args.trust)
    pretraining_steps = pretrained.info.get("env_steps", 0) if pretrained is not None else 0
    own = pretrained if run.args["pretrained"] == "new" else None
    clock = Clock(checkpoint, 0.0 if own is None else own.info["seconds"])
    tokenizer = None if pretrained is None else pretrained.tokenizer
    if run.agent.reads_tokens and tokenizer is None:
        tokenizer = make_tokenizer(run.env, venv)
        pretraining_steps = RANDOM_STEPS if tokenizer.report else 0
    env = wrap(venv, run.agent, tokenizer, training=True)
    eval_env = wrap(eval_venv, run.agent, tokenizer, training=False)

    if checkpoint is None:
        agent = make_agent(run.agent, env, run.seed, device, pretrained)
    else:
        saved = read_checkpoint(checkpoint, device, args.trust)
        env = saved.restore_normalization(env, training=True)
        agent = saved.build(run.agent, env, run.seed)
        agent.set_random_seed(run.seed + agent.num_timesteps)
    agent.set_logger(make_logger(run.folder, "ppo", agent.num_timesteps))
    steps = ppo_steps(run, agent, pretraining_steps)
    every_calls = run.env.eval_every // env.num_envs
    evaluation = make_eval_callback(run.folder, eval_env, run.env.eval_episodes, every_calls, checkpoint, clock)
    evaluation.n_calls = agent.num_timesteps // env.num_envs
    agent.learn(
        steps - agent.num_timesteps,
        callback=[evaluation, KeepCheckpoint(run.folder, run.env.eval_every, clock)],
        reset_num_timesteps=checkpoint is None,
        progress_bar=not args.quiet,
    )
    finish(run, agent, eval_env, evaluation, pretraining_steps)


def start(args: Args) -> Run:
    """
    Make the folder of a new run, once the arguments have been checked.

    :raises InputError: for arguments out of range
    """
    if args.steps is not None and args.steps <= 0:
        raise InputError(f"steps is {args.steps}; it must be positive")
    env, agent = load_recipes(args.env, args.agent)
    pretrained = args.pretrained
    if args.algo != "recipe":
        if not agent.reads_tokens:
            raise InputError(f"the agent {agent.name} reads no tokens; --algo is for agents that do")
        agent = replace(agent, algorithm={"sequence-ppo": "SequencePPO", "ppo": "PPO"}[args.algo])
        if args.algo == "ppo":
            unknown = ", ".join(sorted(agent.ppo.keys() & SEQUENCE_ONLY))
            if unknown:
                print(f"note: only SequencePPO has the recipe's {unknown}; SB3's PPO goes without")
            agent = replace(agent, ppo={name: value for name, value in agent.ppo.items() if name not in SEQUENCE_ONLY})
    if not agent.reads_tokens:
        if pretrained not in ("auto", "none"):
            raise InputError(f"the agent {agent.name} has no language model; --pretrained is for agents that have")
        pretrained = "none"
    if pretrained not in ("auto", "new", "none"):
        load_checkpoint(pretrained)
    if pretrained == "auto":
        found = find_pretrained(args.runs, env, agent)
        pretrained = str(found) if found is not None else "new" if pretrains(agent) else "none"
    return Run.create(args.runs, "ppo", env, agent, args.seed, {"steps": args.steps, "pretrained": pretrained})


def get_pretrained(run: Run, device: str, progress: bool, trust: bool) -> Checkpoint | None:
    """The language model that the run starts from, kept in its folder."""
    source = run.args["pretrained"]
    if source == "none":
        return None
    if not run.language_model.exists():
        if source == "new":
            pretrain(run, device=device, progress=progress, trust=trust)
        else:
            with atomic_write(run.language_model) as temporary:
                shutil.copyfile(source, temporary)
            print(f"starting from {source}")
    checkpoint = load_checkpoint(run.language_model)
    if checkpoint.tokenizer is None:
        raise InputError(f"{source} was trained on flat sequences; an agent needs a model of an environment's streams")
    return checkpoint


def ppo_steps(run: Run, agent: OnPolicyAlgorithm, pretraining_steps: int) -> int:
    """
    How many environment steps PPO takes altogether; the budget is never exceeded, so it is a whole number of rollouts.

    :raises InputError: when pretraining leaves less than one
    """
    if run.args["steps"] is not None:
        return int(run.args["steps"])
    budget = run.agent.budget or run.env.budget
    rollouts = (budget - pretraining_steps) // rollout_size(agent)
    if rollouts < 1:
        raise InputError(
            f"the budget of {budget} steps leaves nothing for PPO after {pretraining_steps} of pretraining; see --steps"
        )
    return rollouts * rollout_size(agent)


def finish(run: Run, agent: OnPolicyAlgorithm, env: VecEnv, evaluation: Evaluation, pretraining_steps: int) -> None:
    """Evaluate the final agent at length, keep it if it is the best, plot, and say where everything is."""
    seconds = evaluation.clock.training
    assert agent.env is not None
    sync_envs_normalization(agent.env, env)
    returns, _ = evaluate_policy(with_masks(agent, env), env, FINAL_EPISODES, return_episode_rewards=True)
    assert isinstance(returns, list)
    final = float(np.mean(returns))
    if final >= evaluation.best_mean_reward:
        save_best(agent, run.folder)
    means = [float(np.mean(results)) for results in evaluation.evaluations_results]
    result: dict[str, Any] = {
        "env": run.env.name,
        "agent": run.agent.name,
        "seed": run.seed,
        "pretraining_steps": pretraining_steps,
        "ppo_steps": agent.num_timesteps,
        "training_seconds": seconds,
        "evaluation_seconds": evaluation.clock.evaluating,
        "eval_steps": [pretraining_steps + step for step in evaluation.evaluations_timesteps],
        "eval_returns": means,
        "eval_seconds": evaluation.clock.marks,
        "final_return": final,
        "final_return_std": float(np.std(returns)),
    }
    plot_curve(run, result, evaluation.evaluations_results)
    with atomic_write(run.folder / "result.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    total = pretraining_steps + agent.num_timesteps
    print(
        f"\n{run.agent.name} on {run.env.name}: mean return {final:.1f} ± {np.std(returns):.1f} over {FINAL_EPISODES} episodes"
    )
    print(
        f"after {total} environment steps ({pretraining_steps} of them before PPO),"
        f" {seconds:.0f} s of training and {evaluation.clock.evaluating:.0f} s of evaluation"
    )
    if run.env.solved_at is not None:
        print(f"solved at {run.env.solved_at:g}: {'yes' if final >= run.env.solved_at else 'no'}")
    print(f"learning curve: {run.folder / 'curve.png'}")
    print(f"best agent:     {run.folder / BEST_AGENT}")
    video = f" --video {run.folder / 'play.mp4'}" if draws_pictures(env) else ""
    print(f"let it act:     {python_command()} -m dhmm_rl.play {run.folder}{video}")


if __name__ == "__main__":
    run_command(main, Args, "dhmm_rl.ppo")

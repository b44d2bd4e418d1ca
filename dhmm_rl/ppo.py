"""``python -m dhmm_rl.ppo``: an agent trained by PPO, from a pretrained language model where the recipe asks for one."""

import math
import shutil
import time
import warnings
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl.cli import check_counts, run_command, set_up
from dhmm_rl.data import collect
from dhmm_rl.data.random_actions import RANDOM_STEPS
from dhmm_rl.errors import InputError, python_command
from dhmm_rl.files import atomic_write, write_json
from dhmm_rl.model import Checkpoint, load_checkpoint
from dhmm_rl.pretraining.reuse import find_pretrained
from dhmm_rl.pretraining.settings import wants_pretraining
from dhmm_rl.pretraining.workflow import pretrain
from dhmm_rl.recipes import AgentRecipe, EnvRecipe, load_recipes
from dhmm_rl.recipes.agents import make_agent, rollout_size
from dhmm_rl.recipes.algorithms import ALGORITHMS
from dhmm_rl.recipes.environments import make_envs, make_tokenizer, supports_rgb_array, unfitted_tokenizer, wrap
from dhmm_rl.runs.callbacks import Clock, KeepCheckpoint, WatchDivergence, last_checkpoint, return_to_checkpoint, save_best
from dhmm_rl.runs.evaluate import ACTIONS, GREEDY, SAMPLED, better_actions, preserve_random_state
from dhmm_rl.runs.evaluation import (
    EVAL_SHARE,
    FINAL_EPISODES,
    FINAL_EVALUATIONS,
    EvalSettings,
    EvaluationCallback,
    check_share,
)
from dhmm_rl.runs.logs import make_logger
from dhmm_rl.runs.plots import plot_curve
from dhmm_rl.runs.run import Run, removed_if_failed
from dhmm_rl.runs.saved_agents import BEST_AGENT, read_best, read_checkpoint
from dhmm_rl.runs.time_limits import check_positions
from dhmm_rl.tokens import Tokenizer

PRETRAINING_SHARE = 0.5
"""Gradient steps of pretraining take at most this share of the seconds that PPO will take."""
SHORT_PRETRAINING = 30.0
"""Seconds that they may always take."""
TRIAL_STEPS = 64
"""Random steps that a tokenizer is fitted on when an agent is only tried out."""


@dataclass
class Args:
    """
    Train an agent on an environment by PPO, evaluating as it goes.

    The run's folder gets the best agent, a checkpoint to resume from, the evaluations, the learning curve and logs. An agent
    whose recipe asks for pretraining starts from a pretrained language model: one that was made before for the same
    environment, from the same data and with the same settings, or else one that is pretrained first.
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
    eval_share: float = EVAL_SHARE
    """Evaluations, those at the end included, take at most this share of the seconds of training: they then have fewer episodes
    or come later. 'inf' sets no limit, and the numbers of episodes no longer depend on the machine's speed."""
    eval_every: int | None = None
    """Environment steps from one evaluation to the next. Default: the environment recipe's."""
    eval_episodes: int | None = None
    """The most episodes of an evaluation during training. Default: the environment recipe's."""
    final_episodes: int = FINAL_EPISODES
    """The most episodes of each evaluation at the end."""
    runs: Path = Path("runs")
    """Folder under which runs are kept."""
    resume: Path | None = None
    """Folder of an interrupted run to go on with; all other arguments but the device's are then the run's own."""
    trust: bool = False
    """Read files that can run code hidden in them, too: SB3's zips as teachers, and checkpoints of older runs. With
    --resume, also import an environment and wrappers that are not in installed packages."""
    quiet: bool = False
    """Show no progress bars."""


def main(args: Args) -> None:
    """Run the command."""
    device = set_up(args.device, args.threads, args.seed)
    run = start(args, device) if args.resume is None else Run.resume(args.resume, "ppo", args.trust)
    if (run.folder / "result.json").exists():
        raise InputError(f"the run {run.folder} is complete; play it, or start another without --resume")
    with removed_if_failed(run.folder, new=args.resume is None), run.writing():
        train(run, args, device)


def train(run: Run, args: Args, device: str) -> None:
    """Train the agent of a run, from its last checkpoint if there is one, and evaluate it."""
    checkpoint = last_checkpoint(run.folder)
    return_to_checkpoint(run.folder, checkpoint)
    venv = make_envs(run.env, run.agent.n_envs, run.seed, run.agent)
    if is_masking_supported(venv) and not ALGORITHMS[run.agent.algorithm].takes_masks:
        others = " and ".join(name for name, algorithm in ALGORITHMS.items() if algorithm.takes_masks)
        print(f"note: {run.env.name} masks actions; {run.agent.algorithm} takes no masks, {others} do")
    pretrained = get_pretrained(run, device, not args.quiet, args.trust)
    pretraining_steps = pretrained.info.get("env_steps", 0) if pretrained is not None else 0
    own = pretrained if run.args["pretrained"] == "new" else None
    clock = Clock(checkpoint, 0.0 if own is None else own.info["seconds"])
    tokenizer = None if pretrained is None else pretrained.tokenizer
    if run.agent.reads_tokens and tokenizer is None:
        tokenizer = make_tokenizer(run.env, venv)
        pretraining_steps = RANDOM_STEPS if tokenizer.report else 0
    env = wrap(venv, run.agent, tokenizer, training=True)
    if checkpoint is None:
        agent = make_agent(run.agent, env, run.seed, device, pretrained)
    else:
        saved = read_checkpoint(checkpoint, device, args.trust)
        env = saved.restore_normalization(env, training=True)
        agent = saved.build(run.agent, env, run.seed)
        agent.set_random_seed(run.seed + agent.num_timesteps)
    steps = ppo_steps(run, agent, pretraining_steps)

    def make_eval_env(count: int) -> VecEnv:
        envs = make_envs(run.env.evaluated, count, run.seed + 10_000, run.agent)
        return wrap(envs, run.agent, tokenizer, training=False)

    share = run.args.get("eval_share", EVAL_SHARE)
    eval_settings = EvalSettings(
        every=run.env.eval_every,
        episodes=run.env.eval_episodes,
        final_episodes=run.args.get("final_episodes", FINAL_EPISODES),
        share=math.inf if share is None else share,
    )
    evaluation = EvaluationCallback(run.folder, run.env, make_eval_env, clock, eval_settings, checkpoint)
    agent.set_logger(make_logger(run.folder, "ppo", agent.num_timesteps))
    with closing(agent.logger):
        agent.learn(
            steps - agent.num_timesteps,
            callback=[WatchDivergence(), evaluation, KeepCheckpoint(run.folder, run.env.eval_every, clock)],
            reset_num_timesteps=checkpoint is None,
            progress_bar=not args.quiet,
        )
    finish(run, agent, evaluation, pretraining_steps, device, args.trust)


def start(args: Args, device: str) -> Run:
    """
    Make the folder of a new run, once the arguments have been checked and an agent could be built.

    :raises InputError: for arguments out of range, and what :func:`try_agent` raises
    """
    if args.steps is not None and args.steps <= 0:
        raise InputError(f"steps is {args.steps}; it must be positive")
    check_counts(args, "final_episodes")
    check_share("eval_share", args.eval_share)
    env, agent = load_recipes(args.env, args.agent)
    for name in ("eval_every", "eval_episodes"):
        if getattr(args, name) is not None:
            check_counts(args, name)
            env = replace(env, **{name: getattr(args, name)})
    pretrained = args.pretrained
    if args.algo != "recipe":
        if not agent.reads_tokens:
            raise InputError(f"the agent {agent.name} reads no tokens; --algo is for agents that do")
        other = {"sequence-ppo": "SequencePPO", "ppo": "PPO"}[args.algo]
        keywords = ALGORITHMS[other].keywords
        unknown = ", ".join(sorted(agent.ppo.keys() - keywords))
        if unknown:
            print(f"note: only {agent.algorithm} has the recipe's {unknown}; {other} runs without")
        ppo = {name: value for name, value in agent.ppo.items() if name in keywords}
        agent = replace(agent, algorithm=other, ppo=ppo)
    if not agent.reads_tokens:
        if pretrained not in ("auto", "none"):
            raise InputError(f"the agent {agent.name} has no language model; --pretrained is for agents that have")
        pretrained = "none"
    checkpoint = load_checkpoint(pretrained) if pretrained not in ("auto", "new", "none") else None
    if pretrained == "auto":
        found = find_pretrained(args.runs, env, agent, args.seed, args.steps) if wants_pretraining(agent) else None
        pretrained = str(found) if found is not None else "new" if wants_pretraining(agent) else "none"
    try_agent(env, agent, args.seed, checkpoint, device)
    kept = {
        "steps": args.steps,
        "pretrained": pretrained,
        "eval_share": None if math.isinf(args.eval_share) else args.eval_share,
        "final_episodes": args.final_episodes,
    }
    return Run.create(args.runs, "ppo", env, agent, args.seed, kept)


def try_agent(env: EnvRecipe, agent: AgentRecipe, seed: int, pretrained: Checkpoint | None, device: str) -> None:
    """
    Build an agent on two environments and throw it away, so that what does not fit is found before anything takes long.

    :raises InputError: when environments or agent cannot be made
    """
    if env.eval_kwargs:
        make_envs(env.evaluated, 1, seed, agent).close()
    venv = make_envs(env if env.vectorization != "subproc" else replace(env, vectorization="dummy"), 2, seed, agent)
    check_positions(agent, env)
    if ALGORITHMS[agent.algorithm].requires_masks and not is_masking_supported(venv):
        raise InputError(f"{agent.algorithm} needs an environment with action masks, a method action_masks; PPO takes any")
    tokenizer = pretrained.tokenizer if pretrained is not None else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two environments and a few steps are too few for batches and tokens
        if agent.reads_tokens and tokenizer is None:
            tokenizer = unfitted_tokenizer(env, venv)
            if tokenizer.unfitted:
                rollouts = collect(venv, episodes=2, imitate=False, max_steps=TRIAL_STEPS, env_id=env.id, seed=seed)
                tokenizer = tokenizer.fit(rollouts)
        make_agent(agent, wrap(venv, agent, tokenizer, training=True), seed, device, pretrained)
    venv.close()


def get_pretrained(run: Run, device: str, progress: bool, trust: bool) -> Checkpoint | None:
    """The language model that the run starts from, kept in its folder."""
    source = run.args["pretrained"]
    if source == "none":
        return None
    if not run.language_model.exists():
        if source == "new":
            pretrain(
                run,
                allowed_seconds=lambda tokenizer, needed: allow_pretraining(run, tokenizer, needed, device),
                device=device,
                progress=progress,
                trust=trust,
            )
        else:
            with atomic_write(run.language_model) as temporary:
                shutil.copyfile(source, temporary)
            print(f"starting from {source}; --pretrained new would pretrain again")
    checkpoint = load_checkpoint(run.language_model)
    if checkpoint.tokenizer is None:
        raise InputError(f"{source} was trained on flat sequences; an agent needs a model of an environment's streams")
    return checkpoint


def allow_pretraining(run: Run, tokenizer: Tokenizer, needed: float, device: str) -> float:
    """
    Seconds that gradient steps of pretraining may take: a share of those that PPO will take.

    One rollout and one update of an agent that is thrown away tell how long PPO takes.

    :param needed: by all steps; it is allowed without asking when it is short
    """
    if needed <= SHORT_PRETRAINING:
        return needed
    with preserve_random_state(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run's own agent gives them
        venv = make_envs(run.env, run.agent.n_envs, run.seed, run.agent)
        agent = make_agent(run.agent, wrap(venv, run.agent, tokenizer, training=True), run.seed, device, None)
        size = rollout_size(agent)
        began = time.perf_counter()
        agent.learn(size)
        seconds = time.perf_counter() - began
        venv.close()
    steps = run.args["steps"] or run.agent.budget or run.env.budget
    return max(PRETRAINING_SHARE * seconds * steps / size, SHORT_PRETRAINING)


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


def finish(
    run: Run, agent: OnPolicyAlgorithm, evaluation: EvaluationCallback, pretraining_steps: int, device: str, trust: bool
) -> None:
    """Evaluate the last agent and the best one, keep the better, plot, and say where everything is."""
    seconds = evaluation.clock.training
    last = {name: evaluation.evaluate_last(agent, name == GREEDY, FINAL_EVALUATIONS - i) for i, name in enumerate(ACTIONS)}
    best, best_steps = last, agent.num_timesteps
    if evaluation.best is not None and np.mean(evaluation.returns[evaluation.best]) > last[GREEDY].mean:
        saved = read_best(run.folder, device, trust)
        other = saved.build(run.agent)
        kept = {
            name: evaluation.evaluate_best(other, saved, name == GREEDY, FINAL_EVALUATIONS - 2 - i)
            for i, name in enumerate(ACTIONS)
        }
        if max(found.mean for found in kept.values()) > max(found.mean for found in last.values()):
            best, best_steps = kept, other.num_timesteps
    if best is last:
        save_best(agent, run.folder)
    actions = better_actions(best[GREEDY], best[SAMPLED])
    result: dict[str, Any] = {
        "env": run.env.name,
        "agent": run.agent.name,
        "seed": run.seed,
        "pretraining_steps": pretraining_steps,
        "ppo_steps": agent.num_timesteps,
        "training_seconds": seconds,
        "evaluation_seconds": evaluation.clock.evaluating,
        "eval_steps": [pretraining_steps + step for step in evaluation.timesteps],
        "eval_returns": [float(np.mean(returns)) for returns in evaluation.returns],
        "eval_seconds": evaluation.clock.marks,
        "eval_limit": evaluation.limit,
        "final_return": last[GREEDY].mean,
        "final_return_std": last[GREEDY].std,
        "final_episodes": len(last[GREEDY].returns),
        "final_sampled_return": last[SAMPLED].mean,
        "final_sampled_return_std": last[SAMPLED].std,
        "final_sampled_episodes": len(last[SAMPLED].returns),
        "best_return": best[actions].mean,
        "best_return_std": best[actions].std,
        "best_episodes": len(best[actions].returns),
        "best_steps": pretraining_steps + best_steps,
        "best_actions": actions,
    }
    plot_curve(run, result, evaluation.returns)
    write_json(run.folder / "result.json", result)

    total = pretraining_steps + agent.num_timesteps
    print(
        f"\n{run.agent.name} on {run.env.name}: {total} environment steps ({pretraining_steps} of them before PPO),"
        f" {seconds:.0f} s of training and {evaluation.clock.evaluating:.0f} s of evaluation"
    )
    for name in ACTIONS:
        print(f"last agent, {name} actions: {last[name]}")
    if best is last:
        print(f"best agent: the last one; play takes its {actions} actions")
    else:
        for name in ACTIONS:
            print(f"best agent, of step {pretraining_steps + best_steps}, {name} actions: {best[name]}")
        print(f"play takes the best agent and its {actions} actions")
    if run.env.solved_at is not None:
        means = {"last": last[GREEDY].mean, "best": best[actions].mean}
        solved = [f"{'yes' if mean >= run.env.solved_at else 'no'} ({which} agent)" for which, mean in means.items()]
        print(f"solved at {run.env.solved_at:g}: {', '.join(solved)}")
    print(f"learning curve: {run.folder / 'curve.png'}")
    print(f"best agent:     {run.folder / BEST_AGENT}")
    assert evaluation.env is not None
    video = f" --video {run.folder / 'play.mp4'}" if supports_rgb_array(evaluation.env) else ""
    print(f"let it act:     {python_command()} -m dhmm_rl.play {run.folder}{video}{run.trust_option}")
    evaluation.close()


if __name__ == "__main__":
    run_command(main, Args, "dhmm_rl.ppo")

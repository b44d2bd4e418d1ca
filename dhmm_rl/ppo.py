"""``python -m dhmm_rl.ppo``: trains an agent by PPO, from a pretrained language model if the agent's recipe asks for one."""

import math
import shutil
import time
import warnings
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl.cli import check_counts, run_command, set_up
from dhmm_rl.data import collect
from dhmm_rl.data.random_actions import RANDOM_STEPS
from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write
from dhmm_rl.model import Checkpoint, load_checkpoint
from dhmm_rl.pretraining.reuse import find_pretrained
from dhmm_rl.pretraining.settings import wants_pretraining
from dhmm_rl.pretraining.workflow import pretrain
from dhmm_rl.recipes import AgentRecipe, EnvRecipe, load_recipes
from dhmm_rl.recipes.agents import make_agent, rollout_size, with_discount
from dhmm_rl.recipes.algorithms import ALGORITHMS
from dhmm_rl.recipes.environments import EnvFactory, make_tokenizer, unfitted_tokenizer, wrap
from dhmm_rl.runs.callbacks import CheckpointCallback, Clock, DivergenceCallback, last_checkpoint, return_to_checkpoint
from dhmm_rl.runs.evaluate import preserve_random_state
from dhmm_rl.runs.evaluation import EVAL_SHARE, FINAL_EPISODES, EvalSettings, EvaluationCallback, check_share
from dhmm_rl.runs.logs import make_logger
from dhmm_rl.runs.report import evaluate_and_report
from dhmm_rl.runs.run import Run
from dhmm_rl.runs.saved_agents import read_checkpoint
from dhmm_rl.runs.time_limits import check_positions
from dhmm_rl.tokens import Tokenizer

PRETRAINING_SHARE = 0.5
"""Largest time of pretraining's gradient steps, as a share of the seconds of PPO."""
SHORT_PRETRAINING = 30.0
"""Seconds that pretraining's gradient steps may take in any case."""
CHECKPOINT_EVERY = 50_000
"""Largest number of environment steps between checkpoints. They are usually saved as often as the agent is evaluated."""
TRIAL_STEPS = 64
"""Random steps that a tokenizer is fitted to when an agent is only tried out."""
EVAL_SEED_OFFSET = 10_000
"""Difference of the seeds of evaluation environments from those of training environments."""


@dataclass
class Args:
    """
    Train an agent on an environment by PPO, and evaluate it during the training and at its end.

    The folder of the run gets the best agent, a checkpoint to resume from, the evaluations, the learning curve and logs. If the
    agent's recipe asks for pretraining, the agent starts from a pretrained language model. An earlier one is used if it was
    made for the same environment, from the same data and with the same settings; otherwise a new one is pretrained first.
    """

    env: str = "CartPole-v1"
    """Environment: a recipe's name, the path of a recipe of your own (.toml), or any Gymnasium id."""
    agent: str = "dhmm-gpt2"
    """Agent: a recipe's name or path. 'python -m dhmm_rl.recipes' lists those that ship."""
    algo: Literal["recipe", "sequence-ppo", "ppo"] = "recipe"
    """Algorithm of an agent that reads tokens: the recipe's; SequencePPO, which acts on the cached state; or SB3's PPO, which
    reads a window of steps."""
    seed: int = 0
    """Seed of the environments, the weights, the actions and the pretraining."""
    steps: int | None = None
    """Environment steps of PPO, rounded up to whole rollouts. Default: the recipe's budget, less the steps of the pretraining
    rollouts."""
    pretrained: str = "auto"
    """Language model to start from: 'auto' (see above), 'new' to pretrain one first in any case, 'none', or the path of a
    checkpoint."""
    device: str = "cpu"
    """Device to train on."""
    threads: int = 1
    """Number of CPU threads. Small models are faster with one."""
    eval_share: float = EVAL_SHARE
    """Largest time of all evaluations, as a share of the seconds of training. To keep to it, evaluations have fewer episodes or
    come later. 'inf' sets no limit; then the numbers of episodes do not depend on the machine's speed."""
    eval_every: int | None = None
    """Environment steps from one evaluation to the next. Default: the environment recipe's."""
    eval_episodes: int | None = None
    """Largest number of episodes of an evaluation during training. Default: the environment recipe's."""
    final_episodes: int = FINAL_EPISODES
    """Largest number of episodes of each evaluation at the end."""
    runs: Path = Path("runs")
    """Folder in which the folders of runs are made."""
    resume: Path | None = None
    """Folder of an interrupted run to continue. All other arguments are then the run's own, except device, threads, trust and
    quiet."""
    trust: bool = False
    """Also read files that can run code hidden in them: SB3's zips as teachers, and checkpoints of older runs. With --resume,
    also import an environment and wrappers that are not in installed packages."""
    quiet: bool = False
    """Show no progress bars."""


def main(args: Args) -> None:
    """Run the command."""
    device = set_up(args.device, args.threads, args.seed)
    if args.resume is None:
        # Check every option and try the agent out first, so that invalid input leaves no folder behind.
        run, factory = create_run(args, device)
    else:
        run = Run.resume(args.resume, "ppo", args.trust)
        factory = EnvFactory(run.env, run.seed, run.agent)
    if run.complete:
        raise InputError(f"the run {run.folder} is complete; play it, or start another without --resume")
    with run.writing(new=args.resume is None):
        train(run, factory, args, device)


def create_run(args: Args, device: str) -> tuple[Run, EnvFactory]:
    """
    Create the folder of a new run, after checking the arguments and trying out the agent.

    :param args: arguments of the command
    :param device: device to train on
    :return: the run, and the factory of its environments, whose training environments the trial has made
    :raises InputError: for arguments out of range, and if environments or agent cannot be made
    """
    if args.steps is not None and args.steps <= 0:
        raise InputError(f"steps is {args.steps}; it must be positive")
    check_counts(args, "final_episodes")
    check_share("eval_share", args.eval_share)
    env, agent = resolve_recipes(args)
    pretrained = resolve_pretrained(args, env, agent)
    checkpoint = load_checkpoint(pretrained) if pretrained not in ("new", "none") else None
    factory = EnvFactory(env, args.seed, agent)
    try_agent(factory, checkpoint, device)
    factory.agent = agent = with_discount(agent, factory.training_envs, args.seed)
    saved_args = {
        "steps": args.steps,
        "pretrained": pretrained,
        "eval_share": None if math.isinf(args.eval_share) else args.eval_share,  # JSON has no infinity
        "final_episodes": args.final_episodes,
    }
    return Run.create(args.runs, "ppo", env, agent, args.seed, saved_args), factory


def resolve_recipes(args: Args) -> tuple[EnvRecipe, AgentRecipe]:
    """
    Load the recipes of the environment and of the agent, and apply the options that override their keys.

    :raises InputError: for unknown or invalid recipes, and for options that do not fit them
    """
    env, agent = load_recipes(args.env, args.agent)
    for name in ("eval_every", "eval_episodes"):
        if getattr(args, name) is not None:
            check_counts(args, name)
            env = replace(env, **{name: getattr(args, name)})
    if args.algo == "recipe":
        return env, agent
    if not agent.reads_tokens:
        raise InputError(f"the agent {agent.name} reads no tokens; --algo is for agents that do")
    algorithm = {"sequence-ppo": "SequencePPO", "ppo": "PPO"}[args.algo]
    keywords = ALGORITHMS[algorithm].keywords
    unknown = ", ".join(sorted(agent.ppo.keys() - keywords))
    if unknown:
        print(f"note: only {agent.algorithm} has the recipe's {unknown}; {algorithm} runs without")
    settings = {name: value for name, value in agent.ppo.items() if name in keywords}
    return env, replace(agent, algorithm=algorithm, ppo=settings)


def resolve_pretrained(args: Args, env: EnvRecipe, agent: AgentRecipe) -> str:
    """
    Return the language model to start from: ``new``, ``none`` or the path of a checkpoint.

    :raises InputError: if the agent has no language model, and the options ask for one
    """
    if not agent.reads_tokens:
        if args.pretrained not in ("auto", "none"):
            raise InputError(f"the agent {agent.name} has no language model; --pretrained is for agents that have")
        return "none"
    if args.pretrained != "auto":
        return args.pretrained
    if not wants_pretraining(agent):
        return "none"
    path = find_pretrained(args.runs, env, agent, args.seed, args.steps)
    return "new" if path is None else str(path)


def try_agent(factory: EnvFactory, pretrained: Checkpoint | None, device: str) -> None:
    """
    Build an agent and throw it away, so that what does not fit together is found before anything takes long.

    :param factory: factory of the run's environments; the training environments are used
    :param pretrained: language model that the agent is to start from
    :param device: device to train on
    :raises InputError: if environments or agent cannot be made
    """
    env, agent, seed = factory.recipe, factory.agent, factory.seed
    assert agent is not None
    if env.eval_kwargs:
        EnvFactory(env.for_evaluation, seed, agent).make(1).close()
    venv = factory.training_envs
    check_positions(agent, env)
    if ALGORITHMS[agent.algorithm].requires_masks and not is_masking_supported(venv):
        raise InputError(f"{agent.algorithm} needs an environment with action masks, a method action_masks; PPO takes any")
    tokenizer = pretrained.tokenizer if pretrained is not None else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run's own agent gives them, and a few steps are too few to fit tokens to
        if agent.reads_tokens and tokenizer is None:
            tokenizer = unfitted_tokenizer(env, venv)
            if tokenizer.unfitted:
                episodes = venv.num_envs
                rollouts = collect(venv, episodes=episodes, imitate=False, max_steps=TRIAL_STEPS, env_id=env.id, seed=seed)
                tokenizer = tokenizer.fit(rollouts)
        make_agent(agent, wrap(venv, agent, tokenizer, training=True), seed, device, pretrained)


def train(run: Run, factory: EnvFactory, args: Args, device: str) -> None:
    """
    Train the agent of a run, from its last checkpoint if there is one, and evaluate it.

    :param run: the run
    :param factory: factory of the run's environments
    :param args: arguments of the command; of a resumed run only ``trust`` and ``quiet`` count
    :param device: device to train on
    """
    # A killed run may have written files after its last checkpoint; the training repeats that part and writes them again.
    checkpoint = last_checkpoint(run.folder)
    return_to_checkpoint(run.folder, checkpoint)
    warn_of_unused_masks(run, factory.training_envs)

    # The language model to start from comes with its tokenizer. The environment steps and the seconds that it took count.
    pretrained = get_pretrained(run, factory, args, device)
    pretraining_steps, pretraining_seconds, tokenizer = 0, 0.0, None
    if pretrained is not None:
        tokenizer = pretrained.tokenizer
        pretraining_steps = pretrained.info.get("env_steps", 0)
        if run.args["pretrained"] == "new":
            pretraining_seconds = pretrained.info["seconds"]
    elif run.agent.reads_tokens:
        tokenizer = make_tokenizer(run.env, factory)
        pretraining_steps = RANDOM_STEPS if tokenizer.report else 0  # it has a report if random steps were taken and used
    clock = Clock(checkpoint, pretraining_seconds)

    agent = build_agent(run, factory, tokenizer, pretrained, checkpoint, args, device)
    total_steps = ppo_steps(run, agent, pretraining_steps)
    evaluation = make_evaluation(run, tokenizer, clock, checkpoint)

    # Train. Callbacks stop a diverged training, evaluate the agent and save checkpoints.
    agent.set_logger(make_logger(run.folder, "ppo", agent.num_timesteps))
    with closing(agent.logger):
        agent.learn(
            total_steps - agent.num_timesteps,
            callback=[
                DivergenceCallback(),
                evaluation,
                CheckpointCallback(run.folder, min(run.env.eval_every, CHECKPOINT_EVERY), clock),
            ],
            reset_num_timesteps=checkpoint is None,
            progress_bar=not args.quiet,
        )
    evaluate_and_report(run, agent, evaluation, pretraining_steps, device, args.trust)


def warn_of_unused_masks(run: Run, venv: VecEnv) -> None:
    """Print a note if the environments have action masks and the agent's algorithm takes none."""
    if is_masking_supported(venv) and not ALGORITHMS[run.agent.algorithm].takes_masks:
        others = " and ".join(name for name, algorithm in ALGORITHMS.items() if algorithm.takes_masks)
        print(f"note: {run.env.name} masks actions; {run.agent.algorithm} takes no masks, {others} do")


def get_pretrained(run: Run, factory: EnvFactory, args: Args, device: str) -> Checkpoint | None:
    """
    Return the language model that the run starts from; pretrain it or copy it into the run's folder if it is not there.

    :param run: the run
    :param factory: factory of the run's environments
    :param args: arguments of the command
    :param device: device to train on
    :return: the language model, ``None`` if the run starts without one
    :raises InputError: if the language model cannot be pretrained or read, or is not one of an environment's streams
    """
    source = run.args["pretrained"]
    if source == "none":
        return None
    if not run.language_model.exists():
        if source == "new":
            pretrain(
                run,
                factory,
                allowed_seconds=lambda tokenizer, needed: allowed_pretraining_seconds(run, factory, tokenizer, needed, device),
                device=device,
                progress=not args.quiet,
                trust=args.trust,
            )
        else:
            with atomic_write(run.language_model) as temporary:
                shutil.copyfile(source, temporary)
            print(f"starting from {source}; --pretrained new would pretrain again")
    checkpoint = load_checkpoint(run.language_model)
    if checkpoint.tokenizer is None:
        raise InputError(f"{source} was trained on flat sequences; an agent needs a model of an environment's streams")
    return checkpoint


def allowed_pretraining_seconds(run: Run, factory: EnvFactory, tokenizer: Tokenizer, needed: float, device: str) -> float:
    """
    Return the seconds that pretraining's gradient steps may take: a share of the seconds of PPO.

    The seconds of PPO are estimated from one rollout and one update of an agent that is thrown away.

    :param run: the run
    :param factory: factory of the run's environments; the training environments are used
    :param tokenizer: tokenizer of the agent
    :param needed: seconds of all gradient steps; allowed without an estimate if they are few
    :param device: device to train on
    """
    if needed <= SHORT_PRETRAINING:
        return needed
    with preserve_random_state(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run's own agent gives them
        env = wrap(factory.training_envs, run.agent, tokenizer, training=True)
        agent = make_agent(run.agent, env, run.seed, device, None)
        size = rollout_size(agent)
        began = time.perf_counter()
        agent.learn(size)
        seconds = time.perf_counter() - began
    steps = run.args["steps"] or run.agent.budget or run.env.budget
    return max(PRETRAINING_SHARE * seconds * steps / size, SHORT_PRETRAINING)


def build_agent(
    run: Run,
    factory: EnvFactory,
    tokenizer: Tokenizer | None,
    pretrained: Checkpoint | None,
    checkpoint: Path | None,
    args: Args,
    device: str,
) -> OnPolicyAlgorithm:
    """
    Build the agent on the training environments: a new one, or the one of a checkpoint.

    :param run: the run
    :param factory: factory of the run's environments
    :param tokenizer: tokenizer of an agent that reads tokens
    :param pretrained: language model that a new agent starts from
    :param checkpoint: folder of the run's last checkpoint
    :param args: arguments of the command
    :param device: device to train on
    """
    env = wrap(factory.training_envs, run.agent, tokenizer, training=True)
    if checkpoint is None:
        return make_agent(run.agent, env, run.seed, device, pretrained)
    saved = read_checkpoint(checkpoint, device, args.trust)
    env = saved.restore_normalization(env, training=True)
    agent = saved.build(run.agent, env, run.seed)
    # With the run's own seed the agent would repeat the episodes from the beginning of the training.
    agent.set_random_seed(run.seed + agent.num_timesteps)
    return agent


def ppo_steps(run: Run, agent: OnPolicyAlgorithm, pretraining_steps: int) -> int:
    """
    Return the number of environment steps of PPO, a whole number of rollouts within the budget.

    :param run: the run; its argument ``steps`` counts if it is set, else the budget of its recipes
    :param agent: agent to train
    :param pretraining_steps: steps of the budget that were taken before PPO
    :raises InputError: if the rest of the budget is less than one rollout
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


def make_evaluation(run: Run, tokenizer: Tokenizer | None, clock: Clock, checkpoint: Path | None) -> EvaluationCallback:
    """Make the callback that evaluates the agent, in environments with seeds of their own."""
    factory = EnvFactory(run.env.for_evaluation, run.seed + EVAL_SEED_OFFSET, run.agent)
    share = run.args.get("eval_share", EVAL_SHARE)
    settings = EvalSettings(
        every=run.env.eval_every,
        episodes=run.env.eval_episodes,
        final_episodes=run.args.get("final_episodes", FINAL_EPISODES),
        share=math.inf if share is None else share,
    )

    def make_env(n_envs: int) -> VecEnv:
        return wrap(factory.make(n_envs), run.agent, tokenizer, training=False)

    return EvaluationCallback(run.folder, run.env, make_env, clock, settings, checkpoint)


if __name__ == "__main__":
    run_command(main, Args, "dhmm_rl.ppo")

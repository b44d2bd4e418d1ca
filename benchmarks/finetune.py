"""``python -m benchmarks.finetune``: the effect of PPO's first updates on a policy that was pretrained on a teacher."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl.cli import check_counts, run_command, set_up
from dhmm_rl.files import atomic_write
from dhmm_rl.model import load_checkpoint
from dhmm_rl.plotting import save_figure
from dhmm_rl.recipes import load_recipes
from dhmm_rl.recipes.agents import make_agent
from dhmm_rl.recipes.environments import make_envs, wrap
from dhmm_rl.runs.evaluate import show_numbers

TEACHING = ("--episodes", "50", "--steps", "1500", "--length", "64")
WAYS = {"warm-up and KL": {}, "neither": {"critic_warmup": 0, "prior_kl": 0.0}}


@dataclass
class Args:
    """
    Pretrain on a teacher's rollouts, then train by PPO, and evaluate the policy after every update.

    For every seed there is a teacher (the mlp agent) and a language model pretrained on 50 of its episodes. PPO starts from
    this model twice: with the critic's warm-up and the KL to the pretrained policy, and with neither. Complete runs are not
    repeated.
    """

    env: str = "CartPole-v1"
    """Environment to train on."""
    seeds: int = 10
    """Number of seeds; the first is 0."""
    updates: int = 20
    """Evaluated updates of the policy. Those of the critic's warm-up come before them."""
    episodes: int = 20
    """Episodes of an evaluation."""
    out: Path = Path("runs/finetune")
    """Folder for the runs, the returns (returns.json) and the plot (returns.png)."""
    threads: int = 1
    """CPU threads."""


def main(args: Args) -> None:
    """Run the command."""
    check_counts(args, "seeds", "updates", "episodes")
    device = set_up("cpu", args.threads, seed=0)
    returns: dict[str, NDArray[np.float64]] = {}
    for way, changes in WAYS.items():
        per_seed = []
        for seed in range(args.seeds):
            kept = args.out / f"seed{seed}" / f"{way.replace(' ', '-')}.json"
            if not kept.exists():
                found = finetune(args, seed, changes, device)
                with atomic_write(kept) as temporary:
                    temporary.write_text(json.dumps(found), encoding="utf-8")
            per_seed.append(json.loads(kept.read_text(encoding="utf-8"))[: args.updates + 1])
            lowest, last = show_numbers(min(per_seed[-1]), per_seed[-1][-1])
            print(f"{way}, seed {seed}: lowest {lowest}, last {last}", flush=True)
        returns[way] = np.array(per_seed)
        means = returns[way].mean(axis=0)
        before, lowest = show_numbers(means[0], means[1:].min())
        print(f"{way}: mean over seeds before PPO {before}, lowest after an update {lowest}\n")
    plot(args, returns)
    print(f"plot: {args.out / 'returns.png'}")


def pretrained(args: Args, seed: int) -> Path:
    """Pretrain a language model on a teacher, by the commands that the documentation gives for it."""
    root = args.out / f"seed{seed}"
    teacher = root / args.env / "mlp" / "1"
    model = root / args.env / "pretrain" / "1" / "pretrained.pt"
    common = ["--env", args.env, "--seed", str(seed), "--runs", str(root), "--quiet"]
    if not (teacher / "result.json").exists():
        subprocess.run([sys.executable, "-m", "dhmm_rl.ppo", "--agent", "mlp", *common], check=True, capture_output=True)
    if not model.exists():
        data = ["--data", f"teacher:{teacher}", *TEACHING]
        subprocess.run([sys.executable, "-m", "dhmm_rl.pretrain", *data, *common], check=True, capture_output=True)
    return model


def finetune(args: Args, seed: int, changes: dict[str, Any], device: str) -> list[float]:
    """Return the mean returns before the first update of the policy and after each update."""
    checkpoint = load_checkpoint(pretrained(args, seed), device)
    env_recipe, recipe = load_recipes(args.env, "dhmm-gpt2")
    recipe.ppo.update(changes)
    env = wrap(make_envs(env_recipe, recipe.n_envs, seed), recipe, checkpoint.tokenizer, training=True)
    evaluation = wrap(
        make_envs(env_recipe.for_evaluation, args.episodes, seed + 10_000), recipe, checkpoint.tokenizer, training=False
    )
    agent = make_agent(recipe, env, seed, device, checkpoint)
    warmup = recipe.ppo.get("critic_warmup", 4)
    callback = EvalEveryUpdate(evaluation, args.episodes, warmup + args.updates + 1)
    agent.learn(env_recipe.budget, callback=callback)  # schedules decay as in a whole run, although this one stops early
    return callback.returns[warmup:]


class EvalEveryUpdate(BaseCallback):
    """
    Evaluates the policy before every rollout, and so after every update.

    :param env: environments to evaluate in
    :param episodes: number of episodes of an evaluation
    :param evaluations: number of evaluations after which learning stops
    """

    def __init__(self, env: VecEnv, episodes: int, evaluations: int) -> None:
        super().__init__()
        self.env, self.episodes, self.evaluations = env, episodes, evaluations
        self.returns: list[float] = []

    def _on_rollout_start(self) -> None:
        mean, _ = evaluate_policy(self.model, self.env, self.episodes)
        self.returns.append(float(np.mean(mean)))

    def _on_step(self) -> bool:
        return len(self.returns) < self.evaluations


def plot(args: Args, returns: dict[str, NDArray[np.float64]]) -> None:
    """Plot the mean and the range of the seeds against updates."""
    with save_figure(args.out / "returns.png", (8, 4.5)) as figure:
        axes = figure.add_subplot()
        for way, values in returns.items():
            updates = np.arange(values.shape[1])
            axes.plot(updates, values.mean(axis=0), label=f"{way} ({len(values)} seeds)")
            axes.fill_between(updates, values.min(axis=0), values.max(axis=0), alpha=0.2, linewidth=0)
        axes.set(
            xlabel="updates of the policy", ylabel="return", title=f"{args.env}: PPO from a policy pretrained on a teacher"
        )
        axes.legend()


if __name__ == "__main__":
    run_command(main, Args, "benchmarks.finetune")

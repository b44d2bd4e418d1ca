"""Finds a language model that was pretrained earlier exactly as a new run would pretrain it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dhmm_rl.errors import InputError
from dhmm_rl.model import DHMMGPT2, load_checkpoint
from dhmm_rl.pretraining.settings import PretrainingSettings
from dhmm_rl.recipes import AgentRecipe, EnvRecipe
from dhmm_rl.runs.run import Run, pretraining_runs


def find_pretrained(root: Path, env: EnvRecipe, agent: AgentRecipe, seed: int, budget: int | None = None) -> Path | None:
    """
    Return the newest language model that was pretrained exactly as these recipes ask for, or ``None``.

    :param root: folder of all runs
    :param env: recipe of the environment
    :param agent: recipe of the agent
    :param seed: seed of the run; a model that another run of PPO pretrained must have the same seed, a model of
        ``python -m dhmm_rl.pretrain`` may have any
    :param budget: environment steps of the run; those of the environment's recipe when ``None``
    """
    others = []
    for run in pretraining_runs(root, env):
        if run.command == "ppo" and (run.args.get("pretrained") != "new" or run.seed != seed):
            continue
        run_budget = budget if run.command == "ppo" else None
        required = _inputs(env, agent, PretrainingSettings.from_recipes(env, agent, budget=run_budget))
        try:
            different = _differences(run, required, agent)
        except (InputError, TypeError):  # written by another version, or damaged
            continue
        if not different:
            return run.language_model
        others.append(f"{run.language_model} (other {', '.join(different)})")
    if others:
        print(f"note: not started from {others[0]}, which was pretrained differently; --pretrained PATH would start from it")
    return None


def _differences(run: Run, required: dict[str, Any], agent: AgentRecipe) -> list[str]:
    """
    Return the names of everything in which a run's language model differs from the required one.

    :raises InputError: when the run or its model cannot be read
    :raises TypeError: when the run holds settings of another version
    """
    inputs = _inputs(run.env, run.agent, PretrainingSettings.from_run(run))
    checkpoint = load_checkpoint(run.language_model)
    different = [name for name, value in required.items() if inputs[name] != value]
    if different:
        return different
    if checkpoint.tokenizer is None:
        return ["tokens"]
    config = DHMMGPT2.from_tokenizer(checkpoint.tokenizer, **agent.model).config
    return [] if config == checkpoint.model.config else ["version"]


def _inputs(env: EnvRecipe, agent: AgentRecipe, settings: PretrainingSettings) -> dict[str, Any]:
    """Return everything that a pretrained model depends on, by name, in the form that JSON gives back."""
    inputs = {
        "environment": [env.id, env.kwargs, env.wrappers],
        "tokens": env.tokens,
        "model": agent.model,
        "data": settings.data,
        "top": settings.top_fraction,
        "episodes": settings.episodes,
        "random steps": settings.max_random_steps,
        "field weights": settings.field_weights,
        "training": asdict(settings.training),
        "time limit": settings.max_seconds,
    }
    as_json: dict[str, Any] = json.loads(json.dumps(inputs))
    return as_json

"""What a language model is pretrained on, and how: the agent's recipe with the changes of a command line."""

from dataclasses import dataclass, fields, replace
from typing import Any

from dhmm_rl.data.random_actions import RANDOM_STEPS
from dhmm_rl.errors import InputError
from dhmm_rl.pretraining.sources import RANDOM
from dhmm_rl.recipes import AgentRecipe, EnvRecipe
from dhmm_rl.recipes.schema import TrainingSettings
from dhmm_rl.runs.run import Run

DEFAULT_EPISODES = 200
OWN_KEYS = ("data", "episodes", "field_weights")
"""Keys of an agent recipe's ``pretrain`` table that are not fields of TrainingSettings."""
RANDOM_SHARE = 0.2
"""Largest fraction of an environment's budget that random rollouts take when no number of episodes is given."""


@dataclass(frozen=True)
class PretrainingSettings:
    """
    Everything that a pretrained language model depends on, except the environment, the model's shape and the seed.

    :param data: sources of rollouts, as :meth:`~dhmm_rl.pretraining.sources.Source.parse` reads them
    :param top_fraction: fraction of the episodes to imitate, those with the highest returns; all of them when ``None``
    :param episodes: number of episodes to collect from each source that does not set its own
    :param max_random_steps: largest number of environment steps of random rollouts; no limit when ``None``
    :param field_weights: weights of fields in the loss, by the field's name
    :param training: settings of the training
    :param max_seconds: time limit of the gradient steps; no limit when ``None``
    """

    data: list[str]
    top_fraction: float | None
    episodes: int
    max_random_steps: int | None
    field_weights: dict[str, float] | None
    training: TrainingSettings
    max_seconds: float | None

    @classmethod
    def from_recipes(
        cls, env: EnvRecipe, agent: AgentRecipe, args: dict[str, Any] | None = None, budget: int | None = None
    ) -> "PretrainingSettings":
        """
        Combine recipes and arguments.

        :param env: recipe of the environment
        :param agent: recipe of the agent
        :param args: arguments of a run of ``python -m dhmm_rl.pretrain``; the recipes decide when ``None``
        :param budget: environment steps of the run; those of the environment's recipe when ``None``
        :raises InputError: for an unknown key in the agent's recipe
        """
        args = args or {}
        episodes = args.get("episodes")
        return cls(
            data=args.get("data") or agent.pretrain.get("data", [RANDOM]),
            top_fraction=args.get("top"),
            episodes=agent.pretrain.get("episodes", DEFAULT_EPISODES) if episodes is None else episodes,
            max_random_steps=max_random_steps(env, budget) if episodes is None else None,
            field_weights=agent.pretrain.get("field_weights"),
            training=training_settings(agent, **args.get("changes", {})),
            max_seconds=args.get("max_seconds"),
        )

    @classmethod
    def from_run(cls, run: Run) -> "PretrainingSettings":
        """
        Combine the recipes and the arguments of a run of ``dhmm_rl.pretrain`` or ``dhmm_rl.ppo``.

        :raises InputError: for an unknown key in the agent's recipe
        """
        if run.command == "ppo":
            return cls.from_recipes(run.env, run.agent, budget=run.args.get("steps"))
        return cls.from_recipes(run.env, run.agent, run.args)


def wants_pretraining(agent: AgentRecipe) -> bool:
    """
    Return whether the agent's recipe asks for pretraining before PPO: it names data, or a number of episodes.

    The default data, random rollouts, do not pay by themselves: on CartPole, PPO needs more steps with them than without.
    """
    return bool(agent.pretrain) and agent.pretrain.get("episodes", DEFAULT_EPISODES if "data" in agent.pretrain else 0) > 0


def max_random_steps(env: EnvRecipe, budget: int | None = None) -> int:
    """Return the largest number of environment steps of random rollouts when no number of episodes is given."""
    return max(int(RANDOM_SHARE * (budget or env.budget)), RANDOM_STEPS)


def training_settings(agent: AgentRecipe, **changes: Any) -> TrainingSettings:
    """
    Return the training settings of the agent's recipe with changes from the command line.

    :raises InputError: for an unknown key in the recipe
    """
    known = {f.name for f in fields(TrainingSettings)}
    table = {key: value for key, value in agent.pretrain.items() if key not in OWN_KEYS}
    for name in table:
        if name not in known:
            names = ", ".join([*OWN_KEYS, *sorted(known)])
            raise InputError(f"the recipe {agent.name} has a key pretrain.{name}; known are {names}")
    return replace(TrainingSettings(**table), **changes)

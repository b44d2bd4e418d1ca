"""Time limits of environments, and the limits that evaluations set for environments without one."""

import inspect
import math

import gymnasium as gym

from dhmm_rl.errors import InputError
from dhmm_rl.model import DHMMGPT2
from dhmm_rl.recipes import AgentRecipe, EnvRecipe

LONGEST_EVAL_EPISODE = 10_000
"""Default number of steps after which an evaluation ends an episode of an environment without a time limit."""
ENDLESS = 1_000
"""Number of steps after which an episode of such an environment is reported as one that does not end."""


def time_limit(env: EnvRecipe) -> int | None:
    """
    Return the time limit that Gymnasium or a wrapper gives an environment, in steps, or ``None``.

    An environment can also have a limit of its own that Gymnasium does not know.
    """
    spec = gym.registry.get(env.id.rpartition(":")[2])
    limits = [env.kwargs.get("max_episode_steps"), getattr(spec, "max_episode_steps", None)]
    limits += [kwargs.get("max_episode_steps") for kwargs in env.wrappers.values()]
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)


def check_positions(agent: AgentRecipe, env: EnvRecipe) -> None:
    """
    Check that learned positions suffice for a whole episode, so that training does not fail in the middle of one.

    :raises InputError: when the environment's time limit exceeds the model's ``max_len``
    """
    limit = time_limit(env)
    if limit is None or not agent.reads_tokens or agent.model.get("positions", "rotary") == "rotary":
        return
    max_len = agent.model.get("max_len", inspect.signature(DHMMGPT2).parameters["max_len"].default)
    if limit >= max_len:
        raise InputError(
            f"episodes of {env.name} may have {limit} steps, but the learned positions of {agent.name} end at max_len "
            f"{max_len}: set max_len to at least {limit + 1}, or use rotary positions"
        )


def eval_limit(env: EnvRecipe, longest: int = 0, ended: int = 0, affordable: float = math.inf) -> int | None:
    """
    Return the number of steps after which an evaluation ends an episode; ``None`` for an environment with a time limit.

    The limit is far above the longest episode of the training, because the environment can have a limit of its own that
    Gymnasium does not know.

    :param env: recipe of the environment
    :param longest: length of the longest episode in training, whether or not it ended; 0 when unknown
    :param ended: length of the longest episode in training that ended
    :param affordable: number of steps that fit in the time of the evaluation
    """
    if time_limit(env) is not None:
        return None
    most = max(longest, min(4 * longest, LONGEST_EVAL_EPISODE)) if longest else LONGEST_EVAL_EPISODE
    return int(max(ENDLESS, 2 * ended, min(most, affordable)))

"""Letting a policy act, and recording what happens."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from dhmm_rl.data.episodes import Episode
from dhmm_rl.data.packing import ARRAY_SPACES, pack
from dhmm_rl.data.random_actions import action_masks_of, random_policy
from dhmm_rl.data.rollouts import Rollouts
from dhmm_rl.errors import InputError
from dhmm_rl.plain import plain_scalars
from dhmm_rl.tokens.action_masks import choices_per_field

Actions = NDArray[Any]

NO_LAST_OBSERVATION = (
    "the vector environment does not tell the last observation of an episode (infos have no terminal_observation), so the one "
    "before it is recorded in its place"
)


@runtime_checkable
class SupportsPredict(Protocol):
    """What SB3's algorithms and policies have in common."""

    def predict(
        self,
        observation: Any,
        state: tuple[Actions, ...] | None = None,
        episode_start: Actions | None = None,
        deterministic: bool = False,
    ) -> tuple[Actions, tuple[Actions, ...] | None]:
        """Actions for a batch of observations; ``action_masks`` is handed over if it is one more keyword."""
        ...


Policy = SupportsPredict | Callable[[NDArray[Any]], Actions]


@plain_scalars
def collect(
    env: VecEnv,
    policy: Policy | None = None,
    *,
    episodes: int,
    imitate: bool,
    max_steps: int | None = None,
    env_id: str = "",
    seed: int = 0,
    deterministic: bool = False,
    progress: bool = False,
) -> Rollouts:
    """
    Record whole episodes.

    Every environment contributes its share of the episodes, decided beforehand: taking whichever end first would favor
    short ones.

    :param env: the environments, whose spaces the rollouts will have
    :param policy: an SB3 algorithm or policy, or a function from observations (N, ...) to actions (N, ...); acts at random
        when ``None``
    :param episodes: how many
    :param imitate: whether the policy's actions are worth imitating
    :param max_steps: environment steps of all environments together after which recording ends; the episodes that are
        running then are kept as cut off
    :param env_id: the name to record
    :param seed: of the environments and of random actions
    :param deterministic: take an SB3 policy's likeliest action
    :param progress: show a bar
    :raises InputError: for a number of episodes or steps that is not positive, for actions that are no arrays, and for action
        masks that cannot be read or forbid everything
    """
    if not isinstance(env.action_space, ARRAY_SPACES):
        raise InputError(
            f"actions of {env_id} are a {type(env.action_space).__name__}; those of a vector environment are arrays: turn them "
            "into a Box, Discrete, MultiDiscrete or MultiBinary with gymnasium.wrappers.TransformAction"
        )
    for name, number in (("episodes", episodes), ("max_steps", max_steps)):
        if number is not None and number < 1:
            raise InputError(f"{name} is {number}; it must be at least 1")
    act = _actor(env, policy, seed, deterministic)
    quotas = [(episodes + i) // env.num_envs for i in range(env.num_envs)]
    env.seed(seed)
    observations: Any = env.reset()
    running = [_Recording(row) for row in pack(env.observation_space, observations)]
    finished: list[list[Episode]] = [[] for _ in range(env.num_envs)]
    starts = np.ones(env.num_envs, dtype=bool)
    env_steps, last = 0, float("inf") if max_steps is None else max_steps
    with tqdm(total=episodes, desc="collecting", unit="episode", disable=None if progress else True) as bar:
        while env_steps < last and any(len(done) < quota for done, quota in zip(finished, quotas, strict=True)):
            actions = act(observations, starts)
            observations, rewards, starts, infos = env.step(actions)
            env_steps += env.num_envs
            rows = pack(env.observation_space, observations)
            for i, recording in enumerate(running):
                row = rows[i]
                if starts[i]:
                    last_observation = infos[i].get("terminal_observation")
                    if last_observation is None:
                        warnings.warn(NO_LAST_OBSERVATION, stacklevel=2)
                        row = recording.observations[-1]
                    else:
                        row = pack(env.observation_space, last_observation)
                recording.add(actions[i], row, float(rewards[i]))
                if starts[i]:
                    if len(finished[i]) < quotas[i]:
                        finished[i].append(recording.end(not infos[i].get("TimeLimit.truncated", False), imitate))
                        bar.update()
                    running[i] = _Recording(rows[i])
    for done, quota, recording in zip(finished, quotas, running, strict=True):
        if len(done) < quota and recording.actions:
            done.append(recording.end(False, imitate))
    recorded = [episode for done in finished for episode in done]
    return Rollouts.from_episodes(recorded, env.observation_space, env.action_space, env_id, env_steps)


class _Recording:
    """An episode being recorded."""

    def __init__(self, observation: NDArray[Any]) -> None:
        self.observations = [observation]
        self.actions: list[Any] = []
        self.rewards: list[float] = []

    def add(self, action: Any, observation: NDArray[Any], reward: float) -> None:
        self.actions.append(action)
        self.observations.append(observation)
        self.rewards.append(reward)

    def end(self, terminated: bool, imitate: bool) -> Episode:
        return Episode(np.stack(self.observations), np.stack(self.actions), np.array(self.rewards), terminated, imitate)


def _actor(
    env: VecEnv, policy: Policy | None, seed: int, deterministic: bool
) -> Callable[[NDArray[Any], NDArray[np.bool_]], Actions]:
    """One way to ask for actions, whatever the policy is."""
    if policy is None:
        env.action_space.seed(seed)
        draw = random_policy(env)
        return lambda observations, starts: draw()
    if not isinstance(policy, SupportsPredict):
        return lambda observations, starts: np.asarray(policy(observations))
    memory: tuple[Actions, ...] | None = None
    predict: Any = policy.predict
    masked = is_masking_supported(env) and "action_masks" in inspect.signature(predict).parameters
    choices = choices_per_field(env.action_space)

    def act(observations: NDArray[Any], starts: NDArray[np.bool_]) -> Actions:
        nonlocal memory
        actions: Actions
        masks = {"action_masks": action_masks_of(env, choices)} if masked else {}
        actions, memory = predict(observations, state=memory, episode_start=starts, deterministic=deterministic, **masks)
        if isinstance(env.action_space, spaces.Box):
            actions = np.clip(actions, env.action_space.low, env.action_space.high)
        return actions

    return act

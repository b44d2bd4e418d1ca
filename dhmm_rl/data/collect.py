"""
Recording the episodes of a policy.

Shapes: N environments.
"""

import inspect
import warnings
from collections.abc import Callable, Sequence
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
    "the vector environment does not report the last observation of an episode (infos have no terminal_observation), so the "
    "one before it is recorded in its place"
)


@runtime_checkable
class SupportsPredict(Protocol):
    """The method that SB3's algorithms and policies have in common."""

    def predict(
        self,
        observation: Any,
        state: tuple[Actions, ...] | None = None,
        episode_start: Actions | None = None,
        deterministic: bool = False,
    ) -> tuple[Actions, tuple[Actions, ...] | None]:
        """Return actions for a batch of observations. If it has a keyword ``action_masks``, masks are passed too."""
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

    The number of episodes that each environment contributes is decided beforehand. Taking the first episodes that end, from
    any environment, would favor short ones.

    :param env: environments to act in
    :param policy: an SB3 algorithm or policy, or a function from observations (N, ...) to actions (N, ...); actions are random
        when ``None``
    :param episodes: number of episodes to record
    :param imitate: whether the policy's actions are worth imitating
    :param max_steps: number of environment steps, over all environments, after which recording ends; unfinished episodes are
        then recorded as cut off
    :param env_id: name of the environment, which the rollouts carry
    :param seed: seed of the environments and of random actions
    :param deterministic: whether an SB3 policy takes its most likely action
    :param progress: whether to show a progress bar
    :return: the recorded episodes, in the order of the environments
    :raises InputError: for a number of episodes or steps that is not positive, for an action space that vector environments
        cannot hold, and for action masks that cannot be read or forbid every action
    """
    _check_arguments(env, env_id, episodes, max_steps)
    act = _make_actor(env, policy, seed, deterministic)
    quotas = [(episodes + i) // env.num_envs for i in range(env.num_envs)]
    env.seed(seed)
    recorder = _Recorder(env, quotas, imitate)
    env_steps = 0
    with tqdm(total=episodes, desc="collecting", unit="episode", disable=None if progress else True) as bar:
        while not recorder.complete and (max_steps is None or env_steps < max_steps):
            actions = act(recorder.observations, recorder.episode_starts)
            finished = recorder.step(actions)
            env_steps += env.num_envs
            bar.update(finished)
    recorder.cut_off()
    return Rollouts.from_episodes(recorder.episodes, env.observation_space, env.action_space, env_id, env_steps)


class _Recorder:
    """
    Steps environments and records an equal share of episodes from each.

    :param env: the environments, which are reset
    :param quotas: number of episodes to record from each environment, N of them
    :param imitate: whether the actions are worth imitating
    """

    def __init__(self, env: VecEnv, quotas: Sequence[int], imitate: bool) -> None:
        self.env, self.quotas, self.imitate = env, quotas, imitate
        self.observations: Any = env.reset()
        self.episode_starts = np.ones(env.num_envs, dtype=bool)
        self._running = [_Recording(row) for row in pack(env.observation_space, self.observations)]
        self._finished: list[list[Episode]] = [[] for _ in quotas]

    @property
    def complete(self) -> bool:
        """Whether every environment has contributed its share."""
        return all(len(finished) >= quota for finished, quota in zip(self._finished, self.quotas, strict=True))

    @property
    def episodes(self) -> list[Episode]:
        """The recorded episodes, in the order of the environments."""
        return [episode for finished in self._finished for episode in finished]

    def step(self, actions: Actions) -> int:
        """
        Step all environments once.

        :param actions: actions, (N, ...)
        :return: number of recorded episodes that ended in this step
        """
        self.observations, rewards, dones, infos = self.env.step(actions)
        self.episode_starts = dones
        rows = pack(self.env.observation_space, self.observations)
        ended = 0
        for i, recording in enumerate(self._running):
            # In the step that ends an episode, the observation is already the first one of the next episode.
            row = self._last_observation(recording, infos[i]) if dones[i] else rows[i]
            recording.add(actions[i], row, float(rewards[i]))
            if dones[i]:
                # Episodes beyond the quota of their environment are thrown away.
                if len(self._finished[i]) < self.quotas[i]:
                    terminated = not infos[i].get("TimeLimit.truncated", False)
                    self._finished[i].append(recording.to_episode(terminated, self.imitate))
                    ended += 1
                self._running[i] = _Recording(rows[i])
        return ended

    def cut_off(self) -> None:
        """Add the unfinished episodes of environments that have not contributed their share, as cut off."""
        for finished, quota, recording in zip(self._finished, self.quotas, self._running, strict=True):
            if len(finished) < quota and recording.actions:
                finished.append(recording.to_episode(False, self.imitate))

    def _last_observation(self, recording: "_Recording", info: dict[str, Any]) -> NDArray[Any]:
        observation = info.get("terminal_observation")
        if observation is None:
            warnings.warn(NO_LAST_OBSERVATION, stacklevel=5)
            return recording.observations[-1]
        return pack(self.env.observation_space, observation)


class _Recording:
    """
    One episode that is being recorded.

    :param observation: its first observation, packed
    """

    def __init__(self, observation: NDArray[Any]) -> None:
        self.observations = [observation]
        self.actions: list[Any] = []
        self.rewards: list[float] = []

    def add(self, action: Any, observation: NDArray[Any], reward: float) -> None:
        self.actions.append(action)
        self.observations.append(observation)
        self.rewards.append(reward)

    def to_episode(self, terminated: bool, imitate: bool) -> Episode:
        return Episode(np.stack(self.observations), np.stack(self.actions), np.array(self.rewards), terminated, imitate)


def _check_arguments(env: VecEnv, env_id: str, episodes: int, max_steps: int | None) -> None:
    """:raises InputError: for arguments of :func:`collect` that cannot be used"""
    if not isinstance(env.action_space, ARRAY_SPACES):
        raise InputError(
            f"actions of {env_id} are a {type(env.action_space).__name__}; those of a vector environment are arrays: turn them "
            "into a Box, Discrete, MultiDiscrete or MultiBinary with gymnasium.wrappers.TransformAction"
        )
    for name, number in (("episodes", episodes), ("max_steps", max_steps)):
        if number is not None and number < 1:
            raise InputError(f"{name} is {number}; it must be at least 1")


def _make_actor(
    env: VecEnv, policy: Policy | None, seed: int, deterministic: bool
) -> Callable[[NDArray[Any], NDArray[np.bool_]], Actions]:
    """Return a function from observations and episode starts to actions, whatever the policy is."""
    if policy is None:
        env.action_space.seed(seed)
        draw_actions = random_policy(env)
        return lambda observations, episode_starts: draw_actions()
    if not isinstance(policy, SupportsPredict):
        return lambda observations, episode_starts: np.asarray(policy(observations))
    state: tuple[Actions, ...] | None = None
    predict: Any = policy.predict
    masked = is_masking_supported(env) and "action_masks" in inspect.signature(predict).parameters
    choices = choices_per_field(env.action_space)

    def act(observations: NDArray[Any], episode_starts: NDArray[np.bool_]) -> Actions:
        nonlocal state
        masks = {"action_masks": action_masks_of(env, choices)} if masked else {}
        actions: Actions
        actions, state = predict(observations, state=state, episode_start=episode_starts, deterministic=deterministic, **masks)
        if isinstance(env.action_space, spaces.Box):
            actions = np.clip(actions, env.action_space.low, env.action_space.high)
        return actions

    return act

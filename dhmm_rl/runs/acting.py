"""
An actor that remembers: it takes raw observations, one at a time or of many environments, and carries its state itself.

Shapes: N environments, H steps of history, C slots, of which the first A are the action's; ``...`` the shape of an observation.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecFrameStack, unwrap_vec_wrapper

from dhmm_rl.common import SequenceOnPolicyAlgorithm
from dhmm_rl.envs import TokenSpace
from dhmm_rl.envs.wrappers.token_stream import ObservationEncoder
from dhmm_rl.errors import InputError
from dhmm_rl.files import read_json
from dhmm_rl.recipes.algorithms import ALGORITHMS, find_algorithm
from dhmm_rl.runs.evaluate import SAMPLED
from dhmm_rl.runs.run import Run
from dhmm_rl.runs.saved_agents import read_best
from dhmm_rl.tokens import PAD_ID, RESET, FieldSpace
from dhmm_rl.tokens.fields import flatten

NOT_BEGUN = (
    "the actor remembers nothing of this episode: say where it begins with acting.act(observation, reset=True), and keep the "
    "same actor until it ends"
)
FORGOTTEN = (
    "predict of an actor was called without a state, and not at the beginning of an episode; call: action, state = "
    "acting.predict(observation, state, episode_start), with episode_start true where an episode begins"
)
TRAINED = "the model was trained in the middle of an episode, so what the actor remembers is out of date; begin with reset=True"


class ActorState(NamedTuple):
    """
    What an actor remembers of N environments between two observations.

    :param inputs: last input of the model: the steps of a token stream (N, H, C), or stacked observations (N, ...)
    :param memory: state that the model's ``predict`` returned
    :param actions: the last actions, (N, ...)
    :param version: number of changes of the model's weights so far
    """

    inputs: Any
    memory: Any
    actions: NDArray[Any]
    version: int


class Acting:
    """
    An actor that takes raw observations, makes tokens or stacks of them, and carries the state from step to step.

    :meth:`act` is for loops of your own, :meth:`predict` for SB3's functions, such as ``evaluate_policy(acting, env)`` with
    environments that have none of the agent's wrappers. Wherever it would have to act without its memory, it raises an error.

    :param model: a trained model of any algorithm that a recipe can name, of SB3 on token streams, or the folder of a run
    :param deterministic: take the likeliest actions instead of sampling them. Default: what did better at the end of the run;
        true for a model
    :param device: device for the agent of a run
    :param trust: also read agents of older runs, see ``python -m dhmm_rl.play --help``
    :raises InputError: for a folder without an agent, and for a model that needs more than one observation at a time
    """

    def __init__(self, model: Any, *, deterministic: bool | None = None, device: str = "cpu", trust: bool = False) -> None:
        frames, statistics = 1, None
        self._normalize: Callable[[Any], Any] | None = None
        if isinstance(model, str | Path):
            run = Run.open(model, trust)
            saved = read_best(run.folder, device, trust)
            model, frames = saved.build(run.agent), run.agent.frame_stack
            statistics = (saved.statistics() or {}).get("obs_rms")
            if deterministic is None:
                deterministic = (read_json(run.result) if run.result.is_file() else {}).get("best_actions") != SAMPLED
        if not isinstance(model, BaseAlgorithm):
            raise InputError(f"an actor needs a trained model or the folder of a run, not {type(model).__name__}")
        self.model, self.deterministic = model, True if deterministic is None else deterministic
        env = model.get_env()
        normalize = model.get_vec_normalize_env()
        if statistics is not None:
            self._normalize = _normalization(statistics)
        elif normalize is not None and normalize.norm_obs:
            self._normalize = normalize.normalize_obs
        stack = None if env is None else unwrap_vec_wrapper(env, VecFrameStack)
        frames = frames if stack is None else stack.stacked_obs.n_stack
        space = model.observation_space
        self._reader = _TokenReader(space) if isinstance(space, TokenSpace) else _ArrayReader(space, frames)
        algorithm = find_algorithm(model)
        self._takes_masks = algorithm is not None and ALGORITHMS[algorithm].takes_masks
        self._requires_masks = self._takes_masks and (
            getattr(model, "masked", False) or ALGORITHMS[algorithm or ""].requires_masks
        )
        self._state: ActorState | None = None

    @property
    def state(self) -> ActorState | None:
        """What the actor remembers; ``None`` before the first episode. The belief is ``state.memory.belief``."""
        return self._state

    def act(
        self,
        observation: Any,
        masks: ArrayLike | None = None,
        reset: bool | ArrayLike = False,
        deterministic: bool | None = None,
    ) -> Any:
        """
        Choose the next action, or the next actions of N environments.

        :param observation: raw observation of one environment, or those of N environments as Gymnasium's and SB3's vector
            environments return them
        :param masks: legal choices, (all choices) or (N, all choices)
        :param reset: whether the observation is the first of an episode, for all environments or for each of them (N,)
        :param deterministic: take the likeliest action; by default as the actor was made
        :return: an action, or actions (N, ...)
        :raises InputError: if no episode has begun, if the number of environments changes in the middle of an episode, without
            the masks that the agent was trained with, for an observation of another space, and if the model was trained since
        """
        chosen = self.deterministic if deterministic is None else deterministic
        actions, self._state = self._step(observation, self._state, reset, chosen, masks, NOT_BEGUN)
        return actions

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: ArrayLike | None = None,
        deterministic: bool | NDArray[np.bool_] = False,
        action_masks: ArrayLike | None = None,
    ) -> tuple[Any, Any]:
        """
        :meth:`act` with the state as an argument and a result, as SB3's ``evaluate_policy`` calls it.

        :param observation: raw observations, as in :meth:`act`
        :param state: state that the last call returned; ``None`` where all episodes begin
        :param episode_start: whether an episode begins, (N,)
        :param deterministic: take the likeliest action instead of sampling one
        :param action_masks: legal choices, (N, all choices)
        :return: actions, and the state for the next call
        :raises InputError: as :meth:`act`; also without a state where ``episode_start`` does not say that all episodes begin
        """
        starts = False if episode_start is None else episode_start
        return self._step(observation, state, starts, deterministic, action_masks, FORGOTTEN)

    def _step(
        self,
        observation: Any,
        state: ActorState | None,
        reset: bool | ArrayLike,
        deterministic: bool | NDArray[np.bool_],
        masks: ArrayLike | None,
        forgotten: str,
    ) -> tuple[Any, ActorState]:
        """Choose actions for raw observations; ``forgotten`` says what is wrong without a state in mid-episode."""
        rows, single = self._reader.read(observation)
        starts = _starts(reset, len(rows))
        if state is None and not starts.all():
            raise InputError(forgotten)
        if masks is not None and single:
            masks = np.asarray(masks)[None]
        actions, state = self._choose(rows, None if starts.all() else state, starts, masks, deterministic)
        return (actions[0] if single else actions), state

    def _choose(
        self,
        rows: NDArray[Any],
        state: ActorState | None,
        starts: NDArray[np.bool_],
        masks: ArrayLike | None,
        deterministic: bool | NDArray[np.bool_],
    ) -> tuple[NDArray[Any], ActorState]:
        """Choose actions for observations (N, ...) that were read; ``state`` is ``None`` where all episodes begin."""
        # The weights count their changes.
        version = sum(parameter._version for parameter in self.model.policy.parameters())
        if state is not None:
            if len(state.actions) != len(rows):
                raise InputError(
                    f"the actor remembers {len(state.actions)} environments and was given observations of {len(rows)}; begin "
                    "all episodes again with reset=True, or use one actor for each group of environments"
                )
            if state.version != version:
                raise InputError(TRAINED)
        inputs = self._reader.extend(rows, state, starts)
        given: dict[str, Any] = {}
        if self._takes_masks:
            if masks is None and self._requires_masks:
                raise InputError("the agent was trained with action masks and would act without them; pass masks=…")
            given["action_masks"] = masks
        elif masks is not None:
            raise InputError(f"{type(self.model).__name__} cannot obey action masks; leave them out, or train a SequencePPO")
        if isinstance(self.model, SequenceOnPolicyAlgorithm | RecurrentPPO):
            given |= {"state": None if state is None else state.memory, "episode_start": starts}
        shown = inputs if self._normalize is None else self._normalize(inputs)
        actions, memory = self.model.predict(shown, deterministic=deterministic, **given)  # type: ignore[arg-type]
        return actions, ActorState(inputs, memory, actions, version)


class _TokenReader:
    """Reads raw observations as the steps of token streams, as :class:`VecTokenStream` does."""

    def __init__(self, space: TokenSpace) -> None:
        self.tokenizer, self.shape = space.tokenizer, space.shape
        self._encode = ObservationEncoder(self.tokenizer)

    def read(self, observation: Any) -> tuple[NDArray[Any], bool]:
        """Return the ids of the observations, (N, C - A), and whether there was a single environment."""
        space = self.tokenizer.observation_space
        if isinstance(space, FieldSpace) and np.shape(observation)[-1:] != space.shape:
            observation = flatten(space.space, observation)  # as FlattenFields does
        ids = self._encode(observation)
        if ids.ndim > 2:
            raise InputError(f"an observation has {ids.ndim - 2} dimensions too many for {self.tokenizer.observation_space}")
        return np.atleast_2d(ids), ids.ndim == 1

    def extend(self, rows: NDArray[Any], state: ActorState | None, starts: NDArray[np.bool_]) -> NDArray[Any]:
        """Return the last steps of the streams, (N, H, C), to which one step was added."""
        slots = self.tokenizer.action_slots
        window = np.full((len(rows), *self.shape), PAD_ID)
        window[:, -1, :slots] = RESET
        if state is not None:
            window[~starts, :-1] = state.inputs[~starts, 1:]
            window[~starts, -1, :slots] = self.tokenizer.encode_action(state.actions[~starts])
        window[:, -1, slots:] = rows
        return window


class _ArrayReader:
    """Reads raw observations as arrays, and stacks the last ones for agents that were trained so."""

    def __init__(self, space: spaces.Space[Any], frames: int) -> None:
        self.space, self.frames, shape = space, frames, space.shape
        if shape is None or (frames > 1 and len(shape) != 1):
            raise InputError(f"an actor needs observations that are one array, stacked in one dimension, not {space}")
        self.shape = (shape[0] // frames,) if frames > 1 else shape

    def read(self, observation: Any) -> tuple[NDArray[Any], bool]:
        """Return the observations, (N, ...), and whether there was a single environment."""
        array = np.asarray(observation)
        single = array.ndim == len(self.shape)
        rows = array[None] if single else array
        if rows.shape[1:] != self.shape and not (is_image_space(self.space) and rows.ndim == 4):  # SB3 transposes images
            raise InputError(f"an observation has the shape {array.shape}; the agent was trained on {self.shape}")
        return rows, single

    def extend(self, rows: NDArray[Any], state: ActorState | None, starts: NDArray[np.bool_]) -> NDArray[Any]:
        """Return the last observations, (N, ...), to which one was added; zeros stand for those before the episode."""
        if self.frames == 1:
            return rows
        earlier = np.zeros((len(rows), (self.frames - 1) * self.shape[0]), dtype=rows.dtype)
        if state is not None:
            earlier[~starts] = state.inputs[~starts, self.shape[0] :]
        return np.concatenate([earlier, rows], axis=1)


def _starts(reset: bool | ArrayLike, count: int) -> NDArray[np.bool_]:
    """Where episodes begin, (N,)."""
    starts = np.asarray(reset)
    if starts.dtype != np.bool_ and not np.isin(starts, (0, 1)).all():
        raise InputError(f"reset is {reset!r}; it must be true or false, for all environments or for each of them")
    if starts.shape not in ((), (count,)):
        raise InputError(f"reset has shape {starts.shape}; it must be one boolean, or one for each of {count} environments")
    return np.broadcast_to(starts.astype(np.bool_), count)


def _normalization(statistics: RunningMeanStd) -> Callable[[Any], Any]:
    """Return the function that normalizes observations as ``VecNormalize`` does with its default settings."""
    mean, scale = statistics.mean, np.sqrt(statistics.var + 1e-8)
    return lambda observation: np.clip((observation - mean) / scale, -10, 10).astype(np.float32)

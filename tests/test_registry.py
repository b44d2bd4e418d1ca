"""Every registered Gymnasium environment as a token stream."""

import importlib
from contextlib import suppress
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from dhmm_rl.envs import FlattenFields, VecTokenStream, flatten_if_needed
from dhmm_rl.errors import InputError
from dhmm_rl.tokens import PAD_ID, RESET, Tokenizer
from dhmm_rl.tokens.fields import flatten, unflatten
from tests.conftest import within_one_bin

for _module in ("minigrid", "popgym"):
    with suppress(ImportError):
        importlib.import_module(_module)

FREE_TEXT = 300
"""Characters of the longest mission of BabyAI that is met here."""
FEW = (
    "Acrobot-v1",
    "Blackjack-v1",
    "CliffWalking-v1",
    "LunarLanderContinuous-v3",
    "MiniGrid-DoorKey-5x5-v0",
    "BabyAI-GoToObjS4-v0",
    "Ant-v5",
    "popgym-AutoencodeEasy-v0",
    "popgym-ConcentrationEasy-v0",
    "popgym-BattleshipEasy-v0",
    "dhmm_rl/Tiger-v0",
)


class Recorder(VecEnvWrapper):
    """Records the field values of all observations."""

    def __init__(self, venv: DummyVecEnv) -> None:
        super().__init__(venv)
        self.seen: list[NDArray[Any]] = []

    def reset(self) -> VecEnvObs:
        """Record the observations of the environments."""
        observations = self.venv.reset()
        self.seen.append(flatten(self.observation_space, observations))
        return observations

    def step_wait(self) -> VecEnvStepReturn:
        """Record the observations of the environments."""
        result = self.venv.step_wait()
        self.seen.append(flatten(self.observation_space, result[0]))
        return result


def make(env_id: str) -> gym.Env[Any, Any]:
    """Make an environment that SB3's vector environments can hold."""
    env = gym.make(env_id, disable_env_checker=True)
    try:
        return flatten_if_needed(env)
    except InputError:
        return FlattenFields(env, size=FREE_TEXT)


def stream_through(env_id: str, steps: int) -> None:
    """Step two environments at random. Ids must be in range and decode to the observations."""
    try:
        venv = Recorder(DummyVecEnv([lambda: make(env_id)] * 2))
        venv.reset()
    except (gym.error.Error, ImportError, FileNotFoundError) as error:  # MiniGrid's wheel lacks the patterns of its WFC levels
        pytest.skip(f"{env_id} cannot be made: {str(error).splitlines()[0]}")
    tokenizer = Tokenizer(venv.observation_space, venv.action_space)
    if set(tokenizer.unfitted) & {leaf.name for leaf in tokenizer.observation_leaves if leaf.image}:
        tokenizer = tokenizer.fit(unflatten(venv.observation_space, venv.seen[0]))
    venv.seen.clear()
    stream = VecTokenStream(venv, tokenizer, history=2)
    starts, stops = np.array([(slot.start, slot.stop) for slot in tokenizer.slots]).T
    venv.action_space.seed(0)
    stream.seed(0)
    windows = [np.asarray(stream.reset())]
    for _ in range(steps):
        windows.append(np.asarray(stream.step(np.array([venv.action_space.sample() for _ in range(2)]))[0]))
    stream.close()
    steps_seen = np.stack(windows)[:, :, -1]
    observed = steps_seen[..., tokenizer.action_slots :]
    first = steps_seen[..., : tokenizer.action_slots] == RESET
    assert (first | ((steps_seen >= starts) & (steps_seen < stops))[..., : tokenizer.action_slots]).all()
    assert ((observed >= starts[tokenizer.action_slots :]) & (observed < stops[tokenizer.action_slots :])).all()
    assert (np.stack(windows) >= PAD_ID).all()
    values = np.stack(venv.seen)
    np.testing.assert_array_equal(observed, tokenizer.observation_codec.encode(values))
    within_one_bin(tokenizer, values)


@pytest.mark.filterwarnings("ignore")  # of versions that are out of date, and of environments that break their own bounds
@pytest.mark.parametrize("env_id", FEW)
def test_environments_of_every_family_become_streams(env_id: str) -> None:
    if env_id not in gym.registry:
        pytest.skip(f"{env_id} is not installed")
    stream_through(env_id, 100)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("env_id", sorted(gym.registry))
def test_every_environment_becomes_a_stream(env_id: str) -> None:
    stream_through(env_id, 1000)

"""An environment with a fault of any kind. The module imports little, because worker processes import it."""

import math
import os
import signal
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Faulty(gym.Env[Any, Any]):
    """
    Episodes of 5 steps, one of which has a fault.

    :param fault: kind of the fault; none if empty
    :param episode: number of the episode with the fault
    """

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - as in Gymnasium

    def __init__(self, fault: str = "", episode: int = 1, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.fault, self.episode, self.episodes, self.t = fault, episode, 0, 0
        if fault == "raises in its constructor":
            self.break_down()
        if fault == "raises in action_masks":
            self.action_masks = self.break_down

    def break_down(self) -> Any:
        raise ZeroDivisionError("the engine is out of oil")

    def render(self) -> Any:
        match self.fault:
            case "raises in render":
                self.break_down()
            case "no picture":
                return None
            case "a picture of floats":
                return np.zeros((32, 32, 3))
        return np.zeros((32, 32, 3), dtype=np.uint8)

    def fails(self) -> bool:
        return self.episodes == self.episode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.episodes, self.t = self.episodes + 1, 0
        if self.fails():
            if self.fault == "raises in reset":
                self.break_down()
            if self.fault == "no info of reset":
                return self.observation_space.sample()
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        values: list[Any] = [self.observation_space.sample(), 1.0, self.t == 5, False, {}]
        if self.fails() and self.t == 3:
            match self.fault:
                case "raises in step":
                    self.break_down()
                case "is killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "four values":
                    del values[3]
                case "no reward":
                    values[1] = None
                case "a text for a reward":
                    values[1] = "1.0"
                case "an array for a reward":
                    values[1] = np.ones(2)
                case "a reward of NaN":
                    values[1] = math.nan
                case "an observation of NaN":
                    values[0] = np.full(2, np.nan, dtype=np.float32)
                case "no end":
                    values[2] = None
                case "no info":
                    values[4] = None
        return tuple(values)


gym.register("Faulty-v0", "tests.faulty_env:Faulty")
gym.register("FaultyLimited-v0", "tests.faulty_env:Faulty", max_episode_steps=10)

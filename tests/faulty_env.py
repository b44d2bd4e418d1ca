"""An environment with a fault of any kind, in a module that starts fast: processes of their own import it."""

import os
import signal
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Faulty(gym.Env[Any, Any]):
    """
    Episodes of 5 steps, in one of which something is wrong.

    :param fault: what
    :param episode: in which episode
    """

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, fault: str = "", episode: int = 1) -> None:
        self.fault, self.episode, self.episodes, self.t = fault, episode, 0, 0
        if fault == "raises in its constructor":
            self.break_down()
        if fault == "raises in action_masks":
            self.action_masks = self.break_down

    def break_down(self) -> Any:
        raise ZeroDivisionError("the engine is out of oil")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.episodes, self.t = self.episodes + 1, 0
        if self.episodes == self.episode:
            if self.fault == "raises in reset":
                self.break_down()
            if self.fault == "no info of reset":
                return self.observation_space.sample()
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        values: list[Any] = [self.observation_space.sample(), 1.0, self.t == 5, False, {}]
        if self.episodes == self.episode and self.t == 3:
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
                case "no end":
                    values[2] = None
                case "no info":
                    values[4] = None
        return tuple(values)


gym.register("Faulty-v0", "tests.faulty_env:Faulty")
gym.register("FaultyLimited-v0", "tests.faulty_env:Faulty", max_episode_steps=10)

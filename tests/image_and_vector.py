"""An environment with a small image and a vector as observations: move a red square onto the green one."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Observation = dict[str, NDArray[Any]]


class ImageAndVector(gym.Env[Any, Any]):
    """Observations are an image (32, 32, 3) and six numbers without bounds; an action moves a square on both axes."""

    observation_space = spaces.Dict(
        image=spaces.Box(0, 255, (32, 32, 3), np.uint8), vector=spaces.Box(-np.inf, np.inf, (6,), np.float32)
    )
    action_space = spaces.MultiDiscrete([3, 4])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Draw the background and both places."""
        super().reset(seed=seed)
        self.background = self.np_random.integers(0, 60, (32, 32, 3)).astype(np.uint8)
        self.place, self.goal = self.np_random.integers(0, 28, (2, 2))
        return self._observation(np.zeros(2)), {}

    def step(self, action: NDArray[np.int64]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move by -2, 0 or 2 rows and -2, -1, 1 or 2 columns."""
        move = np.array([(-2, 0, 2)[action[0]], (-2, -1, 1, 2)[action[1]]])
        self.place = np.clip(self.place + move, 0, 28)
        reached = bool(np.abs(self.place - self.goal).sum() < 4)
        return self._observation(move), 1.0 if reached else -0.01, reached, False, {}

    def _observation(self, move: NDArray[Any]) -> Observation:
        image = self.background.copy()
        for (y, x), color in ((self.place, (255, 40, 40)), (self.goal, (40, 255, 40))):
            image[y : y + 4, x : x + 4] = color
        vector = np.concatenate([self.place - self.goal, move, self.np_random.normal(size=2)])
        return {"image": image, "vector": vector.astype(np.float32)}


gym.register("ImageAndVector-v0", f"{__name__}:ImageAndVector", max_episode_steps=100)

"""A T-shaped maze: a cue at its beginning tells which way to turn at its end (Bakker 2001; Ni et al. 2023)."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

CUE_LEFT, CUE_RIGHT, CORRIDOR, JUNCTION = range(4)
FORWARD, TURN_LEFT, TURN_RIGHT = range(3)


class TMaze(gym.Env[np.int64, np.int64]):
    """
    A corridor with a cue at its beginning and a junction at its end.

    At the junction, turning to the side of the cue gives reward 1 and turning to the other side gives 0. Both end the episode.
    In the corridor only the action "forward" moves; any other action costs ``1 / corridor``. Without memory of the cue, the
    best mean return is 1/2. Episodes are truncated after twice as many steps as the shortest path has.

    :param corridor: number of steps from the cue to the junction
    """

    observation_space = spaces.Discrete(4)
    action_space = spaces.Discrete(3)

    def __init__(self, corridor: int = 16) -> None:
        self.corridor = corridor
        self.cue, self.place, self.steps = CUE_LEFT, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.int64, dict[str, Any]]:
        """Draw a cue and return to the beginning of the corridor."""
        super().reset(seed=seed)
        self.cue, self.place, self.steps = int(self.np_random.integers(2)), 0, 0
        return np.int64(self.cue), {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Move forward or turn."""
        self.steps += 1
        reward, terminated = 0.0, False
        if self.place < self.corridor:
            self.place += int(action == FORWARD)
            reward = 0.0 if action == FORWARD else -1 / self.corridor
        elif action != FORWARD:
            terminated = True
            reward = float((action == TURN_LEFT) == (self.cue == CUE_LEFT))
        truncated = not terminated and self.steps >= 2 * (self.corridor + 1)
        seen = self.cue if self.place == 0 else JUNCTION if self.place == self.corridor else CORRIDOR
        return np.int64(seen), reward, terminated, truncated, {}

"""Action masks that an environment hands out with its infos."""

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dhmm_rl.errors import InputError


class InfoActionMask(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """
    The ``info["action_mask"]`` of an environment such as Gymnasium's Taxi, as the ``action_masks()`` that agents ask for.

    :param env: with one flag for every action in each info, of ``reset`` and of ``step``
    :raises InputError: from ``reset`` and ``step`` when an info has no mask
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._mask: Any = np.ones(0, dtype=bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset, and keep the mask."""
        observation, info = super().reset(seed=seed, options=options)
        self._mask = self._found(info)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and keep the mask."""
        observation, reward, terminated, truncated, info = super().step(action)
        self._mask = self._found(info)
        return observation, reward, terminated, truncated, info

    def action_masks(self) -> NDArray[Any]:
        """Which actions are legal now, as the environment says it; whoever acts checks it."""
        mask: NDArray[Any] = self._mask
        return mask

    def _found(self, info: dict[str, Any]) -> Any:
        if "action_mask" not in info:
            raise InputError(f"infos of {self.env} hold no 'action_mask', where action masks should be")
        return info["action_mask"]

"""A wrapper for environments that put action masks into their infos."""

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dhmm_rl.errors import InputError


class InfoActionMask(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """
    Adds the method ``action_masks()`` to an environment that has masks in ``info["action_mask"]``, such as Gymnasium's Taxi.

    :param env: environment with one flag for every action in each info of ``reset`` and ``step``
    :raises InputError: from ``reset`` and ``step`` if an info has no mask
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._mask: Any = np.ones(0, dtype=bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and store the mask."""
        observation, info = super().reset(seed=seed, options=options)
        self._mask = self._read_mask(info)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment and store the mask."""
        observation, reward, terminated, truncated, info = super().step(action)
        self._mask = self._read_mask(info)
        return observation, reward, terminated, truncated, info

    def action_masks(self) -> NDArray[Any]:
        """Return the mask of the last info unchanged. Agents check it."""
        mask: NDArray[Any] = self._mask
        return mask

    def _read_mask(self, info: dict[str, Any]) -> Any:
        if "action_mask" not in info:
            raise InputError(f"infos of {self.env} have no 'action_mask'; InfoActionMask needs one in every info")
        return info["action_mask"]

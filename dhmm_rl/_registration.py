"""
Registration of this project's environments with Gymnasium.

Classes are named by strings, which Gymnasium imports when it makes the environment, so that this module needs neither torch
nor SB3.
"""

import multiprocessing

import gymnasium as gym
from gymnasium.envs.registration import WrapperSpec

VELOCITIES = {"CartPole-v1": (1, 3), "Pendulum-v1": (2,), "LunarLander-v3": (2, 3, 5)}
"""Indices of the velocities in the observations of these environments."""

# The thresholds, and the time limit of 200 steps, are those of openai/gym 0.18, gym/envs/__init__.py
TAPES = {
    "Copy-v0": ("Copy", {}, 25.0),
    "DuplicatedInput-v0": ("DuplicatedInput", {}, 9.0),
    "RepeatCopy-v0": ("RepeatCopy", {}, 75.0),
    "Reverse-v0": ("Reverse", {}, 25.0),
    "ReversedAddition-v0": ("ReversedAddition", {"rows": 2}, 25.0),
    "ReversedAddition3-v0": ("ReversedAddition", {"rows": 3}, 25.0),
}
"""Class, keywords and reward threshold of the tasks on tapes."""


def register_environments() -> None:
    """Register all environments of this project under ``dhmm_rl/``."""
    for env_id, velocities in VELOCITIES.items():
        name, version = env_id.split("-")
        spec = gym.spec(env_id)
        mask = WrapperSpec("MaskFields", "dhmm_rl.envs.wrappers.mask_fields:MaskFields", {"fields": velocities})
        gym.register(
            f"dhmm_rl/{name}NoVel-{version}",
            spec.entry_point,
            max_episode_steps=spec.max_episode_steps,
            kwargs=spec.kwargs,
            additional_wrappers=(mask,),
        )
    gym.register("dhmm_rl/Tiger-v0", "dhmm_rl.envs.tasks.tiger:Tiger", max_episode_steps=100)
    gym.register("dhmm_rl/TMaze-v0", "dhmm_rl.envs.tasks.t_maze:TMaze")
    gym.register("dhmm_rl/Sort-v0", "dhmm_rl.envs.tasks.sort:SortEnv")
    for name, (class_name, kwargs, threshold) in TAPES.items():
        gym.register(
            f"dhmm_rl/{name}",
            f"dhmm_rl.envs.tasks.tapes:{class_name}",
            max_episode_steps=200,
            reward_threshold=threshold,
            kwargs=kwargs,
        )


if "forkserver" in multiprocessing.get_all_start_methods():
    # Every process of a SubprocVecEnv starts as a copy of the server, which imports these modules once. So the process knows
    # the environments below, even if __main__ is a notebook, and does not import SB3 itself.
    multiprocessing.set_forkserver_preload(["__main__", "dhmm_rl", "dhmm_rl.envs"])

register_environments()

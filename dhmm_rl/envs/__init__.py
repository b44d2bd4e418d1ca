"""Environments as token streams, and the environments that this project registers with Gymnasium."""

import multiprocessing

import gymnasium as gym

from dhmm_rl.envs.tasks.sort import SortEnv
from dhmm_rl.envs.tasks.t_maze import TMaze
from dhmm_rl.envs.tasks.tapes import Copy, DuplicatedInput, RepeatCopy, Reverse, ReversedAddition, TapeTask
from dhmm_rl.envs.tasks.tiger import Tiger, tiger_beliefs, tiger_values
from dhmm_rl.envs.wrappers.faults import ReportFaults, ReportingSubprocVecEnv
from dhmm_rl.envs.wrappers.flatten import FlattenFields, flatten_if_needed, vec_env_supports
from dhmm_rl.envs.wrappers.gymnasium_vector import GymnasiumVecEnv, make_gymnasium_vec_env, reset_by_mask
from dhmm_rl.envs.wrappers.info_masks import InfoActionMask
from dhmm_rl.envs.wrappers.mask_fields import MaskFields
from dhmm_rl.envs.wrappers.token_stream import TokenSpace, TokenStream, VecTokenStream

__all__ = [
    "Copy",
    "DuplicatedInput",
    "FlattenFields",
    "GymnasiumVecEnv",
    "InfoActionMask",
    "MaskFields",
    "RepeatCopy",
    "ReportFaults",
    "ReportingSubprocVecEnv",
    "Reverse",
    "ReversedAddition",
    "SortEnv",
    "TMaze",
    "TapeTask",
    "Tiger",
    "TokenSpace",
    "TokenStream",
    "VecTokenStream",
    "flatten_if_needed",
    "make_gymnasium_vec_env",
    "reset_by_mask",
    "tiger_beliefs",
    "tiger_values",
    "vec_env_supports",
]

if "forkserver" in multiprocessing.get_all_start_methods():
    # Processes of a SubprocVecEnv then know the environments below, also those of a notebook, which import nothing themselves.
    multiprocessing.set_forkserver_preload(["__main__", "dhmm_rl"])

VELOCITIES = {"CartPole-v1": (1, 3), "Pendulum-v1": (2,), "LunarLander-v3": (2, 3, 5)}
"""Which entries of these environments' observations are velocities."""

for _id, _velocities in VELOCITIES.items():
    _name, _version = _id.split("-")
    _spec = gym.spec(_id)
    gym.register(
        f"dhmm_rl/{_name}NoVel-{_version}",
        _spec.entry_point,
        max_episode_steps=_spec.max_episode_steps,
        kwargs=_spec.kwargs,
        additional_wrappers=(MaskFields.wrapper_spec(fields=_velocities),),
    )
gym.register("dhmm_rl/Tiger-v0", "dhmm_rl.envs.tasks.tiger:Tiger", max_episode_steps=100)
gym.register("dhmm_rl/TMaze-v0", "dhmm_rl.envs.tasks.t_maze:TMaze")
gym.register("dhmm_rl/Sort-v0", "dhmm_rl.envs.tasks.sort:SortEnv")

# Thresholds and time limits as in openai/gym 0.18, gym/envs/__init__.py
for _name, _class, _kwargs, _threshold in (
    ("Copy", "Copy", {}, 25.0),
    ("DuplicatedInput", "DuplicatedInput", {}, 9.0),
    ("RepeatCopy", "RepeatCopy", {}, 75.0),
    ("Reverse", "Reverse", {}, 25.0),
    ("ReversedAddition", "ReversedAddition", {"rows": 2}, 25.0),
    ("ReversedAddition3", "ReversedAddition", {"rows": 3}, 25.0),
):
    gym.register(
        f"dhmm_rl/{_name}-v0",
        f"dhmm_rl.envs.tasks.tapes:{_class}",
        max_episode_steps=200,
        reward_threshold=_threshold,
        kwargs=_kwargs,
    )

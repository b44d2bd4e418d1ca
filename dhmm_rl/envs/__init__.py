"""Wrappers that turn environments into token streams, and the tasks that this project registers with Gymnasium."""

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

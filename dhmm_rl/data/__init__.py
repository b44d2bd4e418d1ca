"""Rollouts: collecting, reading and writing them, and the datasets that pretraining reads."""

from dhmm_rl.data.collect import collect
from dhmm_rl.data.datasets import Batch, MixedDataset, StreamDataset
from dhmm_rl.data.episodes import Episode
from dhmm_rl.data.minari_datasets import read_minari, write_minari
from dhmm_rl.data.random_actions import random_observations
from dhmm_rl.data.rollouts import Rollouts

__all__ = [
    "Batch",
    "Episode",
    "MixedDataset",
    "Rollouts",
    "StreamDataset",
    "collect",
    "random_observations",
    "read_minari",
    "write_minari",
]

"""
The folder format of rollouts: one NumPy array per file, a checksum of every episode, and a description in JSON.

Shapes: R rows of all episodes together, E episodes.
"""

import zlib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write, read_json, write_json

ARRAYS = ("observations", "actions", "rewards", "starts", "terminated", "imitate")
"""Names of the arrays of rollouts, which are the names of their files."""
DESCRIPTION = "rollouts.json"
CHECKSUMS = "checksums.npy"


def write_folder(path: str | Path, arrays: Mapping[str, NDArray[Any]], description: Mapping[str, Any]) -> None:
    """
    Write rollouts as a folder, all or nothing.

    :param path: folder to write
    :param arrays: the arrays named in :data:`ARRAYS`
    :param description: everything else, for JSON
    """
    with atomic_write(path) as folder:
        folder.mkdir()
        for name in ARRAYS:
            np.save(folder / f"{name}.npy", arrays[name])
        checksums = episode_checksums(arrays)
        np.save(folder / CHECKSUMS, checksums)
        write_json(folder / DESCRIPTION, {"format": 1, **description, "checksums": _crc32(checksums)})


def read_description(path: str | Path) -> dict[str, Any]:
    """
    Read the description of rollouts.

    :param path: folder that :func:`write_folder` wrote
    :raises InputError: for a folder without a description, and for a damaged one
    """
    description = Path(path) / DESCRIPTION
    if not description.is_file():
        raise InputError(f"{path} holds no rollouts (no {DESCRIPTION} in it); Rollouts.save writes such a folder")
    return read_json(description)


def read_arrays(path: str | Path) -> dict[str, NDArray[Any]]:
    """Map the arrays of a folder into memory, by name; any error of NumPy's may be raised."""
    return {name: np.load(Path(path) / f"{name}.npy", mmap_mode="r") for name in ARRAYS}


def read_checksums(path: str | Path, description: Mapping[str, Any]) -> NDArray[np.uint32] | None:
    """Read the checksums of the episodes; ``None`` for a folder of an older version, which has no checksums."""
    return np.load(Path(path) / CHECKSUMS) if "checksums" in description else None


def changed_episodes(
    path: str | Path,
    arrays: Mapping[str, NDArray[Any]],
    description: Mapping[str, Any],
    checksums: NDArray[np.uint32],
) -> list[int]:
    """
    Find the episodes that changed after they were written.

    :param path: the folder, for errors
    :param arrays: its arrays
    :param description: its description
    :param checksums: the checksums in it
    :return: indices of the episodes
    :raises InputError: for checksums that are damaged themselves
    """
    if _crc32(checksums) != description["checksums"] or len(checksums) != len(arrays["terminated"]):
        raise InputError(f"the rollouts in {path} are damaged: {CHECKSUMS} belongs to other rollouts")
    return np.flatnonzero(checksums != episode_checksums(arrays)).tolist()


def episode_checksums(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint32]:
    """
    Compute a CRC-32 for each episode, of its rows, its flags, and the types of its arrays.

    :param arrays: the arrays named in :data:`ARRAYS`
    :return: checksums, (E,)
    """
    rows = [np.asarray(arrays[name]) for name in ("observations", "actions", "rewards")]
    types = [(np.lib.format.dtype_to_descr(array.dtype), array.shape[1:]) for array in rows]
    flags = np.stack([arrays["terminated"].view(np.uint8), arrays["imitate"].view(np.uint8)], axis=1)
    checksums = np.empty(len(flags), np.uint32)
    for episode, (first, end) in enumerate(pairwise(arrays["starts"].tolist())):
        value = _crc32(flags[episode], zlib.crc32(repr(types).encode()))
        for array in rows:
            value = _crc32(array[first:end], value)
        checksums[episode] = value
    return checksums


def _crc32(array: NDArray[Any], value: int = 0) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data, value)

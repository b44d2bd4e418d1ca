"""
Reading and writing Minari's datasets, Gymnasium's standard for recorded episodes.

The datasets are where Minari looks for them, in ``MINARI_DATASETS_PATH`` or ``~/.minari/datasets``. Nothing is downloaded here;
``minari download ID`` does that. An episode of T steps has T + 1 observations, but the episodes of some datasets have only T.

Shapes: T environment steps of an episode.
"""

import json
import zlib
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from dhmm_rl.data.episodes import Episode, Notice, report_skipped_episodes
from dhmm_rl.data.packing import ARRAY_SPACES, pack, unpack
from dhmm_rl.data.rollouts import Rollouts
from dhmm_rl.errors import InputError, install_command
from dhmm_rl.files import atomic_write, read_json, reading, remove_leftovers
from dhmm_rl.tokens import FieldSpace
from dhmm_rl.tokens.fields import KINDS, fields_of, flatten, kind_of, unflatten
from dhmm_rl.tokens.simple_spaces import strings_of

IMITATE = "imitate"
"""Key of an episode's metadata that says whether its actions are worth imitating."""
CHECKSUM = "dhmm_rl_checksum"
"""Key of a dataset's metadata that holds a checksum of the metadata; only datasets written here have it."""


def read_minari(dataset_id: str, *, imitate: bool | None = None, notice: Notice = print) -> Rollouts:
    """
    Read a local dataset into memory.

    Episodes that cannot be used are left out. If an episode has T observations for T actions, its last action is left out,
    since the outcome is not recorded, and the episode counts as cut off.

    :param dataset_id: Minari's name of the dataset, e.g. ``D4RL/door/human-v2``
    :param imitate: whether actions are worth imitating; when ``None``, the episodes' metadata decide, and the default is yes
    :param notice: function that is given a line about episodes that are left out or shortened
    :return: rollouts of the episodes that can be used
    :raises InputError: for a dataset that does not exist, cannot be read, or has no episode that can be used
    """
    name = f"minari:{dataset_id}"
    storage = _open(dataset_id)
    total = storage.total_episodes
    observation_space, action_space = storage.observation_space, storage.action_space
    for what, space in (("observation", observation_space), ("action", action_space)):
        fields_of(space, what)  # raises for a space that cannot be tokenized, before any episode is blamed
    episodes: dict[int, Episode] = {}
    reasons: dict[int, str] = {}
    shortened = 0
    for number in range(total):
        try:
            raw = _raw_episode(storage, number)
            episode = _episode(raw, observation_space, action_space)
        except InputError as error:
            reasons[number] = str(error)
            continue
        shortened += len(episode.rewards) < len(raw["rewards"])
        episodes[number] = episode if imitate is None else episode._replace(imitate=imitate)
    report_skipped_episodes(name, reasons, total, notice)
    if shortened:
        notice(
            f"note: {shortened} of {total} episodes of {name} hold T observations for T actions: the last action of each, "
            "whose outcome is not recorded, is left out"
        )
    env_spec = storage.metadata.get("env_spec")
    with reading(Path(storage.data_path)):
        env_id = str(json.loads(env_spec)["id"]) if env_spec else dataset_id
    steps = sum(len(episode.rewards) for episode in episodes.values())
    rollouts = Rollouts.from_episodes(list(episodes.values()), observation_space, action_space, env_id, steps)
    return rollouts.without_faults(name, notice, list(episodes))


def write_minari(rollouts: Rollouts, dataset_id: str, description: str = "") -> None:
    """
    Write a dataset that Minari reads, without loss, in its HDF5 format. The episodes' metadata hold the ``imitate`` flags.

    :param rollouts: the episodes
    :param dataset_id: name of the new dataset, which ends in a version: ``cartpole/random-v0``
    :param description: text that describes the dataset to people
    :raises InputError: for a name that Minari does not accept or that is taken, and for spaces that Minari does not support
    """
    minari = _import_minari()
    check_new_minari(dataset_id)
    observation_space = _minari_space(rollouts.observation_space)
    namespace = dataset_id.rpartition("/")[0]
    if namespace and namespace not in minari.namespace.list_local_namespaces():
        minari.namespace.create_namespace(namespace)
    with atomic_write(_folder(dataset_id)) as temporary:
        temporary.mkdir()
        storage = minari.dataset.minari_storage.MinariStorage.new(
            temporary / "data",
            observation_space,
            _minari_space(rollouts.action_space),
            _env_spec(rollouts.env_id),
            jpeg_encoding=False,
        )
        storage.update_metadata(
            {"dataset_id": dataset_id, "minari_version": minari.__version__, "description": description, "code_permalink": ""}
        )
        storage.update_episodes(_buffer(rollouts, number) for number in range(len(rollouts)))
        storage.update_episode_metadata({IMITATE: bool(imitate)} for imitate in rollouts.imitate)
        storage.update_metadata({CHECKSUM: _checksum(storage.read_raw_metadata(temporary / "data"))})


def check_new_minari(dataset_id: str) -> None:
    """
    Check that a dataset of this name can be written, and remove what killed processes left in its namespace.

    :param dataset_id: name of the new dataset
    :raises InputError: for a name that Minari does not accept or that is taken
    """
    remove_leftovers(_folder(dataset_id).parent, recursive=False)
    if _folder(dataset_id).exists():
        raise InputError(f"there is a Minari dataset {dataset_id} already; give the new one another name or version")


def _import_minari() -> Any:
    """Import Minari, which has no types, together with h5py, which its format needs."""
    try:
        import_module("h5py")
        return import_module("minari")
    except ImportError as error:
        raise InputError(f"Minari's datasets need the extra minari: {install_command('minari')} ({error})") from error


def _folder(dataset_id: str) -> Path:
    """Return the folder of the dataset with this name, whether it exists or not."""
    minari = _import_minari()
    try:
        minari.dataset.minari_dataset.parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:  # TypeError: it has no version
        raise InputError(f"{dataset_id!r} is not the name of a Minari dataset, such as cartpole/random-v0") from error
    return Path(minari.storage.get_dataset_path(dataset_id))


def _open(dataset_id: str) -> Any:
    """
    Open the storage of a local dataset.

    :raises InputError: for a dataset that does not exist, cannot be read, or is empty
    """
    minari = _import_minari()
    folder = _folder(dataset_id)
    if not folder.is_dir():
        raise InputError(
            f"there is no Minari dataset {dataset_id} in {folder.parent}; 'minari download {dataset_id}' may get it"
        )
    _check_metadata(folder / "data" / "metadata.json")
    with reading(folder):
        storage = minari.dataset.minari_storage.MinariStorage.read(folder / "data")
        total = int(storage.total_episodes)
    if total <= 0:
        raise InputError(f"the Minari dataset {dataset_id} holds no episodes")
    return storage


def _check_metadata(path: Path) -> None:
    """
    Check that Minari can read a dataset without making its environment, which would run whatever code the metadata name.

    :param path: file of the metadata
    :raises InputError: for metadata that lack a space, cannot be read, or were damaged after :func:`write_minari` wrote them
    """
    metadata = read_json(path)
    for name in ("observation_space", "action_space"):
        if not isinstance(metadata.get(name), str):
            raise InputError(f"{path} has no {name}; a dataset is read only if its metadata hold both spaces")
    if CHECKSUM in metadata and metadata[CHECKSUM] != _checksum(metadata):
        raise InputError(f"{path} was damaged after it was written")


def _checksum(metadata: dict[str, Any]) -> int:
    """Compute a checksum of the metadata that decide how the data are read."""
    names = ("observation_space", "action_space", "env_spec", "data_format", "jpeg_encoding", "total_episodes")
    return zlib.crc32(json.dumps([metadata.get(name) for name in names]).encode())


def _raw_episode(storage: Any, number: int) -> dict[str, Any]:
    """
    Read one episode with its metadata, as Minari returns them.

    Episodes are read one by one because Minari's iterator stops at the first damaged one.

    :raises InputError: for an episode that cannot be read
    """
    try:
        (episode,), (metadata,) = storage.get_episodes([number]), storage.get_episode_metadata([number])
    except Exception as error:  # whatever h5py or pyarrow raise for damaged files
        raise InputError(f"it cannot be read ({error!s:.100})") from error
    return {**metadata, **episode}


def _episode(raw: dict[str, Any], observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> Episode:
    """
    Convert an episode of Minari's. Its last action is left out if the outcome is missing.

    :param raw: episode and metadata, see :func:`_raw_episode`
    :param observation_space: the dataset's observation space
    :param action_space: the dataset's action space
    :raises InputError: for an episode that cannot be used
    """
    observations = _packed("observations", raw, observation_space)
    actions = _packed("actions", raw, action_space)
    rewards = np.asarray(raw["rewards"])
    ends = [np.asarray(raw[key], dtype=bool) for key in ("terminations", "truncations")]
    steps = len(rewards)
    if not steps == len(actions) == len(ends[0]) == len(ends[1]) or len(observations) not in (steps, steps + 1):
        raise InputError(
            f"it has {len(observations)} observations, {len(actions)} actions, {steps} rewards, {len(ends[0])} terminations "
            f"and {len(ends[1])} truncations"
        )
    if len(observations) < 2:
        raise InputError("it has no step")
    if (ends[0] | ends[1])[:-1].any():
        raise InputError("it goes on after an end")
    seen = len(observations) - 1
    terminated = bool(ends[0][-1]) and seen == steps
    return Episode(observations, actions[:seen], rewards[:seen], terminated, bool(raw.get(IMITATE, True)))


def _packed(what: str, raw: dict[str, Any], space: spaces.Space[Any]) -> NDArray[Any]:
    """
    Pack values of an episode.

    :param what: key of the values in the episode
    :param raw: episode and metadata, see :func:`_raw_episode`
    :param space: space of the values
    :raises InputError: for values that are not of the space
    """
    try:
        values = raw[what]
        flat = flatten(space, values)
        if flat.ndim != 2 or flat.shape[1] != len(fields_of(space, what)):
            raise ValueError(f"{flat.shape[1:]} values a step")
        return pack(space, values)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise InputError(f"its {what} are not of the dataset's space {space} ({error!s:.100})") from error


def _buffer(rollouts: Rollouts, number: int) -> Any:
    """Convert an episode to Minari's form. An end that is not a terminal state becomes a truncation."""
    episode = rollouts[number]
    terminations, truncations = np.zeros((2, len(episode.rewards)), dtype=bool)
    terminations[-1], truncations[-1] = episode.terminated, not episode.terminated
    return _import_minari().data_collector.EpisodeBuffer(
        observations=_minari_values(rollouts.observation_space, episode.observations),
        actions=_minari_values(rollouts.action_space, episode.actions),
        rewards=episode.rewards,
        terminations=terminations,
        truncations=truncations,
    )


def _minari_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """
    Convert a space to one that Minari can write: a :class:`FieldSpace` to the space of its values, a space of strings to Text.

    :raises InputError: for a space that Minari cannot write
    """
    if isinstance(space, FieldSpace):
        return _minari_space(space.space)
    if isinstance(space, spaces.Dict):
        return spaces.Dict([(key, _minari_space(part)) for key, part in space.spaces.items()])
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([_minari_space(part) for part in space.spaces])
    if kind_of(space) is KINDS["Strings"]:
        values = strings_of(space).values
        lengths = [len(value) for value in values]
        return spaces.Text(max(lengths), min_length=min(lengths), charset="".join(sorted(set("".join(values)))))
    if isinstance(space, (*ARRAY_SPACES, spaces.Text)):
        return space
    raise InputError(f"Minari cannot store a {type(space).__name__}; a folder of rollouts can: Rollouts.save, or --to FOLDER")


def _minari_values(space: spaces.Space[Any], packed: NDArray[Any]) -> Any:
    """Convert packed values to Minari's form, in which texts are a list."""
    values = unpack(space, packed)
    return _with_text_lists(unflatten(space.space, values) if isinstance(space, FieldSpace) else values)


def _with_text_lists(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _with_text_lists(part) for key, part in values.items()}
    if isinstance(values, tuple):
        return tuple(_with_text_lists(part) for part in values)
    return values.tolist() if values.dtype.kind == "U" else values


def _env_spec(env_id: str) -> EnvSpec | None:
    """Return the specification with which Minari can make the environment, if Gymnasium has one that can be written."""
    spec = gym.registry.get(env_id.rpartition(":")[2])
    try:
        return spec if spec is not None and EnvSpec.from_json(spec.to_json()) else None
    except (TypeError, ValueError):
        return None

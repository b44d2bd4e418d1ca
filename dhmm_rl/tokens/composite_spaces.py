"""
Spaces that consist of other spaces: Dict, Tuple, OneOf, and sequences and graphs up to a declared size.

Fields that a value does not use (alternatives not taken, places past the end of a sequence) hold a filler: the field's lowest
value, or 0. A filler carries no information, since earlier fields say which fields are used.

Shapes: F fields; ``...`` any leading shape.
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from dhmm_rl.errors import InputError
from dhmm_rl.tokens.fields import KINDS, Kind, Leaf, flatten, leaves_of, num_fields, space_from_dict, space_to_dict, unflatten
from dhmm_rl.tokens.simple_spaces import FieldSpace, strings_of

PRINTABLE = "".join(map(chr, range(32, 127)))
"""Characters of free text."""


class BoundedSequence(spaces.Sequence):
    """
    A Sequence of bounded length.

    :param feature_space: space of the items
    :param size: largest number of items
    :param stack: whether items are stacked into one array, as in Gymnasium's Sequence
    """

    def __init__(self, feature_space: spaces.Space[Any], size: int, stack: bool = False) -> None:
        super().__init__(feature_space, stack=stack)
        self.size = size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BoundedSequence) and self.size == other.size and super().__eq__(other)


class BoundedGraph(spaces.Graph):
    """
    A Graph of bounded size.

    :param node_space: space of a node
    :param edge_space: space of an edge, or ``None``
    :param size: largest number of nodes, and of edges
    """

    def __init__(self, node_space: Any, edge_space: Any, size: int) -> None:
        super().__init__(node_space, edge_space)
        self.size = size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BoundedGraph) and self.size == other.size and super().__eq__(other)


def bounded(space: spaces.Space[Any], size: int | None = None) -> spaces.Space[Any]:
    """
    Return the same space with a bounded size of everything in it.

    :param space: any space
    :param size: largest number of items in a sequence, of nodes in a graph, and of characters in a text without a largest
        length; with ``None``, spaces that need a size stay as they are
    """
    if isinstance(space, FieldSpace):
        return FieldSpace(bounded(space.space, size))
    if isinstance(space, spaces.Dict):
        return spaces.Dict([(key, bounded(part, size)) for key, part in space.spaces.items()])
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([bounded(part, size) for part in space.spaces])
    if isinstance(space, spaces.OneOf):
        return spaces.OneOf([bounded(part, size) for part in space.spaces])
    if KINDS.get(type(space).__name__) is KINDS["MissionSpace"] or hasattr(space, "ordered_placeholders"):
        try:
            return strings_of(space)
        except InputError:
            return space if size is None else spaces.Text(size, min_length=0, charset=PRINTABLE)
    if size is None or isinstance(space, BoundedSequence | BoundedGraph):
        return space
    if isinstance(space, spaces.Sequence):
        return BoundedSequence(bounded(space.feature_space, size), size, space.stack)
    if isinstance(space, spaces.Graph):
        return BoundedGraph(space.node_space, space.edge_space, size)
    return space


class _Parts(Kind):
    """A space with a fixed number of parts, such as a Dict or a Tuple."""

    @abstractmethod
    def parts(self, space: Any) -> Iterable[tuple[Any, spaces.Space[Any]]]:
        """Return keys and spaces of the parts."""

    @abstractmethod
    def name(self, name: str, key: Any) -> str:
        """Return the name of a part."""

    @abstractmethod
    def join(self, values: dict[Any, Any]) -> Any:
        """Make a value from the values of its parts."""

    def leaves(self, space: Any, name: str) -> list[Leaf]:
        if not space.spaces:
            raise InputError(f"{name} is a {type(space).__name__} of nothing; see gymnasium.wrappers.TransformObservation")
        return [leaf for key, part in self.parts(space) for leaf in leaves_of(part, self.name(name, key))]

    def flatten(self, space: Any, value: Any) -> NDArray[Any]:
        return np.concatenate([flatten(part, value[key]) for key, part in self.parts(space)], axis=-1)

    def unflatten(self, space: Any, values: NDArray[Any]) -> Any:
        joined, start = {}, 0
        for key, part in self.parts(space):
            stop = start + num_fields(part)
            joined[key] = unflatten(part, values[..., start:stop])
            start = stop
        return self.join(joined)


class _Dict(_Parts):
    def parts(self, space: spaces.Dict) -> Iterable[tuple[Any, spaces.Space[Any]]]:
        return space.spaces.items()

    def name(self, name: str, key: Any) -> str:
        return f"{name}.{key}"

    def join(self, values: dict[Any, Any]) -> dict[Any, Any]:
        return values

    def to_dict(self, space: spaces.Dict) -> dict[str, Any]:
        return {"spaces": [[key, space_to_dict(part)] for key, part in space.spaces.items()]}

    def from_dict(self, description: dict[str, Any]) -> spaces.Dict:
        return spaces.Dict([(key, space_from_dict(part)) for key, part in description["spaces"]])


class _Tuple(_Parts):
    def parts(self, space: spaces.Tuple[Any]) -> Iterable[tuple[Any, spaces.Space[Any]]]:
        return enumerate(space.spaces)

    def name(self, name: str, key: Any) -> str:
        return f"{name}[{key}]"

    def join(self, values: dict[Any, Any]) -> tuple[Any, ...]:
        return tuple(values.values())

    def to_dict(self, space: spaces.Tuple[Any]) -> dict[str, Any]:
        return {"spaces": [space_to_dict(part) for part in space.spaces]}

    def from_dict(self, description: dict[str, Any]) -> spaces.Tuple[Any]:
        return spaces.Tuple([space_from_dict(part) for part in description["spaces"]])


class _Ragged(Kind):
    """Values of different sizes; several of them are a list or an object array, one entry a value."""

    @abstractmethod
    def flatten_one(self, space: Any, value: Any) -> NDArray[Any]:
        """Return the field values (F,) of one value."""

    @abstractmethod
    def unflatten_one(self, space: Any, values: NDArray[Any]) -> Any:
        """Return the value of field values (F,)."""

    def flatten(self, space: Any, value: Any) -> NDArray[Any]:
        if isinstance(value, np.ndarray) and value.dtype == object:
            rows = [self.flatten_one(space, one) for one in value.ravel().tolist()]
            return np.array(rows).reshape(*value.shape, -1)
        if isinstance(value, list):
            return np.stack([self.flatten(space, one) for one in value])
        return self.flatten_one(space, value)

    def unflatten(self, space: Any, values: NDArray[Any]) -> Any:
        if values.ndim == 1:
            return self.unflatten_one(space, values)
        several = np.empty(values.shape[:-1], dtype=object)
        for index in np.ndindex(several.shape):
            several[index] = self.unflatten_one(space, values[index])
        return several


class _OneOf(_Ragged):
    def leaves(self, space: spaces.OneOf[Any], name: str) -> list[Leaf]:
        parts = [leaf for i, part in enumerate(space.spaces) for leaf in leaves_of(part, f"{name}[{i}]")]
        return [_count(f"{name}.choice", len(space.spaces) - 1), *parts]

    def flatten_one(self, space: spaces.OneOf[Any], value: Any) -> NDArray[Any]:
        chosen, content = value
        parts = [flatten(part, content) if i == chosen else _filler(part) for i, part in enumerate(space.spaces)]
        return np.concatenate([[chosen], *parts])

    def unflatten_one(self, space: spaces.OneOf[Any], values: NDArray[Any]) -> Any:
        chosen = int(values[0])
        start = 1 + sum(num_fields(part) for part in space.spaces[:chosen])
        part = space.spaces[chosen]
        return np.int64(chosen), unflatten(part, values[start : start + num_fields(part)])

    def to_dict(self, space: spaces.OneOf[Any]) -> dict[str, Any]:
        return {"spaces": [space_to_dict(part) for part in space.spaces]}

    def from_dict(self, description: dict[str, Any]) -> spaces.OneOf[Any]:
        return spaces.OneOf([space_from_dict(part) for part in description["spaces"]])


class _BoundedSequence(_Ragged):
    def leaves(self, space: BoundedSequence, name: str) -> list[Leaf]:
        places = [leaf for i in range(space.size) for leaf in leaves_of(space.feature_space, f"{name}[{i}]")]
        return [_count(f"{name}.length", space.size), *places]

    def flatten_one(self, space: BoundedSequence, value: Any) -> NDArray[Any]:
        items = list(iterate(space.stacked_feature_space, value)) if space.stack else list(value)
        return _padded([flatten(space.feature_space, item) for item in items], space.feature_space, space.size, "a sequence")

    def unflatten_one(self, space: BoundedSequence, values: NDArray[Any]) -> Any:
        items = [unflatten(space.feature_space, row) for row in _unpadded(values, space.size)]
        if not space.stack:
            return tuple(items)
        return _stacked(space.feature_space, items)

    def to_dict(self, space: BoundedSequence) -> dict[str, Any]:
        return {"space": space_to_dict(space.feature_space), "size": space.size, "stack": space.stack}

    def from_dict(self, description: dict[str, Any]) -> BoundedSequence:
        return BoundedSequence(space_from_dict(description["space"]), description["size"], description["stack"])


class _BoundedGraph(_Ragged):
    """Nodes, then edges, as two bounded sequences. An item of the edges holds the two nodes that it links and its features."""

    def leaves(self, space: BoundedGraph, name: str) -> list[Leaf]:
        nodes, edges = self._sequences(space)
        return leaves_of(nodes, f"{name}.nodes") + (leaves_of(edges, f"{name}.edges") if edges is not None else [])

    def flatten_one(self, space: Any, value: Any) -> NDArray[Any]:
        nodes, edges = self._sequences(space)
        parts = [flatten(nodes, tuple(iterate(batch_space(space.node_space, len(value.nodes)), value.nodes)))]
        if edges is not None:
            links: Any = () if value.edge_links is None else value.edge_links
            features: Any = () if value.edges is None else iterate(batch_space(space.edge_space, len(links)), value.edges)
            parts.append(flatten(edges, tuple(zip(links, features, strict=True))))
        return np.concatenate(parts)

    def unflatten_one(self, space: BoundedGraph, values: NDArray[Any]) -> spaces.GraphInstance:
        nodes, edges = self._sequences(space)
        split = num_fields(nodes)
        items = unflatten(nodes, values[:split])
        joined = _stacked(space.node_space, items)
        linked = () if edges is None else unflatten(edges, values[split:])
        if not linked:
            return spaces.GraphInstance(joined, None, None)
        links, features = zip(*linked, strict=True)
        return spaces.GraphInstance(joined, _stacked(space.edge_space, features), np.array(links, dtype=np.int32))

    def to_dict(self, space: BoundedGraph) -> dict[str, Any]:
        edge = None if space.edge_space is None else space_to_dict(space.edge_space)
        return {"nodes": space_to_dict(space.node_space), "edges": edge, "size": space.size}

    def from_dict(self, description: dict[str, Any]) -> BoundedGraph:
        edge = None if description["edges"] is None else space_from_dict(description["edges"])
        return BoundedGraph(space_from_dict(description["nodes"]), edge, description["size"])

    @staticmethod
    def _sequences(space: BoundedGraph) -> tuple[BoundedSequence, BoundedSequence | None]:
        nodes = BoundedSequence(space.node_space, space.size)
        if space.edge_space is None:
            return nodes, None
        edge = spaces.Tuple([spaces.MultiDiscrete([space.size, space.size]), space.edge_space])
        return nodes, BoundedSequence(edge, space.size)


class _Unbounded(Kind):
    """A space of values without a largest size, which cannot have a fixed number of slots."""

    def leaves(self, space: Any, name: str) -> list[Leaf]:
        raise _unbounded_error(space, name)

    def flatten(self, space: Any, value: Any) -> NDArray[Any]:
        raise _unbounded_error(space)

    def unflatten(self, space: Any, values: NDArray[Any]) -> Any:
        raise _unbounded_error(space)

    def to_dict(self, space: Any) -> dict[str, Any]:
        raise _unbounded_error(space)

    def from_dict(self, description: dict[str, Any]) -> spaces.Space[Any]:
        raise InputError(f"a {description['type']} without a largest size cannot be read")


def _unbounded_error(space: spaces.Space[Any], name: str = "a value") -> InputError:
    return InputError(
        f"{name} is a {type(space).__name__}, which may be of any size; declare a largest size: "
        "dhmm_rl.envs.FlattenFields(env, size=8)"
    )


def _stacked(space: Any, items: Any) -> Any:
    several: Any = create_empty_array(space, len(items))
    return concatenate(space, items, several)


def _count(name: str, most: int) -> Leaf:
    return Leaf(name, "categorical", np.array(0), np.array(most), np.dtype(np.int64))


def _filler(space: spaces.Space[Any]) -> NDArray[Any]:
    """Return the field values (F,) that stand where a value of the space is absent."""
    low = np.concatenate([leaf.low.ravel() for leaf in leaves_of(space, "")])
    high = np.concatenate([leaf.high.ravel() for leaf in leaves_of(space, "")])
    return np.where(np.isfinite(low), low, np.minimum(0, high))


def _padded(rows: list[NDArray[Any]], space: spaces.Space[Any], size: int, what: str) -> NDArray[Any]:
    """Join the number of rows, the rows, and fillers up to ``size`` rows."""
    if len(rows) > size:
        raise InputError(f"{what} has {len(rows)} items; its declared size is {size}: FlattenFields(env, size={len(rows)})")
    return np.concatenate([[len(rows)], *rows, *[_filler(space)] * (size - len(rows))])


def _unpadded(values: NDArray[Any], size: int) -> NDArray[Any]:
    """Invert :func:`_padded`: return the rows alone."""
    return values[1:].reshape(size, -1)[: int(values[0])]


KINDS.update(
    Dict=_Dict(),
    Tuple=_Tuple(),
    OneOf=_OneOf(),
    BoundedSequence=_BoundedSequence(),
    BoundedGraph=_BoundedGraph(),
    Sequence=_Unbounded(),
    Graph=_Unbounded(),
)

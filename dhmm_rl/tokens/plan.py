"""Plans of fields: how each field of a space becomes ids, from the space's bounds and from settings."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dhmm_rl.errors import InputError
from dhmm_rl.tokens.fields import UNBOUNDED_RANGE, Field, Leaf
from dhmm_rl.tokens.images import DEFAULT_CODES, Patches

Settings = dict[str, Any]

SETTINGS = {
    "bins": int,
    "low": float,
    "high": float,
    "scale": float,
    "origin": float,
    "values": list,
    "patch": int,
    "codes": int,
}
"""Settings of a field, of one channel of an array, or of a whole array, with their types."""
NO_BOUNDS = (("low", -math.inf), ("high", math.inf), ("scale", math.inf))
"""Settings that have no effect, since they set no bound."""
UNBOUNDED_SPAN = 10.0
"""Bins of a field without bounds reach this many times its scale from the origin."""
MAX_CATEGORIES = 256
"""An integer field with more values than this is binned."""
MAX_SLOTS = 4096
"""A step with more slots than this is refused."""
MAX_IDS = 2**16
"""A categorical field with more categories than this is refused."""


@dataclass(frozen=True)
class FieldPlan:
    """
    How one field becomes ids: as bins, as a set of values, or as categories.

    :param name: name of the field
    :param size: number of ids
    :param values: value of each id, in increasing order, where a field is a set of values; other values go to the nearest one.
        ``None`` for bins and categories
    :param low: first category, or lower edge of the first bin
    :param high: last category, or upper edge of the last bin
    :param scale: scale of the bins, see :class:`Bins`; ``None`` for categories and sets of values
    :param origin: origin of the bins, see :class:`Bins`
    """

    name: str
    size: int
    values: tuple[float, ...] | None = None
    low: float = 0.0
    high: float = 0.0
    scale: float | None = None
    origin: float = 0.0

    def __str__(self) -> str:
        if self.values is not None:
            return f"{self.size} values from {self.values[0]:g} to {self.values[-1]:g}"
        if not self.binned:
            return f"the categories {self.low:g} to {self.high:g}"
        companding = "" if self.scale == math.inf else f", finest at {self.origin:.6g} by a scale of {self.scale:.6g}"
        return f"{self.size} bins from {self.low:.6g} to {self.high:.6g}{companding}"

    @property
    def binned(self) -> bool:
        """Whether the ids are bins of a real field."""
        return self.scale is not None


def check_settings(leaves: Sequence[Leaf], settings: Mapping[str, Settings]) -> None:
    """
    Check settings of fields.

    :param leaves: arrays of fields of the action space and the observation space
    :param settings: settings by name of a field, a channel or an array
    :raises InputError: for an unknown name, an unknown setting, and a value out of range
    """
    if not settings:
        return
    names = [name for leaf in leaves for name in _names(leaf)]
    for name, chosen in settings.items():
        if name not in names:
            listed = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
            raise InputError(f"token settings name a field {name!r}; the fields are {listed}")
        if not isinstance(chosen, Mapping):
            raise InputError(f"token settings of {name} are {chosen!r}; they must be a table, such as {{low = -1, high = 1}}")
        for key, value in chosen.items():
            if key not in SETTINGS:
                raise InputError(f"token settings of {name} hold {key!r}; known are {', '.join(SETTINGS)}")
            if key == "values" and not (isinstance(value, list | tuple) and value and all(map(_is_number, value))):
                raise InputError(f"the values of {name} are {value!r}; a list of at least one number is needed, all finite")
            whole = SETTINGS[key] is int
            if key != "values" and not (_is_number(value) and (not whole or float(value).is_integer())):
                expected = "a whole number" if whole else "a number"
                raise InputError(f"{key} of {name} is {value!r}; it must be {expected}, and finite")
        if chosen.get("scale", 1) <= 0:
            raise InputError(f"the scale of {name} is {chosen['scale']}; it must be positive")
        if chosen.get("codes", 2) < 2 or chosen.get("patch", 0) < 0:
            raise InputError(f"codes of {name} must be at least 2, and patch at least 1, or 0 for one category a cell")
        leaf = next((leaf for leaf in leaves if leaf.name == name), None)
        if (
            {"patch", "codes"} & set(chosen)
            and chosen.get("patch") != 0
            and (leaf is None or plan_image(leaf, settings) is None)
        ):
            raise InputError(f"{name} has a patch or codes, but is not an image: uint8, of 2 or 3 dimensions")


def drop_unbounded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """
    Remove infinite bounds and scales from settings, with a warning for each, since they have no effect.

    :param settings: settings by name of a field, a channel or an array
    """
    effective: dict[str, Any] = {}
    for name, chosen in settings.items():
        effective[name] = chosen
        if isinstance(chosen, Mapping):
            effective[name] = {key: value for key, value in chosen.items() if (key, value) not in NO_BOUNDS}
            for key in chosen.keys() - effective[name].keys():
                warnings.warn(
                    f"{key} of {name} is {chosen[key]}, which is the same as not setting it: the tokenizer is left to fit it",
                    stacklevel=3,
                )
    return effective


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def plan_image(leaf: Leaf, settings: Mapping[str, Settings]) -> tuple[Patches, int] | None:
    """Return the patches of an image and the largest number of its codes; ``None`` for an array that is not an image."""
    chosen = settings.get(leaf.name, {})
    if chosen.get("patch") == 0 or not (leaf.image or (leaf.pixels and "patch" in chosen)):
        return None
    return Patches.of(leaf.shape, chosen.get("patch")), int(chosen.get("codes", DEFAULT_CODES))


def plan_fields(leaf: Leaf, settings: Mapping[str, Settings], bins: int) -> list[FieldPlan]:
    """
    Plan the fields of an array.

    :param leaf: the array
    :param settings: settings by name; those of a field take precedence over those of its channel, and these over those of its
        array
    :param bins: number of bins of a real field, where settings do not say
    :return: plans, in the order of the fields
    :raises InputError: for fewer than 2 bins, for a low above high, and for too many fields or categories
    """
    if leaf.size > MAX_SLOTS:
        raise InputError(
            f"{leaf.name} has {leaf.size} fields, more than the {MAX_SLOTS} that a step can hold; images are cut into patches "
            "if they are uint8, from 0 to 255: gymnasium.wrappers.TransformObservation, or ResizeObservation for fewer pixels"
        )
    return [plan_field(field, chosen, bins) for field, chosen in zip(leaf.fields, settings_of(leaf, settings), strict=True)]


def settings_of(leaf: Leaf, settings: Mapping[str, Settings]) -> list[Settings]:
    """Return the settings of each field of an array, in order."""
    whole = settings.get(leaf.name, {})
    if len(leaf.shape) < 2:
        return [{**whole, **settings.get(field.name, {})} for field in leaf.fields]
    # In row-major order, the channel of field i is i modulo the number of channels.
    layers = [settings.get(leaf.layer_name(channel), {}) for channel in range(leaf.shape[-1])]
    return [
        {**whole, **layers[i % len(layers)], **settings.get(field.name, {})} if settings else {}
        for i, field in enumerate(leaf.fields)
    ]


def _names(leaf: Leaf) -> list[str]:
    """Return the names that settings may use: those of an array, its channels and its fields."""
    layers = [leaf.layer_name(channel) for channel in range(leaf.shape[-1])] if len(leaf.shape) > 1 else []
    return [leaf.name, *layers, *([] if leaf.size > MAX_SLOTS else [field.name for field in leaf.fields])]


def plan_field(field: Field, chosen: Settings, bins: int) -> FieldPlan:
    """
    Plan one field; see :func:`plan_fields`.

    :param field: the field
    :param chosen: settings of this field
    :param bins: number of bins, where the settings do not say
    """
    if "values" in chosen:
        values = tuple(sorted({float(value) for value in chosen["values"]}))
        return FieldPlan(field.name, len(values), values)
    if field.kind == "categorical":
        categories = int(field.high - field.low) + 1
        if categories > MAX_IDS:
            raise InputError(
                f"{field.name} has {categories} categories, more than the {MAX_IDS} that can be tokens; "
                "gymnasium.wrappers.TransformObservation or TransformAction could write them as several digits (MultiDiscrete)"
            )
        return FieldPlan(field.name, categories, low=field.low, high=field.high)
    within = replace(field, low=chosen.get("low", field.low), high=chosen.get("high", field.high))
    if within.low == within.high:
        return FieldPlan(field.name, 1, (within.low,))
    if within.low > within.high:
        raise InputError(f"{field.name} is binned from {within.low:g} to {within.high:g}; low must be less than high")
    few = field.kind == "integer" and within.high - within.low < MAX_CATEGORIES
    if few and not {"bins", "scale"} & set(chosen):
        if within == field:
            return FieldPlan(field.name, int(field.high - field.low) + 1, low=field.low, high=field.high)
        values = tuple(float(value) for value in range(math.ceil(within.low), math.floor(within.high) + 1))
        return FieldPlan(field.name, len(values), values)
    return _binned(within, chosen, bins)


def _binned(within: Field, chosen: Settings, bins: int) -> FieldPlan:
    """Plan bins: uniform between two bounds without a scale, otherwise companded around the one bound or the origin."""
    size = int(chosen.get("bins", bins))
    if size < 2:
        raise InputError(f"{within.name} has {size} bins; it needs at least 2")
    if within.bounded or {"low", "high"} <= set(chosen):
        scale, origin = chosen.get("scale", math.inf), chosen.get("origin", 0.0)
        return FieldPlan(within.name, size, None, within.low, within.high, scale, origin)
    scale = float(chosen.get("scale", 1.0))
    span = UNBOUNDED_SPAN * scale
    origin = chosen.get("origin", origin_of(within))
    low = origin if origin == within.low else origin - span
    high = origin if origin == within.high else origin + span
    return FieldPlan(within.name, size, None, low, high, scale, origin)


def origin_of(field: Field) -> float:
    """Return the origin of the bins of a field that is not bounded on both sides: its one bound, or 0."""
    bounds = [bound for bound in (field.low, field.high) if abs(bound) < UNBOUNDED_RANGE]
    return bounds[0] if len(bounds) == 1 else 0.0

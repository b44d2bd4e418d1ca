"""
Fitting a tokenizer to data, and saying how well it suits them.

Shapes: N rows, F fields.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl.errors import InputError
from dhmm_rl.tokens.bins import Bins
from dhmm_rl.tokens.codec import Values, make_quantizer
from dhmm_rl.tokens.fields import Field, Leaf, flatten
from dhmm_rl.tokens.images import Codebook, fit_codebook
from dhmm_rl.tokens.legal import random_action, random_actor
from dhmm_rl.tokens.plan import UNBOUNDED_SPAN, FieldPlan, Settings, origin_of, plan_field, plan_image, settings_of

if TYPE_CHECKING:
    from dhmm_rl.tokens.tokenizer import Tokenizer

ROWS = 100_000
"""Fit on so many rows, evenly spaced: rollouts may be larger than memory."""
NUMBERS = 50_000_000
"""... and on so many numbers altogether, where rows are images."""
REPORTED_NUMBERS = 5_000_000
"""The report is on so many numbers."""
RANDOM_STEPS = 2000
"""An environment is stepped so often."""
ROWS_PER_VALUE = 20
"""A field is few-valued if there are so many rows to each of its values."""
CELL_VALUES = 64
"""An array of integers whose values span more than this is no grid of categories."""
CELL_ARRAY = 1024
"""Nor is an array of more integers than this."""
LONGEST_REACH = 100.0
"""Bins reach to the farthest of the data, but not farther than this many times their spread."""
BULK_ROWS = 20_000
"""The median and spread of a field are measured on this many rows at most."""
TABLE_FIELDS = 12
"""An array with more fields than this takes one line of the table."""


class FieldReport(NamedTuple):
    """
    How well a field can be told from its ids; or an image, from its patches'.

    :param name: of the field
    :param how: ``bins``, ``values``, ``categories`` or ``codes``
    :param ids: how many it has
    :param used: how many of them occur
    :param clipped: share of values beyond the bins, or none of the values
    :param error: root mean square of what decoding is off by, in the field's unit
    :param spread: standard deviation of the field, in its unit
    """

    name: str
    how: str
    ids: int
    used: int
    clipped: float
    error: float
    spread: float


def read(tokenizer: Tokenizer, data: Any, seed: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """
    Rows of field values: observations (N, F), and actions where there are recorded ones.

    :param data: see :meth:`Tokenizer.fit`
    """
    if isinstance(data, gym.Env | VecEnv):
        return _random_steps(tokenizer, data, seed), None
    width = tokenizer.observation_codec.width
    if hasattr(data, "observations_at"):
        tokenizer.check_spaces(data.observation_space, data.action_space)
        rows = _rows(len(data.rewards), width)
        observations = flatten(tokenizer.observation_space, data.observations_at(rows))
        return observations, flatten(tokenizer.action_space, data.actions_at(rows))
    values = flatten(tokenizer.observation_space, data)
    if values.size == 0 and width > 0:
        raise InputError("there are no observations to fit a tokenizer on")
    values = values.reshape(math.prod(values.shape[:-1]), width)
    return values[_rows(len(values), width)], None


def fit(
    tokenizer: Tokenizer, observations: NDArray[Any], actions: NDArray[Any] | None, seed: int
) -> tuple[dict[str, Settings], dict[str, NDArray[np.uint8]]]:
    """Overrides and codebooks that suit rows of field values (N, F), (N, F')."""
    overrides = {name: dict(chosen) for name, chosen in tokenizer.overrides.items()}
    codebooks = dict(tokenizer.codebooks)
    for leaf, values in _by_leaf(tokenizer.observation_leaves, observations):
        if np.isnan(values).any():
            where = leaf.fields[int(np.argmax(np.isnan(values).any(axis=0)))].name
            raise InputError(f"{where} is NaN in the data that the tokenizer is fitted on")
        image = plan_image(leaf, overrides)
        if _grid(leaf) and not any(settings_of(leaf, overrides)) and _few(values, CELL_VALUES):
            _fit_cells(leaf, values, overrides)
        elif image is not None:
            if leaf.name not in codebooks:
                codebooks[leaf.name] = fit_codebook(image[0], values, image[1], seed)
        elif leaf.kind != "categorical":
            _fit_fields(leaf, values, overrides, tokenizer.bins, few=tokenizer.bins)
    if actions is not None:
        for leaf, values in _by_leaf(tokenizer.action_leaves, actions):
            if leaf.kind != "categorical":
                _fit_fields(leaf, values, overrides, tokenizer.bins, few=0, to_bounds=True)  # an agent may do what nobody did
    return {name: chosen for name, chosen in overrides.items() if chosen or name in tokenizer.overrides}, codebooks


def unfitted(tokenizer: Tokenizer) -> list[str]:
    """Names of what :func:`fit` would give a scale, categories or a codebook."""
    names = []
    for leaf in tokenizer.observation_leaves:
        image = plan_image(leaf, tokenizer.overrides)
        if image is not None:
            names += [leaf.name] if leaf.name not in tokenizer.codebooks else []
        elif leaf.kind != "categorical":
            several = zip(leaf.fields, settings_of(leaf, tokenizer.overrides), strict=True)
            names += [field.name for field, chosen in several if not field.bounded and not {"scale", "values"} & set(chosen)]
            if _grid(leaf) and not any(settings_of(leaf, tokenizer.overrides)):
                names.append(leaf.name)
    return names


def binned_by_space(tokenizer: Tokenizer) -> list[str]:
    """Names of fields whose bins follow from their space alone, which may be far wider than the data."""
    codec, overrides = tokenizer.observation_codec, tokenizer.overrides
    names = []
    for leaf in tokenizer.observation_leaves:
        if plan_image(leaf, overrides) is None:
            several = zip(leaf.fields, settings_of(leaf, overrides), strict=True)
            names += [f.name for f, chosen in several if not _is_set(chosen)]
    return [plan.name for _, _, plan in codec.fields if plan.binned and plan.name in names]


def report(tokenizer: Tokenizer, observations: NDArray[Any]) -> list[FieldReport]:
    """A line for every field of the observation, and for every image, on rows of field values (N, F)."""
    codec = tokenizer.observation_codec
    some = observations[_evenly(len(observations), max(REPORTED_NUMBERS // max(codec.width, 1), 1))]
    ids = codec.encode(some)
    decoded = codec.decode(ids)
    finite = np.where(np.isinf(some), decoded, some)  # infinite values are clipped: that is told by itself
    error = np.square(decoded - finite)
    used = [len(np.unique(column)) for column in ids.T]
    reports = {}
    for part in codec.groups:
        columns, slots = np.arange(codec.width)[part.columns], np.arange(len(codec.names))[part.slots]
        values, errors = finite[:, columns].astype(np.float64), np.sqrt(error[:, columns].mean(axis=0))
        if isinstance(part.quantizer, Codebook):
            name = next(name for name, places in codec.leaf_slots.items() if slots[0] in places)
            codes = len(np.unique(ids[:, slots] - codec.starts[slots]))
            mean_error = float(np.sqrt(error[:, columns].mean()))
            line = FieldReport(name, "codes", codec.sizes[slots[0]], codes, 0.0, mean_error, float(values.std()))
            reports[int(slots[0])] = line
            continue
        how, beyond = "categories", np.zeros(values.shape, dtype=bool)
        if isinstance(part.quantizer, Bins):
            how, beyond = "bins", part.quantizer.outside(some[:, columns])
        elif isinstance(part.quantizer, Values):
            how, beyond = "values", (error[:, columns] > 0) | np.isinf(some[:, columns])
        for j, slot in enumerate(slots):
            reports[int(slot)] = FieldReport(
                codec.names[slot],
                how,
                codec.sizes[slot],
                used[slot],
                float(beyond[:, j].mean()),
                float(errors[j]),
                float(values[:, j].std()),
            )
    return [reports[slot] for slot in sorted(reports)]


def format_report(reports: list[FieldReport]) -> str:
    """The report for people; the many fields of an array take one line: their ids summed, their worst share and error."""
    lines = [f"{'field':<40}{'as':>12}{'ids':>8}{'used':>8}{'clipped':>9}{'error':>12}{'spread':>12}"]
    for how in dict.fromkeys(one.how for one in reports):
        some = [i for i, one in enumerate(reports) if one.how == how]
        for name, places in group_by_array([one.name for one in reports], some):
            _, _, ids, used, clipped, error, spread = zip(*(reports[i] for i in places), strict=True)
            lines.append(
                f"{name:<40}{how:>12}{sum(ids):>8}{sum(used):>8}{max(clipped):>9.1%}{max(error):>12.4g}{max(spread):>12.4g}"
            )
    return "\n".join(lines)


def group_by_array(names: Sequence[str], places: Iterable[int]) -> list[tuple[str, list[int]]]:
    """Places of names, for a table: one by one, but those of an array of more than :data:`TABLE_FIELDS` together."""
    arrays: dict[str, list[int]] = {}
    for i in places:
        arrays.setdefault(names[i].split("[")[0], []).append(i)
    lines = []
    for array, some in arrays.items():
        lines += [(f"{array}, {len(some)} fields", some)] if len(some) > TABLE_FIELDS else [(names[i], [i]) for i in some]
    return lines


def indistinct(tokenizer: Tokenizer, observations: NDArray[Any]) -> dict[str, str]:
    """
    Fields that vary in the data (N, F) but can hardly be told apart by their ids.

    :return: by name, settings that would place their bins where the values lie, as a recipe has them
    """
    found = {}
    for column, _, plan in tokenizer.observation_codec.fields:
        values = observations[:, column]
        bulk = _bulk(values[np.isfinite(values)])
        if (plan.binned or plan.values) and (bulk != bulk[:1]).any() and not _tells_apart(plan, bulk):
            found[plan.name] = f'"{plan.name}" = {{ low = {bulk.min():.3g}, high = {bulk.max():.3g} }}'
    return found


def warn_of_indistinct(tokenizer: Tokenizer, observations: NDArray[Any], reports: list[FieldReport]) -> None:
    """Warn of fields that vary in the data (N, F) but can hardly be told apart by their ids."""
    found = indistinct(tokenizer, observations)
    if not found:
        return
    lines = [
        f"{one.name} ({one.used} of {one.ids} ids used, error {one.error:.2g}, spread {one.spread:.2g})"
        for one in reports
        if one.name in found
    ]
    shown = ", ".join(lines[:8]) + (f" and {len(lines) - 8} others" if len(lines) > 8 else "")
    warnings.warn(
        f"tokens hardly tell the values of {shown} apart; set low and high where the values lie, or more bins, in the token "
        f"settings (overrides=, or [tokens.fields] in a recipe): {next(iter(found.values()))}",
        stacklevel=4,
    )


def _fit_cells(leaf: Leaf, values: NDArray[Any], overrides: dict[str, Settings]) -> None:
    """
    Cells of one channel share their categories: all integers from 0, or the lowest found, to the highest and one more.

    What was never seen is then at least no mistake for something that was: it goes to the one more.
    """
    if leaf.image:
        overrides[leaf.name] = {"patch": 0}
    channels = leaf.shape[-1] if len(leaf.shape) == 3 else 1
    for channel in range(channels):
        found = values[:, channel::channels]
        low, high = min(int(found.min()), max(int(leaf.low.min()), 0)), min(int(found.max()) + 1, int(leaf.high.max()))
        several = range(low, high + 1) if high - low <= CELL_VALUES else np.unique(found).tolist()
        name = leaf.layer_name(channel) if channels > 1 else leaf.name
        overrides[name] = {**overrides.get(name, {}), "values": list(several)}


def _fit_fields(
    leaf: Leaf, values: NDArray[Any], overrides: dict[str, Settings], bins: int, few: int, to_bounds: bool = False
) -> None:
    """
    The values of fields that have at most ``few``; else bins that suit their data.

    What never changes in the data gets bins like any other field, unless its bounds say that it cannot: it may change later.

    :param to_bounds: let bins reach to declared bounds, wherever the data lie
    """
    for field, chosen, column in zip(leaf.fields, settings_of(leaf, overrides), values.T, strict=True):
        finite = column[np.isfinite(column)]  # what is infinite goes to an end bin
        changes = field.low == field.high or bool((finite != finite[:1]).any())
        if not chosen and len(finite) == len(column) and changes and _few(column, few):
            overrides[field.name] = {"values": np.unique(column).tolist()}
        elif not _is_set(chosen):
            placed = _place_bins(field, chosen, finite.astype(np.float64), bins, to_bounds)
            if placed:
                overrides[field.name] = {**overrides.get(field.name, {}), **placed}


def _is_set(chosen: Settings) -> bool:
    """Whether settings say where the bins of a field lie."""
    return bool({"scale", "values"} & chosen.keys()) or {"low", "high"} <= chosen.keys()


def _place_bins(field: Field, chosen: Settings, values: NDArray[np.float64], bins: int, to_bounds: bool) -> Settings:
    """Settings that place the bins of a field where its values (N,) lie; see :meth:`Tokenizer.fit`."""
    within = replace(field, low=chosen.get("low", field.low), high=chosen.get("high", field.high))
    origin = chosen.get("origin", origin_of(within))
    # First from the bounds alone: uniform between two, or away from one.
    declared: Settings = {} if within.bounded else {"scale": _root_mean_square(values - origin) or 1.0}
    plan = plan_field(field, {**chosen, **declared}, bins)
    bulk = _bulk(values)
    if not plan.binned or (bulk == bulk[:1]).all():
        return declared
    if (within.bounded or origin in (within.low, within.high)) and _tells_apart(plan, bulk):
        return declared
    center = float(chosen.get("origin", np.median(bulk)))
    spread = _root_mean_square(bulk - center)
    farthest = np.array([center - values.min(), values.max() - center]) / spread
    for reach in (farthest.clip(UNBOUNDED_SPAN, LONGEST_REACH), *np.full((3, 2), [[UNBOUNDED_SPAN], [5.0], [2.5]])):
        low, high = (center - reach[0] * spread, center + reach[1] * spread)
        if within.low <= bulk.min():
            low = within.low if to_bounds and within.bounded else max(low, within.low)
        if within.high >= bulk.max():
            high = within.high if to_bounds and within.bounded else min(high, within.high)
        placed = {"low": low, "high": high, "scale": spread, "origin": center} | chosen
        if _tells_apart(plan_field(field, placed, bins), bulk):
            break
    return placed


def _tells_apart(plan: FieldPlan, values: NDArray[np.float64]) -> bool:
    """
    Whether values (N,) can be told apart: they use more than two ids, and decoding is off by at most half their spread.

    Two ids are enough for two values, and where there are no more.
    """
    made = make_quantizer(plan)
    ids = made.encode(values[:, None])
    used, error = len(np.unique(ids)), _root_mean_square(made.decode(ids)[:, 0] - values)
    return (used > 2 or used in (plan.size, len(np.unique(values)))) and error <= values.std() / 2


def _bulk(values: NDArray[Any]) -> NDArray[np.float64]:
    """Some of many values (N,), the outermost percent of them moved inward; all, where the rest never changes."""
    if len(values) == 0:
        return values.astype(np.float64)
    some = values[_evenly(len(values), BULK_ROWS)].astype(np.float64)
    inward = np.clip(some, *np.quantile(some, [0.005, 0.995]))
    return inward if (inward != inward[0]).any() else values.astype(np.float64)


def _root_mean_square(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.square(values).sum() / max(len(values), 1)))


def _grid(leaf: Leaf) -> bool:
    """Whether a leaf is a small table of integers that may be many things, by its bounds."""
    small = leaf.kind == "integer" and len(leaf.shape) > 1 and leaf.size <= CELL_ARRAY
    return small and bool((leaf.high - leaf.low >= CELL_VALUES // 2).all())


def _few(values: NDArray[Any], most: int) -> bool:
    """Whether there are at most so many different values, each seen often enough to think that these are all."""
    if len(np.unique(values[: ROWS_PER_VALUE * (most + 1)])) > most:
        return False
    different = len(np.unique(values))
    return different <= most and values.size >= ROWS_PER_VALUE * different


def _by_leaf(leaves: list[Leaf], values: NDArray[Any]) -> list[tuple[Leaf, NDArray[Any]]]:
    ends = np.cumsum([leaf.size for leaf in leaves])
    return list(zip(leaves, np.split(values, ends[:-1], axis=-1), strict=True))


def _rows(count: int, width: int) -> NDArray[np.int64]:
    return _evenly(count, max(min(ROWS, NUMBERS // max(width, 1)), 1))


def _evenly(count: int, most: int) -> NDArray[np.int64]:
    return np.arange(count) if count <= most else np.unique(np.linspace(0, count - 1, most).astype(np.int64))


def _random_steps(tokenizer: Tokenizer, env: Any, seed: int) -> NDArray[Any]:
    """Observations of an environment that is stepped at random, (N, F)."""
    vector = isinstance(env, VecEnv)
    tokenizer.check_spaces(env.observation_space, env.action_space)
    env.action_space.seed(seed)
    if vector:
        env.seed(seed)
        draw = random_actor(env)
    space, seen = tokenizer.observation_space, []
    observation, done = (env.reset() if vector else env.reset(seed=seed)[0]), False
    for _ in range(RANDOM_STEPS // env.num_envs if vector else RANDOM_STEPS):
        seen.append(flatten(space, observation))
        if vector:
            observation = env.step(draw())[0]
        elif done:
            observation, done = env.reset()[0], False
        else:
            observation, _, terminated, truncated, _ = env.step(random_action(env))
            done = terminated or truncated
    rows = np.concatenate(seen) if vector else np.stack(seen)
    return rows[_rows(len(rows), rows.shape[1])]

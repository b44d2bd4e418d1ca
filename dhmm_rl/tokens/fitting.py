"""
Fitting a tokenizer to data: where bins are placed, which values are told apart, and which patches make a codebook.

Shapes: N rows, F fields of the observation, F' fields of the action.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dhmm_rl.errors import InputError
from dhmm_rl.tokens.bins import Bins
from dhmm_rl.tokens.codec import make_quantizer
from dhmm_rl.tokens.fields import Field, Leaf, flatten
from dhmm_rl.tokens.images import fit_codebook
from dhmm_rl.tokens.plan import UNBOUNDED_SPAN, FieldPlan, Settings, origin_of, plan_field, plan_image, settings_of
from dhmm_rl.tokens.reports import FieldReport, spread_evenly

if TYPE_CHECKING:
    from dhmm_rl.tokens.tokenizer import Tokenizer

ROWS = 100_000
"""Largest number of rows to fit on, evenly spaced: rollouts may be larger than memory."""
NUMBERS = 50_000_000
"""Largest number of values to fit on, over all rows: it limits the rows where these are images."""
ROWS_PER_VALUE = 20
"""A field counts as few-valued when the data have at least this many rows for each of its values."""
CELL_VALUES = 64
"""An array of integers is not a grid of categories if its values span more than this."""
CELL_ARRAY = 1024
"""An array of integers is not a grid of categories if it has more entries than this."""
LONGEST_REACH = 100.0
"""Bins reach to the most distant value of the data, but at most this many times their spread."""
SHORTER_REACHES = (UNBOUNDED_SPAN, 5.0, 2.5)
"""Reaches to try next, as multiples of the spread, where the bins are too coarse with a longer one."""
FINEST = 128
"""Largest number of bins that a field gets because its values change little from one step to the next."""
BULK_ROWS = 20_000
"""Largest number of rows on which the median and the spread of a field are measured."""


def read_rows(tokenizer: Tokenizer, data: Any) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """
    Read the rows to fit on.

    :param tokenizer: the tokenizer to be fitted
    :param data: rollouts, or values of the observation space; see :meth:`Tokenizer.fit`
    :return: observations as field values (N, F), and the actions (N, F') of rollouts, else ``None``
    :raises InputError: for data of another space, for no data, and for an environment
    """
    num_fields = tokenizer.observation_codec.num_fields
    if hasattr(data, "observations_at"):
        tokenizer.check_spaces(data.observation_space, data.action_space)
        rows = _rows_to_read(len(data.rewards), num_fields)
        observations = flatten(tokenizer.observation_space, data.observations_at(rows))
        return observations, flatten(tokenizer.action_space, data.actions_at(rows))
    if hasattr(data, "reset") and hasattr(data, "step"):
        raise InputError(
            "a tokenizer is fitted on observations or rollouts, not on an environment; call "
            "tokenizer.fit(random_observations(env)), from dhmm_rl.data"
        )
    values = flatten(tokenizer.observation_space, data)
    if values.size == 0 and num_fields > 0:
        raise InputError("there are no observations to fit a tokenizer on")
    values = values.reshape(math.prod(values.shape[:-1]), num_fields)
    return values[_rows_to_read(len(values), num_fields)], None


def fit_settings(
    tokenizer: Tokenizer, observations: NDArray[Any], actions: NDArray[Any] | None, seed: int
) -> tuple[dict[str, Settings], dict[str, NDArray[np.uint8]]]:
    """
    Find overrides and codebooks that suit data.

    :param tokenizer: the tokenizer to be fitted; its own overrides are kept
    :param observations: field values, (N, F)
    :param actions: field values, (N, F'); actions keep what their space declares when ``None``
    :param seed: seed of the codebooks
    :return: overrides by name of a field or array, and codebooks by name of an image
    :raises InputError: for a value that is NaN
    """
    overrides = {name: dict(chosen) for name, chosen in tokenizer.overrides.items()}
    codebooks = dict(tokenizer.codebooks)
    for leaf, values in _split_by_leaf(tokenizer.observation_leaves, observations):
        if np.isnan(values).any():
            where = leaf.fields[int(np.argmax(np.isnan(values).any(axis=0)))].name
            raise InputError(f"{where} is NaN in the data that the tokenizer is fitted on")
        image = plan_image(leaf, overrides)
        # A small array of integers with few values, such as MiniGrid's, is a grid of categories even if it looks like an image.
        if _may_be_grid(leaf) and not any(settings_of(leaf, overrides)) and _is_few_valued(values, CELL_VALUES):
            _fit_grid(leaf, values, overrides)
        elif image is not None:
            if leaf.name not in codebooks:
                codebooks[leaf.name] = fit_codebook(image[0], values, image[1], seed)
        elif leaf.kind != "categorical":
            _fit_fields(leaf, values, overrides, tokenizer.bins, max_values=tokenizer.bins)
    if actions is not None:
        for leaf, values in _split_by_leaf(tokenizer.action_leaves, actions):
            if leaf.kind != "categorical":
                # An agent may do what the data do not show: keep all declared actions possible.
                _fit_fields(leaf, values, overrides, tokenizer.bins, max_values=0, to_bounds=True)
    return {name: chosen for name, chosen in overrides.items() if chosen or name in tokenizer.overrides}, codebooks


def finer_bins(tokenizer: Tokenizer, fitted: Tokenizer, observations: NDArray[Any]) -> dict[str, int]:
    """
    Find fields whose values mostly change by less than a bin from one step to the next, so that velocities cannot be told.

    :param tokenizer: the tokenizer before it was fitted; fields that it has settings for are left out
    :param fitted: the fitted tokenizer
    :param observations: field values of successive steps, (N, F)
    :return: by name of the field, the number of bins with which the median of the changes is a bin, at most :data:`FINEST`
    """
    free = {
        field.name
        for leaf in tokenizer.observation_leaves
        if plan_image(leaf, tokenizer.overrides) is None
        for field, settings in zip(leaf.fields, settings_of(leaf, tokenizer.overrides), strict=True)
        if not settings
    }
    found = {}
    for column, _, plan in fitted.observation_codec.fields:
        if not plan.binned or plan.name not in free:
            continue
        values = observations[:, column].astype(np.float64)
        quantizer = make_quantizer(plan)
        assert isinstance(quantizer, Bins)
        changes = np.abs(np.diff(quantizer.compand(values[np.isfinite(values), None])[:, 0]))
        changes = changes[changes > 0]
        if len(changes) > 0 and (median := float(np.median(changes))) < 1:
            found[plan.name] = min(math.ceil(plan.size / max(median, plan.size / FINEST)), FINEST)
    return {name: bins for name, bins in found.items() if bins > tokenizer.bins}


def unfitted_names(tokenizer: Tokenizer) -> list[str]:
    """Return the names of fields and arrays to which :func:`fit_settings` would give a scale, categories or a codebook."""
    names: list[str] = []
    for leaf in tokenizer.observation_leaves:
        image = plan_image(leaf, tokenizer.overrides)
        if image is not None:
            names += [leaf.name] if leaf.name not in tokenizer.codebooks else []
        elif leaf.kind != "categorical":
            settings = settings_of(leaf, tokenizer.overrides)
            for field, chosen in zip(leaf.fields, settings, strict=True):
                if not field.bounded and not {"scale", "values"} & set(chosen):
                    names.append(field.name)
            if _may_be_grid(leaf) and not any(settings):
                names.append(leaf.name)
    return names


def binned_by_space(tokenizer: Tokenizer) -> list[str]:
    """Return the names of fields whose bins follow from their space alone, which may be far wider than the data."""
    names: set[str] = set()
    for leaf in tokenizer.observation_leaves:
        if plan_image(leaf, tokenizer.overrides) is None:
            settings = settings_of(leaf, tokenizer.overrides)
            names |= {field.name for field, chosen in zip(leaf.fields, settings, strict=True) if not _places_bins(chosen)}
    return [plan.name for _, _, plan in tokenizer.observation_codec.fields if plan.binned and plan.name in names]


def poorly_resolved(tokenizer: Tokenizer, observations: NDArray[Any]) -> dict[str, str]:
    """
    Find fields that vary in the data but can hardly be told apart by their ids.

    :param tokenizer: the tokenizer to judge
    :param observations: field values, (N, F)
    :return: by name of the field, settings that would place its bins where the values are, written as in a recipe
    """
    suggestions = {}
    for column, _, plan in tokenizer.observation_codec.fields:
        values = observations[:, column]
        bulk = _winsorize(values[np.isfinite(values)])
        if (plan.binned or plan.values) and (bulk != bulk[:1]).any() and not _resolves(plan, bulk):
            suggestions[plan.name] = f'"{plan.name}" = {{ low = {bulk.min():.3g}, high = {bulk.max():.3g} }}'
    return suggestions


def warn_poorly_resolved(tokenizer: Tokenizer, observations: NDArray[Any], reports: list[FieldReport]) -> None:
    """
    Warn of fields that vary in the data but can hardly be told apart by their ids.

    :param tokenizer: the fitted tokenizer
    :param observations: field values, (N, F)
    :param reports: reports of the tokenizer on these observations
    """
    suggestions = poorly_resolved(tokenizer, observations)
    if not suggestions:
        return
    lines = [
        f"{report.name} ({report.used} of {report.ids} ids used, error {report.error:.2g}, spread {report.spread:.2g})"
        for report in reports
        if report.name in suggestions
    ]
    shown = ", ".join(lines[:8]) + (f" and {len(lines) - 8} others" if len(lines) > 8 else "")
    warnings.warn(
        f"tokens hardly tell the values of {shown} apart; set low and high where the values lie, or more bins, in the token "
        f"settings (overrides=, or [tokens.fields] in a recipe): {next(iter(suggestions.values()))}",
        stacklevel=4,
    )


def _fit_grid(leaf: Leaf, values: NDArray[Any], overrides: dict[str, Settings]) -> None:
    """
    Make each entry of an array of integers a category; all entries of one channel share their categories.

    The categories are the integers from 0, or from the lowest value found, to one more than the highest value found. A value
    that the data do not show then becomes the highest category instead of being mistaken for another one.

    :param leaf: the array
    :param values: its values in the data, (N, F)
    :param overrides: settings by name; those of this array are added
    """
    if leaf.image:
        overrides[leaf.name] = {"patch": 0}
    channels = leaf.shape[-1] if len(leaf.shape) == 3 else 1
    for channel in range(channels):
        found = values[:, channel::channels]
        low, high = min(int(found.min()), max(int(leaf.low.min()), 0)), min(int(found.max()) + 1, int(leaf.high.max()))
        categories = range(low, high + 1) if high - low <= CELL_VALUES else np.unique(found).tolist()
        name = leaf.layer_name(channel) if channels > 1 else leaf.name
        overrides[name] = {**overrides.get(name, {}), "values": list(categories)}


def _fit_fields(
    leaf: Leaf,
    values: NDArray[Any],
    overrides: dict[str, Settings],
    bins: int,
    max_values: int,
    to_bounds: bool = False,
) -> None:
    """
    Fit the numeric fields of an array: a set of values where these are few, else bins.

    A field that never changes in the data keeps its bins, unless its bounds say that it cannot change: it may change later.

    :param leaf: the array
    :param values: its values in the data, (N, F)
    :param overrides: settings by name; those of this array's fields are added
    :param bins: number of bins of a real field
    :param max_values: largest number of different values for which a field becomes a set of values
    :param to_bounds: whether bins reach to declared bounds wherever the data are
    """
    for field, chosen, column in zip(leaf.fields, settings_of(leaf, overrides), values.T, strict=True):
        finite = column[np.isfinite(column)]  # infinite values go to an end bin
        all_finite = len(finite) == len(column)
        may_be_values = field.low == field.high or bool((finite != finite[:1]).any())
        if not chosen and all_finite and may_be_values and _is_few_valued(column, max_values):
            overrides[field.name] = {"values": np.unique(column).tolist()}
        elif not _places_bins(chosen):
            placed = _place_bins(field, chosen, finite.astype(np.float64), bins, to_bounds)
            if placed:
                overrides[field.name] = {**overrides.get(field.name, {}), **placed}


def _places_bins(chosen: Settings) -> bool:
    """Whether settings say where the bins of a field are."""
    return bool({"scale", "values"} & chosen.keys()) or {"low", "high"} <= chosen.keys()


def _place_bins(field: Field, chosen: Settings, values: NDArray[np.float64], bins: int, to_bounds: bool) -> Settings:
    """
    Place the bins of a field where its values are; :meth:`Tokenizer.fit` states the rule.

    :param field: the field
    :param chosen: settings of the user, which are kept
    :param values: finite values of the field in the data, (N,)
    :param bins: number of bins, where the settings do not say
    :param to_bounds: whether bins reach to declared bounds wherever the data are
    :return: settings to add; empty where the declared bounds will do
    """
    within = replace(field, low=chosen.get("low", field.low), high=chosen.get("high", field.high))
    origin = chosen.get("origin", origin_of(within))
    # First try: the bounds alone. Bins are uniform between two bounds, else finest at the one bound, or at 0.
    declared: Settings = {} if within.bounded else {"scale": _root_mean_square(values - origin) or 1.0}
    plan = plan_field(field, {**chosen, **declared}, bins)
    bulk = _winsorize(values)
    if not plan.binned or (bulk == bulk[:1]).all():
        return declared
    if (within.bounded or origin in (within.low, within.high)) and _resolves(plan, bulk):
        return declared
    # Otherwise the bins are finest at the median and reach to the most distant value. Where that makes them too coarse, they
    # reach less far, and distant values go to the end bins.
    center = float(chosen.get("origin", np.median(bulk)))
    spread = _root_mean_square(bulk - center)
    farthest = np.array([center - values.min(), values.max() - center]) / spread
    reaches = [farthest.clip(UNBOUNDED_SPAN, LONGEST_REACH), *(np.full(2, reach) for reach in SHORTER_REACHES)]
    for below, above in reaches:
        low, high = center - below * spread, center + above * spread
        # Bins do not reach past a declared bound, unless the data do.
        if within.low <= bulk.min():
            low = within.low if to_bounds and within.bounded else max(low, within.low)
        if within.high >= bulk.max():
            high = within.high if to_bounds and within.bounded else min(high, within.high)
        placed = {"low": low, "high": high, "scale": spread, "origin": center} | chosen
        if _resolves(plan_field(field, placed, bins), bulk):
            break
    return placed


def _resolves(plan: FieldPlan, values: NDArray[np.float64]) -> bool:
    """
    Whether the ids of a field tell its values (N,) apart.

    The values must use more than two ids, and the root mean square error of decoding must be at most half their standard
    deviation. Two ids are enough for two different values, and for a field that has only two ids.
    """
    quantizer = make_quantizer(plan)
    ids = quantizer.encode(values[:, None])
    used, error = len(np.unique(ids)), _root_mean_square(quantizer.decode(ids)[:, 0] - values)
    return (used > 2 or used in (plan.size, len(np.unique(values)))) and error <= values.std() / 2


def _winsorize(values: NDArray[Any]) -> NDArray[np.float64]:
    """
    Limit values (N,) to their 0.5 % and 99.5 % quantiles, so that outliers do not decide the spread.

    At most :data:`BULK_ROWS` of the values are used. All are returned unchanged if only the outliers vary.
    """
    if len(values) == 0:
        return values.astype(np.float64)
    some = values[spread_evenly(len(values), BULK_ROWS)].astype(np.float64)
    limited = np.clip(some, *np.quantile(some, [0.005, 0.995]))
    return limited if (limited != limited[0]).any() else values.astype(np.float64)


def _root_mean_square(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.square(values).sum() / max(len(values), 1)))


def _may_be_grid(leaf: Leaf) -> bool:
    """Whether an array may be a grid of categories: a small array of integers with wide bounds."""
    small = leaf.kind == "integer" and len(leaf.shape) > 1 and leaf.size <= CELL_ARRAY
    return small and bool((leaf.high - leaf.low >= CELL_VALUES // 2).all())


def _is_few_valued(values: NDArray[Any], max_values: int) -> bool:
    """Whether there are at most ``max_values`` different values, each with enough rows to assume that there are no others."""
    # A look at the first rows spares sorting all of them.
    if len(np.unique(values[: ROWS_PER_VALUE * (max_values + 1)])) > max_values:
        return False
    different = len(np.unique(values))
    return different <= max_values and values.size >= ROWS_PER_VALUE * different


def _split_by_leaf(leaves: list[Leaf], values: NDArray[Any]) -> list[tuple[Leaf, NDArray[Any]]]:
    """Split field values (N, F) into those of each array."""
    ends = np.cumsum([leaf.size for leaf in leaves])
    return list(zip(leaves, np.split(values, ends[:-1], axis=-1), strict=True))


def _rows_to_read(count: int, num_fields: int) -> NDArray[np.int64]:
    """Return the indices of the rows to fit on, of ``count`` rows with ``num_fields`` values each."""
    return spread_evenly(count, max(min(ROWS, NUMBERS // max(num_fields, 1)), 1))

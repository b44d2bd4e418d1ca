"""
How well the fields of an observation can be recovered from their tokens.

Shapes: N rows, F fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dhmm_rl.tokens.bins import Bins
from dhmm_rl.tokens.codec import Values
from dhmm_rl.tokens.images import Codebook

if TYPE_CHECKING:
    from dhmm_rl.tokens.tokenizer import Tokenizer

REPORTED_NUMBERS = 5_000_000
"""Largest number of values that a report is computed on; more rows are thinned out evenly."""
TABLE_FIELDS = 12
"""An array with more fields than this takes one line of the printed table."""


class FieldReport(NamedTuple):
    """
    How well one field, or one image, can be recovered from its tokens.

    :param name: name of the field or of the image
    :param how: kind of quantizer: ``bins``, ``values``, ``categories`` or ``codes``
    :param ids: number of ids that the field owns
    :param used: number of these ids that occur in the data
    :param clipped: share of values outside the bins; for a field of a few values, share of values that differ from all of them
    :param error: root mean square error of decoding, in the field's unit
    :param spread: standard deviation of the field in the data, in its unit
    """

    name: str
    how: str
    ids: int
    used: int
    clipped: float
    error: float
    spread: float


def report_fields(tokenizer: Tokenizer, observations: NDArray[Any]) -> list[FieldReport]:
    """
    Encode and decode observations, and compare.

    :param tokenizer: the tokenizer to judge
    :param observations: field values, (N, F)
    :return: one report per field and one per image, in the order of their slots
    """
    codec = tokenizer.observation_codec
    some = observations[spread_evenly(len(observations), max(REPORTED_NUMBERS // max(codec.num_fields, 1), 1))]
    ids = codec.encode(some)
    decoded = codec.decode(ids)
    finite = np.where(np.isinf(some), decoded, some)  # infinite values count as clipped, not as an infinite error
    squared_error = np.square(decoded - finite)
    used = [len(np.unique(column)) for column in ids.T]
    reports: dict[int, FieldReport] = {}  # by first slot
    for group in codec.groups:
        columns, slots = np.arange(codec.num_fields)[group.columns], np.arange(len(codec.names))[group.slots]
        values, errors = finite[:, columns].astype(np.float64), np.sqrt(squared_error[:, columns].mean(axis=0))
        if isinstance(group.quantizer, Codebook):
            # All patches of an image share one codebook: they make one line.
            name = next(name for name, leaf_slots in codec.leaf_slots.items() if slots[0] in leaf_slots)
            codes = len(np.unique(ids[:, slots] - codec.starts[slots]))
            error = float(np.sqrt(squared_error[:, columns].mean()))
            reports[int(slots[0])] = FieldReport(name, "codes", codec.sizes[slots[0]], codes, 0.0, error, float(values.std()))
            continue
        how, clipped = "categories", np.zeros(values.shape, dtype=bool)
        if isinstance(group.quantizer, Bins):
            how, clipped = "bins", group.quantizer.outside(some[:, columns])
        elif isinstance(group.quantizer, Values):
            how, clipped = "values", (squared_error[:, columns] > 0) | np.isinf(some[:, columns])
        for j, slot in enumerate(slots):
            reports[int(slot)] = FieldReport(
                codec.names[slot],
                how,
                codec.sizes[slot],
                used[slot],
                float(clipped[:, j].mean()),
                float(errors[j]),
                float(values[:, j].std()),
            )
    return [reports[slot] for slot in sorted(reports)]


def format_report(reports: list[FieldReport]) -> str:
    """Format reports as a table. An array of many fields takes one line: the sum of its ids, its worst share and error."""
    lines = [f"{'field':<40}{'as':>12}{'ids':>8}{'used':>8}{'clipped':>9}{'error':>12}{'spread':>12}"]
    for how in dict.fromkeys(report.how for report in reports):
        same_kind = [i for i, report in enumerate(reports) if report.how == how]
        for name, members in group_by_array([report.name for report in reports], same_kind):
            _, _, ids, used, clipped, error, spread = zip(*(reports[i] for i in members), strict=True)
            lines.append(
                f"{name:<40}{how:>12}{sum(ids):>8}{sum(used):>8}{max(clipped):>9.1%}{max(error):>12.4g}{max(spread):>12.4g}"
            )
    return "\n".join(lines)


def group_by_array(names: Sequence[str], indices: Iterable[int]) -> list[tuple[str, list[int]]]:
    """
    Group fields for a table: the fields of an array with more than :data:`TABLE_FIELDS` of them share a line.

    :param names: names of all fields
    :param indices: the fields to group, as indices into ``names``
    :return: title and indices of each line
    """
    arrays: dict[str, list[int]] = {}
    for i in indices:
        arrays.setdefault(names[i].split("[")[0], []).append(i)
    lines: list[tuple[str, list[int]]] = []
    for array, members in arrays.items():
        if len(members) > TABLE_FIELDS:
            lines.append((f"{array}, {len(members)} fields", members))
        else:
            lines += [(names[i], [i]) for i in members]
    return lines


def spread_evenly(count: int, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` of the indices 0 to ``count - 1``, evenly spaced."""
    return np.arange(count) if count <= most else np.unique(np.linspace(0, count - 1, most).astype(np.int64))

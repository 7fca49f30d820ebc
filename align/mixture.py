"""Mixtures of data: several sources in one, each with its share of the rows.

Every part has been read and checked for itself, so that parts may be written in different forms: one with `messages`,
another with a prompt and a completion of strings. What is mixed is what became of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import fields
from itertools import accumulate
from typing import Any, Protocol, TypeVar

from align.checks import check_same_kind
from align.data import PromptRows
from align.rows import DataError, Fault, Faults


class Checked(Protocol):
    """What the readers of `align.data` and `align.pairs` return: a dataclass of N checked rows."""

    @property
    def origins(self) -> list[str]:
        """Where each row came from, `file:row`."""
        ...

    def __len__(self) -> int: ...


Rows = TypeVar("Rows", bound=Checked)


def mix(parts: Sequence[tuple[Rows, float]], *, seed: int = 0) -> Rows:
    """Return as many rows as the parts have together, of which each part has its share by weight, and at least one.

    A part whose share is more than it has is repeated whole, as often as it fits, and what is left of the share is
    drawn without replacement; a part whose share is less is drawn from alone. Rows keep their origins; an epoch of
    training goes through the mixture in an order of its own. Demonstrations, pairs and feedback may be strings in one
    part and messages in another; prompts may not, nor may their other columns differ, since rewards see both.

    Args:
        parts: rows as one of the readers returned them, and their weight; weights need not add up to 1.
        seed: of what is drawn.

    Raises:
        DataError: if there is no part, a part has no rows or rows of another kind, or a weight is not above 0.
    """
    if not parts or not all(len(rows) for rows, _ in parts):
        raise DataError("a mixture needs parts, and each of them rows")
    for _, weight in parts:
        if not (weight > 0 and math.isfinite(weight)):
            raise DataError(f"a weight in a mixture must be above 0, got {weight:g}: leave the part out instead")
    first, faults = parts[0][0], Faults()
    for rows, _ in parts[1:]:
        with faults.at(rows.origins[0]):
            _check_alike(rows, first)
    faults.check()
    size, reached = sum(len(rows) for rows, _ in parts), list(accumulate(weight for _, weight in parts))
    # Rounded are the borders between the parts, so that their shares add up to the whole.
    borders = [0, *(round(size * weight / reached[-1]) for weight in reached)]
    taken = []
    for number, (rows, _) in enumerate(parts):
        share = max(1, borders[number + 1] - borders[number])
        drawn = random.Random(f"{seed} {number}").sample(range(len(rows)), share % len(rows))
        taken.append([*range(len(rows))] * (share // len(rows)) + sorted(drawn))
    return _joined([rows for rows, _ in parts], taken)


def _check_alike(rows: Checked, first: Checked) -> None:
    """Refuse a part that cannot stand beside the first."""
    if type(rows) is not type(first):
        raise Fault(f"{type(rows).__name__}, but {type(first).__name__} in {first.origins[0]}: read both alike")
    if (getattr(rows, "margins", None) is None) != (getattr(first, "margins", None) is None):
        raise Fault(f"margins: not read alike here and in {first.origins[0]}: name the column of margins for both")
    if isinstance(rows, PromptRows) and isinstance(first, PromptRows):
        check_same_kind(rows.prompts[0], "prompt", first.prompts, first.origins)
        for name in sorted(rows.columns.keys() ^ first.columns.keys()):
            where = "missing" if name in first.columns else "there"
            other = "has" if name in first.columns else "lacks"
            what = f"{where}, but {first.origins[0]} {other} it"
            raise Fault(f"{name}: {what}: rewards get every column, so all parts of a mixture need the same ones")


def _joined(parts: Sequence[Rows], taken: Sequence[Sequence[int]]) -> Rows:
    """Make one record of the rows taken from each part; what is a count is added up."""

    def picked(each: Sequence[Sequence[Any]]) -> list[Any]:
        return [values[row] for values, rows in zip(each, taken, strict=True) for row in rows]

    def value(name: str) -> Any:
        each: list[Any] = [getattr(rows, name) for rows in parts]
        if name == "templates":  # which records made by hand may lack
            each = [given or [{}] * len(rows) for given, rows in zip(each, parts, strict=True)]
        if isinstance(each[0], int):
            return sum(each)
        if isinstance(each[0], dict):
            return {column: picked([columns[column] for columns in each]) for column in each[0]}
        return None if each[0] is None else picked(each)

    kept: Any = type(parts[0])
    return kept(**{field.name: value(field.name) for field in fields(kept)})

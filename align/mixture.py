"""Mixtures of data: several sources in one, each with its share of the rows."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from align.rows import DataError, Row


def mix(parts: Sequence[tuple[Sequence[Row], float]], *, seed: int = 0) -> list[Row]:
    """Return as many rows as the parts have together, of which each part has its share by weight.

    A part whose share is more than it has is repeated whole, as often as it fits, and what is left of the share is
    drawn without replacement; a part whose share is less is drawn from alone. Rows keep their origins; an epoch of
    training goes through the mixture in an order of its own.

    Args:
        parts: rows and their weight, which need not add up to 1.
        seed: of what is drawn.

    Raises:
        DataError: if there is no part, a part has no rows, or a weight is not above 0.
    """
    if not parts or not all(rows for rows, _ in parts):
        raise DataError("a mixture needs parts, and each of them rows")
    for _, weight in parts:
        if not (weight > 0 and math.isfinite(weight)):
            raise DataError(f"a weight in a mixture must be above 0, got {weight:g}: leave the part out instead")
    size, total = sum(len(rows) for rows, _ in parts), sum(weight for _, weight in parts)
    mixed = []
    for number, (rows, weight) in enumerate(parts):
        share = max(1, round(size * weight / total))
        drawn = random.Random(f"{seed} {number}").sample(range(len(rows)), share % len(rows))
        mixed += [*rows] * (share // len(rows)) + [rows[row] for row in sorted(drawn)]
    return mixed

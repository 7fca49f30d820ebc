"""Schedules: functions of a step that give a value, for exploration rates, learning rates and clip ranges.

Steps count from 0. Past its last step a schedule stays at its end, so a longer run goes on with the last value.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]
"""Step, from 0 -> value."""


def constant(value: float) -> Schedule:
    """Give the same value at every step.

    >>> constant(0.1)(1000)
    0.1
    """
    return lambda step: value


def linear(start: float, end: float, steps: int) -> Schedule:
    """Go from `start` to `end` in a straight line: start + (end - start) * min(step / steps, 1).

    Args:
        start, end: value at step 0, and from step `steps` on.
        steps: how long it takes, at least 1.

    Raises:
        ValueError: if `steps` is below 1.

    >>> [linear(1.0, 0.0, 4)(step) for step in (0, 1, 4, 9)]
    [1.0, 0.75, 0.0, 0.0]
    """
    _check_steps(steps)
    return lambda step: end if step >= steps else start + (end - start) * step / steps


def cosine(start: float, end: float, steps: int) -> Schedule:
    """Go from `start` to `end` along half a wave: end + (start - end) * (1 + cos(pi * min(step / steps, 1))) / 2.

    Args and Raises are those of `linear`.

    Source: Loshchilov & Hutter 2017 (arXiv:1608.03983), one period without a restart.

    >>> [round(cosine(1.0, 0.0, 4)(step), 4) for step in (0, 1, 2, 4, 9)]
    [1.0, 0.8536, 0.5, 0.0, 0.0]
    """
    _check_steps(steps)
    return lambda step: end if step >= steps else end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}: for a value that never changes use `constant`.")

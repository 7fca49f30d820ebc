"""What the rules of health read, the first values of each metric of a run and its latest, and what they answer.

A step that does not tell a metric is passed over, since some are told once a rollout, and so is what is not finite.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

WINDOW = 20
"""Steps that a rule looks back over: long enough for a mean over noisy rollouts, short enough to be told in time."""
PATIENCE = 100
"""Steps after which a reward that has not risen, or a critic that has learned nothing, is worth a word; also how many
of the latest values of a metric are remembered."""


@dataclass(frozen=True)
class Finding:
    """What is wrong, in words with numbers; what to change; the step at which it was first seen."""

    name: str
    words: str
    advice: str
    step: int


class Readings:
    """What was measured so far.

    step: of the latest metrics.
    latest: these metrics, as they came.
    """

    def __init__(self) -> None:
        self.step = 0
        self.latest: Mapping[str, float] = {}
        self._steps: deque[int] = deque(maxlen=WINDOW)
        self._first: dict[str, list[float]] = {}
        self._recent: dict[str, deque[float]] = {}

    def take(self, metrics: Mapping[str, float]) -> None:
        """Take in the metrics of a step, with "step"."""
        self.step, self.latest = int(metrics["step"]), metrics
        self._steps.append(self.step)
        for name, value in metrics.items():
            if math.isfinite(value):
                first = self._first.setdefault(name, [])
                if len(first) < WINDOW:
                    first.append(value)
                self._recent.setdefault(name, deque(maxlen=PATIENCE)).append(value)

    def first(self, name: str, count: int = WINDOW) -> list[float]:
        """Return the first values of a metric, up to `count`, and no more than WINDOW."""
        return self._first.get(name, [])[:count]

    def recent(self, name: str, count: int = PATIENCE) -> list[float]:
        """Return the latest values of a metric, up to `count`, and no more than PATIENCE."""
        return list(self._recent.get(name, ()))[-count:]

    def last(self, name: str, count: int = WINDOW) -> list[float]:
        """Return the last `count` values of a metric, or none while there are fewer."""
        values = self.recent(name, count)
        return values if len(values) == count else []

    @property
    def span(self) -> str:
        """The last WINDOW steps, in words."""
        return f"steps {self._steps[0]}-{self._steps[-1]}"


Rule = Callable[[Readings], Iterable[Finding]]
"""Reads what was measured, after every step, and answers with what is wrong, if anything."""


def best_stretch(values: list[float], count: int) -> int:
    """Return where the `count` values in a row begin that have the highest mean."""
    return max(range(len(values) - count + 1), key=lambda at: sum(values[at : at + count]))


def wander(values: list[float]) -> float:
    """Return how much values change from one to the next where nothing happens, as a standard deviation."""
    changes = [after - before for before, after in pairwise(values)]
    middle = median(changes)
    # A median, so that a lasting fall does not count as wandering; 1.5 of it are a standard deviation.
    return 1.5 * median(abs(change - middle) for change in changes)


def reward_gain(readings: Readings, count: int) -> float:
    """Return how far the mean reward rose, in units of its spread in the first steps; inf or 0 where that is 0.

    Of an agent in environments it is the return that rises, in units of the most that it had risen.
    """
    start, now = readings.first("reward/mean", count), readings.recent("reward/mean", count)
    if not now:
        return _share_kept(readings.first("episode/return", count), readings.recent("episode/return"), count)
    spread = readings.first("reward/std", count)
    gain = fmean(now) - fmean(start)
    return gain / fmean(spread) if spread and fmean(spread) > 0 else (math.inf if gain > 0 else 0.0)


def _share_kept(start: list[float], returns: list[float], count: int) -> float:
    if len(returns) < count:
        return 0.0
    at = best_stretch(returns, count)
    gained = fmean(returns[at : at + count]) - fmean(start)
    return (fmean(returns[-count:]) - fmean(start)) / gained if gained > 0 else 0.0

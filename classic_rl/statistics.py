"""What a few runs allow one to say: the interquartile mean, its bootstrap interval, and who is better how often.

Scores are [runs] of one task, or [runs, tasks]; tasks must share a scale (normalise them first). Few runs say little:
the interval belongs beside every number.

Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (arXiv:2108.13264).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate and the ends of its bootstrap interval."""

    estimate: float
    low: float
    high: float


def interquartile_mean(scores: ArrayLike) -> float:
    """Average the middle half of all scores: a quarter of them, rounded down, is left out at each end.

    Robust to a run that failed or was lucky, as the median is, and far less noisy than it.

    >>> interquartile_mean([0, 100, 101, 102, 500])
    101.0
    """
    ordered = np.sort(_scores(scores), axis=None)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def optimality_gap(scores: ArrayLike, *, target: float) -> float:
    """Return how far scores stay below a target on average; what lies above it counts as the target itself.

    >>> optimality_gap([0.5, 2.0], target=1.0)
    0.25
    """
    return float(target - np.minimum(_scores(scores), target).mean())


def probability_of_improvement(ours: ArrayLike, theirs: ArrayLike) -> float:
    """Estimate P(a run of ours beats one of theirs), a tie counted as half, averaged over tasks.

        mean over tasks of mean over pairs of [x > y] + [x = y] / 2          (Mann-Whitney's U over the pairs)

    Args:
        ours: [runs] or [runs, tasks]
        theirs: the same tasks, any number of runs.

    Raises:
        ValueError: if the tasks differ in number.

    >>> probability_of_improvement([1.0, 3.0], [2.0, 3.0])
    0.375
    """
    x, y = _scores(ours), _scores(theirs)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"expected the same tasks, got {x.shape[1]} and {y.shape[1]}: give [runs, tasks] of both")
    wins = np.sign(x[:, None, :] - y[None, :, :])
    return float((wins + 1).mean() / 2)


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> Scores:
    """Return the share of all scores above each threshold: the whole distribution at one glance.

    Returns:
        [thresholds]

    >>> performance_profile([1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 3.5])
    array([1.  , 0.5 , 0.25])
    """
    above = _scores(scores).reshape(-1, 1) > np.asarray(thresholds, dtype=np.float64)
    return above.mean(axis=0)


def bootstrap_interval(
    scores: ArrayLike,
    statistic: Callable[[Scores], float] = interquartile_mean,
    *,
    confidence: float = 0.95,
    samples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """Bound a statistic by the stratified percentile bootstrap: runs are drawn anew within each task.

    With fewer than about ten runs the interval is narrower than it says; it is the more honest the more runs there are.

    Args:
        scores: [runs] or [runs, tasks]
        statistic: of scores, [runs, tasks] -> number.
        confidence: the share of resamples inside.
        samples: how often the runs are drawn anew.
        seed: of the draws.

    Raises:
        ValueError: if confidence is outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}: 0.95 is common")
    measured = _scores(scores)
    runs, tasks = measured.shape
    drawn = np.random.default_rng(seed).integers(runs, size=(samples, runs, tasks))
    columns = np.arange(tasks)
    resampled = [statistic(measured[rows, columns]) for rows in drawn]
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(statistic(measured)), float(low), float(high))


def _scores(scores: ArrayLike) -> Scores:
    """Return scores as [runs, tasks]; refuse what is empty or not finite."""
    array = np.asarray(scores, dtype=np.float64)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or not array.size:
        raise ValueError(f"expected scores [runs] or [runs, tasks], got shape {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError("a score is not finite: a run that failed has a score too, give it the lowest return possible")
    return array

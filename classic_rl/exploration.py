"""Exploration: from action values to the probabilities or scores by which a policy acts, as functions of arrays.

The last axis is the action. A learner in plain lists has its own forms of these in `tabular.behaviour`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def greedy_probabilities(q: Floats) -> Floats:
    """Share the probability among the best actions. [..., A] -> [..., A]

    >>> greedy_probabilities(np.array([1.0, 2.0, 2.0]))
    array([0. , 0.5, 0.5])
    """
    best = q == q.max(axis=-1, keepdims=True)
    return best / best.sum(axis=-1, keepdims=True)


def epsilon_greedy_probabilities(q: Floats, *, epsilon: float) -> Floats:
    """Take any action with probability epsilon, else a best one: epsilon / A + (1 - epsilon) * greedy. [..., A]

    Raises:
        ValueError: if epsilon is no probability.

    >>> epsilon_greedy_probabilities(np.array([1.0, 2.0]), epsilon=0.1)
    array([0.05, 0.95])
    """
    check_epsilon(epsilon)
    return epsilon / q.shape[-1] + (1 - epsilon) * greedy_probabilities(q)


def boltzmann_probabilities(q: Floats, *, temperature: float) -> Floats:
    """Take better actions more often: pi(a) = exp(Q(a) / temperature) / sum_b exp(Q(b) / temperature). [..., A]

    Args:
        q: action values. [..., A]
        temperature: in the unit of the values; towards 0 it is greedy.

    Raises:
        ValueError: if the temperature is not above 0.

    >>> boltzmann_probabilities(np.array([0.0, np.log(3.0)]), temperature=1.0)
    array([0.25, 0.75])
    """
    check_temperature(temperature)
    scaled = np.exp((q - q.max(axis=-1, keepdims=True)) / temperature)
    return scaled / scaled.sum(axis=-1, keepdims=True)


def ucb_scores(q: Floats, counts: NDArray[np.int64], *, c: float) -> Floats:
    """Be optimistic about what was tried seldom: Q(a) + c * sqrt(ln N / n(a)), infinite for what was never tried.

    N is the sum of the counts. For rewards in [0, 1], c = sqrt(2) is UCB1.

    Source: Auer et al. 2002, "Finite-time analysis of the multiarmed bandit problem".

    Args:
        q: mean rewards or action values. [..., A]
        counts: n(a), how often each action was taken. [..., A]
        c: width of the bound, at least 0, in the unit of the values.

    Returns:
        Scores; the action with the highest is taken. [..., A]

    Raises:
        ValueError: if c is negative.
    """
    if c < 0:
        raise ValueError(f"c must be at least 0, got {c}: a negative bound avoids what it does not know.")
    total = np.maximum(counts.sum(axis=-1, keepdims=True), 1)
    return np.where(counts > 0, q + c * np.sqrt(np.log(total) / np.maximum(counts, 1)), np.inf)


def sample_actions(probabilities: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw one action from each row. [..., A] -> [...]"""
    cumulative = probabilities.cumsum(axis=-1)
    draws = rng.random(probabilities.shape[:-1])[..., None] * cumulative[..., -1:]  # rounding may leave a sum below 1
    return (cumulative <= draws).sum(axis=-1)


def argmax_at_random(scores: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the action with the highest score of each row, any of several alike. [..., A] -> [...]"""
    best = scores == scores.max(axis=-1, keepdims=True)
    return np.where(best, rng.random(scores.shape), -1.0).argmax(axis=-1)


def check_epsilon(epsilon: float) -> None:
    """Raise ValueError unless epsilon is a probability."""
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must be in [0, 1], got {epsilon}: it is the probability of a random action.")


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless the temperature is above 0."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}: for the limit at 0 act greedily.")

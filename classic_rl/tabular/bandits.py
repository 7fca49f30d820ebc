"""Bandits: one state, many runs at once, and what each way of exploring loses against the best arm.

Rewards are Bernoulli: arm a pays 1 with probability mean[a], else 0. A player chooses from what each run has seen, its
successes and pulls [N, A].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from classic_rl.exploration import argmax_at_random, epsilon_greedy_probabilities, sample_actions, ucb_scores
from classic_rl.schedules import Schedule, constant

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Player = Callable[[Integers, Integers, int, np.random.Generator], Integers]
"""(successes [N, A], pulls [N, A], time from 0, generator) -> arms [N]"""


def epsilon_greedy(epsilon: float | Schedule) -> Player:
    """Pull any arm with probability epsilon, else the one with the best mean so far; an arm never pulled counts as 1/2.

    Args:
        epsilon: the probability, or a schedule of it over pulls.
    """
    schedule = epsilon if callable(epsilon) else constant(epsilon)

    def choose(successes: Integers, pulls: Integers, time: int, rng: np.random.Generator) -> Integers:
        means = np.where(pulls > 0, successes / np.maximum(pulls, 1), 0.5)
        return sample_actions(epsilon_greedy_probabilities(means, epsilon=schedule(time)), rng)

    return choose


def ucb(c: float = 2**0.5) -> Player:
    """Pull the arm with the highest upper bound, mean + c * sqrt(ln t / n); see `exploration.ucb_scores`.

    Source: Auer et al. 2002: UCB1 for the default, whose regret grows with ln t.
    """

    def choose(successes: Integers, pulls: Integers, time: int, rng: np.random.Generator) -> Integers:
        return argmax_at_random(ucb_scores(successes / np.maximum(pulls, 1), pulls, c=c), rng)

    return choose


def thompson_sampling() -> Player:
    """Draw a mean for each arm from what is believed of it, Beta(1 + successes, 1 + failures), and pull the best.

    Source: Thompson 1933; Agrawal & Goyal 2012 for its regret.
    """

    def choose(successes: Integers, pulls: Integers, time: int, rng: np.random.Generator) -> Integers:
        return rng.beta(1 + successes, 1 + pulls - successes).argmax(axis=-1)

    return choose


def regret(means: Floats, player: Player, *, pulls: int, rng: np.random.Generator) -> Floats:
    """Play, and sum what the chosen arms are expected to pay less than the best.

    Args:
        means: probability that an arm pays. [N, A], a row for each run
        player: chooses arms.
        pulls: of each run.
        rng: draws rewards and choices.

    Returns:
        Regret so far after each pull. [N, pulls]

    Raises:
        ValueError: if the means are not probabilities [N, A].
    """
    if means.ndim != 2 or (means < 0).any() or (means > 1).any():
        raise ValueError(f"means must be probabilities [N, A], a row for each run, got {list(means.shape)}.")
    rows = np.arange(len(means))
    successes, counts = np.zeros(means.shape, dtype=np.int64), np.zeros(means.shape, dtype=np.int64)
    lost = np.zeros((len(means), pulls))
    for time in range(pulls):
        arms = player(successes, counts, time, rng)
        counts[rows, arms] += 1
        successes[rows, arms] += rng.random(len(means)) < means[rows, arms]
        lost[:, time] = means.max(axis=1) - means[rows, arms]
    return lost.cumsum(axis=1)

"""The targets of tabular control and the TD error: one function an equation, on plain numbers and lists.

A learner moves its entry a step towards a target, Q(s, a) += alpha * (target - Q(s, a)). A terminated step has no
future; a truncated one has, and bootstraps. Plain lists, because a NumPy call on four numbers costs more than all the
rest of a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def td_error(value: float, reward: float, next_value: float, terminated: bool, *, gamma: float) -> float:
    """Return delta = r + gamma * (1 - terminated) * V(s') - V(s).

    Source: Sutton 1988, "Learning to predict by the methods of temporal differences".

    >>> td_error(0.5, 1.0, 2.0, False, gamma=0.5)
    1.5
    """
    return (reward if terminated else reward + gamma * next_value) - value


def q_learning_target(reward: float, next_q: Sequence[float], terminated: bool, *, gamma: float) -> float:
    """Return r + gamma * (1 - terminated) * max_a Q(s', a).

    Source: Watkins & Dayan 1992. Args: next_q: Q(s', .). [A]

    >>> q_learning_target(1.0, [2.0, 4.0], False, gamma=0.5)
    3.0
    """
    return reward if terminated else reward + gamma * max(next_q)


def sarsa_target(reward: float, next_q: Sequence[float], next_action: int, terminated: bool, *, gamma: float) -> float:
    """Return r + gamma * (1 - terminated) * Q(s', a'), with the action a' that is taken next.

    Source: Rummery & Niranjan 1994. Args: next_q: Q(s', .). [A]

    >>> sarsa_target(1.0, [2.0, 4.0], 0, False, gamma=0.5)
    2.0
    """
    return reward if terminated else reward + gamma * next_q[next_action]


def expected_sarsa_target(
    reward: float, next_q: Sequence[float], next_probabilities: Sequence[float], terminated: bool, *, gamma: float
) -> float:
    """Return r + gamma * (1 - terminated) * sum_a pi(a | s') Q(s', a).

    Source: van Seijen et al. 2009. Args: next_q, next_probabilities: Q(s', .) and pi(. | s'). [A]

    >>> expected_sarsa_target(1.0, [2.0, 4.0], [0.5, 0.5], False, gamma=0.5)
    2.5
    """
    if terminated:
        return reward
    return reward + gamma * sum([p * q for p, q in zip(next_probabilities, next_q, strict=True)])


def double_q_target(
    reward: float, next_q: Sequence[float], other_next_q: Sequence[float], terminated: bool, *, gamma: float
) -> float:
    """Return r + gamma * (1 - terminated) * Q_other(s', argmax_a Q(s', a)): one table chooses, the other values.

    Source: van Hasselt 2010. Args: next_q: Q(s', .) of the table that is updated; other_next_q: of the other. [A]

    >>> double_q_target(1.0, [2.0, 4.0], [6.0, 0.0], False, gamma=0.5)
    1.0
    """
    return reward if terminated else reward + gamma * other_next_q[next_q.index(max(next_q))]


def count_bonus(visits: int, *, beta: float) -> float:
    """Return beta / sqrt(n), which is added to the reward that is learned from: pay for what was seen seldom.

    Source: Strehl & Littman 2008, "An analysis of model-based interval estimation for Markov decision processes"
    (MBIE-EB). Args: visits: n, of a state and action, this one included; beta: the bonus of the first.

    >>> count_bonus(4, beta=1.0)
    0.5
    """
    return beta / math.sqrt(visits)

"""Finite Markov decision processes as arrays, and the four Bellman equations on them.

S states, A actions. `transitions[s, a, s']` is the probability of coming to s' and going on from there: a row sums to 1
less the probability that the episode terminates, so nothing is ever bootstrapped from a terminal state. A policy is a
table of probabilities, [S, A].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MDP:
    """A finite Markov decision process.

    transitions: probability of coming to s' and going on; what a row lacks of 1 terminates. [S, A, S]
    rewards: expected reward of an action, that of terminating included. [S, A]
    start: distribution of the first state. [S]
    """

    transitions: Floats
    rewards: Floats
    start: Floats

    def __post_init__(self) -> None:
        shape = self.transitions.shape
        if len(shape) != 3 or shape[0] != shape[2] or not shape[1]:
            raise ValueError(f"transitions must be [S, A, S], got {list(shape)}: next states are the last axis.")
        if self.rewards.shape != shape[:2] or self.start.shape != shape[:1]:
            raise ValueError(
                f"transitions {list(shape)} need rewards [S, A] and start [S], "
                f"got {list(self.rewards.shape)} and {list(self.start.shape)}."
            )
        if not np.isfinite(self.rewards).all():
            raise ValueError("rewards must be finite: a forbidden action is one that is left out, not one of -inf.")
        sums = self.transitions.sum(axis=2)
        if not (self.transitions >= 0).all() or not (sums <= 1 + 1e-9).all():
            raise ValueError(
                "transitions must be at least 0 and sum to at most 1 over next states, "
                f"got sums up to {sums.max():.6g}: normalise them over the last axis."
            )
        if not (self.start >= 0).all() or abs(self.start.sum() - 1) > 1e-9:
            raise ValueError(f"start must be a distribution, got a sum of {self.start.sum():.6g}.")

    @property
    def n_states(self) -> int:
        """S."""
        return self.rewards.shape[0]

    @property
    def n_actions(self) -> int:
        """A."""
        return self.rewards.shape[1]


def mdp_from_arrays(
    transitions: ArrayLike, rewards: ArrayLike, *, terminal: ArrayLike | None = None, start: ArrayLike | None = None
) -> MDP:
    """Make an MDP of arrays as textbooks write them.

    Args:
        transitions: P(s' | s, a), terminal states among the s'. [S, A, S]
        rewards: R(s, a), or R(s, a, s'), which is averaged over s'. [S, A] or [S, A, S]
        terminal: bool, states that end the episode when they are entered; what the arrays say of leaving them is
            dropped. None: no state does. [S]
        start: distribution of the first state; None starts in every state that is not terminal alike. [S]

    Raises:
        ValueError: if the shapes or the probabilities are not those of an MDP.

    >>> walk = mdp_from_arrays([[[0.0, 1.0]], [[0.0, 1.0]]], [[1.0], [5.0]], terminal=[False, True])
    >>> bellman_optimality_v(walk, np.zeros(2), gamma=0.9)
    array([1., 0.])
    """
    full, reward = np.array(transitions, dtype=np.float64), np.array(rewards, dtype=np.float64)
    if full.ndim != 3 or reward.shape not in (full.shape, full.shape[:2]):
        raise ValueError(
            f"expected transitions [S, A, S] and rewards [S, A] or [S, A, S], got {list(full.shape)}, "
            f"{list(reward.shape)}."
        )
    ends = np.zeros(full.shape[0], dtype=bool) if terminal is None else np.asarray(terminal, dtype=bool)
    reward = (full * reward).sum(axis=2) if reward.ndim == 3 else reward
    first = ~ends / max((~ends).sum(), 1) if start is None else np.asarray(start, dtype=np.float64)
    full[:, :, ends] = 0
    full[ends], reward[ends] = 0, 0
    return MDP(full, reward, first)


def mdp_from_env(env: Any) -> MDP:
    """Read an MDP off the table `P` of a Gymnasium environment such as FrozenLake, CliffWalking or Taxi.

    `P[s][a]` lists (probability, next state, reward, terminated). The tables of Taxi and CliffWalking also describe
    steps out of the states in which an episode has ended. Nobody takes those, so they are cut: a state that is entered
    by terminating and cannot be reached otherwise has value 0. A time limit is no part of the MDP.

    Args:
        env: an environment whose `unwrapped` has `P` and `initial_state_distrib`.

    Raises:
        ValueError: if it has none.
    """
    table, start = transition_table(env)
    n_states, n_actions = len(table), len(table[0])
    transitions, rewards = np.zeros((n_states, n_actions, n_states)), np.zeros((n_states, n_actions))
    entered_by_terminating = np.zeros(n_states, dtype=bool)
    for state, actions in enumerate(table):
        for action, outcomes in enumerate(actions):
            for probability, next_state, reward, terminated in outcomes:
                rewards[state, action] += probability * reward
                if terminated:
                    entered_by_terminating[next_state] = True
                else:
                    transitions[state, action, next_state] += probability
    ended = entered_by_terminating & ~reachable(transitions, start)
    transitions[ended], rewards[ended] = 0, 0
    return MDP(transitions, rewards, start)


Outcome = tuple[float, int, float, bool]
"""Probability, next state, reward, terminated."""


def transition_table(env: Any) -> tuple[list[list[list[Outcome]]], Floats]:
    """Return the table `P` of an environment as lists of plain numbers, [S][A][outcomes], and its start, [S].

    Raises:
        ValueError: if the environment has no table.
    """
    inner = getattr(env, "unwrapped", env)
    table, start = getattr(inner, "P", None), getattr(inner, "initial_state_distrib", None)
    if table is None or start is None:
        raise ValueError(
            f"{type(inner).__name__} has no table: planning needs `P` and `initial_state_distrib`. Learn from its "
            "steps instead (`tabular.control`), or give the arrays (`mdp_from_arrays`)."
        )
    plain = [
        [[(float(p), int(s), float(r), bool(t)) for p, s, r, t in table[state][action]] for action in range(len(row))]
        for state, row in ((state, table[state]) for state in range(len(table)))
    ]
    return plain, np.asarray(start, dtype=np.float64).ravel()


def reachable(transitions: Floats, start: Floats) -> NDArray[np.bool_]:
    """Return which states an episode can be in, before it ends. [S, A, S], [S] -> [S]"""
    steps = transitions.sum(axis=1) > 0
    found = start > 0
    while True:
        more = found | steps[found].any(axis=0)
        if (more == found).all():
            return found
        found = more


# -- the Bellman equations: a value function is the fixed point of its own


def lookahead(mdp: MDP, values: Floats, *, gamma: float) -> Floats:
    """Value each action by one step: Q(s, a) = R(s, a) + gamma * sum_s' P(s' | s, a) V(s'). [S] -> [S, A]"""
    return mdp.rewards + gamma * mdp.transitions @ values


def bellman_expectation_v(mdp: MDP, values: Floats, policy: Floats, *, gamma: float) -> Floats:
    """Back values of a policy up: V(s) = sum_a pi(a | s) (R(s, a) + gamma * sum_s' P(s' | s, a) V(s')).

    Source: Bellman 1957; Sutton & Barto 2018, section 3.5.

    Args:
        mdp: S states, A actions.
        values: V. [S]
        policy: pi(a | s). [S, A]
        gamma: discount per step, in [0, 1].

    Returns:
        The right-hand side. [S]
    """
    return (policy * lookahead(mdp, values, gamma=gamma)).sum(axis=1)


def bellman_expectation_q(mdp: MDP, q: Floats, policy: Floats, *, gamma: float) -> Floats:
    """Back action values up: Q(s, a) = R(s, a) + gamma * sum_s' P(s' | s, a) sum_a' pi(a' | s') Q(s', a').

    Source and Args are those of `bellman_expectation_v`, with q [S, A] for values. Returns [S, A].
    """
    return lookahead(mdp, (policy * q).sum(axis=1), gamma=gamma)


def bellman_optimality_v(mdp: MDP, values: Floats, *, gamma: float) -> Floats:
    """Back optimal values up: V(s) = max_a (R(s, a) + gamma * sum_s' P(s' | s, a) V(s')). [S] -> [S]

    Source: Bellman 1957; Sutton & Barto 2018, section 3.6.
    """
    return lookahead(mdp, values, gamma=gamma).max(axis=1)


def bellman_optimality_q(mdp: MDP, q: Floats, *, gamma: float) -> Floats:
    """Back optimal action values up: Q(s, a) = R(s, a) + gamma * sum_s' P(s' | s, a) max_a' Q(s', a'). [S, A] -> [S, A]

    Source: as `bellman_optimality_v`.
    """
    return lookahead(mdp, q.max(axis=1), gamma=gamma)

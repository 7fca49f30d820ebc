"""Planning: values and policies of an MDP that is known; see `tabular.mdp` for the shapes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from classic_rl.tabular.mdp import MDP, Floats, bellman_expectation_v, bellman_optimality_v, lookahead


@dataclass(frozen=True)
class Plan:
    """What planning found.

    values: V. [S]
    q: Q, one step of lookahead from V. [S, A]
    policy: greedy with respect to q, one action a state with probability 1. [S, A]
    sweeps: improvements or sweeps that it took.
    """

    values: Floats
    q: Floats
    policy: Floats
    sweeps: int


def greedy_policy(q: Floats) -> Floats:
    """Put all probability on the best action, on the first of several. [S, A] -> [S, A]

    >>> greedy_policy(np.array([[1.0, 3.0], [2.0, 2.0]]))
    array([[0., 1.],
           [1., 0.]])
    """
    return np.eye(q.shape[1])[q.argmax(axis=1)]


def uniform_policy(mdp: MDP) -> Floats:
    """Take every action alike. [S, A]"""
    return np.full(mdp.rewards.shape, 1 / mdp.n_actions)


def start_value(mdp: MDP, values: Floats) -> float:
    """Return the expected value of the first state."""
    return float(mdp.start @ values)


def policy_evaluation(
    mdp: MDP, policy: Floats, *, gamma: float, tolerance: float = 1e-10, max_sweeps: int = 100_000
) -> Floats:
    """Find a policy's values by backing them up until they stay: V <- R_pi + gamma * P_pi V.

    Source: Sutton & Barto 2018, section 4.1, with a new array a sweep.

    Args:
        mdp: S states, A actions.
        policy: pi(a | s). [S, A]
        gamma: discount per step, in [0, 1].
        tolerance: largest change of a value in the last sweep.
        max_sweeps: after so many it is given up.

    Returns:
        V of the policy. [S]

    Raises:
        ValueError: if policy or gamma are none.
        ArithmeticError: if the values do not settle: with gamma = 1, a policy that never ends has none.
    """
    _check(mdp, policy, gamma)
    values = np.zeros(mdp.n_states)
    for _ in range(max_sweeps):
        backed_up = bellman_expectation_v(mdp, values, policy, gamma=gamma)
        if np.abs(backed_up - values).max() <= tolerance:
            return backed_up
        values = backed_up
    raise ArithmeticError(_no_end(f"the values still changed after {max_sweeps} sweeps"))


def exact_policy_evaluation(mdp: MDP, policy: Floats, *, gamma: float) -> Floats:
    """Find a policy's values by solving (I - gamma * P_pi) V = R_pi.

    Args, Returns and Raises are those of `policy_evaluation`.
    """
    _check(mdp, policy, gamma)
    transitions = np.einsum("sa,sat->st", policy, mdp.transitions)
    system = np.eye(mdp.n_states) - gamma * transitions
    try:
        values = np.linalg.solve(system, (policy * mdp.rewards).sum(axis=1))
    except np.linalg.LinAlgError as error:
        raise ArithmeticError(_no_end("the linear system is singular")) from error
    # A nearly singular system is solved without a word, by anything.
    if not np.allclose(bellman_expectation_v(mdp, values, policy, gamma=gamma), values, rtol=1e-6, atol=1e-6):
        raise ArithmeticError(_no_end("the linear system is singular up to rounding"))
    return values


def policy_iteration(mdp: MDP, *, gamma: float, max_improvements: int = 1000) -> Plan:
    """Evaluate the policy, take the greedy one, and again, until it stays as it is.

    It starts with the policy that takes every action alike, since that one reaches an end wherever there is one, and
    leaves an action only for a better one, so that ties cannot make it go round in circles. Where with
    gamma = 1 steps cost nothing, circles may be worth as much as the way to the goal, and then it is given up.

    Source: Howard 1960; Sutton & Barto 2018, section 4.3.

    Raises:
        ValueError: if gamma is none.
        ArithmeticError: if a policy on the way has no values: with gamma = 1, one that never ends.
    """
    policy = uniform_policy(mdp)
    for improvements in range(max_improvements):
        values = exact_policy_evaluation(mdp, policy, gamma=gamma)
        q = lookahead(mdp, values, gamma=gamma)
        # Of several best actions the one that is taken already stays.
        best = q >= q.max(axis=1, keepdims=True) - 1e-9 * (1 + np.abs(q).max())
        improved = greedy_policy(best + policy * best)
        if (improved == policy).all():
            return Plan(values, q, policy, improvements)
        policy = improved
    raise ArithmeticError(f"the policy still changed after {max_improvements} improvements")


def value_iteration(mdp: MDP, *, gamma: float, tolerance: float = 1e-10, max_sweeps: int = 100_000) -> Plan:
    """Back optimal values up until they stay: V <- max_a (R + gamma * P V), and act greedily.

    With gamma = 1, and steps that cost nothing, the values are right, but the policy may go round in circles.

    Source: Bellman 1957; Sutton & Barto 2018, section 4.4.

    Args:
        mdp: S states, A actions.
        gamma: discount per step, in [0, 1].
        tolerance: largest change of a value in the last sweep; for gamma below 1 no value is then further than
            gamma / (1 - gamma) times that from the optimum.
        max_sweeps: after so many it is given up.

    Raises:
        ValueError: if gamma is none.
        ArithmeticError: if the values do not settle: with gamma = 1, where nothing ends.
    """
    _check(mdp, uniform_policy(mdp), gamma)
    values = np.zeros(mdp.n_states)
    for sweep in range(1, max_sweeps + 1):
        backed_up = bellman_optimality_v(mdp, values, gamma=gamma)
        change, values = np.abs(backed_up - values).max(), backed_up
        if change <= tolerance:
            q = lookahead(mdp, values, gamma=gamma)
            return Plan(values, q, greedy_policy(q), sweep)
    raise ArithmeticError(_no_end(f"the values still changed after {max_sweeps} sweeps"))


def _check(mdp: MDP, policy: Floats, gamma: float) -> None:
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be in [0, 1], got {gamma}")
    if policy.shape != mdp.rewards.shape or (policy < 0).any() or not np.allclose(policy.sum(axis=1), 1):
        raise ValueError(
            f"policy must be probabilities [S, A] = {list(mdp.rewards.shape)} that sum to 1 over actions, "
            f"got {list(policy.shape)}: `greedy_policy(q)` makes one of action values."
        )


def _no_end(what: str) -> str:
    return f"{what}: from some state this policy or MDP never ends. Use gamma < 1, where every value is finite."

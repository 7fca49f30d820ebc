"""Prediction: the values of a policy from the episodes that it went through; one algorithm a function.

N episodes are the rows of `Episodes`. A learner takes one episode a row and keeps values [..., N, S]: each row is a run
of its own, and axes before it may hold settings, such as step sizes [K, 1] for values [K, N, S]. So a study of a
thousand runs is a loop over time alone. Monte Carlo pools the rows instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Episodes:
    """Episodes of one policy, padded at their end.

    states: s_0 to the state after the last step; what follows may be any states, and never counts. [N, T + 1]
    rewards: r_t, reward of the step from s_t. [N, T]
    lengths: steps of each episode, at least 1. [N]
    terminated: whether the last step terminated; if not, it was truncated, and bootstraps. [N]
    """

    states: Integers
    rewards: Floats
    lengths: Integers
    terminated: Bools

    def __post_init__(self) -> None:
        n, time = self.rewards.shape
        if self.states.shape != (n, time + 1) or self.lengths.shape != (n,) or self.terminated.shape != (n,):
            raise ValueError(
                f"rewards [N, T] = {[n, time]} need states [N, T + 1], lengths [N] and terminated [N], got "
                f"{list(self.states.shape)}, {list(self.lengths.shape)}, {list(self.terminated.shape)}."
            )
        if (self.lengths < 1).any() or (self.lengths > time).any():
            raise ValueError(f"lengths must be from 1 to T = {time}, got {self.lengths.min()} to {self.lengths.max()}.")

    @property
    def counts(self) -> Bools:
        """Which steps were taken. [N, T]"""
        return np.arange(self.rewards.shape[1]) < self.lengths[:, None]


def single_episode(states: ArrayLike, rewards: ArrayLike, *, terminated: bool = True) -> Episodes:
    """Make one row of a list of T + 1 states and one of T rewards."""
    row = np.atleast_2d(np.asarray(rewards, dtype=np.float64))
    columns = np.atleast_2d(np.asarray(states, dtype=np.int64))
    return Episodes(columns, row, np.array([row.shape[1]]), np.array([terminated]))


# -- Monte Carlo


@dataclass(frozen=True)
class MonteCarlo:
    """Means of returns. values: V, NaN where a state was never visited. [S]; visits: how many returns. [S]"""

    values: Floats
    visits: Integers


def first_visit_monte_carlo(episodes: Episodes, *, n_states: int, gamma: float) -> MonteCarlo:
    """Average, over episodes, the return that followed the first visit to a state; unbiased.

    Source: Singh & Sutton 1996; Sutton & Barto 2018, section 5.1.

    Args:
        episodes: all are samples of one policy; truncated ones count as if they had earned nothing more.
        n_states: S.
        gamma: discount per step, in [0, 1].
    """
    first = np.zeros_like(episodes.counts)
    for row, length in enumerate(episodes.lengths):
        first[row, np.unique(episodes.states[row, :length], return_index=True)[1]] = True
    return _mean_returns(episodes, first, n_states, gamma)


def every_visit_monte_carlo(episodes: Episodes, *, n_states: int, gamma: float) -> MonteCarlo:
    """Average the returns that followed all visits to a state; biased for few episodes, consistent.

    Source and Args are those of `first_visit_monte_carlo`.
    """
    return _mean_returns(episodes, episodes.counts, n_states, gamma)


def _mean_returns(episodes: Episodes, counts: Bools, n_states: int, gamma: float) -> MonteCarlo:
    returns = lambda_returns(episodes, np.zeros((len(episodes.rewards), n_states)), gamma=gamma, lam=1.0)
    visited = episodes.states[:, :-1][counts]
    visits = np.bincount(visited, minlength=n_states)
    sums = np.bincount(visited, weights=returns[counts], minlength=n_states)
    return MonteCarlo(np.where(visits > 0, sums / np.maximum(visits, 1), np.nan), visits)


# -- temporal differences, online: each update sees those before it


def td0(values: Floats, episodes: Episodes, *, alpha: ArrayLike, gamma: float) -> Floats:
    """Learn from one step at a time: V(s_t) += alpha * (r_t + gamma * V(s_{t+1}) - V(s_t)), V = 0 past a termination.

    Source: Sutton 1988; Sutton & Barto 2018, section 6.1.

    Args:
        values: V before the episodes; not changed. [..., N, S]
        episodes: one for each of the N rows.
        alpha: step size; a number, or an array that broadcasts to [..., N].
        gamma: discount per step, in [0, 1].

    Returns:
        V after them. [..., N, S]

    Raises:
        ValueError: if the rows of values and episodes differ in number.
    """
    return n_step_td(values, episodes, alpha=alpha, gamma=gamma, n=1)


def n_step_td(values: Floats, episodes: Episodes, *, alpha: ArrayLike, gamma: float, n: int) -> Floats:
    """Learn from n rewards and the value of the state that they lead to, or from all to an earlier end.

        G = r_t + gamma * r_{t+1} + ... + gamma^(n-1) * r_{t+n-1} + gamma^n * V(s_{t+n})
        V(s_t) += alpha * (G - V(s_t))

    Source: Sutton & Barto 2018, section 7.1. Args and Returns are those of `td0`, and

        n: number of rewards, at least 1; past the longest episode it is Monte Carlo with a constant step size.

    Raises:
        ValueError: if the rows of values and episodes differ in number, or n is below 1.
    """
    _check_rows(values, episodes)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}: 1 is TD(0); raise n towards Monte Carlo.")
    values, rows = np.array(values, dtype=np.float64), np.arange(len(episodes.rewards))
    earned, after = n_step_rewards(episodes, gamma=gamma, n=n)
    ends = np.minimum(np.arange(episodes.rewards.shape[1]) + n, episodes.lengths[:, None])
    # An episode's updates follow the order of time, so a loop over t sees the same V as the online algorithm.
    for t in range(episodes.rewards.shape[1]):
        now, ahead = episodes.states[:, t], episodes.states[rows, np.maximum(ends[:, t], 0)]
        target = earned[:, t] + after[:, t] * values[..., rows, ahead]
        change = np.asarray(alpha) * (target - values[..., rows, now])
        values[..., rows, now] += np.where(t < episodes.lengths, change, 0.0)
    return values


def n_step_rewards(episodes: Episodes, *, gamma: float, n: int) -> tuple[Floats, Floats]:
    """Sum up to n discounted rewards from each step, and say how much the value of the state after them counts.

    Returns:
        The sums, and gamma^m where m rewards were summed, 0 past a termination. Both [N, T]
    """
    counted = np.where(episodes.counts, episodes.rewards, 0.0)
    n_rows, time = counted.shape
    steps = np.arange(time)
    # S_t = sum_{i >= t} gamma^(i - t) r_i backwards; n of them are S_t - gamma^n * S_{t+n}, which loses no digit that
    # a sum of n terms would keep as long as rewards have one scale.
    to_go = np.zeros((n_rows, time + 1))
    for t in reversed(range(time)):
        to_go[:, t] = counted[:, t] + gamma * to_go[:, t + 1]
    used = np.clip(episodes.lengths[:, None] - steps, 0, n)
    sums = to_go[:, :-1] - gamma**n * to_go[:, np.minimum(steps + n, time)]
    reaches_end = steps + n >= episodes.lengths[:, None]
    return sums, np.where(reaches_end & episodes.terminated[:, None], 0.0, gamma**used)


Trace = Literal["accumulating", "replacing"]


def td_lambda(
    values: Floats,
    episodes: Episodes,
    *,
    alpha: ArrayLike,
    gamma: float,
    lam: float,
    trace: Trace = "accumulating",
) -> Floats:
    """Spread each TD error over the states that led to it: TD(lambda) with eligibility traces, online.

        delta_t = r_t + gamma * V(s_{t+1}) - V(s_t),   e(s_t) <- e(s_t) + 1 (accumulating) or 1 (replacing)
        V <- V + alpha * delta_t * e,                  e <- gamma * lam * e

    Source: Sutton 1988; replacing traces: Singh & Sutton 1996. Args and Returns are those of `td0`, and

        lam: in [0, 1]; 0 is TD(0).
        trace: accumulating traces may exceed 1, and then diverge where alpha is large.

    Raises:
        ValueError: if the rows of values and episodes differ in number, or lam or trace is unknown.
    """
    _check_rows(values, episodes)
    _check_trace(lam, trace)
    values, rows = np.array(values, dtype=np.float64), np.arange(len(episodes.rewards))
    traces = np.zeros(values.shape[-2:])  # of the rows that still run; settings do not change where an episode goes
    for t in range(episodes.rewards.shape[1]):
        traces = _see(traces, rows, episodes.states[:, t], trace)
        change = np.asarray(alpha) * np.where(t < episodes.lengths, _delta(values, episodes, t, gamma), 0.0)
        values += change[..., None] * traces
        traces *= gamma * lam
    return values


def _see(traces: Floats, rows: Integers, states: Integers, trace: Trace) -> Floats:
    if trace == "accumulating":
        traces[rows, states] += 1.0
    else:
        traces[rows, states] = 1.0
    return traces


def _delta(values: Floats, episodes: Episodes, t: int, gamma: float) -> Floats:
    """The TD error of step t, of rows that have ended anything. [..., N]"""
    rows = np.arange(len(episodes.rewards))
    ends = (t + 1 == episodes.lengths) & episodes.terminated
    ahead = np.where(ends, 0.0, values[..., rows, episodes.states[:, t + 1]])
    return episodes.rewards[:, t] + gamma * ahead - values[..., rows, episodes.states[:, t]]


# -- lambda returns, and updates of a whole episode from the values before it


def lambda_returns(episodes: Episodes, values: Floats, *, gamma: float, lam: float) -> Floats:
    """Mix the n-step returns of all n: the forward view.

        G_t = r_t + gamma * ((1 - lam) * V(s_{t+1}) + lam * G_{t+1})

    with V alone in the brackets at a truncated step, and 0 at a terminated one; `classic_rl.returns` has the same for
    tensors.

    Source: Sutton & Barto 2018, section 12.1.

    Args:
        episodes: one for each of the N rows.
        values: V. [..., N, S]
        gamma, lam: discount and mixture, in [0, 1]; lam = 1 is the Monte Carlo return.

    Returns:
        G_t, 0 past an episode's end. [..., N, T]
    """
    rows, time = np.arange(len(episodes.rewards)), episodes.rewards.shape[1]
    returns = np.zeros((*values.shape[:-1], time))
    following = np.zeros(values.shape[:-1])
    for t in reversed(range(time)):
        ahead = values[..., rows, episodes.states[:, t + 1]]
        last = t + 1 == episodes.lengths
        mixed = np.where(last, np.where(episodes.terminated, 0.0, ahead), (1 - lam) * ahead + lam * following)
        following = np.where(t < episodes.lengths, episodes.rewards[:, t] + gamma * mixed, 0.0)
        returns[..., t] = following
    return returns


def offline_lambda_return(values: Floats, episodes: Episodes, *, alpha: ArrayLike, gamma: float, lam: float) -> Floats:
    """Learn at the end of an episode, state by state in the order of time, from lambda returns of the values before.

        V(s_t) += alpha * (G_t - V(s_t))

    Source: Sutton & Barto 2018, section 12.1, the offline lambda-return algorithm. Args and Returns are those of
    `td_lambda`.
    """
    _check_rows(values, episodes)
    returns, rows = lambda_returns(episodes, values, gamma=gamma, lam=lam), np.arange(len(episodes.rewards))
    values = np.array(values, dtype=np.float64)
    for t in range(episodes.rewards.shape[1]):
        now = episodes.states[:, t]
        change = np.asarray(alpha) * (returns[..., t] - values[..., rows, now])
        values[..., rows, now] += np.where(t < episodes.lengths, change, 0.0)
    return values


def forward_view(values: Floats, episodes: Episodes, *, alpha: ArrayLike, gamma: float, lam: float) -> Floats:
    """Sum what the lambda returns of an episode would change, all from the values before.

        V(s) += alpha * sum_{t: s_t = s} (G_t - V(s))

    Source: Sutton & Barto 2018, section 12.1. Args and Returns are those of `td_lambda`.
    """
    _check_rows(values, episodes)
    rows = np.arange(len(episodes.rewards))
    returns, total = lambda_returns(episodes, values, gamma=gamma, lam=lam), np.zeros(np.shape(values))
    for t in range(episodes.rewards.shape[1]):
        now = episodes.states[:, t]
        error = returns[..., t] - values[..., rows, now]
        total[..., rows, now] += np.where(t < episodes.lengths, error, 0.0)
    return values + np.asarray(alpha)[..., None] * total


def backward_view(values: Floats, episodes: Episodes, *, alpha: ArrayLike, gamma: float, lam: float) -> Floats:
    """Sum what TD(lambda) with accumulating traces would change, all from the values before.

    It equals `forward_view`: an error spread backwards is a return looked up forwards. Online the two differ.

    Source: Sutton 1988. Args and Returns are those of `td_lambda`.
    """
    _check_rows(values, episodes)
    rows, traces, total = np.arange(len(episodes.rewards)), np.zeros(values.shape[-2:]), np.zeros(np.shape(values))
    for t in range(episodes.rewards.shape[1]):
        traces = _see(traces, rows, episodes.states[:, t], "accumulating")
        delta = np.where(t < episodes.lengths, _delta(values, episodes, t, gamma), 0.0)
        total += delta[..., None] * traces
        traces *= gamma * lam
    return values + np.asarray(alpha)[..., None] * total


def _check_rows(values: Floats, episodes: Episodes) -> None:
    if np.ndim(values) < 2 or np.shape(values)[-2] != len(episodes.rewards):
        raise ValueError(
            f"values must be [..., N, S] with a row for each of {len(episodes.rewards)} episodes, got "
            f"{list(np.shape(values))}: a row is a run; to learn from several episodes in one run, call once for each."
        )


def _check_trace(lam: float, trace: str) -> None:
    if not 0 <= lam <= 1:
        raise ValueError(f"lam must be in [0, 1], got {lam}: 0 is TD(0), 1 is Monte Carlo.")
    if trace not in ("accumulating", "replacing"):
        raise ValueError(f"trace must be 'accumulating' or 'replacing', got {trace!r}")

"""Many runs at once: N runs of one algorithm on one table step together, as arrays with the run first.

A step costs what a call of NumPy costs, however few the runs: below about a hundred the lists of `tabular.control`,
one run after another, are faster, and they can be stopped and resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from classic_rl.exploration import epsilon_greedy_probabilities, sample_actions
from classic_rl.tabular.mdp import MDP, Floats, Outcome, transition_table
from classic_rl.tabular.prediction import Episodes
from classic_rl.tabular.stepping import mdp_outcomes

Integers = NDArray[np.int64]


class Steps(NamedTuple):
    """What followed the actions of N runs. Each [N]"""

    states: Integers
    rewards: Floats
    terminated: NDArray[np.bool_]


@dataclass(frozen=True)
class Outcomes:
    """A table as arrays: K is the largest number of outcomes, and a row of fewer is padded with its last.

    cumulative: probabilities summed up, above 1 from the last outcome on. [S, A, K]
    next_states, rewards, terminated: what each outcome is. [S, A, K]
    start: probabilities of the first state summed up, above 1 at the last. [S]
    """

    cumulative: Floats
    next_states: Integers
    rewards: Floats
    terminated: NDArray[np.bool_]
    start: Floats

    def first_states(self, n: int, rng: np.random.Generator) -> Integers:
        """Draw n first states. [n]"""
        return np.searchsorted(self.start, rng.random(n), side="right")

    def step(self, states: Integers, actions: Integers, rng: np.random.Generator) -> Steps:
        """Draw what follows one action of each run. [N], [N]"""
        outcome = (self.cumulative[states, actions] <= rng.random(len(states))[:, None]).sum(axis=1)
        chosen = (states, actions, outcome)
        return Steps(self.next_states[chosen], self.rewards[chosen], self.terminated[chosen])


def outcomes_of(source: Any) -> Outcomes:
    """Turn the table of an environment, or an MDP, into arrays.

    Raises:
        ValueError: if an environment has no table.
    """
    lists, start = (mdp_outcomes(source), source.start) if isinstance(source, MDP) else transition_table(source)
    width = max(len(outcomes) for actions in lists for outcomes in actions)
    padded = [[outcomes + [outcomes[-1]] * (width - len(outcomes)) for outcomes in actions] for actions in lists]
    cumulative = np.array([[_cumulative(outcomes, width) for outcomes in actions] for actions in lists])
    fields = [np.array([[[o[i] for o in outcomes] for outcomes in actions] for actions in padded]) for i in (1, 2, 3)]
    cumulative_start = np.cumsum(start)
    cumulative_start[np.flatnonzero(start)[-1] :] = 2.0
    return Outcomes(cumulative, fields[0], fields[1].astype(np.float64), fields[2], cumulative_start)


def _cumulative(outcomes: list[Outcome], width: int) -> list[float]:
    sums = np.cumsum([outcome[0] for outcome in outcomes])
    return [*sums[:-1].tolist(), *[2.0] * (width - len(outcomes) + 1)]


def sample_episodes(
    table: Outcomes, policy: Floats, n: int, rng: np.random.Generator, *, max_episode_steps: int | None = None
) -> Episodes:
    """Let n runs follow a policy for one episode each.

    Args:
        table: what they act in.
        policy: pi(a | s). [S, A]
        n: number of runs.
        rng: draws everything.
        max_episode_steps: steps after which an episode is truncated; without it the policy must end by itself.

    Returns:
        N = n episodes, padded to the longest.
    """
    states = table.first_states(n, rng)
    going = np.ones(n, dtype=bool)
    visited, earned, lengths, terminated = [states], [], np.zeros(n, dtype=np.int64), np.zeros(n, dtype=bool)
    while going.any() and (max_episode_steps is None or len(earned) < max_episode_steps):
        step = table.step(states, sample_actions(policy[states], rng), rng)
        earned.append(np.where(going, step.rewards, 0.0))
        states = np.where(going, step.states, states)
        visited.append(states)
        lengths += going
        terminated |= going & step.terminated
        going &= ~step.terminated
    return Episodes(np.stack(visited, axis=1), np.stack(earned, axis=1), lengths, terminated)


Act = Callable[[Floats], Integers]
"""Draws actions from action values, as the behaviour does. [N, A] -> [N]"""


class Rule(Protocol):
    """How the next state is valued in a target."""

    def __call__(self, next_q: Floats, act: Act, epsilon: float) -> tuple[Floats, Integers | None]:
        """Return its values, and the actions taken there next if the rule has drawn them.

        Args:
            next_q: Q(s', .), before the step is learned from. [N, A]
            act: the behaviour. Without actions it acts once the step is learned from, as in textbooks.
            epsilon: of the behaviour.

        Returns:
            Values and actions, or None for these. [N] each
        """
        ...


def q_learning(next_q: Floats, act: Act, epsilon: float) -> tuple[Floats, None]:
    """Value the best next action, as `updates.q_learning_target`."""
    return next_q.max(axis=-1), None


def sarsa(next_q: Floats, act: Act, epsilon: float) -> tuple[Floats, Integers]:
    """Value the action taken next, as `updates.sarsa_target`."""
    actions = act(next_q)
    return next_q[np.arange(len(next_q)), actions], actions


def expected_sarsa(next_q: Floats, act: Act, epsilon: float) -> tuple[Floats, None]:
    """Value the next state by the behaviour's mean, as `updates.expected_sarsa_target`."""
    return epsilon * next_q.mean(axis=-1) + (1 - epsilon) * next_q.max(axis=-1), None


class ManyRuns(NamedTuple):
    """What many runs learned.

    q: Q at the end. [N, S, A]
    returns: sum of rewards of each episode, not discounted. [N, episodes]
    lengths: steps of each episode. [N, episodes]
    """

    q: Floats
    returns: Floats
    lengths: Integers


def control_runs(
    table: Outcomes,
    rule: Rule,
    *,
    runs: int,
    episodes: int,
    alpha: float,
    epsilon: float,
    gamma: float,
    rng: np.random.Generator,
) -> ManyRuns:
    """Learn by one-step control with epsilon-greedy actions, in many independent runs.

        Q(s, a) += alpha * (r + gamma * (1 - terminated) * rule(s') - Q(s, a))

    There is no time limit: whatever they learn, the runs must come to an end by exploring.

    Args:
        table: what they act in.
        rule: `q_learning`, `sarsa`, `expected_sarsa` or another `Rule`.
        runs, episodes: how many, and of each how many.
        alpha, epsilon, gamma: step size, probability of a random action, discount.
        rng: draws everything.
    """

    def act(values: Floats) -> Integers:
        return sample_actions(epsilon_greedy_probabilities(values, epsilon=epsilon), rng)

    q, returns = np.zeros((runs, *table.cumulative.shape[:2])), np.zeros((runs, episodes))
    lengths = np.zeros((runs, episodes), dtype=np.int64)
    rows, done = np.arange(runs), np.zeros(runs, dtype=np.int64)
    states = table.first_states(runs, rng)
    actions = act(q[rows, states])
    while (running := done < episodes).any():
        step = table.step(states, actions, rng)
        next_q, ended = q[rows, step.states], step.terminated
        following, chosen = rule(next_q, act, epsilon)
        bootstrap = np.where(ended, 0.0, following)
        error = step.rewards + gamma * bootstrap - q[rows, states, actions]
        q[rows, states, actions] += np.where(running, alpha * error, 0.0)
        episode = np.minimum(done, episodes - 1)
        returns[rows, episode] += np.where(running, step.rewards, 0.0)
        lengths[rows, episode] += running
        done += ended & running
        states = np.where(ended, table.first_states(runs, rng), step.states)
        actions, anew = (actions, rows) if chosen is None else (chosen, ended)  # nobody has chosen in a first state
        actions[anew] = act(q[rows[anew], states[anew]])
    return ManyRuns(q, returns, lengths)

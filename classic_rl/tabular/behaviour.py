"""How a tabular learner acts: behaviours on plain lists, the same in law as the functions of `classic_rl.exploration`.

One uniform number decides on an action: whether to explore, which action then, and which of several best ones else.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

from classic_rl.exploration import check_epsilon, check_temperature
from classic_rl.schedules import Schedule, constant
from classic_rl.tabular.stepping import Uniforms


class Behaviour(Protocol):
    """A policy made of action values.

    uniforms: the random numbers of the behaviour, from which a learner may draw too.
    rate: how much it explores in this episode, in a unit of its own.
    """

    uniforms: Uniforms
    rate: float

    def begin(self, episode: int) -> None:
        """Set the rate of an episode, from 0."""
        ...

    def choose(self, values: list[float], state: int) -> int:
        """Choose an action in a state, from its action values. [A]"""
        ...

    def probabilities(self, values: list[float], state: int) -> list[float]:
        """Return the probability with which `choose` takes each action. [A]"""
        ...

    def state(self) -> dict[str, Any]:
        """Return what the next choice depends on, as plain values."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        ...


class EpsilonGreedy:
    """Take any action with probability epsilon, else a best one, any of several alike.

    Args:
        epsilon: the probability, or a schedule of it over episodes.
        rng: draws the actions.

    Raises:
        ValueError: if epsilon is no probability, at the episode where that shows.
    """

    def __init__(self, epsilon: float | Schedule, rng: np.random.Generator) -> None:
        self._schedule = epsilon if callable(epsilon) else constant(epsilon)
        self.uniforms = Uniforms(rng)
        self._draws = self.uniforms.block
        self.begin(0)

    def begin(self, episode: int) -> None:
        """Set epsilon."""
        self.rate = self._schedule(episode)
        check_epsilon(self.rate)

    def choose(self, values: list[float], state: int) -> int:
        """Choose an action."""
        draws, epsilon = self._draws, self.rate
        draw = draws.pop() if draws else self.uniforms.next()
        if draw < epsilon:
            return explore(draw, epsilon, len(values))
        best = max(values)
        return values.index(best) if values.count(best) == 1 else break_tie(draw, epsilon, values, best)

    def probabilities(self, values: list[float], state: int) -> list[float]:
        """Return the probability of each action."""
        best, explored = max(values), self.rate / len(values)
        share = (1 - self.rate) / values.count(best)
        return [explored + share if value == best else explored for value in values]

    def state(self) -> dict[str, Any]:
        """Return where the generator stands."""
        return self.uniforms.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        self.uniforms.load_state(state)


class Boltzmann:
    """Take action a with probability proportional to exp(Q(a) / temperature).

    Args:
        temperature: in the unit of the values, or a schedule of it over episodes.
        rng: draws the actions.

    Raises:
        ValueError: if the temperature is not above 0, at the episode where that shows.
    """

    def __init__(self, temperature: float | Schedule, rng: np.random.Generator) -> None:
        self._schedule = temperature if callable(temperature) else constant(temperature)
        self.uniforms = Uniforms(rng)
        self.begin(0)

    def begin(self, episode: int) -> None:
        """Set the temperature."""
        self.rate = self._schedule(episode)
        check_temperature(self.rate)

    def choose(self, values: list[float], state: int) -> int:
        """Choose an action."""
        draw = self.uniforms.next()
        for action, probability in enumerate(self.probabilities(values, state)):
            draw -= probability
            if draw < 0:
                return action
        return values.index(max(values))  # rounding left a sum below the draw

    def probabilities(self, values: list[float], state: int) -> list[float]:
        """Return the probability of each action."""
        best, temperature = max(values), self.rate
        scaled = [math.exp((value - best) / temperature) for value in values]
        total = sum(scaled)
        return [each / total for each in scaled]

    def state(self) -> dict[str, Any]:
        """Return where the generator stands."""
        return self.uniforms.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        self.uniforms.load_state(state)


class UCB:
    """Take the action with the highest Q(s, a) + c * sqrt(ln N(s) / n(s, a)), each action in a state once before.

    Source: Auer et al. 2002, in every state by itself. Only choices count visits, so it suits learners that take what
    they choose.

    Args:
        c: width of the bound, in the unit of the values.
        rng: draws among actions that are best alike.

    Raises:
        ValueError: if c is negative.
    """

    def __init__(self, c: float, rng: np.random.Generator) -> None:
        if c < 0:
            raise ValueError(f"c must be at least 0, got {c}: a negative bound avoids what it does not know.")
        self.rate = c
        self.uniforms = Uniforms(rng)
        self.counts: dict[int, list[int]] = {}

    def begin(self, episode: int) -> None:
        """Leave c as it is."""

    def choose(self, values: list[float], state: int) -> int:
        """Choose an action and count it."""
        scores = self._scores(values, state)
        ties = _ties(scores, max(scores))
        action = ties[_pick(self.uniforms.next(), len(ties))]
        self.counts.setdefault(state, [0] * len(values))[action] += 1
        return action

    def probabilities(self, values: list[float], state: int) -> list[float]:
        """Return the probability of each action."""
        scores = self._scores(values, state)
        best = max(scores)
        return [(score == best) / scores.count(best) for score in scores]

    def _scores(self, values: list[float], state: int) -> list[float]:
        counts = self.counts.get(state) or [0] * len(values)
        log_total = math.log(max(sum(counts), 1))
        pairs = zip(values, counts, strict=True)
        return [value + self.rate * math.sqrt(log_total / n) if n else math.inf for value, n in pairs]

    def state(self) -> dict[str, Any]:
        """Return the visits and where the generator stands."""
        return {**self.uniforms.state(), "counts": {state: list(counts) for state, counts in self.counts.items()}}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        self.uniforms.load_state(state)
        self.counts = {key: list(counts) for key, counts in state["counts"].items()}


def explore(draw: float, epsilon: float, n_actions: int) -> int:
    """Turn a draw below epsilon into an action: what is left of it is uniform again."""
    return _pick(draw / epsilon, n_actions)


def break_tie(draw: float, epsilon: float, values: list[float], best: float) -> int:
    """Turn a draw from epsilon on into one of several best actions."""
    ties = _ties(values, best)
    return ties[_pick((draw - epsilon) / (1 - epsilon), len(ties))]


def _ties(values: list[float], best: float) -> list[int]:
    return [action for action, value in enumerate(values) if value == best]


def _pick(share: float, n: int) -> int:
    """Turn a number in [0, 1) into an index; a quotient may round up to 1."""
    return min(int(share * n), n - 1)

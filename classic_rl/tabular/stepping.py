"""Stepping through discrete environments: on the table `P` where there is one, through `env.step` otherwise.

Both are a `Stepper`, and with one seed both give the same trajectory: Gymnasium draws one uniform number for a first
state and one for each step, and so does a table.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from classic_rl.tabular.mdp import MDP, Outcome, transition_table

BLOCK = 4096


class Stepper(Protocol):
    """A discrete environment: states 0 to n_states - 1, actions 0 to n_actions - 1."""

    n_states: int
    n_actions: int

    def reset(self) -> int:
        """Begin an episode and return its first state."""
        ...

    def step(self, action: int) -> tuple[int, float, bool, bool]:
        """Return next state, reward, terminated, truncated."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what the next episode depends on, as plain values; only between two episodes."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        ...


class Uniforms:
    """The numbers that `rng.random()` gives one by one, drawn in blocks, which is ten times as fast.

    `block` is the rest of the block, the next number last; `draws.block.pop() if draws.block else draws.next()`.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._before = rng.bit_generator.state
        self.block: list[float] = []

    def next(self) -> float:
        """Return the next number."""
        if not self.block:
            self._before = self._rng.bit_generator.state
            self.block.extend(self._rng.random(BLOCK)[::-1].tolist())
        return self.block.pop()

    def state(self) -> dict[str, Any]:
        """Return the generator as it was before what is left of this block, and how much that is."""
        before = self._before if self.block else self._rng.bit_generator.state  # of a used-up block nothing is left
        return {"generator": generator_state(before), "left": len(self.block)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        self._before = self._rng.bit_generator.state = state["generator"]
        self.block.clear()  # the list stays the same one: others hold it
        if state["left"]:
            self.block.extend(self._rng.random(BLOCK)[::-1].tolist()[: state["left"]])


def generator_state(state: Any) -> dict[str, Any]:
    """Turn the state of a NumPy generator into plain values."""
    return {
        name: generator_state(value) if isinstance(value, dict) else value if isinstance(value, str) else int(value)
        for name, value in state.items()
    }


class TableStepper:
    """Steps on lists of outcomes.

    Args:
        outcomes: (probability, next state, reward, terminated) of each action in each state. [S][A]
        start: distribution of the first state. [S]
        rng: draws first and next states; `np.random.default_rng(seed)` draws as `env.reset(seed=seed)` does.
        max_episode_steps: steps after which an episode is truncated; None for no limit.

    Attributes:
        table: cumulative probabilities of an action's outcomes, empty where there is one, and (next state, reward,
            terminated) of each, at the place where `bisect_right` puts a draw. [S][A]
        limit: steps after which an episode is truncated.
        uniforms: the numbers by which it goes, one a step.

    Raises:
        ValueError: if the limit is below 1.
    """

    def __init__(
        self,
        outcomes: list[list[list[Outcome]]],
        start: Any,
        rng: np.random.Generator,
        *,
        max_episode_steps: int | None = None,
    ) -> None:
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1, got {max_episode_steps}; None sets no limit.")
        self.n_states, self.n_actions = len(outcomes), len(outcomes[0])
        self.limit = max_episode_steps or 2**62
        self._start = np.cumsum(np.asarray(start, dtype=np.float64)).tolist()
        # Equal rows are one object: a table that fits the processor's cache is read faster, Taxi's up to twice as fast.
        drawable = cache(_drawable)
        self.table = [[drawable(tuple(action)) for action in actions] for actions in outcomes]
        self.uniforms = Uniforms(rng)
        self._draws = self.uniforms.block
        self._state = self._elapsed = 0

    def reset(self) -> int:
        """Begin an episode and return its first state."""
        self._state, self._elapsed = index_of(self._start, self.uniforms.next()), 0
        return self._state

    def step(self, action: int) -> tuple[int, float, bool, bool]:
        """Return next state, reward, terminated, truncated."""
        draws = self._draws
        draw = draws.pop() if draws else self.uniforms.next()
        cumulative, outcomes = self.table[self._state][action]
        next_state, reward, terminated = outcomes[bisect_right(cumulative, draw)] if cumulative else outcomes[0]
        self._state = next_state
        self._elapsed = elapsed = self._elapsed + 1
        return next_state, reward, terminated, elapsed >= self.limit

    def state(self) -> dict[str, Any]:
        """Return where the generator stands; only between two episodes."""
        return self.uniforms.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        self.uniforms.load_state(state)


class EnvStepper:
    """Steps through `env.step`, for any Gymnasium environment whose observations and actions are discrete.

    Args:
        env: the environment, with its wrappers.
        seed: of its first reset.

    Raises:
        ValueError: if a space is not discrete, or does not start at 0.
    """

    def __init__(self, env: Any, seed: int) -> None:
        from gymnasium.spaces import Discrete

        for name, space in (("observation", env.observation_space), ("action", env.action_space)):
            if not isinstance(space, Discrete) or space.start:
                raise ValueError(
                    f"a table needs a Discrete {name} space that starts at 0, got {space}: wrap the environment so "
                    "that it counts its states, or use an agent with a network."
                )
        self.n_states, self.n_actions = int(env.observation_space.n), int(env.action_space.n)
        self.env, self._seed = env, seed
        self._fresh = True

    def reset(self) -> int:
        """Begin an episode and return its first state."""
        observation, _ = self.env.reset(seed=self._seed) if self._fresh else self.env.reset()
        self._fresh = False
        return int(observation)

    def step(self, action: int) -> tuple[int, float, bool, bool]:
        """Return next state, reward, terminated, truncated."""
        observation, reward, terminated, truncated, _ = self.env.step(action)
        return int(observation), float(reward), bool(terminated), bool(truncated)

    def state(self) -> dict[str, Any]:
        """Return the environment's generator; only between two episodes, which must not depend on each other."""
        return {"fresh": self._fresh, "generator": generator_state(self.env.unwrapped.np_random.bit_generator.state)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        self._fresh = state["fresh"]
        self.env.unwrapped.np_random.bit_generator.state = state["generator"]


def make_stepper(env: Any, *, seed: int) -> TableStepper | EnvStepper:
    """Step on the table of an environment where that is known to be the same, and through its `step` otherwise.

    It is the same for Gymnasium's toy texts and for GridWorld, with no wrapper but those that `gymnasium.make` adds.

    Args:
        env: a Gymnasium environment.
        seed: of its first reset.

    Raises:
        ValueError: if its spaces are not discrete.
    """
    if not steps_on_its_table(env):
        return EnvStepper(env, seed)
    outcomes, start = transition_table(env)
    limits, inner = [], env
    while inner is not env.unwrapped:
        limits.append(getattr(inner, "_max_episode_steps", None))
        inner = inner.env
    limit = min((limit for limit in limits if limit is not None), default=None)
    return TableStepper(outcomes, start, np.random.default_rng(seed), max_episode_steps=limit)


def mdp_stepper(mdp: MDP, *, seed: int, max_episode_steps: int | None = None) -> TableStepper:
    """Step through an MDP; see `mdp_outcomes`."""
    rng = np.random.default_rng(seed)
    return TableStepper(mdp_outcomes(mdp), mdp.start, rng, max_episode_steps=max_episode_steps)


def mdp_outcomes(mdp: MDP) -> list[list[list[Outcome]]]:
    """List what may follow each action of an MDP: rewards are the expected ones, and who ends stays where it is."""
    return [[_outcomes(mdp, state, action) for action in range(mdp.n_actions)] for state in range(mdp.n_states)]


def _outcomes(mdp: MDP, state: int, action: int) -> list[Outcome]:
    row, reward = mdp.transitions[state, action], float(mdp.rewards[state, action])
    going_on = [(float(row[s]), int(s), reward, False) for s in np.flatnonzero(row)]
    end = 1.0 - float(row.sum())
    return [*going_on, (end, state, reward, True)] if end > 1e-12 else going_on


def steps_on_its_table(env: Any) -> bool:
    """Say whether an environment's `step` is known to draw from its table `P`, one uniform number a step."""
    from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

    inner = env
    while inner is not env.unwrapped:
        if type(inner) not in (OrderEnforcing, PassiveEnvChecker, TimeLimit):
            return False
        inner = inner.env
    known = ("gymnasium.envs.toy_text.", "classic_rl.gridworld")
    drawn = type(inner).__module__.startswith(known) and hasattr(inner, "P")
    return drawn and not getattr(inner, "fickle_passenger", False)  # a passenger of Taxi whose moods are not in P


Drawable = tuple[tuple[float, ...], tuple[tuple[int, float, bool], ...]]


def _drawable(outcomes: tuple[Outcome, ...]) -> Drawable:
    """Cumulative probabilities, empty where there is nothing to choose, and what follows.

    The first outcome stands once more at the end, for a draw above them all: it is what Gymnasium takes then.
    """
    follows = tuple(outcome[1:] for outcome in outcomes)
    if len(outcomes) == 1:
        return (), follows
    return tuple(accumulate(outcome[0] for outcome in outcomes)), (*follows, follows[0])


def index_of(cumulative: list[float], draw: float) -> int:
    """Choose as Gymnasium's categorical_sample: the first index above the draw, 0 where rounding leaves none."""
    index = bisect_right(cumulative, draw)
    return index if index < len(cumulative) else 0

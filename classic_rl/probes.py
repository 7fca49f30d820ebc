"""Environments so small that their values are known: each asks an agent for one ability, and for nothing else.

An agent that fails on one of them is wrong in few places; an agent that fails on CartPole may be wrong anywhere. Every
observation is one number, [1]; of two actions either will do, except where the reward depends on them.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

Obs = np.ndarray[Any, np.dtype[np.float32]]


class Probe(gymnasium.Env[Obs, Any]):
    """What the probes share: spaces, and an observation that is one number."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.shown = 1.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self.shown = self.first()
        return self._obs(), {}

    def first(self) -> float:
        """Return the number that is shown at first: never 0, which leaves a network with ReLU nothing to learn by."""
        return 1.0

    def _obs(self) -> Obs:
        return np.array([self.shown], dtype=np.float32)

    def _coin(self) -> float:
        return 1.0 if self.np_random.random() < 0.5 else -1.0


class ConstantReward(Probe):
    """One step that pays 1 and ends: V = 1, whatever gamma is."""

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Pay 1 and terminate."""
        return self._obs(), 1.0, True, False, {}


class ObservedReward(Probe):
    """One step that pays the number shown, -1 or 1: V(s) = s."""

    def first(self) -> float:
        """Return -1 or 1."""
        return self._coin()

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Pay what was shown and terminate."""
        return self._obs(), self.shown, True, False, {}


class LateReward(Probe):
    """Two steps, of which the second pays 1 and ends: V(-1) = gamma, V(1) = 1."""

    def first(self) -> float:
        """Return -1."""
        return -1.0

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Go from -1 to 1, and from there to the end."""
        last, self.shown = self.shown == 1.0, 1.0
        return self._obs(), float(last), last, False, {}


class CutShort(Probe):
    """Steps that pay 1 each, for ever, but shown for `limit` steps at a time: V = 1 / (1 - gamma).

    The limit truncates, so the last step has a future. Who takes it for an end finds less.

    Args:
        limit: steps of an episode.
    """

    def __init__(self, limit: int = 3) -> None:
        super().__init__()
        self.limit, self.elapsed = limit, 0

    def first(self) -> float:
        """Return 1, and count from here."""
        self.elapsed = 0
        return super().first()

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Pay 1, and truncate at the limit."""
        self.elapsed += 1
        return self._obs(), 1.0, False, self.elapsed >= self.limit, {}


class RewardedAction(Probe):
    """One step that pays 1 for action 1, else nothing: the better action is the same everywhere."""

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Pay for action 1 and terminate."""
        return self._obs(), float(action == 1), True, False, {}


class ObservedAction(Probe):
    """One step that pays 1 for action 0 where -1 is shown and for action 1 where 1 is shown, else nothing."""

    def first(self) -> float:
        """Return -1 or 1."""
        return self._coin()

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Pay for the action that fits and terminate."""
        return self._obs(), float((action == 1) == (self.shown > 0)), True, False, {}

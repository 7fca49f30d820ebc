"""Environments whose every number is known beforehand."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Counter(gymnasium.Env):
    """Observes and pays t, the steps since its reset; terminates at `ends_at`, is truncated at `cut_at`."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, ends_at: int = 0, cut_at: int = 0) -> None:
        self.ends_at, self.cut_at, self.t = ends_at, cut_at, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        return np.array([self.t], np.float32), float(self.t), self.t == self.ends_at, self.t == self.cut_at, {}


class Walk(gymnasium.Env):
    """A walk with noise from the environment's generator; ends when it leaves [-3, 3]."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.x = self.np_random.normal()
        return np.array([self.x]), {}

    def noise(self) -> float:
        return self.np_random.normal()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.x += 0.3 * (2 * int(action) - 1) + self.noise()
        return np.array([self.x]), self.x, bool(abs(self.x) > 3), False, {}


class Unrepeatable(Walk):
    """The same walk with noise from elsewhere, as careless environments have it."""

    def noise(self) -> float:
        # Never the same again, and too small to end an episode: a test may count on one that is open.
        return float(np.random.default_rng().uniform(0.001, 0.01))


class Echo(gymnasium.Env):
    """Shows a few signs and pays for doing as they say; one step an episode. `kind` is the space of actions."""

    def __init__(self, kind: str) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = {
            "discrete": spaces.Discrete(4, start=3),
            "multi-discrete": spaces.MultiDiscrete([2, 2]),
            "multi-binary": spaces.MultiBinary(2),
            "box": spaces.Box(-2.0, 2.0, (2,), np.float32),
        }[kind]
        self.kind = kind

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.signs = self.np_random.integers(0, 2, 2)
        return self.shown(), {}

    def shown(self) -> np.ndarray:
        return (2 * self.signs - 1).astype(np.float32)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        if self.kind == "discrete":
            reward = float(action == 3 + self.signs @ (2, 1))
        elif self.kind == "box":
            reward = 1.0 - float(np.abs(action - self.shown()).mean())
        else:
            reward = float((action == self.signs).mean())
        return self.shown(), reward, True, False, {}

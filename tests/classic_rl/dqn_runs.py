"""Small runs of DQN that tests build alike, and environments for them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from classic_rl.dqn import DQN
from classic_rl.dqn_config import DQNConfig, ExplorationConfig, ReplayConfig, TargetConfig
from tests.classic_rl.counting import Walk


class Loop(gymnasium.Env):
    """One state that pays 1 and leads to itself; each episode is one step long, by a task's end or by a limit."""

    observation_space = spaces.Discrete(2)
    action_space = spaces.Discrete(2)

    def __init__(self, terminates: bool) -> None:
        self.terminates = terminates

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict]:
        super().reset(seed=seed)
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        return 0, 1.0, self.terminates, not self.terminates, {}


class Chain(gymnasium.Env):
    """States 0 to 4 in a row: action 3 goes left, action 4 right; going right from the last one pays 1 and ends."""

    observation_space = spaces.Discrete(5)
    action_space = spaces.Discrete(2, start=3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict]:
        super().reset(seed=seed)
        self.at = int(self.np_random.integers(5))
        return self.at, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        if action == 4 and self.at == 4:
            return self.at, 1.0, True, False, {}
        self.at = min(max(self.at + (1 if action == 4 else -1), 0), 4)
        return self.at, 0.0, False, False, {}


class Corner(gymnasium.Env):
    """A picture with one bright half: the action that names it pays 1."""

    observation_space = spaces.Box(0, 255, (8, 8, 1), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.bright = int(self.np_random.integers(2))
        picture = np.zeros((8, 8, 1), np.uint8)
        picture[:, 4 * self.bright : 4 * self.bright + 4] = 255
        return picture, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.zeros((8, 8, 1), np.uint8), float(action == self.bright), True, False, {}


def small_config(**changes: Any) -> DQNConfig:
    return DQNConfig(
        **{
            "env_steps": 240,
            "learning_starts": 20,
            "batch_size": 8,
            "train_every": 4,
            "updates": 2,
            "hidden": (8,),
            "report_every": 20,
            "replay": ReplayConfig(capacity=100),
            "target": TargetConfig(every=7),
            "exploration": ExplorationConfig(end=0.2, fraction=0.5),
            **changes,
        }
    )


EVERYTHING: dict[str, Any] = {
    "dueling": True,
    "huber_delta": None,
    "replay": ReplayConfig(capacity=90, n_step=3, priority_exponent=0.6),
    "target": TargetConfig(every=1, rate=0.05),
}
"""Settings with which every part of the state counts."""


def small_dqn(num_envs: int = 3, env: Any = Walk, **changes: Any) -> DQN:
    return DQN(env, small_config(num_envs=num_envs, **changes))

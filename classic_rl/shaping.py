"""Potential-based reward shaping: rewards that lead to a goal without changing which policy is best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium


def shaping_reward(potential: float, next_potential: float, terminated: bool, *, gamma: float) -> float:
    """Return F(s, s') = gamma * phi(s') - phi(s), with phi = 0 past a termination.

    A truncated step has a future, so its next state keeps its potential.

    Source: Ng, Harada & Russell 1999, "Policy invariance under reward transformations"; that phi must vanish at the
    end: Grzes 2017.

    >>> shaping_reward(2.0, 4.0, False, gamma=0.5)
    0.0
    >>> shaping_reward(2.0, 4.0, True, gamma=0.5)
    -2.0
    """
    return (0.0 if terminated else gamma * next_potential) - potential


class PotentialShaping(gymnasium.Wrapper[Any, Any, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """Add gamma * phi(s') - phi(s) to every reward.

    The discounted return of an episode that terminates changes by -phi(s_0), whatever is done in it; so the best policy
    stays the best, and the values of states fall by their potential. The reward as it was is `info["reward"]`.

    Args:
        env: any environment.
        potential: phi, of an observation; high where it is good to be.
        gamma: the discount with which the agent learns, or the best policy may change. In [0, 1].

    Raises:
        ValueError: if gamma is none.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], potential: Callable[[Any], float], *, gamma: float) -> None:
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1], got {gamma}")
        gymnasium.utils.RecordConstructorArgs.__init__(self, potential=potential, gamma=gamma)
        super().__init__(env)
        self.potential, self.gamma = potential, gamma
        self._before = 0.0

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(**options)
        self._before = float(self.potential(observation))
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a step and shape its reward."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        after = float(self.potential(observation))
        added = shaping_reward(self._before, after, terminated, gamma=self.gamma)
        self._before = after
        return observation, float(reward) + added, terminated, truncated, {**info, "reward": float(reward)}

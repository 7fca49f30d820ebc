"""Potential-based reward shaping: rewards that lead to a goal without changing which policy is best."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium

from classic_rl.envs import TRUE_REWARD


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
    stays the best, and the values of states fall by their potential. The reward as it was is `info["true_reward"]`, by
    which training counts the returns that it shows.

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
        # What a wrapper inside of this one left there is nearer to the truth.
        return observation, float(reward) + added, terminated, truncated, {TRUE_REWARD: float(reward), **info}


# --- what is known of an environment ---


def energy_of_the_car(observation: Any) -> float:
    """Return how much energy MountainCar's car has, 0 where it is at rest in the deepest point.

        phi(x, v) = 10^4 * (v^2 / 2 + g / 3 * (1 + sin 3x)),     g = 0.0025

    The car moves by v' = v + 0.001 * (a - 1) - g * cos 3x and x' = x + v', so gravity is the slope of g / 3 * sin 3x,
    and only pushes change this sum of kinetic and potential energy: one with the speed adds about 0.001 * |v| before
    the factor, one against it takes as much away. The engine is too weak to climb straight up, but swinging gathers
    the energy. The factor brings it to the size of returns: a car at rest on the goal has 16.6.

    Source: the equations of Moore 1990, "Efficient memory-based learning for robot control", as Gymnasium has them.

    Args:
        observation: position x and speed v. [2]

    >>> round(energy_of_the_car([0.5, 0.0]), 1)
    16.6
    """
    position, speed = map(float, observation)
    return 1e4 * (speed**2 / 2 + 0.0025 / 3 * (1 + math.sin(3 * position)))


POTENTIALS: dict[str, Callable[[Any], float]] = {"MountainCar-v0": energy_of_the_car}
"""Of an observation, by the id of the environment."""


def shaped(env: str, *, gamma: float) -> Callable[[], gymnasium.Env[Any, Any]]:
    """Return what makes an environment whose rewards are shaped by the potential that is known for it.

    Args:
        env: its id.
        gamma: the discount with which the agent learns.

    Raises:
        ValueError: if no potential is known for it.
    """
    if env not in POTENTIALS:
        raise ValueError(
            f"no potential to shape rewards by is known for {env}, only for {', '.join(POTENTIALS)}: learn from the "
            "true rewards, or wrap the environment in classic_rl.shaping.PotentialShaping with a potential of your own"
        )
    # What is known needs no check in every step.
    return lambda: PotentialShaping(gymnasium.make(env, disable_env_checker=True), POTENTIALS[env], gamma=gamma)

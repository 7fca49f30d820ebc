"""MDPs that several tests plan and learn on."""

from __future__ import annotations

import numpy as np

from classic_rl.tabular.mdp import MDP, mdp_from_arrays


def random_mdp(seed: int, n_states: int = 6, n_actions: int = 3) -> MDP:
    """An MDP whose episodes end with some probability at every step, so that gamma = 1 is allowed too."""
    rng = np.random.default_rng(seed)
    going_on = rng.dirichlet(np.full(n_states, 0.5), size=(n_states, n_actions)) * rng.uniform(0.3, 0.95)
    return MDP(going_on, rng.normal(size=(n_states, n_actions)), rng.dirichlet(np.ones(n_states)))


def random_policy(seed: int, mdp: MDP) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(mdp.n_actions), size=mdp.n_states)


def random_walk(n: int = 5, *, left: float = 0.0, right: float = 1.0) -> MDP:
    """States 1 to n between two terminal ones, 0 and n + 1; the actions are left and right; it starts in the middle."""
    transitions, rewards = np.zeros((n + 2, 2, n + 2)), np.zeros((n + 2, 2))
    for state in range(1, n + 1):
        transitions[state, 0, state - 1] = transitions[state, 1, state + 1] = 1
    rewards[1, 0], rewards[n, 1] = left, right
    ends = [state in (0, n + 1) for state in range(n + 2)]
    return mdp_from_arrays(transitions, rewards, terminal=ends, start=np.eye(n + 2)[(n + 1) // 2])

"""Shaping leaves the best policy as it is, by planning, and shows the way where rewards are rare, by learning."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from classic_rl.gridworld import ID, GridWorld
from classic_rl.shaping import PotentialShaping, shaping_reward
from classic_rl.tabular.behaviour import EpsilonGreedy
from classic_rl.tabular.control import QLearning
from classic_rl.tabular.mdp import MDP, mdp_from_env
from classic_rl.tabular.planning import policy_iteration
from classic_rl.tabular.stepping import make_stepper
from tests.classic_rl.tabular.mdps import random_mdp


@given(seed=st.integers(0, 10_000), gamma=st.sampled_from([0.5, 0.9, 1.0]))
def test_values_fall_by_the_potential_and_the_best_policy_stays(seed, gamma):
    mdp = random_mdp(seed)
    potential = np.random.default_rng(seed).normal(size=mdp.n_states)
    ends = 1 - mdp.transitions.sum(axis=2)
    added = np.array(
        [
            [
                sum(p * shaping_reward(potential[s], potential[t], False, gamma=gamma) for t, p in enumerate(row))
                + ends[s, a] * shaping_reward(potential[s], 99.0, True, gamma=gamma)
                for a, row in enumerate(rows)
            ]
            for s, rows in enumerate(mdp.transitions)
        ]
    )
    plain = policy_iteration(mdp, gamma=gamma)
    shaped = policy_iteration(MDP(mdp.transitions, mdp.rewards + added, mdp.start), gamma=gamma)
    assert_allclose(shaped.values, plain.values - potential, atol=1e-8)
    assert_allclose(shaped.q, plain.q - potential[:, None], atol=1e-8)
    assert (shaped.policy == plain.policy).all()


def test_the_return_of_an_episode_changes_by_the_potential_of_its_start_alone():
    board = gymnasium.make(ID, slip=0.3)
    shaped = PotentialShaping(board, lambda state: 5.0 + state, gamma=0.9)
    actions = np.random.default_rng(0)
    for seed in range(5):
        state, _ = shaped.reset(seed=seed)
        plain = total = 0.0
        discount, ended = 1.0, False
        while not ended:
            after, reward, terminated, truncated, info = shaped.step(actions.integers(4))
            plain, total = plain + discount * info["reward"], total + discount * reward
            discount, ended = discount * 0.9, terminated or truncated
        left = 0.0 if terminated else discount * (5.0 + after)
        assert total == pytest.approx(plain - (5.0 + state) + left)


class Hill(gymnasium.Env):
    """A car in a valley that is too weak to climb straight up: positions 0 to 20, speeds -3 to 3, pushes -1, 0, 1."""

    observation_space, action_space = spaces.Discrete(21 * 7), spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.speed = 10, 0
        return self.position * 7 + self.speed + 3, {}

    def step(self, action):
        slope = np.sign(self.position - 10) * (1 + (abs(self.position - 10) > 4))
        self.speed = int(np.clip(self.speed + (action - 1) - slope * (self.np_random.random() < 0.5), -3, 3))
        self.position += self.speed
        if self.position <= 0:
            self.position, self.speed = 0, 0
        arrived = self.position >= 20
        self.position = min(self.position, 20)
        return self.position * 7 + self.speed + 3, -1.0, arrived, False, {}


def test_a_potential_of_energy_shortens_learning_to_climb_the_hill():
    def energy(state):
        position, speed = divmod(state, 7)
        return 2.0 * abs(position - 10) + 2.0 * abs(speed - 3)

    def steps_of_learning(shaped, seed):
        env = gymnasium.wrappers.TimeLimit(Hill(), 2000)
        env = PotentialShaping(env, energy, gamma=1.0) if shaped else env
        behaviour = EpsilonGreedy(0.1, np.random.default_rng(seed))
        agent = QLearning(make_stepper(env, seed=seed), behaviour, alpha=0.2, gamma=1.0, episodes=30)
        for _ in agent.steps():
            pass
        return agent.env_steps

    plain = [steps_of_learning(False, seed) for seed in range(5)]
    shaped = [steps_of_learning(True, seed) for seed in range(5)]
    assert np.mean(shaped) < 0.7 * np.mean(plain)


def test_a_shaped_environment_is_stepped_through_and_the_board_is_as_it_was():
    shaped = PotentialShaping(gymnasium.make(ID), float, gamma=1.0)
    assert type(make_stepper(shaped, seed=0)).__name__ == "EnvStepper"
    assert (mdp_from_env(shaped).rewards == mdp_from_env(GridWorld()).rewards).all()


def test_a_discount_out_of_range_is_refused():
    with pytest.raises(ValueError, match="gamma must be in"):
        PotentialShaping(GridWorld(), float, gamma=1.1)

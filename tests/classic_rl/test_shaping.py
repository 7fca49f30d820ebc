"""Shaping leaves the best policy as it is, by planning, and shows the way where rewards are rare, by learning."""

from __future__ import annotations

import math
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from classic_rl.envs import Episode, Stepper, make_envs
from classic_rl.gridworld import ID, GridWorld
from classic_rl.shaping import POTENTIALS, PotentialShaping, energy_of_the_car, shaped, shaping_reward
from classic_rl.tabular.behaviour import EpsilonGreedy
from classic_rl.tabular.control import QLearning
from classic_rl.tabular.mdp import MDP, mdp_from_env
from classic_rl.tabular.planning import policy_iteration
from classic_rl.tabular.stepping import make_stepper
from tests.classic_rl.counting import Counter
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
            plain, total = plain + discount * info["true_reward"], total + discount * reward
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


# --- the car's energy ---


def car(position: float, speed: float) -> gymnasium.Env:
    env = gymnasium.make("MountainCar-v0", disable_env_checker=True).unwrapped
    env.reset(seed=0)
    env.state = np.array([position, speed])
    return env


@pytest.mark.parametrize("position", np.linspace(-1.1, 0.45, 9))
def test_the_slope_of_the_potential_is_gravity_as_the_environment_has_it(position):
    (_, gravity), *_ = car(position, 0.0).step(1)  # at rest and not pushed, the new speed is gravity alone
    width = 1e-5
    slope = (energy_of_the_car([position + width, 0]) - energy_of_the_car([position - width, 0])) / (2 * width)
    assert gravity == pytest.approx(-slope / 1e4, abs=1e-6)


def test_the_energy_is_written_out_of_speed_and_height():
    assert energy_of_the_car([-math.pi / 6, 0.0]) == pytest.approx(0.0)  # the deepest point
    assert energy_of_the_car([-math.pi / 6, 0.07]) == pytest.approx(1e4 * 0.07**2 / 2)
    assert energy_of_the_car([math.pi / 6, 0.0]) == pytest.approx(1e4 * 2 * 0.0025 / 3)  # the highest


def test_a_push_changes_the_energy_by_its_force_times_the_way_and_coasting_keeps_it():
    for position in np.linspace(-0.9, 0.2, 5):
        for speed in (-0.05, -0.02, 0.02, 0.05):
            before = energy_of_the_car([position, speed])
            gained = [energy_of_the_car(car(position, speed).step(action)[0]) - before for action in range(3)]
            work = 1e4 * 0.001 * speed
            # beside the coasting car, so that what is left is the square of one push
            assert gained[2] - gained[1] == pytest.approx(work, abs=0.05)
            assert gained[0] - gained[1] == pytest.approx(-work, abs=0.05)
    swinging = car(-1.0, 0.0)
    energies = [energy_of_the_car(swinging.step(1)[0]) for _ in range(500)]
    assert np.ptp(energies) < 0.1 * np.mean(energies)


def test_swinging_by_the_energy_reaches_the_goal_from_every_start():
    for start in np.linspace(-0.6, -0.4, 5):
        env, speed = car(start, 0.0), 0.0
        for _steps in range(200):
            (_, speed), _, arrived, *_ = env.step(2 if speed >= 0 else 0)
            if arrived:
                break
        assert arrived


def test_the_known_potentials_are_of_environments_that_exist_and_others_are_refused_in_words():
    for name in POTENTIALS:
        env = shaped(name, gamma=0.9)()
        assert isinstance(env, PotentialShaping) and env.gamma == 0.9 and env.spec.id == name
    with pytest.raises(ValueError, match="known for CartPole-v1, only for MountainCar-v0: learn from the true rewards"):
        shaped("CartPole-v1", gamma=0.9)


# --- what is shown while learning ---


def played(env, *, seed: int, steps: int) -> tuple[list[float], Stepper]:
    stepper = Stepper(make_envs(env, 3), seed)
    draws = np.random.default_rng(seed)
    return [stepper.step(draws.integers(3, size=3)).rewards.sum() for _ in range(steps)], stepper


def test_returns_are_counted_by_the_true_rewards_and_what_is_learned_from_is_shaped():
    plain, one = played("MountainCar-v0", seed=0, steps=250)
    changed, other = played(shaped("MountainCar-v0", gamma=0.99), seed=0, steps=250)
    assert one.metrics() == other.metrics() and one.metrics()["episode/return"] == -200
    assert set(plain) == {-3.0} and len(set(changed)) == len(changed)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_returns_of_vectors_that_reset_by_themselves_are_counted_by_the_true_rewards_too(kind, mode):
    def make():
        return PotentialShaping(Counter(3, 4), lambda observation: 100.0 + observation[0], gamma=0.5)

    envs = kind([make, make], autoreset_mode=mode)
    stepper = Stepper(envs, 0)
    rows = [stepper.step(np.zeros(2, dtype=np.int64)) for _ in range(9)]
    envs.close()
    assert set(stepper.latest[0]) == {Episode(1.0 + 2.0 + 3.0, 3)} and stepper.episodes >= 4
    assert rows[0].rewards.tolist() == [1.0 + 0.5 * 101.0 - 100.0] * 2  # what is learned from


def test_of_two_wrappers_the_inner_one_knows_the_true_reward():
    twice = PotentialShaping(shaped("MountainCar-v0", gamma=0.9)(), energy_of_the_car, gamma=0.9)
    twice.reset(seed=0)
    *_, info = twice.step(2)
    assert info["true_reward"] == -1.0


def test_open_episodes_of_a_shaped_environment_are_brought_back():
    env = shaped("MountainCar-v0", gamma=0.99)
    _, one = played(env, seed=0, steps=30)
    other = Stepper(make_envs(env, 3), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a resume that is inexact warns
        other.load_state(one.state())
    for _ in range(5):
        ours, theirs = one.step(np.array([0, 1, 2])), other.step(np.array([0, 1, 2]))
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))

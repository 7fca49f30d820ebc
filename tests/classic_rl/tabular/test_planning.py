"""The Bellman equations against sums written out, and planning against closed forms and published values."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from classic_rl.gridworld import GridWorld
from classic_rl.tabular import mdp as bellman
from classic_rl.tabular.mdp import MDP, mdp_from_arrays, mdp_from_env
from classic_rl.tabular.planning import (
    exact_policy_evaluation,
    greedy_policy,
    policy_evaluation,
    policy_iteration,
    start_value,
    uniform_policy,
    value_iteration,
)
from tests.classic_rl.tabular.mdps import random_mdp, random_policy, random_walk
from tests.reference import classic_case

seeds = st.integers(0, 10_000)
gammas = st.sampled_from([0.0, 0.5, 0.9, 1.0])


@given(seed=seeds, gamma=gammas)
def test_the_four_bellman_equations_are_their_sums_written_out(seed, gamma):
    mdp = random_mdp(seed)
    rng = np.random.default_rng(seed)
    v, q, pi = rng.normal(size=6), rng.normal(size=(6, 3)), random_policy(seed, mdp)
    states, actions, p, r = range(6), range(3), mdp.transitions, mdp.rewards
    expectation_v = [
        sum(pi[s, a] * (r[s, a] + gamma * sum(p[s, a, t] * v[t] for t in states)) for a in actions) for s in states
    ]
    expectation_q = [
        [r[s, a] + gamma * sum(p[s, a, t] * sum(pi[t, b] * q[t, b] for b in actions) for t in states) for a in actions]
        for s in states
    ]
    optimality_v = [max(r[s, a] + gamma * sum(p[s, a, t] * v[t] for t in states) for a in actions) for s in states]
    optimality_q = [[r[s, a] + gamma * sum(p[s, a, t] * max(q[t]) for t in states) for a in actions] for s in states]
    assert_allclose(bellman.bellman_expectation_v(mdp, v, pi, gamma=gamma), expectation_v)
    assert_allclose(bellman.bellman_expectation_q(mdp, q, pi, gamma=gamma), expectation_q)
    assert_allclose(bellman.bellman_optimality_v(mdp, v, gamma=gamma), optimality_v)
    assert_allclose(bellman.bellman_optimality_q(mdp, q, gamma=gamma), optimality_q)


@given(seed=seeds, gamma=gammas)
def test_the_values_of_a_policy_are_the_fixed_points_of_the_expectation_equations(seed, gamma):
    mdp = random_mdp(seed)
    policy = random_policy(seed, mdp)
    values = exact_policy_evaluation(mdp, policy, gamma=gamma)
    q = bellman.lookahead(mdp, values, gamma=gamma)
    assert_allclose(bellman.bellman_expectation_v(mdp, values, policy, gamma=gamma), values, atol=1e-9)
    assert_allclose(bellman.bellman_expectation_q(mdp, q, policy, gamma=gamma), q, atol=1e-9)
    assert_allclose(policy_evaluation(mdp, policy, gamma=gamma), values, atol=1e-7)


@given(seed=seeds, gamma=gammas)
def test_policy_iteration_and_value_iteration_find_the_fixed_points_of_the_optimality_equations(seed, gamma):
    mdp = random_mdp(seed)
    by_policy, by_value = policy_iteration(mdp, gamma=gamma), value_iteration(mdp, gamma=gamma)
    assert_allclose(by_policy.values, by_value.values, atol=1e-7)
    assert_allclose(bellman.bellman_optimality_v(mdp, by_policy.values, gamma=gamma), by_policy.values, atol=1e-9)
    assert_allclose(bellman.bellman_optimality_q(mdp, by_policy.q, gamma=gamma), by_policy.q, atol=1e-9)
    assert_allclose(exact_policy_evaluation(mdp, by_value.policy, gamma=gamma), by_value.values, atol=1e-7)
    for other in range(5):
        worse = exact_policy_evaluation(mdp, random_policy(other, mdp), gamma=gamma)
        assert (worse <= by_policy.values + 1e-9).all()


@given(seed=seeds, gamma=st.floats(0, 1))
def test_a_backup_brings_two_value_functions_together_by_gamma_at_least(seed, gamma):
    mdp = random_mdp(seed)
    one, other = np.random.default_rng(seed).normal(size=(2, 6))
    backed_up = [bellman.bellman_optimality_v(mdp, values, gamma=gamma) for values in (one, other)]
    assert abs(backed_up[0] - backed_up[1]).max() <= gamma * abs(one - other).max() + 1e-12


@pytest.mark.parametrize("n", [5, 19])
def test_the_random_walk_has_its_textbook_values(n):
    mdp = random_walk(n)
    values = exact_policy_evaluation(mdp, uniform_policy(mdp), gamma=1.0)
    assert_allclose(values, [0, *[i / (n + 1) for i in range(1, n + 1)], 0], atol=1e-12)


@pytest.mark.parametrize("name", ["FrozenLake-v1", "CliffWalking-v1"])
def test_optimal_values_are_those_of_a_plain_policy_iteration(name):
    _, expected = classic_case(f"optimal_values_{name}")
    mdp = mdp_from_env(gymnasium.make(name))
    # The reference takes one step out of the cliff's goal, for -1; there is none, and the goal's value is 0.
    beyond = -1.0 if name == "CliffWalking-v1" else 0.0
    for plan in (policy_iteration(mdp, gamma=0.99), value_iteration(mdp, gamma=0.99)):
        assert start_value(mdp, plan.values) == pytest.approx(expected["V_start"], abs=1e-7)
        assert plan.values.sum() + beyond == pytest.approx(expected["V_sum"], abs=1e-6)
        assert_allclose(plan.values[:16], expected["V_first16"], atol=1e-7)


def test_without_a_discount_the_cliff_costs_13_and_the_lake_is_crossed_in_14_of_17_tries():
    cliff, lake = (mdp_from_env(gymnasium.make(name)) for name in ("CliffWalking-v1", "FrozenLake-v1"))
    assert start_value(cliff, policy_iteration(cliff, gamma=1.0).values) == pytest.approx(-13)
    assert start_value(lake, policy_iteration(lake, gamma=1.0).values) == pytest.approx(14 / 17)


@pytest.mark.parametrize("name", ["Taxi-v4", "CliffWalking-v1", "FrozenLake-v1"])
def test_nothing_is_earned_after_the_end_though_the_table_goes_on(name):
    env = gymnasium.make(name)
    ends = {s for a in env.unwrapped.P.values() for o in a.values() for _, s, _, done in o if done}
    values = policy_iteration(mdp_from_env(env), gamma=0.99).values
    assert ends and all(values[list(ends)] == 0)


def test_a_state_that_is_also_reached_without_terminating_keeps_its_value():
    # a crash into the wall ends the episode where it stands
    table = {
        0: {0: [(1.0, 0, -5.0, True)], 1: [(1.0, 1, 1.0, False)]},
        1: {0: [(1.0, 1, 2.0, True)], 1: [(1.0, 0, 0.0, False)]},
    }
    env = SimpleNamespace(P=table, initial_state_distrib=np.array([1.0, 0.0]))
    assert_allclose(value_iteration(mdp_from_env(env), gamma=0.5).values, [2.0, 2.0])


def test_rewards_of_arrivals_are_averaged_and_terminal_states_are_cut():
    transitions = [[[0.25, 0.75]], [[1.0, 0.0]]]
    mdp = mdp_from_arrays(transitions, [[[4.0, 8.0]], [[9.0, 9.0]]], terminal=[False, True])
    assert mdp.rewards.tolist() == [[7.0], [0.0]] and mdp.start.tolist() == [1.0, 0.0]
    assert_allclose(value_iteration(mdp, gamma=1.0).values, [7 / 0.75, 0.0])


def test_a_policy_that_never_ends_has_no_values_without_a_discount():
    circle = mdp_from_arrays(np.ones((1, 1, 1)), np.ones((1, 1)))
    for evaluate in (policy_evaluation, exact_policy_evaluation):
        with pytest.raises(ArithmeticError, match="Use gamma < 1"):
            evaluate(circle, np.ones((1, 1)), gamma=1.0)
        assert evaluate(circle, np.ones((1, 1)), gamma=0.5) == pytest.approx(2)
    with pytest.raises(ArithmeticError, match="Use gamma < 1"):
        value_iteration(circle, gamma=1.0, max_sweeps=1000)


def test_without_a_discount_steps_that_cost_nothing_have_values_but_no_policy_that_is_sure_to_arrive():
    free = mdp_from_env(GridWorld(rows=3, columns=3, obstacles=0, step_cost=0.0))
    assert_allclose(value_iteration(free, gamma=1.0).values[:-1], 1.0)
    with pytest.raises(ArithmeticError, match="this policy or MDP never ends"):
        policy_iteration(free, gamma=1.0)
    assert start_value(free, policy_iteration(free, gamma=0.99).values) == pytest.approx(0.99**3)


def test_what_is_no_mdp_is_refused_with_the_way_out():
    good = np.full((2, 1, 2), 0.5)
    with pytest.raises(ValueError, match="normalise them"):
        mdp_from_arrays(good * 2, np.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"rewards \[S, A\]"):
        mdp_from_arrays(good, np.zeros(2))
    with pytest.raises(ValueError, match="next states are the last axis"):
        MDP(np.zeros((2, 1, 3)), np.zeros((2, 1)), np.ones(2) / 2)
    with pytest.raises(ValueError, match="must be finite"):
        mdp_from_arrays(good, [[0.0], [-np.inf]])
    with pytest.raises(ValueError, match="start must be a distribution"):
        mdp_from_arrays(good, np.zeros((2, 1)), start=[1.0, 1.0])
    with pytest.raises(ValueError, match="greedy_policy"):
        exact_policy_evaluation(random_walk(), np.ones(7), gamma=0.9)
    with pytest.raises(ValueError, match="gamma must be in"):
        value_iteration(random_walk(), gamma=1.5)
    with pytest.raises(ValueError, match="has no table"):
        mdp_from_env(gymnasium.make("CartPole-v1"))


def test_a_greedy_policy_takes_the_first_of_several_best_actions():
    assert greedy_policy(np.array([[0.0, 1.0, 1.0]])).tolist() == [[0.0, 1.0, 0.0]]

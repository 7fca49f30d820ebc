"""Targets of tabular control, and behaviours, against their equations and published implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from classic_rl import exploration, q_learning
from classic_rl.schedules import linear
from classic_rl.tabular.behaviour import UCB, Behaviour, Boltzmann, EpsilonGreedy
from classic_rl.tabular.updates import (
    double_q_target,
    expected_sarsa_target,
    q_learning_target,
    sarsa_target,
    td_error,
)
from tests.reference import classic_case

number = st.floats(-10, 10)
rows = st.lists(number, min_size=3, max_size=3)
ties = st.lists(st.sampled_from([0.0, 1.0]), min_size=3, max_size=3)


def test_the_errors_are_those_that_rlax_computes():
    inputs, expected = classic_case("rlax_td0")
    error = td_error(inputs["v_tm1"], inputs["r_t"], inputs["v_t"], False, gamma=inputs["discount_t"])
    assert error == pytest.approx(expected["td"], abs=1e-6)
    inputs, expected = classic_case("rlax_q_learning")
    target = q_learning_target(inputs["r_t"], inputs["q_t"], False, gamma=inputs["discount_t"])
    assert target - inputs["q_tm1"][inputs["a_tm1"]] == pytest.approx(expected["td"], abs=1e-6)
    inputs, expected = classic_case("rlax_sarsa")
    target = sarsa_target(inputs["r_t"], inputs["q_t"], inputs["a_t"], False, gamma=inputs["discount_t"])
    assert target - inputs["q_tm1"][inputs["a_tm1"]] == pytest.approx(expected["td"], abs=1e-6)


@given(reward=number, q=rows, other=rows, terminated=st.booleans(), gamma=st.floats(0, 1))
def test_the_targets_are_those_of_the_deep_agents(reward, q, other, terminated, gamma):
    tensors = torch.tensor([reward], dtype=torch.float64), torch.tensor([q], dtype=torch.float64)
    ended = torch.tensor([terminated])
    theirs = q_learning.q_targets(*tensors, ended, gamma=gamma)
    assert q_learning_target(reward, q, terminated, gamma=gamma) == pytest.approx(theirs.item())
    theirs = q_learning.double_q_targets(*tensors, torch.tensor([other], dtype=torch.float64), ended, gamma=gamma)
    assert double_q_target(reward, q, other, terminated, gamma=gamma) == pytest.approx(theirs.item())


@given(reward=number, q=rows, gamma=st.floats(0, 1))
def test_expected_sarsa_lies_between_sarsas_and_with_a_greedy_policy_is_q_learning(reward, q, gamma):
    sarsas = [sarsa_target(reward, q, action, False, gamma=gamma) for action in range(3)]
    expected = expected_sarsa_target(reward, q, [0.2, 0.3, 0.5], False, gamma=gamma)
    assert expected == pytest.approx(0.2 * sarsas[0] + 0.3 * sarsas[1] + 0.5 * sarsas[2])
    greedy = [float(action == q.index(max(q))) for action in range(3)]
    best = q_learning_target(reward, q, False, gamma=gamma)
    assert expected_sarsa_target(reward, q, greedy, False, gamma=gamma) == pytest.approx(best)
    ended = expected_sarsa_target(reward, q, greedy, True, gamma=gamma)
    assert ended == sarsa_target(reward, q, 0, True, gamma=gamma) == td_error(0, reward, 9, True, gamma=gamma) == reward


# -- behaviours


def shares(behaviour: Behaviour, values: list[float], n: int = 20_000) -> np.ndarray:
    return np.bincount([behaviour.choose(values, 0) for _ in range(n)], minlength=len(values)) / n


@pytest.mark.parametrize("values", [[1.0, 3.0, 2.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
@pytest.mark.parametrize("make", [lambda rng: EpsilonGreedy(0.3, rng), lambda rng: Boltzmann(0.7, rng)])
def test_a_behaviour_chooses_as_often_as_it_says_and_as_the_function_of_arrays_says(make, values):
    behaviour = make(np.random.default_rng(0))
    probabilities = behaviour.probabilities(values, 0)
    assert_allclose(shares(behaviour, values), probabilities, atol=0.02)
    q = np.array(values)
    if isinstance(behaviour, EpsilonGreedy):
        law = exploration.epsilon_greedy_probabilities(q, epsilon=0.3)
    else:
        law = exploration.boltzmann_probabilities(q, temperature=0.7)
    assert_allclose(probabilities, law)
    drawn = exploration.sample_actions(np.tile(law, (20_000, 1)), np.random.default_rng(1))
    assert_allclose(np.bincount(drawn, minlength=3) / 20_000, law, atol=0.02)


@given(values=ties, epsilon=st.floats(0, 1))
def test_epsilon_greedy_probabilities_sum_to_1_and_no_action_has_less_than_its_share(values, epsilon):
    probabilities = exploration.epsilon_greedy_probabilities(np.array(values), epsilon=epsilon)
    assert probabilities.sum() == pytest.approx(1) and (probabilities >= epsilon / 3 - 1e-12).all()


def test_a_schedule_changes_the_rate_with_the_episode():
    behaviour = EpsilonGreedy(linear(1.0, 0.0, 10), np.random.default_rng(0))
    assert_allclose(shares(behaviour, [0.0, 1.0]), [0.5, 0.5], atol=0.02)
    behaviour.begin(10)
    assert behaviour.rate == 0 and shares(behaviour, [0.0, 1.0]).tolist() == [0, 1]


def test_ucb_tries_everything_once_and_then_what_is_good_or_little_known():
    behaviour = UCB(1.0, np.random.default_rng(0))
    values = [0.5, 0.2, 0.9]
    assert sorted(behaviour.choose(values, 7) for _ in range(3)) == [0, 1, 2]
    for _ in range(200):
        scores = exploration.ucb_scores(np.array(values), np.array(behaviour.counts[7]), c=1.0)
        expected = behaviour.probabilities(values, 7)
        assert expected.index(1) == scores.argmax() == behaviour.choose(values, 7)
    counts = behaviour.counts[7]
    assert counts[2] > counts[0] > counts[1] > 1


def test_of_several_best_scores_any_is_drawn():
    scores = np.tile([1.0, 2.0, 2.0], (5000, 1))
    drawn = np.bincount(exploration.argmax_at_random(scores, np.random.default_rng(0)), minlength=3) / 5000
    assert_allclose(drawn, [0, 0.5, 0.5], atol=0.03)


def test_a_behaviour_goes_on_from_its_state():
    makers = (lambda r: EpsilonGreedy(0.3, r), lambda r: Boltzmann(0.7, r), lambda r: UCB(1.0, r))
    for make in makers:
        behaviour, other = (make(np.random.default_rng(seed)) for seed in (0, 1))
        shares(behaviour, [0.0, 1.0, 1.0], 500)
        other.load_state(behaviour.state())
        rest = [[each.choose([0.0, 1.0, 1.0], 0) for _ in range(6000)] for each in (behaviour, other)]
        assert rest[0] == rest[1]


def test_rates_out_of_range_are_refused_with_the_reason():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="probability of a random action"):
        EpsilonGreedy(1.5, rng)
    with pytest.raises(ValueError, match="act greedily"):
        Boltzmann(0.0, rng)
    for make in (lambda: UCB(-1.0, rng), lambda: exploration.ucb_scores(np.zeros(2), np.zeros(2, dtype=int), c=-1.0)):
        with pytest.raises(ValueError, match="avoids what it does not know"):
            make()

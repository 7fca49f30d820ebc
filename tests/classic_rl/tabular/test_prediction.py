"""Prediction against the algorithms written out for one episode in plain Python, and against true values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from classic_rl import returns
from classic_rl.tabular import prediction as learn
from classic_rl.tabular.many_runs import outcomes_of, sample_episodes
from classic_rl.tabular.planning import exact_policy_evaluation, uniform_policy
from classic_rl.tabular.prediction import Episodes, single_episode
from tests.classic_rl.tabular.mdps import random_policy, random_walk
from tests.reference import classic_case

seeds = st.integers(0, 10_000)
rates = st.sampled_from([0.0, 0.5, 0.9, 1.0])


def some_episodes(seed: int, n: int = 5, time: int = 7, n_states: int = 4) -> Episodes:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, time + 1, size=n)
    lengths[0] = time
    states, ends = rng.integers(n_states, size=(n, time + 1)), rng.random(n) < 0.5
    return Episodes(states, rng.normal(size=(n, time)), lengths, ends)


def rows_of(episodes: Episodes):
    """States, rewards and whether it terminated, of each row without its padding, as plain values."""
    for row, length in enumerate(episodes.lengths.tolist()):
        states, rewards = episodes.states[row, : length + 1].tolist(), episodes.rewards[row, :length].tolist()
        yield states, rewards, bool(episodes.terminated[row])


def plain_n_step_td(v, states, rewards, terminated, *, alpha, gamma, n):
    v, end = list(v), len(rewards)
    for t in range(end):
        m = min(n, end - t)
        g = sum(gamma**i * rewards[t + i] for i in range(m))
        if t + m < end or not terminated:
            g += gamma**m * v[states[t + m]]
        v[states[t]] += alpha * (g - v[states[t]])
    return v


def plain_td_lambda(v, states, rewards, terminated, *, alpha, gamma, lam, trace):
    v, e, end = list(v), [0.0] * len(v), len(rewards)
    for t in range(end):
        e[states[t]] = 1.0 + (e[states[t]] if trace == "accumulating" else 0.0)
        ahead = 0.0 if t == end - 1 and terminated else v[states[t + 1]]
        delta = rewards[t] + gamma * ahead - v[states[t]]
        for s in range(len(v)):
            v[s] += alpha * delta * e[s]
            e[s] *= gamma * lam
    return v


@given(seed=seeds, gamma=rates, n=st.integers(1, 9))
def test_n_step_td_is_the_online_algorithm_of_one_episode_in_every_row(seed, gamma, n):
    episodes = some_episodes(seed)
    values = np.random.default_rng(seed).normal(size=(5, 4))
    plain = [
        plain_n_step_td(v, *row, alpha=0.3, gamma=gamma, n=n) for v, row in zip(values, rows_of(episodes), strict=True)
    ]
    assert_allclose(learn.n_step_td(values, episodes, alpha=0.3, gamma=gamma, n=n), plain, atol=1e-9)


@given(seed=seeds, gamma=rates, lam=rates, trace=st.sampled_from(["accumulating", "replacing"]))
def test_td_lambda_is_the_online_algorithm_of_one_episode_in_every_row(seed, gamma, lam, trace):
    episodes = some_episodes(seed)
    values = np.random.default_rng(seed).normal(size=(5, 4))
    settings = {"alpha": 0.3, "gamma": gamma, "lam": lam, "trace": trace}
    plain = [plain_td_lambda(v, *row, **settings) for v, row in zip(values, rows_of(episodes), strict=True)]
    assert_allclose(learn.td_lambda(values, episodes, **settings), plain, atol=1e-9)


@given(seed=seeds, gamma=rates, lam=rates)
def test_the_backward_view_is_the_forward_view_where_values_stay_as_they_were(seed, gamma, lam):
    episodes = some_episodes(seed)
    values = np.random.default_rng(seed).normal(size=(2, 5, 4))
    settings = {"alpha": np.array([[0.1], [0.5]]), "gamma": gamma, "lam": lam}
    forward = learn.forward_view(values, episodes, **settings)
    assert_allclose(learn.backward_view(values, episodes, **settings), forward, atol=1e-9)


@given(seed=seeds, gamma=rates, lam=rates)
def test_the_offline_lambda_return_algorithm_moves_states_in_the_order_of_time(seed, gamma, lam):
    episodes = some_episodes(seed)
    before = np.random.default_rng(seed).normal(size=(5, 4))
    returns_of = learn.lambda_returns(episodes, before, gamma=gamma, lam=lam)
    plain = before.copy()
    for row, (states, rewards, _) in enumerate(rows_of(episodes)):
        for t in range(len(rewards)):
            plain[row, states[t]] += 0.3 * (returns_of[row, t] - plain[row, states[t]])
    after = learn.offline_lambda_return(before, episodes, alpha=0.3, gamma=gamma, lam=lam)
    assert_allclose(after, plain, atol=1e-12)


@given(seed=seeds, gamma=rates)
def test_lambda_0_and_n_1_are_td0_and_n_past_the_end_is_monte_carlo(seed, gamma):
    episodes = some_episodes(seed)
    values = np.random.default_rng(seed).normal(size=(5, 4))
    step = {"alpha": 0.3, "gamma": gamma}
    td0 = learn.td0(values, episodes, **step)
    for trace in ("accumulating", "replacing"):
        assert_allclose(learn.td_lambda(values, episodes, lam=0.0, trace=trace, **step), td0, atol=1e-12)
    constant_alpha = []
    for v, (states, rewards, terminated) in zip(values.tolist(), rows_of(episodes), strict=True):
        for t, s in enumerate(states[:-1]):
            left = len(rewards) - t
            g = sum(gamma**i * r for i, r in enumerate(rewards[t:]))
            g += 0.0 if terminated else gamma**left * v[states[-1]]
            v[s] += 0.3 * (g - v[s])
        constant_alpha.append(v)
    assert_allclose(learn.n_step_td(values, episodes, n=100, **step), constant_alpha, atol=1e-9)


@given(seed=seeds, gamma=rates, lam=rates, n=st.integers(1, 9))
def test_the_returns_are_those_of_the_tensors(seed, gamma, lam, n):
    episodes = some_episodes(seed, n=1)
    values = np.random.default_rng(seed).normal(size=(1, 4))
    ends = np.arange(7) == 6
    flags = torch.tensor(ends & episodes.terminated), torch.tensor(ends & ~episodes.terminated)
    tensors = torch.tensor(episodes.rewards[0]), torch.tensor(values[0, episodes.states[0, 1:]])
    theirs = returns.lambda_returns(*tensors, *flags, gamma=gamma, lam=lam)
    assert_allclose(learn.lambda_returns(episodes, values, gamma=gamma, lam=lam)[0], theirs, atol=1e-9)
    rewards, after = learn.n_step_rewards(episodes, gamma=gamma, n=n)
    ahead = values[0, episodes.states[0, np.minimum(np.arange(7) + n, 7)]]
    theirs = returns.n_step_returns(*tensors, *flags, gamma=gamma, n=n)
    assert_allclose(rewards[0] + after[0] * ahead, theirs, atol=1e-9)


def test_td0_moves_by_the_error_that_rlax_computes():
    inputs, expected = classic_case("rlax_td0")
    values = np.array([[inputs["v_tm1"], inputs["v_t"]]])
    after = learn.td0(
        values,
        single_episode([0, 1], [inputs["r_t"]], terminated=False),
        alpha=1.0,
        gamma=inputs["discount_t"],
    )
    assert after[0, 0] - values[0, 0] == pytest.approx(expected["td"], abs=1e-6)


def test_one_state_visited_ten_times_has_its_textbook_estimates():
    loop = single_episode([0] * 10 + [1], [1.0] * 10)
    assert learn.first_visit_monte_carlo(loop, n_states=2, gamma=1.0).values[0] == 10
    every = learn.every_visit_monte_carlo(loop, n_states=2, gamma=1.0)
    assert every.values[0] == 5.5 and every.visits.tolist() == [10, 0] and np.isnan(every.values[1])


@pytest.mark.parametrize("estimate", [learn.first_visit_monte_carlo, learn.every_visit_monte_carlo])
def test_monte_carlo_finds_the_values_of_a_policy(estimate):
    mdp = random_walk(5)
    policy = random_policy(1, mdp)
    episodes = sample_episodes(outcomes_of(mdp), policy, 20_000, np.random.default_rng(0))
    estimated = estimate(episodes, n_states=7, gamma=0.9)
    spread = 0.5 / np.sqrt(np.maximum(estimated.visits, 1))  # returns lie between 0 and 1
    exact = exact_policy_evaluation(mdp, policy, gamma=0.9)
    assert (abs(estimated.values - exact) < 5 * spread)[1:-1].all()
    assert estimated.visits[[0, -1]].tolist() == [0, 0] and estimated.visits[1:-1].min() > 1000


@pytest.mark.parametrize(
    "rule",
    [
        lambda v, e, a: learn.td0(v, e, alpha=a, gamma=1.0),
        lambda v, e, a: learn.n_step_td(v, e, alpha=a, gamma=1.0, n=4),
        lambda v, e, a: learn.td_lambda(v, e, alpha=a, gamma=1.0, lam=0.8),
        lambda v, e, a: learn.offline_lambda_return(v, e, alpha=a, gamma=1.0, lam=0.8),
    ],
)
def test_the_mean_of_many_runs_learns_the_random_walk(rule):
    mdp, runs, rng = random_walk(5), 500, np.random.default_rng(0)
    table, policy = outcomes_of(mdp), uniform_policy(mdp)
    values = np.full((runs, mdp.n_states), 0.5)
    values[:, [0, -1]] = 0
    for _ in range(150):
        values = rule(values, sample_episodes(table, policy, runs, rng), 0.05)
    exact = exact_policy_evaluation(mdp, policy, gamma=1.0)
    assert_allclose(values.mean(axis=0), exact, atol=0.02)


def test_settings_before_the_rows_learn_as_if_each_were_alone():
    episodes = some_episodes(3)
    values, alphas = np.zeros((3, 5, 4)), [0.1, 0.2, 0.7]
    for rule, more in (
        (learn.n_step_td, {"n": 2}),
        (learn.td_lambda, {"lam": 0.5}),
        (learn.forward_view, {"lam": 0.5}),
    ):
        together = rule(values, episodes, alpha=np.array(alphas)[:, None], gamma=0.9, **more)
        alone = [rule(values[0], episodes, alpha=alpha, gamma=0.9, **more) for alpha in alphas]
        assert_allclose(together, alone)
    assert not values.any()


def test_what_follows_the_end_of_an_episode_never_counts():
    episodes = some_episodes(4)
    values = np.random.default_rng(4).normal(size=(5, 4))
    rewards, states = episodes.rewards.copy(), episodes.states.copy()
    rewards[~episodes.counts] = 1e9
    states[:, 1:][~episodes.counts] = 0
    other = Episodes(states, rewards, episodes.lengths, episodes.terminated)
    for rule, more in (
        (learn.n_step_td, {"n": 3}),
        (learn.td_lambda, {"lam": 0.5}),
        (learn.forward_view, {"lam": 0.5}),
    ):
        ours, theirs = (rule(values, e, alpha=0.5, gamma=0.9, **more) for e in (episodes, other))
        assert_allclose(ours, theirs)


def test_what_does_not_fit_is_refused_with_the_way_out():
    episodes = some_episodes(0)
    with pytest.raises(ValueError, match="call once for each"):
        learn.td0(np.zeros(4), episodes, alpha=0.1, gamma=1.0)
    with pytest.raises(ValueError, match="1 is TD"):
        learn.n_step_td(np.zeros((5, 4)), episodes, alpha=0.1, gamma=1.0, n=0)
    with pytest.raises(ValueError, match="lam must be in"):
        learn.td_lambda(np.zeros((5, 4)), episodes, alpha=0.1, gamma=1.0, lam=2.0)
    with pytest.raises(ValueError, match="'accumulating' or 'replacing'"):
        learn.td_lambda(np.zeros((5, 4)), episodes, alpha=0.1, gamma=1.0, lam=0.5, trace="dutch")
    with pytest.raises(ValueError, match=r"states \[N, T \+ 1\]"):
        single_episode([0, 1], [1.0, 2.0])
    with pytest.raises(ValueError, match="lengths must be from 1"):
        Episodes(np.zeros((1, 2), dtype=int), np.zeros((1, 1)), np.array([0]), np.array([True]))

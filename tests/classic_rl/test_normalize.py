"""Running moments and what they scale."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from classic_rl.normalize import RewardScale, RunningMoments
from tests.reference import classic_case


def test_the_moments_are_those_of_the_reference():
    inputs, expected = classic_case("running_mean_std")
    moments = RunningMoments((2,), count=inputs["initial_count"])
    for batch in inputs["batches"]:
        moments.update(np.array(batch))
    np.testing.assert_allclose(moments.mean, expected["mean"])
    np.testing.assert_allclose(moments.var, expected["var"])
    assert moments.count == expected["count"]


@given(st.lists(st.integers(0, 5), max_size=6), st.integers(0, 99))
def test_however_rows_are_cut_into_batches_the_moments_are_those_of_all_rows(cuts, seed):
    rows = np.random.default_rng(seed).normal(3.0, 2.0, (sum(cuts) + 2, 3))
    moments = RunningMoments((3,), count=0.0)
    begin = 0
    for size in [2, *cuts]:
        moments.update(rows[begin : begin + size])
        begin += size
    np.testing.assert_allclose(moments.mean, rows.mean(0))
    np.testing.assert_allclose(moments.var, rows.var(0))


def test_normalized_rows_have_mean_zero_and_variance_one_and_outliers_are_cut_off():
    rows = np.random.default_rng(0).normal([1.0, -5.0], [3.0, 1.0], (1000, 2))
    moments = RunningMoments((2,))
    moments.update(rows)
    scaled = moments.normalize(rows)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(scaled.std(0), 1, atol=1e-3)
    assert moments.normalize(np.array([[1e9, -1e9]]), clip=5.0).tolist() == [[5.0, -5.0]]


def test_rewards_are_divided_by_the_spread_of_discounted_returns_that_begin_anew_after_an_episode():
    rewards = np.array([[1.0, 2.0, 4.0], [8.0, 100.0, 16.0]])
    ended = np.array([[False, True, False], [True, False, False]])
    valid = np.array([[True, True, True], [True, False, True]])
    scale = RewardScale(2, gamma=0.5)
    scaled = scale(rewards, ended, valid)
    returns = [1.0, 0.5 * 1 + 2, 4.0, 8.0, 16.0]  # the row that is no transition is not among them
    moments = RunningMoments(())
    moments.update(np.array(returns))
    np.testing.assert_allclose(scaled, np.minimum(rewards / np.sqrt(moments.var), 10.0), rtol=1e-6)
    again = scale(np.array([[0.0], [0.0]]), np.zeros((2, 1), bool), np.ones((2, 1), bool))
    assert not again.any()
    moments.update(np.array([2.0, 8.0]))
    np.testing.assert_allclose(scale.moments.var, moments.var)


def test_both_go_on_from_their_state():
    rng = np.random.default_rng(0)
    one, other = RewardScale(2, gamma=0.9), RewardScale(2, gamma=0.9)
    flags = np.zeros((2, 4), bool)
    one(rng.normal(size=(2, 4)), flags, ~flags)
    other.load_state(one.state())
    rewards = rng.normal(size=(2, 4))
    np.testing.assert_array_equal(one(rewards, flags, ~flags), other(rewards, flags, ~flags))

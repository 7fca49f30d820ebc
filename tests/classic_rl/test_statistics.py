import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classic_rl.statistics import (
    bootstrap_interval,
    interquartile_mean,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)
from tests.reference import classic_case

finite = st.floats(-1e6, 1e6)


def test_the_estimators_agree_with_published_ones():
    inputs, expected = classic_case("rliable_iqm")
    scores = np.array(inputs["scores"])
    assert interquartile_mean(scores) == pytest.approx(expected["iqm"], abs=1e-12)
    assert optimality_gap(scores, target=1.0) == pytest.approx(expected["optimality_gap"], abs=1e-12)
    # The case does not name the second algorithm; its number is that of the scores against nine tenths of themselves.
    assert probability_of_improvement(scores, 0.9 * scores) == pytest.approx(expected["prob_of_improvement"], abs=1e-12)


@given(st.lists(finite, min_size=1, max_size=20), finite)
def test_the_interquartile_mean_lies_within_the_scores_and_moves_with_them(scores, shift):
    middle = interquartile_mean(scores)
    assert min(scores) - 1e-6 <= middle <= max(scores) + 1e-6
    assert interquartile_mean([score + shift for score in scores]) == pytest.approx(middle + shift, abs=1e-6, rel=1e-9)


def test_one_failed_run_of_five_does_not_move_the_interquartile_mean():
    assert interquartile_mean([500, 500, 500, 500, -1000]) == 500


@given(st.lists(finite, min_size=1, max_size=8), st.lists(finite, min_size=1, max_size=8))
def test_either_we_improve_or_they_do(ours, theirs):
    both = probability_of_improvement(ours, theirs) + probability_of_improvement(theirs, ours)
    assert both == pytest.approx(1.0)


def test_a_profile_never_rises():
    scores = np.random.default_rng(0).normal(size=(10, 3))
    profile = performance_profile(scores, np.linspace(-3, 3, 50))
    assert (np.diff(profile) <= 0).all() and profile[0] == 1 and profile[-1] <= 0.1


def test_the_bootstrap_of_a_mean_has_the_width_of_its_standard_error():
    scores = np.random.default_rng(1).normal(size=400)
    interval = bootstrap_interval(scores, lambda drawn: float(drawn.mean()), samples=4_000)
    error = scores.std(ddof=1) / 20
    assert interval.estimate == pytest.approx(scores.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.06)  # of 4,000 resamples
    assert interval.low < interval.estimate < interval.high


def test_runs_are_drawn_within_each_task():
    """Tasks that differ widely, runs that hardly do: drawn across tasks the interval would span them."""
    scores = np.array([[0.0, 100.0], [0.1, 100.1], [0.2, 100.2]])
    interval = bootstrap_interval(scores, lambda drawn: float(drawn.mean()))
    assert interval.high - interval.low < 0.2


def test_a_run_that_failed_needs_a_score_too():
    with pytest.raises(ValueError, match="lowest return"):
        interquartile_mean([1.0, np.nan])
    with pytest.raises(ValueError, match=r"\[runs, tasks\]"):
        interquartile_mean([])


def test_tasks_must_match_and_confidence_must_be_a_share():
    with pytest.raises(ValueError, match="same tasks"):
        probability_of_improvement(np.ones((3, 2)), np.ones((3, 1)))
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap_interval([1.0, 2.0], confidence=95)

"""Schedules against their equations, and against a published implementation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classic_rl.schedules import constant, cosine, linear
from tests.reference import classic_case

values = st.floats(-10, 10)


@pytest.mark.parametrize("shape", [linear, cosine])
@given(start=values, end=values, steps=st.integers(1, 50), step=st.integers(0, 100))
def test_a_schedule_starts_and_ends_where_it_is_told_and_never_leaves_the_range(shape, start, end, steps, step):
    schedule = shape(start, end, steps)
    assert schedule(0) == pytest.approx(start)
    assert schedule(steps + step) == end
    slack = 1e-12 * (1 + abs(start) + abs(end))
    assert min(start, end) - slack <= schedule(step) <= max(start, end) + slack


def test_half_way_both_shapes_stand_in_the_middle_and_a_quarter_of_the_way_the_cosine_lags():
    assert linear(1.0, 0.0, 8)(4) == pytest.approx(0.5) and cosine(1.0, 0.0, 8)(4) == pytest.approx(0.5)
    assert cosine(1.0, 0.0, 8)(2) > linear(1.0, 0.0, 8)(2)


def test_a_line_falls_as_that_of_stable_baselines():
    inputs, expected = classic_case("epsilon_linear")
    schedule = linear(inputs["start"], inputs["end"], int(100 * inputs["end_fraction"]))
    ours = [schedule(round(100 * (1 - left))) for left in inputs["progress_remaining"]]
    assert ours == pytest.approx(expected["eps"])


def test_a_constant_never_changes():
    assert {constant(0.3)(step) for step in (0, 7, 10**9)} == {0.3}


@pytest.mark.parametrize("shape", [linear, cosine])
def test_a_schedule_without_steps_is_refused_with_the_way_out(shape):
    with pytest.raises(ValueError, match="use `constant`"):
        shape(1.0, 0.0, 0)

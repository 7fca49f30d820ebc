import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from classic_rl.masked import check_same_shape, masked_mean, masked_var, standardize

NAN = torch.nan
X = torch.tensor([[1.0, NAN, 4.0], [torch.inf, 2.0, NAN]], dtype=torch.float64)
MASK = torch.tensor([[True, False, True], [False, True, False]])


def test_shapes_that_would_broadcast_are_refused_with_their_names_and_the_way_out():
    with pytest.raises(ValueError, match=r"values \[4, 1\], returns \[4\].*Squeeze or expand"):
        check_same_shape(values=torch.zeros(4, 1), returns=torch.zeros(4))


def test_one_shape_of_any_kind_is_accepted():
    check_same_shape()
    check_same_shape(a=torch.zeros(()))
    check_same_shape(a=torch.zeros(2, 0), b=torch.zeros(2, 0, dtype=torch.bool), c=torch.ones(2, 0))


def test_the_mean_and_the_variance_are_those_of_the_counted_values():
    counted = torch.tensor([1.0, 4.0, 2.0], dtype=torch.float64)
    assert_close(masked_mean(X, MASK), counted.mean())
    assert_close(masked_var(X, MASK), counted.var(unbiased=True))


def test_what_is_not_counted_reaches_no_gradient():
    for function in (masked_mean, masked_var, lambda x, mask: standardize(x, mask)[0, 0]):
        x = X.clone().requires_grad_()
        function(x, MASK).backward()
        assert x.grad is not None and x.grad[MASK].isfinite().all()
        assert (x.grad[~MASK] == 0).all()


@pytest.mark.parametrize("function", [masked_mean, masked_var])
def test_an_empty_mask_gives_a_zero_that_has_a_gradient(function):
    x = X.clone().requires_grad_()
    value = function(x, torch.zeros_like(MASK))
    value.backward()
    assert value == 0 and (x.grad == 0).all()


def test_a_single_value_has_variance_zero_and_standardises_to_zero():
    only = torch.tensor([[True, False, False], [False, False, False]])
    assert masked_var(X, only) == 0
    assert (standardize(X, only) == 0).all()


@pytest.mark.parametrize("function", [masked_mean, masked_var, standardize])
def test_a_mask_of_another_shape_is_refused(function):
    with pytest.raises(ValueError, match="Squeeze or expand"):
        function(torch.zeros(3), torch.ones(3, 1, dtype=torch.bool))


def test_standardised_values_follow_the_definition_and_the_uncounted_ones_are_zero():
    counted = torch.tensor([1.0, 4.0, 2.0], dtype=torch.float64)
    expected = (counted - counted.mean()) / (counted.std() + 0.5)
    actual = standardize(X, MASK, eps=0.5)
    assert_close(actual[MASK], expected[[0, 1, 2]])
    assert (actual[~MASK] == 0).all()


def test_without_a_mask_every_value_counts():
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert_close(standardize(x), (x - x.mean()) / (x.std() + 1e-8))


def test_the_mean_and_std_of_all_processes_can_be_given():
    actual = standardize(X, MASK, mean=torch.tensor(1.0), std=2.0, eps=0.0)
    assert_close(actual, torch.tensor([[0.0, 0.0, 1.5], [0.0, 0.5, 0.0]], dtype=torch.float64))


@given(st.floats(-1e4, 1e4, width=32), st.integers(1, 40))
def test_equal_values_standardise_to_exactly_zero(value, n):
    assert (standardize(torch.full((n,), value, dtype=torch.float32)) == 0).all()

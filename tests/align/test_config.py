"""Settings: what makes no sense is refused when it is written down, NaN and infinity among it."""

from __future__ import annotations

import dataclasses
import math

import pytest

from align import config
from align.config import DPOConfig, KTOConfig, OptimizerConfig

CONFIGS = [each for name, each in vars(config).items() if name.endswith("Config")]
NUMBERS = [
    (each, field.name)
    for each in CONFIGS
    for field in dataclasses.fields(each)
    if field.type in ("float", "int", "float | None", "int | None") and field.name != "seed"
]


@pytest.mark.parametrize("number", [math.nan, -math.inf, -1.0])
@pytest.mark.parametrize("kind, name", NUMBERS)
def test_a_setting_that_is_no_number_or_negative_is_refused_by_its_name(kind, name, number):
    with pytest.raises(ValueError, match=rf"^{name} must .*, got {number}"):
        kind(**{name: number})


@pytest.mark.parametrize("kind, name", NUMBERS)
def test_an_infinite_setting_is_refused_by_its_name_but_for_the_norm_above_which_a_gradient_is_clipped(kind, name):
    if name == "max_grad_norm":
        assert OptimizerConfig(max_grad_norm=math.inf).max_grad_norm == math.inf
        return
    with pytest.raises(ValueError, match=rf"^{name} must .*, got inf"):
        kind(**{name: math.inf})


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_defaults_are_accepted(kind):
    assert kind() == kind()


@pytest.mark.parametrize("kind", [DPOConfig, KTOConfig])
@pytest.mark.parametrize("beta", [math.nan, 0.0, -0.1])
def test_a_beta_that_is_not_above_0_is_refused_with_the_reason(kind, beta):
    with pytest.raises(ValueError, match=r"beta must be above 0, got .*: at 0 no (pair|answer) would have a gradient"):
        kind(beta=beta)

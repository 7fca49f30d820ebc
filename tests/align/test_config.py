"""Settings: what makes no sense is refused when it is written down, NaN and infinity among it."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import get_type_hints

import pytest

from align import config
from align.config import DPOConfig, ImportanceConfig, KTOConfig, OptimizerConfig, TokenRewardConfig

CONFIGS = [each for name, each in vars(config).items() if name.endswith("Config")]
CHOICES = [
    (each, field.name)
    for each in CONFIGS
    for field in dataclasses.fields(each)
    if "Literal" in str(get_type_hints(each)[field.name])
]
NUMBERS = [
    (each, field.name)
    for each in CONFIGS
    for field in dataclasses.fields(each)
    if field.type in ("float", "int", "float | None", "int | None")
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


def test_the_settings_have_choices_and_seeds():
    names = {name for _, name in CHOICES}
    assert {"schedule", "importance", "truncated"} <= names
    assert sum(name == "seed" for _, name in NUMBERS) >= 6


@pytest.mark.parametrize("kind, name", CHOICES)
def test_a_choice_that_is_not_there_is_refused_by_its_name(kind, name):
    with pytest.raises(ValueError, match=rf"^{name} must be one of .*, got 'nonsense'$"):
        kind(**{name: "nonsense"})


@pytest.mark.parametrize(
    "make, told",
    [
        (
            lambda: OptimizerConfig(schedule="cosin"),
            "schedule must be one of constant, linear, cosine, got 'cosin'; did you mean 'cosine'?",
        ),
        (
            lambda: TokenRewardConfig(truncated="left_out"),
            "truncated must be one of ended, bootstrapped, left-out, got 'left_out'; did you mean 'left-out'?",
        ),
        (
            lambda: ImportanceConfig(importance="token-trunc"),
            "importance must be one of token-truncate, token-mask, sequence-truncate, sequence-mask, got "
            "'token-trunc'; did you mean 'token-truncate'?",
        ),
    ],
)
def test_a_misspelt_choice_is_told_what_there_is_and_what_was_meant(make, told):
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        make()

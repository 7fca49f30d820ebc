"""Answers that are mathematics, compared by math-verify in a process of its own."""

from __future__ import annotations

import importlib.util
import math

import pytest

from align.math_answer import math_answer
from align.reward_names import resolve
from align.rewards import Reward, RewardError, score


@pytest.fixture(scope="module")
def reward():
    return math_answer(deadline=20.0)


def rewarded(reward, *pairs, on_error="error"):
    texts, answers = zip(*pairs, strict=True)
    return score([reward], list(texts), list(texts), {"answer": list(answers)}, on_error=on_error).total


def test_equal_expressions_are_right_however_they_are_written(reward):
    right = [
        ("so it is \\boxed{0.5}", "1/2"),
        ("The answer is $\\frac{2}{4}$.", "\\frac{1}{2}"),
        ("\\boxed{1+x^2}", "x^2+1"),
        ("$\\{2,1\\}$", "{1,2}"),
        ("\\boxed{3}", ["5", "3"]),
        ("12", 12),
    ]
    assert rewarded(reward, *right) == [1.0] * len(right)


def test_what_was_thought_is_no_answer(reward):
    thought = [("<think>\\boxed{2}</think> The answer is 3", "2"), ("<think>\\boxed{2}?</think> $3$", "3")]
    assert rewarded(reward, *thought) == [0.0, 1.0]


def test_others_are_wrong_and_null_is_not_applicable(reward):
    wrong = [("\\boxed{0.51}", "1/2"), ("no idea", "3"), ("", "3"), ("\\boxed{x^2}", "x^3")]
    assert rewarded(reward, *wrong) == [0.0] * len(wrong)
    assert math.isnan(rewarded(reward, ("3", "3"), ("3", None))[1])


def test_an_answer_without_mathematics_is_a_fault_of_the_data(reward):
    with pytest.raises(RewardError, match="holds no mathematics"):
        rewarded(reward, ("3", " "))


def test_what_computes_for_ever_is_wrong_and_stops_nothing():
    """A policy that writes this must not stop its own training."""
    quick = math_answer(deadline=3.0)
    assert rewarded(quick, ("\\boxed{3}", "3"), ("\\boxed{9^{9^{9^{9}}} + 1}", "3"), ("\\boxed{3}", "3")) == [1, 0, 1]


def test_it_is_found_by_its_name_and_says_what_to_install(monkeypatch):
    assert resolve("math_answer").name == "math_answer"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RewardError, match=r"pip install 'align-rl\[math\]'"):
        math_answer()


def test_a_function_of_ones_own_is_isolated_by_its_name(tmp_path):
    file = tmp_path / "rules.py"
    file.write_text("import os\ndef process(completions):\n    return [os.getpid() for _ in completions]\n")
    alone, here = resolve(f"isolated:{file}:process"), resolve(f"{file}:process")
    assert isinstance(alone, Reward) and alone.name == here.name == "process"
    mine, theirs = ([reward.function(prompts=["p"], completions=["c"])] for reward in (alone, alone))
    assert mine == theirs and mine != [here.function(completions=["c"])]
    with pytest.raises(RewardError, match="no such file"):
        resolve("isolated:nowhere.py:process")
    with pytest.raises(RewardError, match="expected module:function"):
        resolve("isolated:exact_answer")

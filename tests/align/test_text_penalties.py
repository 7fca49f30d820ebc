"""What repeats itself, and what is written in a script that nobody asked for."""

from __future__ import annotations

import time

import pytest

from align.reward_names import resolve
from align.rewards import RewardError, score
from align.text_penalties import repetition_penalty, script_penalty


@pytest.mark.parametrize(
    ("ids", "ngram", "expected"),
    [
        ([1, 2, 3, 4, 5], 2, 0.0),
        ([5, 5, 5, 5, 5], 2, -3 / 4),  # four 2-grams, one of them distinct
        ([1, 2, 1, 2, 1, 2], 3, -2 / 4),  # 121, 212, 121, 212
        ([1, 1, 2], 1, -1 / 3),
        ([1, 1], 3, 0.0),
        ([1, 1, 1], 3, 0.0),  # one n-gram comes but once
        ([], 3, 0.0),
    ],
)
def test_the_penalty_is_the_share_of_ngrams_that_came_before(ids: list[int], ngram: int, expected: float):
    (value,) = repetition_penalty(ngram=ngram)(completions=[""], completion_ids=[ids])
    assert value == pytest.approx(expected)


def test_repetition_nears_minus_one_and_is_blind_to_what_repeats():
    reward = repetition_penalty()
    long, other = reward(completions=["", ""], completion_ids=[[7] * 1000, [1, 2, 3] * 400])
    assert long is not None and -1 < long < -0.99
    assert other == pytest.approx(-(1 - 3 / 1198))


def test_repetition_is_never_counted_in_characters_instead():
    with pytest.raises(RewardError, match="repetition_penalty needs the argument completion_ids"):
        score([repetition_penalty()], ["p"], ["text"], {})
    with pytest.raises(ValueError, match="ngram must be at least 1 token, got 0"):
        repetition_penalty(ngram=0)


@pytest.mark.parametrize(
    ("text", "scripts", "expected"),
    [
        ("The area is \u03c0 r\u00b2.", ("Latin", "Greek"), 0.0),
        ("The area is \u03c0.", ("Latin",), -1 / 10),
        ("ab\u4f60\u597d", ("Latin",), -1 / 2),
        ("ab\u4f60\u597d", ("Latin", "Han"), 0.0),
        ("\u3053\u3093\u306b\u3061\u306f\u30fc\u65e5", ("CJK", "hiragana", "katakana"), 0.0),
        ("\u0434\u0430", ("latin",), -1.0),
        ("\u00e9\u00df\u00f8 e\u0301", ("Latin",), 0.0),
        ("\uff21\uff22 \U0001d400 \u212a \u00b5", ("Latin",), -1 / 5),  # wide, bold and Kelvin are Latin; mu is Greek
        ("42 + 3.5 = \U0001f642", ("Cyrillic",), 0.0),
        ("", ("Latin",), 0.0),
    ],
)
def test_the_penalty_is_the_share_of_letters_outside_the_scripts(text: str, scripts: tuple[str, ...], expected: float):
    assert script_penalty(scripts=scripts)(completions=[text]) == [pytest.approx(expected)]


def test_messages_are_read_as_their_text_is():
    messages = [[{"role": "assistant", "content": "\u0434a"}]]
    assert script_penalty()(completions=messages) == [-0.5]


def test_scripts_that_are_none_are_refused():
    with pytest.raises(ValueError, match="of the script 'Latn'; did you mean 'Latin'"):
        script_penalty(scripts=["Latn"])
    for wrong in ("Latin", []):
        with pytest.raises(ValueError, match="scripts must be a list of names"):
            script_penalty(scripts=wrong)


def test_both_are_found_by_name_and_a_long_text_costs_no_time():
    rewards = [resolve("repetition_penalty"), resolve("script_penalty")]
    start = time.perf_counter()
    scores = score(rewards, ["p"], ["\u0434" * 100_000], {"completion_ids": [list(range(50_000))]})
    assert time.perf_counter() - start < 1.5
    assert scores.parts == {"repetition_penalty": [0.0], "script_penalty": [-1.0]}

"""What counts as a right answer, a right number, the right format and the right length."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from align.rewards import RewardError, score
from align.verifiable import exact_answer, numeric_answer, regex_format, soft_overlong

EXACT: list[tuple[str, Any, bool]] = [
    # without a marker the whole text is the answer
    ("Paris", "Paris", True),
    ("paris", "Paris", False),
    ("  Paris\n", "Paris", True),
    ("Paris.", "Paris", True),
    ('"Paris"', "Paris", True),
    ("**Paris**", "Paris", True),
    ("$x^2$", "x^2", True),
    ("x²", "x2", False),
    ("New   York\nCity", "New York City", True),
    ("caf\u00e9", "cafe\u0301", True),
    ("(1, 2)", "(1, 2)", True),
    ("-5", "5", False),
    ("4", 4, True),
    ("4.0", 4, False),
    ("It is Paris", "Paris", False),
    ("", "Paris", False),
    # each marker, the last one of its kind
    ("I think <answer>Paris</answer>", "Paris", True),
    ("<answer>Rome</answer> no, <answer> Paris </answer> yes", "Paris", True),
    ("<answer>Paris", "Paris", True),
    ("2 + 2 makes #### 4", "4", True),
    ("#### 3\n#### 4\nDone.", "4", True),
    ("So.\nAnswer: Paris", "Paris", True),
    ("**Answer:** Paris", "Paris", True),
    ("**Answer**: Paris", "Paris", True),
    ("Final answer: Paris\nI am sure.", "Paris", True),
    ("The answer is Paris.", "Paris", True),
    ("The answer is: Paris", "Paris", True),
    ("Answer:\nParis", "Paris", True),
    ("Answer: Rome. Wait. Answer: Paris", "Paris", True),
    (r"so \boxed{4}", "4", True),
    (r"\boxed{3} and then \boxed{\frac{1}{2}}", r"\frac{1}{2}", True),
    (r"\boxed{4", "4", False),
    # markers within markers narrow the text
    (r"<answer>\boxed{4}</answer>", "4", True),
    (r"<think>\boxed{3}?</think><answer>4</answer>", "4", True),
    (r"Answer: it must be \boxed{4}.", "4", True),
    ("<answer>\n#### 4\n</answer>", "4", True),
    # the column may hold a solution, or several answers
    ("#### 72", "48/2 = 24\n48 + 24 = 72\n#### 72", True),
    ("UK", ["United Kingdom", "UK"], True),
    ("UK", ["US"], False),
]


@pytest.mark.parametrize(("completion", "answer", "right"), EXACT)
def test_an_answer_is_right_up_to_what_surrounds_it(completion: str, answer: Any, right: bool):
    assert exact_answer()(completions=[completion], answer=[answer]) == [float(right)]


NUMBERS: list[tuple[str, Any, bool]] = [
    ("42", 42, True),
    ("42.0", "42", True),
    ("042", 42, True),
    ("It costs $1,234.50.", 1234.5, True),
    ("1,234,567", 1234567, True),
    ("1, 2, 3", 3, True),
    ("The roots are 2,3", 3, True),
    ("The roots are 2,3", 2, False),
    ("1,2,3", 3, True),
    ("(2,3)", 3, True),
    ("1,2,345", 345, True),
    ("12,3456", 3456, True),
    ("1.2.3", 1.2, True),
    ("12 apples and 30 pears make 42 pieces.", 42, True),
    ("10 - 3 = 7", 7, True),
    ("x=-3", -3, True),
    ("\u22123", -3, True),
    ("5-3", 3, True),
    ("-$3", -3, True),
    ("(2)-3", 3, True),
    ("-3", 3, False),
    (".5", 0.5, True),
    ("it is ...42", 42, True),
    ("3/4", 0.75, True),
    ("3 / 4", "0.75", True),
    (r"\frac{3}{4}", 0.75, True),
    (r"-\dfrac{3}{4}", "-3/4", True),
    ("1 1/2", 1.5, True),
    ("-2 3/4 cups", -2.75, True),
    ("1,000 1/2", "1000.5", True),
    ("1/2 1/3", "1/3", True),
    ("2, 1/3", "1/3", True),
    (r"1\frac{1}{2}", 1.5, True),
    (r"x = 2 \frac{1}{4}", "9/4", True),
    (r"4\times\frac{1}{4}", 0.25, True),
    ("3/0", 3, False),
    ("1e-3", 0.001, True),
    ("2.5E6", 2500000, True),
    (r"3 \times 10^{8}", 3e8, True),
    ("3 \u00d7 10^8", 3e8, True),
    ("50%", 0.5, True),
    ("50 %", 50, True),
    ("0.5", "50%", True),
    ("50", "50%", True),
    (r"50\%", "50%", True),
    ("50%", "0.5%", False),
    ("50", 0.5, False),
    (r"1{,}000", 1000, True),
    ("0.3333333", "1/3", True),
    ("0.33", "1/3", False),
    ("0", 0, True),
    ("1e-9", 0, False),
    ("9.1e-31", "1.6e-19", False),
    ("0", "6.6e-34", False),
    ("-1e-13", "1e-14", False),
    ("6.626e-34", "6.626 \\times 10^{-34}", True),
    ("-0.0", 0, True),
    ("H2O", 2, False),
    ("none", 2, False),
    ("", 2, False),
    ("9" * 400, 2, False),
    (r"first 7, so \boxed{42} in 3 steps", 42, True),
    ("Answer: 42 km\nChecked in 3 ways.", 42, True),
    ("#### 72", "48 + 24\n#### 72", True),
    ("7", [6, 7], True),
]


@pytest.mark.parametrize(("completion", "answer", "right"), NUMBERS)
def test_a_number_is_right_however_it_is_written(completion: str, answer: Any, right: bool):
    assert numeric_answer()(completions=[completion], answer=[answer]) == [float(right)]


def test_messages_are_read_as_their_text_is():
    completions = [[{"role": "assistant", "content": "#### 4"}]]
    assert exact_answer()(completions=completions, answer=["4"]) == [1.0]
    assert numeric_answer()(completions=completions, answer=["4"]) == [1.0]


def test_an_answer_that_is_null_is_not_applicable():
    assert exact_answer()(completions=["4", "5"], answer=[None, "5"]) == [None, 1.0]
    assert numeric_answer()(completions=["4", "5"], answer=[None, "5"]) == [None, 1.0]


def test_one_marker_can_be_insisted_on():
    completions = ["4", "<answer>4</answer>", r"\boxed{4}", "#### 4", "Answer: 4"]
    for extract, expected in {
        "whole": [1, 0, 0, 0, 0],
        "tags": [0, 1, 0, 0, 0],
        "boxed": [0, 0, 1, 0, 0],
        "hashes": [0, 0, 0, 1, 0],
        "label": [0, 0, 0, 0, 1],
        re.compile(r"(\d)</"): [0, 1, 0, 0, 0],
        re.compile(r"\d"): [1, 1, 1, 1, 1],
    }.items():
        assert exact_answer(extract=extract)(completions=completions, answer=["4"] * 5) == expected


def test_case_and_tolerance_are_options():
    assert exact_answer(ignore_case=True)(completions=["STRASSE"], answer=["Stra\u00dfe"]) == [1.0]
    assert numeric_answer(tolerance=0.02)(completions=["3.14"], answer=[3.1415926]) == [1.0]
    assert numeric_answer(tolerance=0)(completions=["0.1"], answer=["1/10"]) == [1.0]


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"extract must be one of tags, .*got 'boxd'; did you mean 'boxed'"):
        exact_answer(extract="boxd")
    with pytest.raises(ValueError, match=r"got '\(\\\\d\)', or a pattern made by re\.compile"):
        numeric_answer(extract=r"(\d)")
    with pytest.raises(ValueError, match="tolerance must not be negative"):
        numeric_answer(tolerance=-1)


def test_a_column_without_a_number_is_a_fault_and_not_a_wrong_answer():
    with pytest.raises(RewardError, match="answer 'Paris' holds no number: use exact_answer"):
        score([numeric_answer()], ["p"], ["4"], {"answer": ["Paris"]})


def test_an_option_is_never_taken_from_a_column_of_its_name():
    columns = {"answer": ["a"], "extract": ["boxed"], "ignore_case": [True]}
    assert score([exact_answer()], ["p"], ["A"], columns).total == [0.0]


@pytest.mark.parametrize(
    "text",
    [
        " " * 200_000,
        "9" * 200_000,
        "1," * 100_000,
        "111," * 50_000 + "1",
        "1 / " * 50_000,
        "1 " * 100_000,
        r"\frac{" * 40_000,
        r"\boxed{" * 30_000,
    ],
    ids=["spaces", "digits", "commas", "groups", "slashes", "wholes", "fractions", "boxes"],
)
def test_a_long_hostile_completion_costs_no_time(text: str):
    start = time.perf_counter()
    numeric_answer()(completions=[text], answer=[2])
    exact_answer()(completions=[text], answer=["2"])
    assert time.perf_counter() - start < 1.5


def test_a_format_is_that_of_the_whole_completion():
    reward = regex_format("<think>.*</think><answer>.*</answer>")
    completions = ["<think>a\nb</think><answer>c</answer>\n", "so <think></think><answer></answer>", "<think>"]
    assert reward(completions=completions) == [1.0, 0.0, 0.0]
    assert regex_format(re.compile("A", re.IGNORECASE))(completions=["a"]) == [1.0]


def test_the_penalty_of_length_falls_linearly_within_the_buffer():
    ids = [[0] * length for length in (0, 60, 70, 90, 100, 101, 500)]
    reward = soft_overlong(max_tokens=100, buffer=40)
    expected = [0.0, 0.0, -0.25, -0.75, -1.0, -1.0, -1.0]
    assert reward(completions=[""] * 7, completion_ids=ids) == expected
    texts = ["x" * len(row) for row in ids]
    assert soft_overlong(max_chars=100, buffer=40)(completions=texts, completion_ids=[[0]] * 7) == expected


def test_tokens_are_never_replaced_by_characters():
    with pytest.raises(RewardError, match=r"needs the argument completion_ids.*use max_chars"):
        score([soft_overlong(max_tokens=8, buffer=2)], ["p"], ["text"], {})
    with pytest.raises(ValueError, match="give one of max_tokens and max_chars, got 8 and 8"):
        soft_overlong(max_tokens=8, max_chars=8, buffer=2)
    with pytest.raises(ValueError, match="buffer must lie between 1 and the maximum of 8, got 9"):
        soft_overlong(max_tokens=8, buffer=9)


@pytest.mark.parametrize("text", ["<think>4+3</think>7", "<think>the answer is 5, no</think>\n\n7"])
def test_thoughts_are_not_answers(text):
    assert exact_answer()([text], answer=["7"]) == numeric_answer()([text], answer=["7"]) == [1.0]


def test_an_answer_of_punctuation_alone_is_not_an_empty_completion():
    assert exact_answer()(["", "$"], answer=["$", "$"]) == [0.0, 1.0]

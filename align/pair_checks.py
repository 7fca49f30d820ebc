"""Check one row of preferences: that its answers are answers, to one prompt, and that something tells them apart.

What is wrong is raised as a `Fault`, as in `align.checks`.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

from align.batch import Message
from align.checks import Text, answer_of, check_one_form, prompt_of
from align.rows import Fault, kind

ANSWERS = ("chosen", "rejected")
"""Columns of the answers of a pair."""
LEAVE_OUT = 'write another answer, leave the row out, or pass degenerate="drop"'
"""The way out of a pair without a preference."""

Alike = TypeVar("Alike", str, list[Message])


class Degenerate(Fault):
    """A pair without a preference: trained, it would sit at a loss of log 2 and teach nothing."""


def pair_of(values: dict[str, Any], form: tuple[str, ...]) -> tuple[Text, Text, Text]:
    """Return prompt, chosen and rejected of one row."""
    for column in ANSWERS:
        if _is_empty(values[column]):
            raise Degenerate(f"{column}: is empty: {LEAVE_OUT}")
    chosen, rejected = (answer_of(values[column], column) for column in ANSWERS)
    check_one_form(chosen, rejected, "rejected", other="chosen")
    if chosen == rejected:
        raise Degenerate(f"rejected: the same as chosen: {LEAVE_OUT}")
    if "prompt" not in form:
        return _parted(chosen, rejected)
    prompt = prompt_of(values["prompt"], "prompt")
    if isinstance(chosen, list) and isinstance(rejected, list):
        shared = _shared(chosen, rejected)
        # Data of this form repeat the prompt at the head of both conversations.
        if shared and (prompt == shared[: len(prompt)] or prompt in [turn["content"] for turn in shared]):
            return _parted(chosen, rejected)
    for column, answer in zip(ANSWERS, (chosen, rejected), strict=True):
        check_one_form(prompt, answer, column)
        if isinstance(answer, list):
            check_first_turn(answer, column)
    return prompt, chosen, rejected


def _parted(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """Take what both answers begin with as their prompt."""
    if isinstance(chosen, list) and isinstance(rejected, list):
        shared = _shared(chosen, rejected)
        if not shared:
            raise Fault("chosen: its first turn is not that of rejected: begin both alike, or write a column prompt")
        for column, answer in zip(ANSWERS, (chosen, rejected), strict=True):
            check_first_turn(answer[len(shared) :], column, after=len(shared))
        return prompt_of(shared, "chosen"), chosen[len(shared) :], rejected[len(shared) :]
    assert isinstance(chosen, str) and isinstance(rejected, str), "the checks let no mixture through"
    shared = _shared(chosen, rejected)
    end = next((place for place in reversed(range(len(shared))) if shared[place].isspace()), 0)
    prompt = shared[:end].rstrip()  # whole words
    if not prompt:
        raise Fault("chosen: no word at its beginning is that of rejected: write a column prompt")
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]


def _shared(chosen: Alike, rejected: Alike) -> Alike:
    """Return the turns that two conversations begin with alike, or the characters of two strings."""
    same = [one == other for one, other in zip(chosen, rejected, strict=False)]
    return chosen[: [*same, False].index(False)]


def check_first_turn(answer: Text, column: str, after: int = 0) -> None:
    """Refuse an answer that is no answer: a conversation that does not begin with the assistant's turn."""
    assert isinstance(answer, list)
    if not answer:
        raise Fault(f"{column}: ends where the other goes on: end both with an answer to the same turn")
    role = answer[0]["role"]
    if role != "assistant":
        what = f"turn {after + 1}: is of {role!r}, where an answer of the assistant was expected"
        raise Fault(f"{column}: {what}: what comes before the answers must be the same, or be in the prompt")


def _is_empty(value: Any) -> bool:
    """Tell whether an answer is an empty string, no message, or a last message without words."""
    if isinstance(value, list) and value and isinstance(value[-1], dict) and not value[-1].get("tool_calls"):
        value = value[-1].get("content", value[-1].get("value"))
    return value == [] or (isinstance(value, str) and not value.strip())


def margin_of(value: Any, column: str) -> float:
    """Return a margin; a .csv file can but write its digits."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise Fault(
            f"{column}: expected a finite number, got {kind(value)} ({value!r}): write 0 where nothing is known"
        )
    return number


def label_of(value: Any) -> bool:
    """Return a label; a .csv file can but write its words, and many write 0 and 1."""
    words = {"true": True, "false": False, "1": True, "0": False}
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    raise Fault(
        f"label: expected true or false, or 1 or 0, got {kind(value)} ({value!r}): true where the answer was liked"
    )

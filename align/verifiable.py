"""Rewards that can be checked: answers, numbers, formats, lengths.

Each function here makes a reward, as in `exact_answer(ignore_case=True)`, so that no column of the data can be taken
for an option.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from align.batch import Completion, text_of
from align.rewards import RewardFunction


def exact_answer(*, extract: str | re.Pattern[str] | None = None, ignore_case: bool = False) -> RewardFunction:
    """Make a reward of 1 where the answer equals the column `answer`, else 0.

    Both are extracted in the same way, then compared without the white space, quotes, Markdown and closing
    punctuation around them. A list in the column holds answers of which any is right; null is not applicable.

    Args:
        extract: how to find the answer in a completion. None takes what follows the thoughts, if `</think>` ends
            any, and narrows it by every marker that is there, in this order: the last `<answer>` tag, the line after
            the last `####`, the line after the last `Answer:` or `answer is`, the last `\\boxed{}`; without any
            marker it is the whole text. "tags", "hashes",
            "label" or "boxed" insist on that one, "whole" takes the text as it is; a compiled pattern takes its
            last match (its first group, if it has one). Nothing found is reward 0.
        ignore_case: compare without regard to case.
    """
    find = _extractor(extract)

    def normalised(text: str) -> str:
        # NFC and not NFKC, which would make x² and x2 the same answer.
        text = " ".join(unicodedata.normalize("NFC", text).split())
        text = text.lstrip(_OPENING).rstrip(_OPENING + ".,;:!?")
        return text.casefold() if ignore_case else text

    def right(completion: str, answer: Any) -> bool:
        found, expected = find(completion), find(str(answer))
        expected = str(answer) if expected is None else expected
        if not normalised(expected):  # an answer of punctuation alone
            return found is not None and found.strip() == expected.strip()
        return found is not None and normalised(found) == normalised(expected)

    return _compared("exact_answer", right)


def numeric_answer(*, extract: str | re.Pattern[str] | None = None, tolerance: float = 1e-6) -> RewardFunction:
    """Make a reward of 1 where the last number of the answer equals that of the column `answer`, else 0.

    Reads 1,234.5 and 1e-3, 3/4 and \\frac{3}{4}, 1 1/2, 2 \\times 10^3, and 50 %, which equals 0.5, and also 50 where
    only one of the two has the sign. A comma groups thousands or parts two numbers: the last of 2,3 is 3. A list in the
    column holds answers of which any is right; null is not applicable.

    Args:
        extract: as in `exact_answer`; the number is the last one of what is found.
        tolerance: largest difference, relative to the larger number.
    """
    if tolerance < 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}: use 0 for equal numbers")
    find = _extractor(extract)

    def right(completion: str, answer: Any) -> bool:
        expected = _last_number(find(str(answer)) or str(answer))
        if expected is None:
            raise ValueError(f"answer {answer!r} holds no number: use exact_answer, or null where there is none")
        number = _last_number(find(completion) or "")
        return number is not None and _equal(number, expected, tolerance)

    return _compared("numeric_answer", right)


def regex_format(pattern: str | re.Pattern[str]) -> RewardFunction:
    """Make a reward of 1 where the whole completion matches a pattern, else 0.

    A string is compiled so that `.` matches newlines too; white space around the completion is left aside.
    """
    compiled = re.compile(pattern, re.DOTALL) if isinstance(pattern, str) else pattern

    def regex_format(completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        return [float(bool(compiled.fullmatch(text_of(completion).strip()))) for completion in completions]

    return regex_format


def soft_overlong(*, max_tokens: int | None = None, max_chars: int | None = None, buffer: int) -> RewardFunction:
    """Make a penalty that grows from 0 to -1 over the last `buffer` tokens below the maximum.

        0 up to max - buffer;   ((max - buffer) - length) / buffer up to max;   -1 beyond

    With `max_tokens` the length is that of the argument `completion_ids`, which the trainer passes; with `max_chars`
    it is that of the text. Never one in place of the other, since they differ by a factor of three or four.

    Source: Yu et al. 2025, DAPO (arXiv:2503.14476), Soft Overlong Punishment.
    """
    limit = max_tokens if max_chars is None else max_chars
    if limit is None or (max_tokens is not None and max_chars is not None):
        raise ValueError(f"give one of max_tokens and max_chars, got {max_tokens} and {max_chars}")
    if not 0 < buffer <= limit:
        raise ValueError(f"buffer must lie between 1 and the maximum of {limit}, got {buffer}")

    def soft_overlong(
        completions: Sequence[Completion], completion_ids: Sequence[Sequence[int]] | None = None, **columns: Any
    ) -> list[float | None]:
        if max_chars is not None:
            lengths = [len(text_of(completion)) for completion in completions]
        elif completion_ids is not None:
            lengths = [len(ids) for ids in completion_ids]
        else:
            raise ValueError("max_tokens needs the argument completion_ids, which was not passed: use max_chars")
        return [max(-1.0, min(0.0, (limit - buffer - length) / buffer)) for length in lengths]

    return soft_overlong


def _compared(name: str, right: Callable[[str, Any], bool]) -> RewardFunction:
    """Make a reward of the column `answer` from a test of one completion against one answer."""

    def one(completion: str, answer: Any) -> float | None:
        if answer is None:
            return None
        return float(any(right(completion, each) for each in (answer if isinstance(answer, list) else [answer])))

    def reward(completions: Sequence[Completion], answer: Sequence[Any], **columns: Any) -> list[float | None]:
        return [one(text_of(completion), each) for completion, each in zip(completions, answer, strict=True)]

    reward.__name__ = name
    return reward


# ---- extraction

_OPENING = " \t\"'“”\u2018\u2019*_`$"


def _extractor(extract: str | re.Pattern[str] | None) -> Callable[[str], str | None]:
    if extract is None:
        return _narrowed
    if isinstance(extract, re.Pattern):
        return lambda text: _last_match(extract, text)
    if extract not in _MARKERS and extract != "whole":
        names = [*_MARKERS, "whole"]
        close = difflib.get_close_matches(extract, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ", or a pattern made by re.compile"
        raise ValueError(f"extract must be one of {', '.join(names)}, got {extract!r}{hint}")
    return _MARKERS.get(extract, str)


def _narrowed(text: str) -> str:
    text = text.rpartition("</think>")[2]  # thoughts may name answers that were given up
    for marker in _MARKERS.values():
        found = marker(text)
        text = text if found is None else found
    return text


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    matches = deque(pattern.finditer(text), maxlen=1)
    return matches[0] if matches else None


def _last_match(pattern: re.Pattern[str], text: str) -> str | None:
    match = _last(pattern, text)
    return match and (match[1] or "" if pattern.groups else match[0])


def _tags(text: str) -> str | None:
    _, opening, rest = text.rpartition("<answer>")
    return rest.partition("</answer>")[0] if opening else None


def _hashes(text: str) -> str | None:
    _, marker, rest = text.rpartition("####")
    return rest.strip().partition("\n")[0] if marker else None


def _label(text: str) -> str | None:
    parts = re.split(r"\banswer(?: is)?[*_]*:|\banswer is\b", text, flags=re.IGNORECASE)
    return parts[-1].strip().partition("\n")[0] if len(parts) > 1 else None


def _boxed(text: str) -> str | None:
    r"""Return what the last \boxed{} holds, its braces balanced; one that was cut off is none."""
    start = text.rfind(r"\boxed{")
    depth = 0
    for position in range(start + len(r"\boxed"), len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start + len(r"\boxed{") : position]
    return None


_MARKERS = {"tags": _tags, "hashes": _hashes, "label": _label, "boxed": _boxed}

# ---- numbers

_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]{1,40})\}\{([^{}]{1,40})\}")
_POWER = re.compile(r" ?(?:\u00d7|\\times|\\cdot|\*) ?10(?:\^|\*\*)\{?([-+]?\d+)\}?")
_GLUED = re.compile(r"(?<=\w)(?=\\[dt]?frac\{)")  # 1\frac{1}{2} is a mixed number, and not 11/2
_WHOLE = r"(?:(?<!\d,)\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)"  # a comma parts 2,3 and 1,2,345, but groups 1,234
_DIGITS = rf"(?:{_WHOLE}(?:\.\d+)?|(?<!\.)\.\d+)(?:[eE][-+]?\d+)?"
# A sign after a letter, a digit or a bracket is a minus between two things; digits within a word are no number.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}])[-+])?\$?(?<![A-Za-z_\d])(?<!\d\.)"
    rf"(?:(?P<whole>{_WHOLE}) (?=\d+ ?/ ?\d))?(?P<top>{_DIGITS})(?: ?/ ?(?P<bottom>{_DIGITS}))?(?P<percent> ?%)?"
)


class _Number(NamedTuple):
    value: float
    percent: bool


def _last_number(text: str) -> _Number | None:
    text = text.replace("\u2212", "-").replace("\\$", "$").replace("\\%", "%").replace("{,}", ",")
    text = _POWER.sub(r"e\1", _FRACTION.sub(r"\1/\2", _GLUED.sub(" ", text)))
    match = _last(_NUMBER, text)
    if match is None:
        return None
    parts = zip(match.group("whole", "top", "bottom"), "001", strict=True)
    whole, top, bottom = (float((part or missing).replace(",", "")) for part, missing in parts)
    value = whole + top / bottom if bottom else math.nan
    if not math.isfinite(value):
        return None
    return _Number(-value if match["sign"] == "-" else value, match["percent"] is not None)


def _equal(one: _Number, other: _Number, tolerance: float) -> bool:
    def close(a: float, b: float) -> bool:
        return math.isclose(a, b, rel_tol=tolerance)

    if one.percent == other.percent:
        return close(one.value, other.value)
    percent, plain = (one, other) if one.percent else (other, one)
    return close(percent.value, plain.value) or close(percent.value / 100, plain.value)

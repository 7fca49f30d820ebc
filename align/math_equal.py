"""Whether two expressions are equal as mathematics, by math-verify; called in a worker by `align.math_answer`.

Nothing of `align` is imported, so that a worker starts quickly; math-verify is when this file is, since that takes
seconds which the first completion's deadline would have to pay for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from math_verify import parse, verify

NEVER = 86_400
"""Seconds; the deadline is the worker's, not math-verify's, which a computation in C ignores."""


def equal(completions: Sequence[str], answer: Sequence[Any]) -> list[float | None]:
    """Compare completions with answers, in this process and without a deadline; the main thread must call it."""
    return [_equal(completion, right) for completion, right in zip(completions, answer, strict=True)]


def _equal(completion: str, answer: Any) -> float | None:
    if answer is None:
        return None
    found = parse(completion, parsing_timeout=NEVER)
    return float(any(verify(_parsed(each), found, timeout_seconds=NEVER) for each in _listed(answer)))


def _parsed(answer: Any) -> list[Any]:
    text = str(answer)
    parsed = parse(text if "$" in text or "\\boxed" in text else f"${text}$", parsing_timeout=NEVER)
    if not parsed:
        raise ValueError(f"answer {answer!r} holds no mathematics: use exact_answer, or null where there is none")
    return parsed


def _listed(answer: Any) -> list[Any]:
    return answer if isinstance(answer, list) else [answer]

"""Say in words what a reward did wrong: what it gave or raised, where, and which completion it was looking at."""

from __future__ import annotations

import inspect
import math
import numbers
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from traceback import format_exception_only, walk_tb
from typing import Any

from torch import Tensor

from align.batch import Completion, Rollouts, text_of
from align.rows import printable

LARGEST = 3.0e38
"""Largest magnitude of a reward: what follows computes in float32."""


def faults_of(result: Any, completions: Sequence[Completion]) -> tuple[list[float], dict[int, str]]:
    """Return the values of B completions, NaN for None or a fault, and the faults by sample.

    A reward that raised, or returned no list of B values, is faulty on every sample.
    """
    count = len(completions)
    whole = fault_of_error(result, completions) if isinstance(result, BaseException) else _fault_of_list(result, count)
    if whole:
        return [math.nan] * count, dict.fromkeys(range(count), whole)
    values, faulty = [], {}
    for row, item in enumerate(_listed(result)):
        value, fault = _number(item)
        values.append(value)
        if fault:
            faulty[row] = f"sample {row}: {fault}; its completion is {shown(text_of(completions[row]))}"
    return values, faulty


def penalised(rollouts: Rollouts, penalty: Callable[[Rollouts], Tensor]) -> Rollouts:
    """Take a penalty off each completion's reward.

    Raises:
        ValueError: if it is not a finite number a completion: NaN would pass for a reward that does not apply.
    """
    taken = penalty(rollouts)
    if taken.shape != rollouts.rewards.shape or not bool(taken.isfinite().all()):
        named = penalty.func if isinstance(penalty, partial) else penalty
        raise ValueError(
            f"penalty {getattr(named, '__name__', named)!r} must give a finite number for each of {len(rollouts)} "
            f"completions, [{len(rollouts)}], got {list(taken.shape)} with {int((~taken.isfinite()).sum())} not finite"
        )
    return replace(rollouts, rewards=rollouts.rewards - taken)


def fault_of_error(error: BaseException, completions: Sequence[Completion]) -> str:
    """Say what was raised and where; the frames of a traceback still know which completion they were looking at."""
    # The first frame is the call, which knows of all completions.
    frames = list(walk_tb(error.__traceback__))[1:]
    raised = f"it raised {plain(''.join(format_exception_only(error)).strip())}"
    if frames:
        frame, line = frames[-1]
        raised += f" ({Path(frame.f_code.co_filename).name}, line {line})"
    for frame, _ in reversed(frames):
        for value in frame.f_locals.values():
            for row, completion in enumerate(completions):
                if _holds(value, completion):
                    return f"sample {row}: {raised}; its completion is {shown(text_of(completion))}"
    return f"all {len(completions)} samples: {raised}"


def _holds(value: Any, completion: Completion) -> bool:
    """Tell whether a variable of a reward, which works on copies, is a completion or its text."""
    if isinstance(value, list):  # of anything, arrays too, whose == is no truth
        return all(isinstance(turn, dict) for turn in value) and value == completion
    return isinstance(value, str) and bool(value) and value == text_of(completion)


def _fault_of_list(result: Any, count: int) -> str | None:
    values = _listed(result)
    if not isinstance(values, list | tuple):
        hint = ": call it first, as in exact_answer()" if callable(result) else ""
        return f"all {count} samples: expected a list of {count} numbers, got {shown(result)}{hint}"
    if len(values) != count:
        return f"all {count} samples: expected {count} values, one a completion, got {len(values)}"
    return None


def _listed(result: Any) -> Any:
    """Return arrays and tensors as lists, anything else as it is."""
    return result.tolist() if hasattr(result, "tolist") else result


def _number(item: Any) -> tuple[float, str | None]:
    if item is None:
        return math.nan, None
    if isinstance(item, Exception):  # a reward may say of one sample that it failed
        return math.nan, plain(str(item), 400)  # its words may be those of a worker or of a server
    if getattr(item, "ndim", None) == 0:
        item = item.item()
    if not isinstance(item, numbers.Real):
        return math.nan, f"expected a number or None, got {shown(item)}"
    try:
        value = float(item)
    except OverflowError:  # an integer of hundreds of digits
        value = math.inf
    if not abs(value) <= LARGEST:  # NaN is not within either
        return math.nan, f"expected a finite number, got {value}: return None where there is no reward"
    return value, None


def shown(value: Any, width: int = 80) -> str:
    """Show a value in a line: control characters as text, and no more than its beginning."""
    if isinstance(value, str):
        return repr(value if len(value) <= width else value[:width] + "…")
    if inspect.iscoroutine(value):
        value.close()  # or Python warns that it was never awaited, beside the message that says so
    return f"a {type(value).__name__}, {plain(reprlib.repr(value), width)}"


def plain(text: str, width: int = 200) -> str:
    """Show words in a line, such as those of an error: control characters as text, and no more than the beginning."""
    return printable(text if len(text) <= width else text[:width] + "…")

"""Say in words what a reward did wrong: what it raised, where, and which completion it was looking at."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Sequence
from pathlib import Path
from traceback import format_exception_only, walk_tb
from typing import Any

from align.batch import Completion, text_of


def fault_of_error(error: BaseException, completions: Sequence[Completion]) -> str:
    """Say what was raised and where; the frames of a traceback still know which completion they were looking at."""
    # The first frame is the call, which knows of all completions.
    frames = list(walk_tb(error.__traceback__))[1:]
    raised = f"it raised {_plain(''.join(format_exception_only(error)).strip())}"
    if frames:
        frame, line = frames[-1]
        raised += f" ({Path(frame.f_code.co_filename).name}, line {line})"
    for frame, _ in reversed(frames):
        for value in frame.f_locals.values():
            for row, completion in enumerate(completions):
                if value is completion or (isinstance(value, str) and value and value == text_of(completion)):
                    return f"sample {row}: {raised}; its completion is {shown(text_of(completion))}"
    return f"all {len(completions)} samples: {raised}"


def shown(value: Any, width: int = 80) -> str:
    """Show a value in a line: control characters as text, and no more than its beginning."""
    if isinstance(value, str):
        return repr(value if len(value) <= width else value[:width] + "…")
    if inspect.iscoroutine(value):
        value.close()  # or Python warns that it was never awaited, beside the message that says so
    return f"a {type(value).__name__}, {_plain(reprlib.repr(value), width)}"


def _plain(text: str, width: int = 200) -> str:
    text = text if len(text) <= width else text[:width] + "…"
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)

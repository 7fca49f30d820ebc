"""Word problems in the form of GSM8K: a question, and a solution whose last line is `#### 42`.

The form became a habit of many data sets; the rows are the user's own, a file, a folder or a hub id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from align.batch import Completion, text_of
from align.rows import Fault, Faults, Row, nearest, read_rows

SCHEME = "gsm8k:"
"""Before the data, where rows of `question` and `answer` are to become prompts."""
SYSTEM = "Think step by step. End with a line of four hashes and the number alone, such as: #### 42"
_LAST_LINE = re.compile(r"####\s*(?P<number>[-+]?\$?\d[\d,]*(?:\.\d+)?)\s*+%?\s*+\Z")


def rows(source: str, *, split: str) -> list[Row]:
    """Read `gsm8k:DATA` and return rows of `prompt`, the question, and `answer`, the number; other columns are kept.

    Raises:
        DataError: if a row has no question, or its answer does not end in `#### 42`.
    """
    faults, found = Faults(), []
    for row in read_rows(source.removeprefix(SCHEME), split=split):
        with faults.at(row.origin):
            found.append(Row(row.origin, _prompted(row.values)))
    faults.check()
    return found


def _prompted(values: dict[str, Any]) -> dict[str, Any]:
    for column in ("question", "answer"):
        if not isinstance(values.get(column), str):
            hint = "" if column in values else nearest(column, values)
            raise Fault(
                f"{column}: missing, or no string{hint}: expected a question and an answer that ends in #### 42"
            )
    last = _LAST_LINE.search(values["answer"])
    if last is None:
        raise Fault(f"answer: does not end in `#### 42`, but in {values['answer'][-30:]!r}: write its number so")
    others = {name: value for name, value in values.items() if name != "question"}
    return {"prompt": values["question"], **others, "answer": last["number"]}


def marked(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """Reward 1 where a completion ends in `#### ` and a number, as it was asked to, else 0."""
    return [float(_LAST_LINE.search(text_of(completion)) is not None) for completion in completions]

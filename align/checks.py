"""Check one row of data: its columns, its strings, its messages.

What is wrong is raised as a `Fault`, `column: what is wrong, what to do`; the reader knows the file and the row.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from align.batch import Message
from align.rows import DataError, Fault, Row, kind, nearest

Text = str | list[Message]
"""A prompt or a completion: a string, or a list of messages."""

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}
CONVERSATIONS = ("messages", "conversations")
"""Columns that hold messages, never a string."""
RESERVED = ("prompts", "completions", "completion_ids")
"""Names that rewards are called with, so no column of the data can have them."""
OWN_ARGUMENTS = ("conversation", "tokenize", "add_generation_prompt", "continue_final_message", "return_dict")
"""What the chat template is called with whatever the data say."""
OTHER_NAMES = {
    "prompt": ("question", "instruction", "problem", "query", "input"),
    "completion": ("response", "output", "answer", "solution", "target"),
    "messages": ("conversation", "dialog", "dialogue", "chat"),
    "chosen": ("preferred", "accepted", "better", "winner", "response_chosen"),
    "rejected": ("dispreferred", "refused", "worse", "loser", "response_rejected"),
    "label": ("liked", "desirable", "good", "thumbs_up", "feedback"),
}
"""What other data sets call our columns."""


def form_of(rows: list[Row], forms: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the first of the forms, each a tuple of columns, that most rows have, or else that any have."""
    names = dict.fromkeys(name for row in rows for name in row.values)
    for there in (usual_columns(rows), names):
        for form in forms:
            if all(name in there for name in form):
                return form
    # What is there of a form tells which one was meant.
    meant = next((form for form in forms if names.keys() & set(form)), forms[0])
    missing = next(name for name in meant if name not in names)
    other = next((name for name in OTHER_NAMES.get(missing, ()) if name in names), None)
    hint = f"; rename {other!r} to {missing!r}" if other else nearest(missing, names)
    expected = " or ".join("+".join(form) for form in forms)
    got = ", ".join(names) or "no columns at all"
    raise DataError(f"{rows[0].origin}: {missing}: no row has this column: expected {expected}, got {got}{hint}")


def usual_columns(rows: list[Row]) -> dict[str, None]:
    """Return the columns that most rows have, in their order."""
    counts = Counter(name for row in rows for name in row.values)
    return {name: None for name, count in counts.items() if 2 * count > len(rows)}


def check_columns(row: Row, expected: Sequence[str], *, complete: bool) -> None:
    """Refuse a row that lacks a column or holds NaN; `complete`: all columns go to rewards, so no others either."""
    surplus = [name for name in row.values if name not in expected]
    for name in expected:
        if name not in row.values:
            raise Fault(f"{name}: missing in this row{nearest(name, surplus)}: give every row the same columns")
        _check_finite(row.values[name], name)
    if complete:
        if surplus:
            raise Fault(f"{surplus[0]}: few rows have this column: give it to every row (null is allowed), or to none")
        taken = next((name for name in RESERVED if name in row.values), None)
        if taken:
            raise Fault(f"{taken}: rewards are called with an argument of this name: rename the column")


def _check_finite(value: Any, name: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise Fault(f"{name}: holds {value}: write null or a number, or leave the row out")
    if isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            _check_finite(item, name)


def prompt_of(value: Any, column: str) -> Text:
    """Return the prompt that a cell holds: a string of the column `prompt`, or messages that await an answer."""
    if isinstance(value, str) and column == "prompt":
        return _string(value, column)
    messages = _messages(value, column)
    if messages[-1]["role"] == "assistant":
        advice = "drop that turn, or train on it with SFT"
        raise Fault(f"{column}: the last turn is the assistant's, so there is nothing to answer: {advice}")
    return messages


def example_of(values: Mapping[str, Any], form: tuple[str, ...]) -> tuple[Text, Text]:
    """Return what comes before and what is to be imitated; the first is empty where everything is trained."""
    column = form[-1]
    if column == "text":
        return "", _string(values[column], column)
    prompt = prompt_of(values["prompt"], "prompt") if "prompt" in form else []
    completion = answer_of(values[column], column)
    check_one_form(prompt, completion, column)
    return prompt, completion


def answer_of(value: Any, column: str) -> Text:
    """Return what a cell holds to be trained: a string, or messages with a turn of the assistant."""
    if isinstance(value, str) and column not in CONVERSATIONS:
        return _string(value, column)
    messages = _messages(value, column)
    if not any(message["role"] == "assistant" for message in messages):
        raise Fault(f"{column}: no turn of the assistant, so nothing to train: add its answer")
    return messages


def check_one_form(first: Text, value: Text, column: str, other: str = "prompt") -> None:
    """Refuse a string beside messages in one row, or the other way round; nothing at all fits both."""
    if first and isinstance(first, str) != isinstance(value, str):
        raise Fault(f"{column}: {_words(value)}, but {other} is {_words(first)}: make both strings or both messages")


def template_of(values: Mapping[str, Any], row: int | None = None) -> dict[str, Any]:
    """Return what the columns `tools` and `chat_template_kwargs` give the chat template beside the messages.

    Args:
        values: columns of one row, or, with `row`, lists of them.
        row: which of the lists' values to take.
    """

    def cell(column: str, expected: type, words: str) -> Any:
        value = values.get(column)
        value = value[row] if row is not None and value is not None else value
        if isinstance(value, str):  # some data write these as JSON, for tables of one type
            try:
                value = json.loads(value)
            except ValueError:
                raise Fault(f"{column}: a string that is no JSON: write {words}") from None
        if value is not None and not isinstance(value, expected):
            raise Fault(f"{column}: expected {words}, got {kind(value)}: rename the column if it means another thing")
        return without_nulls(value)

    more = cell("chat_template_kwargs", dict, "an object of arguments of the chat template") or {}
    own = next((name for name in OWN_ARGUMENTS if name in more), None)
    if own:
        raise Fault(f"chat_template_kwargs: {own}: is not the data's to say: remove it")
    tools = cell("tools", list, "a list of descriptions of tools")
    return ({"tools": tools} if tools else {}) | more


def without_nulls(value: Any) -> Any:
    """Return a value without the keys that are null: a Parquet column gives every object the keys of all."""
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return value


def _string(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise Fault(f"{column}: expected a string, got {kind(value)}")
    if not value.strip():
        raise Fault(f"{column}: is empty: write it, or leave the row out")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        what = f"half of a surrogate pair at character {error.start + 1}"
        raise Fault(f"{column}: {what}: write the whole character") from error
    return value


def _messages(value: Any, column: str) -> list[Message]:
    if not isinstance(value, list | tuple):
        expected = "a list of messages" if column in CONVERSATIONS else "a string or a list of messages"
        hint = ": a .csv file cannot hold messages, so write .jsonl" if isinstance(value, str) else ""
        raise Fault(f"{column}: expected {expected}, got {kind(value)}{hint}")
    if not value:
        raise Fault(f"{column}: an empty list of messages: write at least one, or leave the row out")
    return [_message(turn, f"{column}: turn {number}") for number, turn in enumerate(value, start=1)]


def _message(turn: Any, where: str) -> Message:
    """Check one turn, in role/content or in ShareGPT's from/value, and return it as role/content."""
    if not isinstance(turn, Mapping):
        raise Fault(f'{where}: expected {{"role": ..., "content": ...}}, got {kind(turn)}')
    role_key, content_key = ("from", "value") if "from" in turn else ("role", "content")
    twice = next((key for key in ("role", "content") if role_key == "from" and turn.get(key) is not None), None)
    if twice:
        raise Fault(f"{where}: {twice}: beside from and value: keep those two, or role and content")
    if turn.get("tool_calls") and not turn.get(content_key):
        turn = {**turn, content_key: ""}  # a call needs no words
    for key in (role_key, content_key):
        if key not in turn:
            raise Fault(f"{where}: {key}: missing{nearest(key, turn)}: a message has {role_key} and {content_key}")
    name, content = turn[role_key], turn[content_key]
    role = SHAREGPT_ROLES.get(name, name) if isinstance(name, str) else None
    if role not in ROLES:
        raise Fault(f"{where}: {role_key}: unknown {name!r}{nearest(str(name), ROLES)}: one of {', '.join(ROLES)}")
    if content != "" or not (role == "system" or turn.get("tool_calls")):
        _string(content, f"{where}: {content_key}")
    others = without_nulls({key: item for key, item in turn.items() if key not in (role_key, content_key)})
    return {"role": role, "content": content, **others}


def check_same_kind(value: Text, column: str, earlier: Sequence[Text], origins: Sequence[str]) -> None:
    """Refuse a string among messages, or messages among strings."""
    if earlier and isinstance(value, str) != isinstance(earlier[0], str):
        raise Fault(f"{column}: {_words(value)}, but {_words(earlier[0])} in {origins[0]}: make all rows of one kind")


def _words(value: Text) -> str:
    return "a string" if isinstance(value, str) else "a list of messages"

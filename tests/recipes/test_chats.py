"""--chat and --system, for rows that are strings: a prompt is a question, what follows it the answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.data import ExampleRows
from recipes.answered import as_chats
from recipes.options import ChatOptions
from tests.recipes.conftest import Align, turn, weights_of

NOTE = "note: the rows are plain text, though the model knows chats; --chat makes each"


@pytest.mark.parametrize(("command", "data"), [("sft", "pairs"), ("dpo", "preferred"), ("kto", "liked")])
def test_strings_for_a_chat_model_are_noted_and_become_chats_if_asked(
    align: Align, tmp_path: Path, command: str, data: str
):
    words = (command, "--model", "model", "--data", f"{data}.jsonl", "--steps", 1)
    assert NOTE in align(*words, "--directory", tmp_path / "plain")
    assert NOTE not in align(*words, "--chat", "--system", "Add.", "--directory", tmp_path / "chat")


def test_strings_made_chats_are_trained_as_the_same_rows_of_messages_are(align: Align, tmp_path: Path):
    words = ("sft", "--model", "model", "--steps", 2, "--learning-rate", 1e-2)
    told = align(*words, "--data", "chats.jsonl", "--directory", tmp_path / "messages")
    align(*words, "--data", "pairs.jsonl", "--chat", "--directory", tmp_path / "strings")
    one, other = weights_of(tmp_path / "messages"), weights_of(tmp_path / "strings")
    assert NOTE not in told and all((other[name] == value).all() for name, value in one.items())


def test_a_system_message_goes_before_conversations_that_have_none_wherever_they_begin():
    question, answer, system = turn("user", "1+1="), turn("assistant", "2"), turn("system", "Add.")
    rows = ExampleRows(["1+1=", [question], []], ["2", [answer], [question, answer]], ["a:1", "a:2", "a:3"])
    chats = as_chats(rows, ChatOptions(system="Add."))
    assert chats.prompts == [[system, question], [system, question], []]
    assert chats.completions == [[answer], [answer], [system, question, answer]]
    assert as_chats(rows, ChatOptions()) is rows


def test_text_without_a_prompt_is_no_chat():
    with pytest.raises(ValueError, match="a:1: has no prompt, so it is no chat: leave out --chat"):
        as_chats(ExampleRows([""], ["some text"], ["a:1"]), ChatOptions(chat=True))

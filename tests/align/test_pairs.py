"""Preferences as data: what a pair may look like, what is wrong with one, and which of its tokens are trained."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from align.pairs import read_feedback, read_pairs, tokenize_feedback, tokenize_pairs
from align.rows import DataError
from tests.tiny import FORGETFUL, tiny_tokenizer


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


GOOD: dict[str, Any] = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}
TALK: dict[str, Any] = {"chosen": [user("hi"), answer("yes")], "rejected": [user("hi"), answer("no")]}


def trained(examples, tokenizer) -> list[str]:
    """The text of the tokens that are trained."""
    return [
        tokenizer.decode([i for i, on in zip(ids, mask, strict=True) if on])
        for ids, mask in zip(examples.ids, examples.action_masks, strict=True)
    ]


def asked(examples, tokenizer) -> list[str]:
    """The text of the tokens before the first that is trained."""
    return [
        tokenizer.decode(ids[: mask.index(True)]) for ids, mask in zip(examples.ids, examples.action_masks, strict=True)
    ]


def with_prompt(value: Any) -> dict[str, Any]:
    return {**GOOD, "prompt": value}


# what is wrong: (the second row, the rest of the message)
FAULTS: dict[str, tuple[Any, str]] = {
    "no rejected": ({"prompt": "a", "chosen": "b"}, "rejected: missing in this row"),
    "misspelt": ({"prompt": "a", "chosen": "b", "rejcted": "c"}, "rejected: missing.*did you mean 'rejcted'"),
    "null": ({**GOOD, "rejected": None}, "rejected: expected a string or a list of messages, got null"),
    "number": ({**GOOD, "chosen": 4}, "chosen: expected a string or a list of messages, got a number"),
    "nan": ({**GOOD, "chosen": float("nan")}, "chosen: (holds nan|invalid JSON)"),
    "identical": ({**GOOD, "rejected": "4"}, 'rejected: the same as chosen: .*degenerate="drop"'),
    "empty chosen": ({**GOOD, "chosen": ""}, 'chosen: is empty: .*degenerate="drop"'),
    "blank rejected": ({**GOOD, "rejected": " \n"}, "rejected: is empty"),
    "empty list": ({**GOOD, "rejected": []}, "rejected: is empty"),
    "empty last turn": ({**GOOD, "rejected": [answer("")]}, "rejected: is empty"),
    "half a surrogate": ({**GOOD, "rejected": "\ud800"}, "rejected: half of a surrogate pair"),
    "empty prompt": (with_prompt(""), "prompt: is empty"),
    "prompt that is answered": (with_prompt([user("a"), answer("b")]), "prompt: the last turn is the assistant's"),
    "prompt of another kind": (with_prompt([user("a")]), "chosen: a string, but prompt is a list of messages"),
    "answers of two kinds": ({**GOOD, "chosen": [answer("4")]}, "rejected: a string, but chosen is a list"),
    "unknown role": (
        {**GOOD, "chosen": [{"role": "asistant", "content": "4"}]},
        "chosen: turn 1: role: .*did you",
    ),
    "no content": ({**GOOD, "chosen": [{"role": "assistant"}]}, "chosen: turn 1: content: missing"),
    "no answer": ({**GOOD, "chosen": [user("4")]}, "chosen: no turn of the assistant"),
    "answers that begin with the user": (
        {"prompt": [user("a")], "chosen": [user("b"), answer("c")], "rejected": [user("d"), answer("e")]},
        "chosen: turn 1: is of 'user', where an answer",
    ),
    "other kind than the rows above": ({**TALK, "prompt": [user("hi")]}, "chosen: a list of messages, but a string in"),
}

# what is wrong with a pair without a prompt of its own: (the second row, the rest of the message)
IMPLICIT: dict[str, tuple[Any, str]] = {
    "nothing shared": ({**TALK, "rejected": [user("ho"), answer("no")]}, "chosen: its first turn is not that of"),
    "parted at the user": (
        {
            "chosen": [user("hi"), answer("yes"), user("a"), answer("b")],
            "rejected": [user("hi"), answer("yes"), user("c"), answer("d")],
        },
        "chosen: turn 3: is of 'user'",
    ),
    "one ends early": ({**TALK, "rejected": [*TALK["chosen"], user("a"), answer("b")]}, "chosen: ends where the other"),
    "identical talks": ({**TALK, "rejected": TALK["chosen"]}, "rejected: the same as chosen"),
    "strings without a common word": ({"chosen": "abc", "rejected": "abd"}, "chosen: no word at its beginning"),
}

FEEDBACK: dict[str, tuple[Any, str]] = {
    "no label": ({"prompt": "a", "completion": "b"}, "label: missing in this row"),
    "label that is a number": ({"prompt": "a", "completion": "b", "label": 2}, r"label: expected true.*a number \(2\)"),
    "label that is a word": ({"prompt": "a", "completion": "b", "label": "good"}, "label: expected true or false"),
    "empty completion": ({"prompt": "a", "completion": "", "label": True}, "completion: is empty"),
    "begins with the user": (
        {"prompt": [user("a")], "completion": [user("b"), answer("c")], "label": True},
        "completion: turn 1: is of 'user'",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_of_a_pair_is_named_by_row_and_column_with_what_to_do(case: str):
    row, message = FAULTS[case]
    with pytest.raises(DataError, match=rf"^rows:2: {message}"):
        read_pairs([GOOD, row, GOOD])


@pytest.mark.parametrize("case", IMPLICIT)
def test_a_fault_of_a_pair_without_a_prompt_is_named_too(case: str):
    row, message = IMPLICIT[case]
    with pytest.raises(DataError, match=rf"^rows:2: {message}"):
        read_pairs([TALK, row])


@pytest.mark.parametrize("case", FEEDBACK)
def test_a_fault_of_feedback_is_named_by_row_and_column_with_what_to_do(case: str):
    row, message = FEEDBACK[case]
    with pytest.raises(DataError, match=rf"^rows:2: {message}"):
        read_feedback([{"prompt": "a", "completion": "b", "label": True}, row])


def test_a_fault_in_a_file_is_named_by_its_line_and_all_are_named_at_once(tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (GOOD, {**GOOD, "chosen": ""}, GOOD, with_prompt(3))))
    with pytest.raises(DataError, match=r"pairs\.jsonl:2: chosen: is empty[^\n]*\n[^\n]*pairs\.jsonl:4: prompt: "):
        read_pairs(path)


def test_columns_of_other_names_are_recognised():
    with pytest.raises(DataError, match=r"chosen: no row has this column.*rename 'preferred' to 'chosen'"):
        read_pairs([{"prompt": "a", "preferred": "b", "rejected": "c"}])


def test_degenerate_pairs_are_left_out_by_option_and_counted():
    rows = read_pairs(
        [GOOD, {**GOOD, "rejected": "4"}, {**GOOD, "chosen": " "}, {**GOOD, "rejected": "6"}], degenerate="drop"
    )
    assert (rows.rejected, rows.origins, rows.degenerate) == (["5", "6"], ["rows:1", "rows:4"], 2)
    assert tokenize_pairs(rows, tiny_tokenizer()).degenerate == 2
    with pytest.raises(DataError, match="every pair is degenerate"):
        read_pairs([{**GOOD, "rejected": "4"}], degenerate="drop")


def test_answers_that_differ_in_text_but_not_in_tokens_are_degenerate_too():
    rows = read_pairs([GOOD, {**GOOD, "chosen": "é", "rejected": "ü"}])  # both unknown to this tokenizer
    with pytest.raises(DataError, match=r"^rows:2: rejected: the same tokens as chosen: "):
        tokenize_pairs(rows, tiny_tokenizer())
    pairs = tokenize_pairs(rows, tiny_tokenizer(), degenerate="drop")
    assert (len(pairs), pairs.degenerate) == (1, 1)


def test_of_strings_the_answer_and_its_eos_are_trained_and_the_prompt_is_not():
    tokenizer = tiny_tokenizer()
    pairs = tokenize_pairs(read_pairs([GOOD]), tokenizer)
    assert trained(pairs.chosen, tokenizer) == ["4<eos>"] and trained(pairs.rejected, tokenizer) == ["5<eos>"]
    assert asked(pairs.chosen, tokenizer) == asked(pairs.rejected, tokenizer) == ["<bos>2+2="]


@pytest.mark.parametrize(
    "row",
    [
        TALK,
        {"prompt": [user("hi")], "chosen": [answer("yes")], "rejected": [answer("no")]},
        {"prompt": [user("hi")], **TALK},
        {"prompt": "hi", **TALK},
        {name: [{"from": "human", "value": "hi"}, {"from": "gpt", "value": turns[1]["content"]}]
         for name, turns in TALK.items()},
    ],
    ids=["implicit", "explicit", "prompt repeated", "prompt repeated as a string", "ShareGPT"],
)  # fmt: skip
def test_conversations_give_the_same_tokens_however_the_prompt_is_told(row):
    tokenizer = tiny_tokenizer()
    pairs = tokenize_pairs(read_pairs([row]), tokenizer)
    assert trained(pairs.chosen, tokenizer) == ["yes<end>"] and trained(pairs.rejected, tokenizer) == ["no<end>"]
    assert asked(pairs.chosen, tokenizer) == ["<bos><start>user\nhi<end>\n<start>assistant\n"]


def test_conversations_share_as_many_turns_as_are_alike():
    talk = [user("a"), answer("b"), user("c")]
    rows = read_pairs([{"chosen": [*talk, answer("d")], "rejected": [*talk, answer("e")]}])
    assert rows.prompts == [talk] and rows.chosen == [[answer("d")]] and rows.rejected == [[answer("e")]]
    told = {"prompt": talk[:1], "chosen": [*talk, answer("d")], "rejected": [*talk, answer("e")]}
    assert read_pairs([told]).prompts == [talk]


def test_strings_part_after_the_last_word_that_they_share():
    rows = read_pairs([{"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: yet"}])
    assert (rows.prompts, rows.chosen, rows.rejected) == (["\n\nHuman: hi\n\nAssistant:"], [" yes"], [" yet"])


LONG = {**GOOD, "rejected": "1234567890"}


def test_strings_of_spaces_are_parted_in_no_time():
    start = time.perf_counter()
    (prompt,) = read_pairs([{"chosen": f"a{' ' * 100_000}b c x", "rejected": f"a{' ' * 100_000}b c y"}]).prompts
    assert prompt == f"a{' ' * 100_000}b c" and time.perf_counter() - start < 1.0


def test_a_pair_that_is_too_long_is_an_error_or_left_out_or_cut_and_counted():
    tokenizer = tiny_tokenizer()
    rows = read_pairs([GOOD, LONG])
    with pytest.raises(DataError, match=r"^rows:2: rejected: 16 tokens, more than max_tokens = 10"):
        tokenize_pairs(rows, tokenizer, max_tokens=10)
    left = tokenize_pairs(rows, tokenizer, max_tokens=10, too_long="drop")
    assert (len(left), left.dropped, left.truncated) == (1, 1, 0)
    cut = tokenize_pairs(rows, tokenizer, max_tokens=10, too_long="truncate")
    assert trained(cut.rejected, tokenizer) == ["5<eos>", "12345"]
    assert trained(cut.chosen, tokenizer) == ["4<eos>", "4<eos>"]
    assert (cut.dropped, cut.truncated) == (0, 1)


def test_a_pair_of_which_cutting_leaves_no_answer_or_no_difference_is_not_trained():
    rows = read_pairs([GOOD, {**GOOD, "chosen": "12345x", "rejected": "12345y"}, with_prompt("1+1+1+1+1=")])
    with pytest.raises(DataError, match=r"^rows:2: rejected: the same tokens as chosen once cut to max_tokens"):
        tokenize_pairs(rows, tiny_tokenizer(), max_tokens=10, too_long="truncate")
    pairs = tokenize_pairs(rows, tiny_tokenizer(), max_tokens=10, too_long="truncate", degenerate="drop")
    assert (len(pairs), pairs.dropped, pairs.degenerate) == (1, 1, 1)
    with pytest.raises(DataError, match="no pair is left: 3 too long"):
        tokenize_pairs(rows, tiny_tokenizer(), max_tokens=2, too_long="truncate")


def test_several_answers_under_a_template_that_rewrites_the_past_are_refused():
    talk = [answer("<think>a</think>b"), user("c")]
    row = {"prompt": [user("a")], "chosen": [*talk, answer("d")], "rejected": [*talk[:1], user("x"), answer("e")]}
    with pytest.raises(DataError, match="chosen: several answers, and the chat template writes earlier turns anew"):
        tokenize_pairs(read_pairs([row]), tiny_tokenizer(FORGETFUL))


def test_pairs_come_out_side_by_side():
    pairs = tokenize_pairs(read_pairs([GOOD, LONG]), tiny_tokenizer())
    sequences = pairs.select([1, 0])
    assert sequences.lengths.tolist() == [7, 16, 7, 7]
    assert [row[:n] for row, n in zip(sequences.input_ids.tolist(), sequences.lengths.tolist(), strict=True)] == [
        pairs.chosen.ids[1], pairs.rejected.ids[1], pairs.chosen.ids[0], pairs.rejected.ids[0]
    ]  # fmt: skip


def test_labels_are_true_and_false_or_1_and_0_as_numbers_and_as_words_of_a_csv_file(tmp_path: Path):
    labels = [True, False, 1, 0, 1.0, "1", "0", "True"]
    rows = read_feedback([{"prompt": "a", "completion": "b", "label": label} for label in labels])
    assert rows.labels == [True, False, True, False, True, True, False, True]
    (tmp_path / "liked.csv").write_text("prompt,completion,label\n2+2=,4,1\n2+2=,5,0\n")
    assert read_feedback(tmp_path / "liked.csv").labels == [True, False]


def test_feedback_keeps_each_answer_with_its_label(tmp_path: Path):
    tokenizer = tiny_tokenizer()
    path = tmp_path / "feedback.csv"
    path.write_text("prompt,completion,label\n2+2=,4,true\n2+2=,5,False\n2+2=,1234567890,FALSE\n")
    feedback = tokenize_feedback(read_feedback(path), tokenizer, max_tokens=10, too_long="drop")
    assert trained(feedback.examples, tokenizer) == ["4<eos>", "5<eos>"]
    assert feedback.labels == [True, False] and feedback.examples.dropped == 1
    cut = tokenize_feedback(read_feedback(path), tokenizer, max_tokens=10, too_long="truncate")
    assert (len(cut), cut.truncated, cut.labels) == (3, 1, [True, False, False])


def test_a_setting_that_is_none_of_the_choices_is_refused():
    rows = read_pairs([GOOD])
    with pytest.raises(ValueError, match='too_long must be "error" or "drop" or "truncate", got \'cut\''):
        tokenize_pairs(rows, tiny_tokenizer(), too_long="cut")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match='degenerate must be "error" or "drop"'):
        read_pairs([GOOD], degenerate="skip")  # pyright: ignore[reportArgumentType]


def test_messages_without_a_chat_template_are_refused():
    with pytest.raises(ValueError, match="rows:1: messages need a chat template"):
        tokenize_pairs(read_pairs([TALK]), tiny_tokenizer(None))

"""Mixtures: the share of each part, what is repeated and what is drawn, and what cannot stand side by side."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from align.data import PromptRows, read_examples, read_prompts, tokenize_examples
from align.mixture import mix
from align.pairs import PairRows, read_feedback, read_pairs, tokenize_feedback, tokenize_pairs
from align.rows import DataError, Row
from tests.tiny import tiny_tokenizer


def rows(name: str, *values: dict[str, Any]) -> list[Row]:
    return [Row(f"{name}.jsonl:{number}", value) for number, value in enumerate(values, start=1)]


def part(name: str, size: int) -> PromptRows:
    return read_prompts(rows(name, *({"prompt": f"{name} {number}", "level": number} for number in range(size))))


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_every_part_has_its_share_of_as_many_rows_as_there_are_together():
    mixed = mix([(part("a", 80), 1.0), (part("b", 20), 3.0)])
    assert Counter(origin[0] for origin in mixed.origins) == {"a": 25, "b": 75}
    counts = Counter(mixed.origins)
    assert all(counts[f"b.jsonl:{number + 1}"] in (3, 4) for number in range(20)), "75 of 20: three times all, 15 more"
    assert all(count == 1 for origin, count in counts.items() if origin[0] == "a")


def test_a_row_keeps_its_origin_and_its_columns():
    mixed = mix([(part("a", 8), 1.0), (part("b", 4), 2.0)])
    assert len(mixed) == len(mixed.origins) == len(mixed.columns["level"]) == 12
    for prompt, level, origin in zip(mixed.prompts, mixed.columns["level"], mixed.origins, strict=True):
        assert (prompt, origin) == (f"{origin[0]} {level}", f"{origin[0]}.jsonl:{level + 1}")


def test_shares_that_are_those_of_the_sizes_change_nothing():
    one, other = part("a", 30), part("b", 20)
    mixed = mix([(one, 0.6), (other, 0.4)])
    assert mixed.prompts == [*one.prompts, *other.prompts] and mixed.origins == [*one.origins, *other.origins]


def test_what_is_drawn_depends_on_the_seed_alone():
    parts = [(part("a", 100), 0.1), (part("b", 100), 0.9)]
    assert mix(parts) == mix(parts) != mix(parts, seed=1)


@pytest.mark.parametrize("sizes", [(5, 2), (1, 1, 2), (3, 3, 3, 2), (7, 7, 7)])
def test_rounding_adds_no_rows_and_loses_none(sizes: tuple[int, ...]):
    assert len(mix([(part(chr(97 + number), size), 1.0) for number, size in enumerate(sizes)])) == sum(sizes)


def test_a_tiny_share_is_one_row():
    assert [origin[0] for origin in mix([(part("a", 3), 1e-9), (part("b", 1), 1.0)]).origins] == ["a", *"bbbb"]


def test_what_makes_no_mixture_is_refused():
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(DataError, match="a weight in a mixture must be above 0"):
            mix([(part("a", 1), weight)])
    for parts in ([], [(PromptRows([], {}, []), 1.0)]):
        with pytest.raises(DataError, match="needs parts, and each of them rows"):
            mix(parts)


MESSAGES = [turn("user", "1+1="), turn("assistant", "2")]
SHARED = MESSAGES[:1]
FORMS = {
    "examples": (
        read_examples,
        tokenize_examples,
        (
            {"prompt": "1+1=", "completion": "2"},
            {"text": "1+1=2"},
            {"messages": MESSAGES},
            {"prompt": SHARED, "completion": MESSAGES[1:]},
            {"conversations": [{"from": "human", "value": "1+1="}, {"from": "gpt", "value": "2"}]},
        ),
    ),
    "pairs": (
        read_pairs,
        tokenize_pairs,
        (
            {"prompt": "1+1=", "chosen": "2", "rejected": "3"},
            {"chosen": "so 1+1=2", "rejected": "so 1+1=3"},
            {"chosen": MESSAGES, "rejected": [*SHARED, turn("assistant", "3")]},
            {"prompt": SHARED, "chosen": MESSAGES[1:], "rejected": [turn("assistant", "3")]},
        ),
    ),
    "feedback": (
        read_feedback,
        tokenize_feedback,
        (
            {"prompt": "1+1=", "completion": "2", "label": True},
            {"prompt": SHARED, "completion": MESSAGES[1:], "label": "false"},
        ),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_parts_of_all_forms_are_mixed_and_become_the_tokens_that_they_are_alone(name: str):
    read, tokenize, forms = FORMS[name]
    parts = [read(rows(f"part{number}", form)) for number, form in enumerate(forms)]
    alone = [tokenize(rows, tiny_tokenizer()) for rows in parts]
    mixed = tokenize(mix([(rows, 1.0) for rows in parts]), tiny_tokenizer())
    assert len(mixed) == len(forms)
    for row, single in enumerate(alone):
        one, same = (getattr(data, "examples", data).select([at]) for data, at in ((mixed, row), (single, 0)))
        assert one.input_ids.tolist() == same.input_ids.tolist()
        assert one.action_mask.tolist() == same.action_mask.tolist()


def test_messages_in_a_later_part_ask_for_a_chat_template_by_their_place():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    plain, chat = (read_examples(rows(name, form)) for name, form in zip("ab", FORMS["examples"][2][1:3], strict=True))
    with pytest.raises(ValueError, match=r"^b\.jsonl:1: messages need a chat template"):
        tokenize_examples(mix([(plain, 1.0), (chat, 1.0)]), tokenizer)


def test_arguments_of_the_template_labels_and_margins_stay_with_their_rows():
    tools = [{"type": "function", "function": {"name": "look"}}]
    chats = read_examples(rows("a", {"messages": MESSAGES, "tools": tools}))
    assert mix([(chats, 1.0), (read_examples(rows("b", {"text": "2"})), 1.0)]).templates == [{"tools": tools}, {}]
    feedback = [read_feedback(rows(*each)) for each in zip("ab", FORMS["feedback"][2], strict=True)]
    assert mix([(each, 1.0) for each in feedback]).labels == [True, False]
    pair = FORMS["pairs"][2][0]
    sure, unsure = (read_pairs(rows(str(size), {**pair, "by": size}), margin="by") for size in (2, 1))
    assert mix([(sure, 1.0), (unsure, 1.0)]).margins == [2.0, 1.0]
    with pytest.raises(DataError, match=r"^c\.jsonl:1: margins: not read alike here and in 2\.jsonl:1"):
        mix([(sure, 1.0), (read_pairs(rows("c", pair)), 1.0)])


def test_pairs_that_were_left_out_are_counted_together():
    pair = FORMS["pairs"][2][0]
    read = [read_pairs(rows(name, pair, {**pair, "rejected": ""}), degenerate="drop") for name in "ab"]
    assert mix([(each, 1.0) for each in read]).degenerate == 2


def test_records_made_by_hand_need_no_arguments_of_the_template():
    made = PairRows(["1+1="], ["2"], ["3"], ["here:1"])
    assert len(tokenize_pairs(mix([(made, 1.0), (made, 3.0)]), tiny_tokenizer())) == 3


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"prompt": SHARED, "answer": "2"}, "prompt: a list of messages, but a string in a.jsonl:1"),
        ({"prompt": "1+2="}, "answer: missing, but a.jsonl:1 has it: rewards get every column"),
        ({"prompt": "1+2=", "answer": "3", "level": 1}, "level: there, but a.jsonl:1 lacks it: rewards get every"),
    ],
)
def test_prompts_that_rewards_would_see_in_another_form_are_refused_by_their_part(other: dict, what: str):
    parts = [(read_prompts(rows("a", {"prompt": "1+1=", "answer": "2"})), 1.0), (read_prompts(rows("b", other)), 1.0)]
    with pytest.raises(DataError, match=rf"^b\.jsonl:1: {re.escape(what)}"):
        mix(parts)


def test_rows_of_two_readers_are_not_mixed():
    other: Any = read_examples(rows("b", {"text": "2"}))
    with pytest.raises(DataError, match=r"^b\.jsonl:1: ExampleRows, but PromptRows in a\.jsonl:1"):
        mix([(part("a", 1), 1.0), (other, 1.0)])

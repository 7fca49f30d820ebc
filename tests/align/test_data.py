"""Good data give no false alarm, and their tokens and masks are those of the text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from align.batch import epoch_order, rows_at
from align.data import DataError, eos_token_ids, read_examples, read_prompts, tokenize_examples, tokenize_prompts
from tests.models import tiny_model
from tests.tiny import CHAT, END, FORGETFUL, tiny_tokenizer

USER = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}
THOUGHT = {"role": "assistant", "content": "<think>two twos</think>4"}


def trained(tokenizer, ids: list[int], mask: list[bool]) -> str:
    """Spell the trained tokens, a dot for each that is not."""
    return "".join(tokenizer.decode([token]) if counts else "." for token, counts in zip(ids, mask, strict=True))


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


# ---- good data


GOOD = {
    "plain": ("a.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n', ["a", "b"]),
    "no newline at the end": ("a.jsonl", '{"prompt": "a"}', ["a"]),
    "blank lines at the end": ("a.jsonl", '{"prompt": "a"}\n\n  \n', ["a"]),
    "CRLF": ("a.jsonl", '{"prompt": "a"}\r\n{"prompt": "b"}\r\n', ["a", "b"]),
    "byte order mark": ("a.jsonl", '\ufeff{"prompt": "a"}\n', ["a"]),
    "unicode and emojis": ("a.jsonl", '{"prompt": "日本 é 🙂"}\n{"prompt": "\\ud83d\\ude42"}\n', ["日本 é 🙂", "🙂"]),
    "line separators in a string": ("a.jsonl", '{"prompt": "a\u2028b\u0085c"}\n', ["a\u2028b\u0085c"]),
    "a very long line": ("a.jsonl", json.dumps({"prompt": "x" * 3_000_000}), ["x" * 3_000_000]),
    "array": ("a.json", '[\n {"prompt": "a"},\n {"prompt": "b"}\n]\n', ["a", "b"]),
    "lines in .json": ("a.json", '{"prompt": "a"}\n{"prompt": "b"}\n', ["a", "b"]),
    "csv": ("a.csv", "prompt\na\nb\n", ["a", "b"]),
    "csv with CRLF and byte order mark": ("a.csv", "\ufeffprompt\r\na\r\n\r\nb\r\n", ["a", "b"]),
    "csv of quoted newlines": ("a.csv", 'prompt,answer\n"a\n\n""b"", c",1\nd,2\n', ['a\n\n"b", c', "d"]),
    "csv of a long cell": ("a.csv", "prompt\n" + "x" * 300_000 + "\n", ["x" * 300_000]),
    "upper-case suffix": ("A.JSONL", '{"prompt": "a"}\n', ["a"]),
}


@pytest.mark.parametrize("case", GOOD)
def test_good_files_give_their_prompts_and_no_alarm(case: str, tmp_path: Path):
    name, text, prompts = GOOD[case]
    assert read_prompts(write(tmp_path / name, text)).prompts == prompts


def test_other_columns_are_kept_whatever_json_they_hold():
    extra = {"a": None, "b": [1, {"c": [None, 2.5]}], "d": True, "e": "x", "f": 10**30}
    rows = read_prompts([{"prompt": "p", **extra}, {"prompt": "q", **dict.fromkeys(extra)}])
    assert rows.columns == {name: [value, None] for name, value in extra.items()}


def test_origins_count_lines_in_jsonl_and_rows_elsewhere(tmp_path: Path):
    lines = write(tmp_path / "a.jsonl", '\n{"prompt": "a"}\n\n{"prompt": "b"}\n')
    table = write(tmp_path / "a.csv", 'prompt\n"a\nb"\nc\n')
    assert read_prompts(str(lines)).origins == [f"{lines}:2", f"{lines}:4"]
    assert read_prompts(table).origins == [f"{table}:1", f"{table}:2"]


def test_messages_and_sharegpt_become_the_same_prompts():
    system = {"role": "system", "content": ""}
    plain = read_prompts([{"messages": [system, USER, ANSWER, USER], "answer": 4}])
    old = [{"from": "system", "value": ""}, {"from": "human", "value": "2+2?"}]
    old += [{"from": "gpt", "value": "4"}, {"from": "human", "value": "2+2?"}]
    assert read_prompts([{"conversations": old, "answer": 4}]) == plain
    assert read_prompts([{"prompt": [system, USER, ANSWER, USER], "answer": 4}]) == plain
    assert plain.columns == {"answer": [4]}


def test_a_message_of_sharegpt_may_have_the_other_keys_as_null():
    turns = [{"from": "human", "value": "2+2?", "role": None, "content": None}]
    assert read_prompts([{"messages": turns}]).prompts == [[USER]]


def test_keys_that_are_null_in_a_message_are_not_shown_to_the_template():
    rows = read_prompts([{"messages": [{**USER, "name": None, "mood": "good"}]}])
    assert rows.prompts == [[{**USER, "mood": "good"}]]


def test_every_kind_of_source_gives_the_same_rows(tmp_path: Path):
    import datasets

    rows = [{"prompt": [USER], "answer": "4"}, {"prompt": [USER, ANSWER, USER], "answer": "5"}]
    expected = read_prompts(rows)
    dataset = datasets.Dataset.from_list(rows)
    dataset.to_parquet(str(tmp_path / "a.parquet"))
    dataset.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": dataset.select([0]), "test": dataset}).save_to_disk(str(tmp_path / "two"))
    for source in (dataset, tmp_path / "a.parquet", tmp_path / "one"):
        read = read_prompts(source)
        assert (read.prompts, read.columns) == (expected.prompts, expected.columns)
    assert len(read_prompts(tmp_path / "two")) == 1
    assert len(read_prompts(tmp_path / "two", split="test")) == 2


def test_a_folder_is_read_in_order_of_names_and_training_never_reads_a_test_file(tmp_path: Path):
    write(tmp_path / "b.JSONL", '{"prompt": "b"}\n')
    write(tmp_path / "a.csv", "prompt\na\n")
    write(tmp_path / "test.jsonl", '{"prompt": "t"}\n')
    write(tmp_path / "notes.md", "not data")
    assert read_prompts(tmp_path).prompts == ["a", "b"]
    assert read_prompts(tmp_path, split="test").prompts == ["t"]
    write(tmp_path / "train-00001.csv", "prompt\nr\n")
    assert read_prompts(tmp_path).prompts == ["r"]


@pytest.mark.parametrize("name", ["gsm8k_{}.jsonl", "data-{}-00000-of-00001.jsonl", "{}2.jsonl", "my.{}.jsonl"])
def test_the_split_of_a_file_may_stand_anywhere_in_its_name(name: str, tmp_path: Path):
    write(tmp_path / name.format("TEST"), '{"prompt": "held out"}\n')
    write(tmp_path / "latest.jsonl", '{"prompt": "no split"}\n')
    assert read_prompts(tmp_path).prompts == ["no split"]
    write(tmp_path / name.format("train"), '{"prompt": "learned"}\n')
    assert read_prompts(tmp_path).prompts == ["learned"]
    assert read_prompts(tmp_path, split="test").prompts == ["held out"]


def test_columns_that_sft_does_not_use_are_left_alone():
    rows = [{"prompt": "a", "completion": "b", "score": float("nan")}, {"prompt": "c", "completion": "d", "more": 1}]
    assert read_examples(rows).completions == ["b", "d"]


def test_reading_and_checking_import_neither_transformers_nor_datasets(tmp_path: Path):
    write(tmp_path / "a.jsonl", '{"prompt": "a"}\n')
    script = (
        "import sys; from align.data import read_prompts; read_prompts(sys.argv[1]);"
        "assert not {'transformers', 'datasets', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.jsonl")], check=True)


# ---- tokens of prompts


def test_string_prompts_get_the_tokenizers_own_special_tokens_but_no_eos():
    tokenizer = tiny_tokenizer(add_eos=True)
    prompts = tokenize_prompts(read_prompts([{"prompt": "ab", "answer": 1}]), tokenizer)
    assert prompts.ids == [[tokenizer.bos_token_id, *tokenizer.convert_tokens_to_ids(["a", "b"])]]
    assert (prompts.texts, prompts.columns, prompts.dropped) == (["ab"], {"answer": [1]}, 0)


def test_a_conversation_is_rendered_once_with_one_bos_and_the_generation_prompt():
    tokenizer = tiny_tokenizer()
    prompts = tokenize_prompts(read_prompts([{"messages": [USER]}]), tokenizer)
    assert prompts.ids[0] == tokenizer.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(prompts.ids[0]) == "<bos><start>user\n2+2?<end>\n<start>assistant\n"
    assert prompts.ids[0].count(tokenizer.bos_token_id) == 1
    assert prompts.texts == [[USER]]


def test_chat_wraps_strings_and_rewards_still_see_them_as_they_were():
    tokenizer = tiny_tokenizer()
    rows = read_prompts([{"prompt": "2+2?"}])
    prompts = tokenize_prompts(rows, tokenizer, chat=True, system="Be brief.")
    expected = "<bos><start>system\nBe brief.<end>\n<start>user\n2+2?<end>\n<start>assistant\n"
    assert tokenizer.decode(prompts.ids[0]) == expected
    assert prompts.texts == ["2+2?"]


def test_a_system_message_of_the_data_is_kept():
    rows = read_prompts([{"messages": [{"role": "system", "content": "S"}, USER]}, {"messages": [USER]}])
    tokenizer = tiny_tokenizer()
    first, second = tokenize_prompts(rows, tokenizer, system="T").ids
    assert "system\nS<end>" in tokenizer.decode(first)
    assert "T" not in tokenizer.decode(first)
    assert "system\nT<end>" in tokenizer.decode(second)


def test_a_system_message_needs_conversations():
    with pytest.raises(ValueError, match="pass chat=True"):
        tokenize_prompts(read_prompts([{"prompt": "a"}]), tiny_tokenizer(), system="S")


def test_prompts_that_are_too_long_are_named_or_dropped_and_counted():
    rows = read_prompts([{"prompt": "abc", "n": 1}, {"prompt": "abcdef", "n": 2}, {"prompt": "ab", "n": 3}])
    with pytest.raises(DataError, match=r"^rows:2: prompt: 7 tokens, more than max_tokens = 4: raise max_tokens"):
        tokenize_prompts(rows, tiny_tokenizer(), max_tokens=4)
    kept = tokenize_prompts(rows, tiny_tokenizer(), max_tokens=4, too_long="drop")
    assert (kept.texts, kept.columns, kept.dropped) == (["abc", "ab"], {"n": [1, 3]}, 1)
    with pytest.raises(DataError, match="every prompt has more than max_tokens = 1 tokens"):
        tokenize_prompts(rows, tiny_tokenizer(), max_tokens=1, too_long="drop")


def test_settings_that_make_no_sense_are_refused():
    rows = read_prompts([{"prompt": "a"}])
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0: use None"):
        tokenize_prompts(rows, tiny_tokenizer(), max_tokens=0)
    with pytest.raises(ValueError, match='too_long must be "error" or "drop", got \'cut\''):
        tokenize_prompts(rows, tiny_tokenizer(), too_long="cut")  # pyright: ignore[reportArgumentType]


def test_messages_without_a_chat_template_are_refused_with_the_ways_out():
    with pytest.raises(ValueError, match=r"rows:1: messages need a chat template.*set tokenizer\.chat_template"):
        tokenize_prompts(read_prompts([{"messages": [USER]}]), tiny_tokenizer(None))
    with pytest.raises(ValueError, match="messages need a chat template"):
        tokenize_examples(read_examples([{"messages": [USER, ANSWER]}]), tiny_tokenizer(None))


def test_what_the_template_cannot_render_is_named_by_its_row():
    called = {**ANSWER, "content": "", "tool_calls": [{"function": {"arguments": "{}"}}]}
    each = "{% for name, value in message.tool_calls[0].function.arguments | items %}{{ name }}{% endfor %}"
    template = CHAT + f"{{% for message in messages if message.tool_calls %}}{each}{{% endfor %}}"
    rows = [{"messages": [USER]}, {"messages": [USER, called, {"role": "tool", "content": "4"}]}]
    with pytest.raises(DataError, match=r"^rows:2: messages: the chat template cannot render them \(Can only get item"):
        tokenize_prompts(read_prompts(rows), tiny_tokenizer(template))
    with pytest.raises(DataError, match=r"^rows:1: messages: the chat template cannot render them \(Tools should"):
        tokenize_prompts(read_prompts([{"messages": [USER], "tools": ["search"]}]), tiny_tokenizer())


def test_what_the_template_refuses_is_named_by_its_row():
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT
    rows = read_prompts([{"messages": [USER]}, {"messages": [{"role": "system", "content": "S"}, USER]}])
    with pytest.raises(DataError, match=r"^rows:2: messages: the chat template refuses them \(no system role\)"):
        tokenize_prompts(rows, tiny_tokenizer(template))


# ---- tokens and masks of demonstrations


def test_a_completion_is_trained_with_one_eos_and_its_prompt_is_not():
    tokenizer = tiny_tokenizer()
    rows = read_examples([{"prompt": "1+1=", "completion": "2"}, {"prompt": "1+2=", "completion": "3<eos>"}])
    examples = tokenize_examples(rows, tokenizer)
    spelt = [trained(tokenizer, *pair) for pair in zip(examples.ids, examples.action_masks, strict=True)]
    assert spelt == [".....2<eos>", ".....3<eos>"]


def test_the_ids_of_a_prompt_alone_begin_those_of_prompt_and_completion():
    tokenizer = tiny_tokenizer(merges=[("a", "b"), ("c", "ab")])
    assert len(tokenizer("xcab").input_ids) == 3, "the merged token must straddle the border"
    rows = [{"prompt": "xca", "completion": "b"}, {"prompt": "x", "completion": "cab"}]
    examples = tokenize_examples(read_examples(rows), tokenizer)
    prompts = tokenize_prompts(read_prompts([{"prompt": row["prompt"]} for row in rows]), tokenizer)
    for ids, mask, prompt in zip(examples.ids, examples.action_masks, prompts.ids, strict=True):
        assert ids[: len(prompt)] == prompt
        assert mask == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
    assert len(examples.ids[1]) == 4


def test_a_tokenizer_that_closes_every_text_adds_no_second_eos():
    tokenizer = tiny_tokenizer(add_eos=True)
    (ids,) = tokenize_examples(read_examples([{"prompt": "a", "completion": "b"}]), tokenizer).ids
    assert tokenizer.decode(ids) == "<bos>ab<eos>"


def test_all_of_a_text_is_trained_but_its_first_token_which_nothing_predicts():
    for add_bos, expected in ((True, ".abc<eos>"), (False, ".bc<eos>")):
        tokenizer = tiny_tokenizer(add_bos=add_bos)
        examples = tokenize_examples(read_examples([{"text": "abc"}]), tokenizer)
        assert trained(tokenizer, examples.ids[0], examples.action_masks[0]) == expected


def test_without_an_eos_strings_are_refused():
    with pytest.raises(ValueError, match=r"has no EOS.*set tokenizer\.eos_token"):
        tokenize_examples(read_examples([{"text": "abc"}]), tiny_tokenizer(eos=None))


def test_every_assistant_turn_is_trained_up_to_its_end_of_turn():
    tokenizer = tiny_tokenizer()
    rows = read_examples([{"messages": [USER, ANSWER, USER, {**ANSWER, "content": "four"}, USER]}])
    examples = tokenize_examples(rows, tokenizer)
    assert trained(tokenizer, examples.ids[0], examples.action_masks[0]).replace(".", "") == "4<end>four<end>"
    assert tokenizer.decode(examples.ids[0]).endswith("four<end>"), "what follows the last answer serves nothing"
    assert examples.split == 0


def test_of_a_prompt_of_messages_no_turn_is_trained():
    tokenizer = tiny_tokenizer()
    rows = read_examples([{"prompt": [USER, ANSWER, USER], "completion": [{**ANSWER, "content": "four"}]}])
    examples = tokenize_examples(rows, tokenizer)
    assert trained(tokenizer, examples.ids[0], examples.action_masks[0]).replace(".", "") == "four<end>"


def test_a_conversation_begins_with_the_ids_that_its_prompt_has_in_rl():
    tokenizer = tiny_tokenizer(merges=[("\n", "4")])
    (ids,) = tokenize_examples(read_examples([{"messages": [USER, ANSWER]}]), tokenizer).ids
    (prompt,) = tokenize_prompts(read_prompts([{"messages": [USER]}]), tokenizer).ids
    assert ids[: len(prompt)] == prompt
    assert tokenizer.decode(ids[len(prompt) :]) == "4<end>"


def test_a_template_that_rewrites_earlier_turns_gives_one_example_a_turn():
    tokenizer = tiny_tokenizer(FORGETFUL)
    conversations = [[USER, THOUGHT, USER, ANSWER], [USER, ANSWER, USER, THOUGHT]]
    examples = tokenize_examples(read_examples([{"messages": turns} for turns in conversations]), tokenizer)
    spelt = [
        trained(tokenizer, ids, mask).replace(".", "")
        for ids, mask in zip(examples.ids, examples.action_masks, strict=True)
    ]
    thought = THOUGHT["content"] + "<end>"
    assert spelt == [thought, "4<end>", "4<end>" + thought]
    assert "two twos" not in tokenizer.decode(examples.ids[1])
    assert examples.split == 1


def test_a_template_that_does_not_continue_its_generation_prompt_is_refused():
    template = CHAT.replace("<start>assistant\n{% endif %}", "<start>bot\n{% endif %}")
    with pytest.raises(DataError, match=r"^rows:1: messages: turn 2: .*its own generation prompt"):
        tokenize_examples(read_examples([{"messages": [USER, ANSWER]}]), tiny_tokenizer(template))


def test_a_template_without_an_end_of_turn_gets_an_eos_at_the_end():
    template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = tiny_tokenizer(template)
    examples = tokenize_examples(read_examples([{"messages": [USER, ANSWER]}]), tokenizer)
    assert trained(tokenizer, examples.ids[0], examples.action_masks[0]).replace(".", "") == "4\n<eos>"


def test_an_added_token_that_ends_the_answer_itself_is_no_end_of_turn():
    template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    answered = [{"messages": [USER, {**ANSWER, "content": "4</answer>"}]}]
    for chat, closed in ((template, "4</answer>\n<eos>"), (CHAT, "4</answer><end>")):
        tokenizer = tiny_tokenizer(chat)
        tokenizer.add_tokens(["</answer>"])
        examples = tokenize_examples(read_examples(answered), tokenizer)
        assert trained(tokenizer, examples.ids[0], examples.action_masks[0]).replace(".", "") == closed


def test_examples_that_are_too_long_are_named_or_dropped_and_counted():
    rows = read_examples([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "bcd"}])
    with pytest.raises(DataError, match=r"^rows:2: completion: 6 tokens, more than max_tokens = 4"):
        tokenize_examples(rows, tiny_tokenizer(), max_tokens=4)
    examples = tokenize_examples(rows, tiny_tokenizer(), max_tokens=4, too_long="drop")
    assert (len(examples), examples.dropped) == (1, 1)


def test_examples_become_padded_sequences():
    rows = read_examples([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "bcd"}])
    sequences = tokenize_examples(rows, tiny_tokenizer()).select([1, 0, 0])
    assert sequences.lengths.tolist() == [6, 4, 4]
    assert sequences.action_mask.sum(-1).tolist() == [4, 2, 2]
    assert not sequences.action_mask[1:, 4:].any()


# ---- ends, and the order of the data


def test_every_eos_id_of_model_and_tokenizer_is_found():
    tokenizer = tiny_tokenizer(chat_template=None)
    assert eos_token_ids(GenerationConfig(eos_token_id=[9, 7]), tokenizer) == sorted({7, 9, tokenizer.eos_token_id})
    model = tiny_model(eos_token_id=5)
    model.generation_config = GenerationConfig(eos_token_id=8)
    assert eos_token_ids(model, tokenizer) == sorted({5, 8, tokenizer.eos_token_id})
    with pytest.raises(ValueError, match=r"set tokenizer\.eos_token"):
        eos_token_ids(GenerationConfig(), tiny_tokenizer(chat_template=None, eos=None))


def test_the_end_of_an_assistants_turn_in_the_chat_template_ends_a_completion_too():
    tokenizer = tiny_tokenizer()
    end = tokenizer.convert_tokens_to_ids(END)
    assert eos_token_ids(GenerationConfig(), tokenizer) == sorted({end, tokenizer.eos_token_id})
    examples = tokenize_examples(read_examples([{"messages": [turn("user", "a"), turn("assistant", "b")]}]), tokenizer)
    assert examples.ids[0][-1] == end, "what is trained to end a turn is what sampling stops at"
    assert eos_token_ids(GenerationConfig(), tiny_tokenizer("{{ raise_exception('of another kind') }}")) == [
        tokenizer.eos_token_id
    ]


def turn(role, content):
    return {"role": role, "content": content}


def test_the_order_of_an_epoch_is_a_permutation_and_a_function_of_seed_and_epoch_alone():
    torch.manual_seed(1)
    first = epoch_order(100, seed=3, epoch=0).tolist()
    torch.manual_seed(2)
    assert epoch_order(100, seed=3, epoch=0).tolist() == first
    assert sorted(first) == list(range(100))
    assert len({tuple(epoch_order(100, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_a_resumed_run_needs_only_its_position():
    straight = rows_at(0, 60, size=7, seed=1)
    assert [row for start in range(0, 60, 4) for row in rows_at(start, 4, size=7, seed=1)] == straight
    assert all(sorted(straight[start : start + 7]) == list(range(7)) for start in range(0, 56, 7))
    assert rows_at(5, 0, size=7, seed=1) == []
    with pytest.raises(ValueError, match="there are no rows"):
        rows_at(0, 1, size=0, seed=1)


def test_the_order_of_an_epoch_is_made_once_for_all_its_steps(monkeypatch):
    made, default_rng = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: made.append(seed) or default_rng(seed))
    for step in range(20):
        assert all(type(row) is int for row in rows_at(step * 5, 5, size=50, seed=12_345))
    assert made == [[12_345, 0], [12_345, 1]]

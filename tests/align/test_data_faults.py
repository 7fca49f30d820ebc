"""Every fault of the data is named by file, row and column, with what to do, before a tokenizer is needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from align.data import DataError, read_examples, read_prompts

USER = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def prompt(value: object) -> str:
    return lines({"prompt": "fine"}, {"prompt": value})


def messages(*turns: object) -> str:
    return lines({"messages": [USER]}, {"messages": list(turns)})


def sft(*turns: object) -> str:
    return lines({"messages": [USER, ANSWER]}, {"messages": list(turns)})


# what is wrong: (file, content, place, the rest of the message)
FILES: dict[str, tuple[str, str | bytes, str, str]] = {
    "empty file": ("a.jsonl", "", "", "the file is empty"),
    "blank file": ("a.jsonl", "\n \n", "", "the file is empty"),
    "empty csv": ("a.csv", "", "", "the file is empty"),
    "csv of a header alone": ("a.csv", "prompt,answer\n", "", "no rows"),
    "empty array": ("a.json", "[]", "", "no rows"),
    "unknown suffix": ("a.txt", "hello", "", "unknown suffix '.txt': expected one of .jsonl"),
    "no suffix": ("prompts", "hello", "", "unknown suffix ''"),
    "not parquet": ("a.parquet", "hello, this is text", "", "not a readable Parquet file"),
    "cut parquet": ("a.parquet", b"PAR1\x15\x04\x15", "", "not a readable Parquet file"),
    "latin-1": ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n', ":2", "column 16: byte 0xe9 is not UTF-8"),
    "latin-1 csv": ("a.csv", b"prompt\na\ncaf\xe9\n", ":3", "line 3, column 4: byte 0xe9 is not UTF-8"),
    "cut character": ("a.jsonl", '{"prompt": "é'.encode()[:-1], ":1", "is not UTF-8"),
    "UTF-16": ("a.jsonl", '{"prompt": "a"}\n'.encode("utf-16"), ":1", "column 1: .*UTF-16.*save it as UTF-8"),
    "byte order mark within": ("a.jsonl", '{"prompt": "a"}\n\ufeff{"prompt": "b"}\n', ":2", "column 1: invalid JSON"),
    "header twice": ("a.csv", "prompt,prompt\na,b\n", ": header", "prompt: two columns have this name"),
    "header without a name": ("a.csv", "prompt,\na,b\n", ": header", "column 2 has the name ''"),
    "too few cells": ("a.csv", "prompt,answer\na,1\nb\n", ":2", "answer: 1 cells where the header has 2"),
    "too many cells": ("a.csv", "prompt,answer\na, b,1\n", ":1", "answer: 3 cells.*double quotes"),
    "quote left open": ("a.csv", 'prompt\na\n"b\n', ":2", "line 3: unexpected end of data: close every quote"),
    "text after a quote": ("a.csv", 'prompt\n"a"b\n', ":1", "line 2: .*close every quote"),
    "semicolons": ("a.csv", "prompt;answer\na;1\n", ":1", "prompt: no row has this column.*got prompt;answer"),
    "messages in csv": ("a.csv", 'messages\n"[{}]"\n', ":1", "messages: .*cannot hold messages, so write .jsonl"),
    "empty cell": ("a.csv", 'prompt,answer\na,1\n"",2\n', ":2", "prompt: is empty"),
    "element that is a number": ("a.json", '[{"prompt": "a"}, 3]', ":2", "column 1: expected an object.*a number"),
    "cut array": ("a.json", '[{"prompt": "a"},\n', "", "line 2, column 1: invalid JSON"),
    "array and garbage": ("a.json", '[{"prompt": "a"}] x', "", "column 19: invalid JSON .*follows the end"),
}

# what is wrong: (content of a .jsonl file, place, the rest of the message)
PROMPTS: dict[str, tuple[str, str, str]] = {
    "cut line": ('{"prompt": "a"}\n{"prompt": "b\n', ":2", "column 12: invalid JSON .*Unterminated"),
    "single quotes": ("{'prompt': 'a'}\n", ":1", "column 2: invalid JSON .*double quotes"),
    "trailing comma": ('{"prompt": "a",}\n', ":1", r"column \d+: invalid JSON"),
    "two objects in a line": ('{"prompt": "a"} {"prompt": "b"}\n', ":1", "column 17: .*a line of its own"),
    "trailing garbage": ('{"prompt": "a"}\n{"prompt": "b"} xyz\n', ":2", "column 17: invalid JSON"),
    "control character": ('{"prompt": "a\tb"}\n', ":1", "column 14: invalid JSON .*control character"),
    "array of objects": ('[{"prompt": "a"}]', ":1", "column 1: a JSON array.*rename the file to .json"),
    "line that is a string": ('{"prompt": "a"}\n"b"\n', ":2", "column 1: expected an object.*a string"),
    "line that is null": ('{"prompt": "a"}\nnull\n', ":2", "column 1: expected an object.*null"),
    "key twice": ('{"prompt": "a", "prompt": "b"}\n', ":1", "prompt: this key occurs twice"),
    "key twice within": ('{"prompt": "a", "x": {"k": 1, "k": 2}}\n', ":1", "k: this key occurs twice"),
    "name that is empty": ('{"prompt": "a", "": 1}\n', ":1", "a column has the name ''"),
    "NaN": ('{"prompt": "a", "answer": NaN}\n', ":1", "answer: holds nan: write null"),
    "infinity within": ('{"prompt": "a", "b": {"c": [1e999]}}\n', ":1", "b: holds inf"),
    "NaN as prompt": ('{"prompt": NaN}\n', ":1", "prompt: holds nan"),
    "bottomless nesting": ('{"prompt": ' + "[" * 100_000 + "\n", ":1", "column 1: .*nested too deeply"),
    "endless number": ('{"prompt": "a", "n": ' + "9" * 5000 + "}\n", ":1", "column 1: invalid JSON"),
    "misspelt column": (lines({"promt": "a"}), ":1", "prompt: .*got promt; did you mean 'promt'"),
    "another's name": (lines({"question": "a"}), ":1", "prompt: .*rename 'question' to 'prompt'"),
    "no columns": ("{}\n", ":1", "prompt: .*no columns at all"),
    "missing in a row": (lines({"prompt": "a"}, {"promt": "b"}), ":2", "prompt: missing.*'promt'"),
    "extra missing in a row": (
        lines({"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}, {"prompt": "c"}),
        ":3",
        "n: missing",
    ),
    "extra in one row": (
        lines({"prompt": "a"}, {"prompt": "b", "n": 2}, {"prompt": "c"}),
        ":2",
        "n: few rows have this",
    ),
    "column completions": (lines({"prompt": "a", "completions": 1}), ":1", "completions: rewards.*rename"),
    "column prompts": (lines({"prompt": "a", "prompts": 1}), ":1", "prompts: rewards.*rename"),
    "null": (prompt(None), ":2", "prompt: expected a string or a list of messages, got null"),
    "number": (prompt(7), ":2", "prompt: expected .*, got a number"),
    "boolean": (prompt(True), ":2", "prompt: expected .*, got a boolean"),
    "object": (prompt(USER), ":2", "prompt: expected .*, got an object"),
    "empty string": (prompt(""), ":2", "prompt: is empty"),
    "white space": (prompt(" \n"), ":2", "prompt: is empty"),
    "half a character": ('{"prompt": "a\\ud83d"}\n', ":1", "prompt: half of a surrogate pair at character 2"),
    "messages among strings": (prompt([USER]), ":2", r"prompt: a list of messages, but a string in .*:1"),
    "no messages": (messages(), ":2", "messages: an empty list"),
    "a string for messages": (lines({"messages": "hi"}), ":1", "messages: expected a list of messages"),
    "last turn the assistant's": (messages(USER, ANSWER), ":2", "messages: the last turn.*drop that turn"),
    "a turn that is a string": (messages("hi"), ":2", "messages: turn 1: expected .*got a string"),
    "unknown role": (
        messages(USER, {"role": "asistant", "content": "4"}),
        ":2",
        "messages: turn 2: role: unknown 'asistant'; did you mean 'assistant'",
    ),
    "role that is a number": (messages({"role": 1, "content": "4"}), ":2", "turn 1: role: unknown 1"),
    "missing content": (messages({"role": "user"}), ":2", "messages: turn 1: content: missing"),
    "misspelt content": (
        messages({"role": "user", "contnt": "a"}),
        ":2",
        "messages: turn 1: content: missing.*'contnt'",
    ),
    "missing role": (messages({"content": "a"}), ":2", "messages: turn 1: role: missing"),
    "content null": (messages({"role": "user", "content": None}), ":2", "turn 1: content: .*got null"),
    "content in parts": (messages({"role": "user", "content": []}), ":2", "turn 1: content: .*got a list"),
    "content empty": (messages({"role": "user", "content": ""}), ":2", "turn 1: content: is empty"),
    "unknown sender": (
        lines({"conversations": [{"from": "humn", "value": "a"}]}),
        ":1",
        "conversations: turn 1: from: unknown",
    ),
    "sender without value": (lines({"conversations": [{"from": "human"}]}), ":1", "turn 1: value: missing"),
    "sender beside a role": (
        lines({"conversations": [{"from": "human", "value": "a", "role": "user"}]}),
        ":1",
        "turn 1: role: beside from and value: keep those two, or role and content",
    ),
    "sender beside content": (
        lines({"conversations": [{"from": "human", "value": "a", "content": ["b"]}]}),
        ":1",
        "turn 1: content: beside from and value",
    ),
    "tools nested deeply": (
        lines({"prompt": "a", "tools": json.loads("[" * 600 + "]" * 600)}),
        ":1",
        "a value is nested too deeply to be data",
    ),
}

EXAMPLES: dict[str, tuple[str, str, str]] = {
    "no completion": (lines({"prompt": "a", "response": "b"}), ":1", "completion: .*rename 'response'"),
    "completion missing in a row": (
        lines({"prompt": "a", "completion": "b"}, {"prompt": "c"}),
        ":2",
        "completion: missing",
    ),
    "completion empty": (lines({"prompt": "a", "completion": ""}), ":1", "completion: is empty"),
    "completion null": (lines({"prompt": "a", "completion": None}), ":1", "completion: .*got null"),
    "completion of the user": (lines({"prompt": [USER], "completion": [USER]}), ":1", "completion: no turn"),
    "completion of another kind": (
        lines({"prompt": "a", "completion": [ANSWER]}),
        ":1",
        "completion: a list of messages, but prompt",
    ),
    "no turn to train": (sft(USER), ":2", "messages: no turn of the assistant"),
    "answer empty": (sft(USER, {**ANSWER, "content": " "}), ":2", "messages: turn 2: content: is empty"),
    "text empty": (lines({"text": "a"}, {"text": ""}), ":2", "text: is empty"),
    "text a list": (lines({"text": ["a"]}), ":1", "text: expected a string, got a list"),
}


def assert_named(read: Callable[[Path], object], path: Path, content: str | bytes, place: str, what: str) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=f"^{re.escape(f'{path}{place}: ')}.*{what}"):
        read(path)


@pytest.mark.parametrize("fault", FILES)
def test_a_fault_of_a_file_is_named_by_file_row_and_column(fault: str, tmp_path: Path):
    name, content, place, what = FILES[fault]
    assert_named(read_prompts, tmp_path / name, content, place, what)


@pytest.mark.parametrize("fault", PROMPTS)
def test_a_fault_of_a_prompt_is_named_by_file_row_and_column(fault: str, tmp_path: Path):
    assert_named(read_prompts, tmp_path / "a.jsonl", *PROMPTS[fault])


@pytest.mark.parametrize("fault", EXAMPLES)
def test_a_fault_of_a_demonstration_is_named_by_file_row_and_column(fault: str, tmp_path: Path):
    assert_named(read_examples, tmp_path / "a.jsonl", *EXAMPLES[fault])


def test_many_faults_are_named_at_once_and_the_rest_are_counted(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(lines({"prompt": "a"}, *({"prompt": number} for number in range(50))))
    with pytest.raises(DataError) as caught:
        read_prompts(path)
    message = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in message[:20]] == [f"{path}:{number}" for number in range(2, 22)]
    assert message[20] == "... and 30 more faults"
    assert "the number is the line in a .jsonl file" in message[21]


def test_a_file_that_does_not_exist_is_never_asked_of_the_hub(tmp_path: Path):
    (tmp_path / "prompts.jsonl").write_text(lines({"prompt": "a"}))
    with pytest.raises(DataError, match=r"promts\.jsonl: no such file or folder; did you mean 'prompts\.jsonl'\?"):
        read_prompts(str(tmp_path / "promts.jsonl"))
    for mistyped in ("prompts.jsonl", "data/prompts.csv", "./prompts", "~/prompts", "tests/no_such_folder", "a b"):
        with pytest.raises(DataError, match="no such file or folder"):
            read_prompts(mistyped)


def test_what_cannot_be_looked_at_is_told_in_one_line():
    with pytest.raises(DataError, match=r"^a{300}: cannot be read: File name too long$"):
        read_prompts("a" * 300)
    code = (
        "import os, sys\n"
        "from align.data import DataError, read_prompts\n"
        "os.geteuid() or os.seteuid(65534)  # whom no folder is closed to\n"
        "for place in sys.argv[1:]:\n"
        "    try: read_prompts(place)\n"
        "    except DataError as error: print(error)\n"
    )
    with tempfile.TemporaryDirectory() as closed:  # into tmp_path only its owner can look at all
        Path(closed, "a.jsonl").write_text(lines({"prompt": "a"}))
        os.chmod(closed, 0)
        places = [f"{closed}/a.jsonl", closed]
        told = subprocess.run([sys.executable, "-c", code, *places], capture_output=True, text=True, check=True).stdout
        os.chmod(closed, 0o700)
    assert told.splitlines() == [f"{place}: cannot be read: Permission denied" for place in places]


def test_what_is_no_local_path_is_asked_of_the_hub():
    script = "from align.data import read_prompts; read_prompts('no-such-owner/no-such-data:main')"
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    failed = subprocess.run([sys.executable, "-c", script], env=offline, capture_output=True, text=True)
    assert "DataError: no-such-owner/no-such-data:main: no local file or folder, and the hub does not" in failed.stderr
    assert "named as in owner/name:config" in failed.stderr


def test_one_stray_row_is_blamed_and_not_all_others():
    rows = [{"messages": [USER]}, {"messages": [USER]}, {"prompt": "a"}]
    with pytest.raises(DataError, match=r"^rows:3: messages: missing in this row[^\n]*\n\(the number"):
        read_prompts(rows)


def test_a_folder_without_data_says_what_it_may_hold(tmp_path: Path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(DataError, match=r"no data in this folder: expected \.jsonl"):
        read_prompts(tmp_path)


def test_files_of_one_folder_need_the_same_columns(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(lines({"prompt": "a", "answer": 1}))
    (tmp_path / "b.csv").write_text("prompt\nb\n")
    with pytest.raises(DataError, match=r"b\.csv: answer: missing, but a\.jsonl has it"):
        read_prompts(tmp_path)


def test_a_fault_in_a_file_of_a_folder_names_the_file(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(lines({"prompt": "a"}))
    (tmp_path / "b.csv").write_text('prompt\nb\n" "\n')
    with pytest.raises(DataError, match=r"^\S*b\.csv:2: prompt: is empty"):
        read_prompts(tmp_path)


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path: Path):
    (tmp_path / "test-0.jsonl").write_text(lines({"prompt": "a"}))
    with pytest.raises(DataError, match=r"no file of split 'train'; there are test-0\.jsonl"):
        read_prompts(tmp_path)


def test_a_file_of_two_splits_is_refused(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text(lines({"prompt": "a"}))
    (tmp_path / "train_and_test.jsonl").write_text(lines({"prompt": "a"}))
    with pytest.raises(DataError, match=r"train_and_test\.jsonl: its name has 'test' and 'train', .*: rename it"):
        read_prompts(tmp_path)


@pytest.mark.parametrize("rows", [[{"prompt": "a"}] * 2 + [{"prompt": "c", "\x1b[31mred": 1}], [{"\x1b[31mred": "a"}]])
def test_what_data_call_their_columns_cannot_touch_the_terminal(rows: list[dict[str, object]]):
    with pytest.raises(DataError, match=r"\\x1b\[31mred") as caught:
        read_prompts(rows)
    assert all(line.isprintable() for line in str(caught.value).split("\n"))


def test_rows_in_memory_are_numbered_from_one():
    with pytest.raises(DataError, match=r"^rows:2: prompt: is empty"):
        read_prompts([{"prompt": "a"}, {"prompt": ""}])
    with pytest.raises(DataError, match=r"^rows:1: column 1: expected an object .*got a string"):
        read_prompts(["a"])
    with pytest.raises(DataError, match=r"^rows:1: a column has the name 3"):
        read_prompts([{3: "a"}])
    with pytest.raises(DataError, match=r"^rows: no rows"):
        read_prompts([])


def test_something_that_is_no_source_is_refused_by_its_type():
    with pytest.raises(DataError, match="expected a path, a Dataset, a list of dicts or a hub id, got an object"):
        read_prompts({"prompt": ["a"]})


def test_faults_of_parquet_and_of_datasets_are_named_by_row(tmp_path: Path):
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"prompt": ["a", None], "n": [1.0, 2.0]}), path)
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}:2: prompt: expected .*, got null"):
        read_prompts(path)
    parquet.write_table(pa.table([["a"], ["b"]], names=["prompt", "prompt"]), path)
    with pytest.raises(DataError, match="prompt: two columns have this name"):
        read_prompts(path)
    parquet.write_table(pa.table({"prompt": pa.array([], pa.string())}), path)
    with pytest.raises(DataError, match="no rows"):
        read_prompts(path)
    dataset = datasets.Dataset.from_list([{"prompt": "a", "n": 1.0}, {"prompt": "b", "n": float("nan")}])
    with pytest.raises(DataError, match=r"^dataset:2: n: holds nan"):
        read_prompts(dataset)
    with pytest.raises(DataError, match="no split 'train'; there are 'test'"):
        read_prompts(datasets.DatasetDict({"test": dataset}))
    with pytest.raises(DataError, match=r"no known end: pass list\(dataset\.take\(n\)\)"):
        read_prompts(dataset.to_iterable_dataset())


def test_a_damaged_folder_of_save_to_disk_is_named(tmp_path: Path):
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match="not a readable dataset of save_to_disk"):
        read_prompts(tmp_path)

"""The directory of a run keeps what was asked and what happened, through kills and resumes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from align.config import GRPOConfig, OptimizerConfig
from align.runs.directory import RunDirectory, RunError, describe_environment, differences, plain


class Colour(Enum):
    RED = "red"


@dataclasses.dataclass
class Options:
    path: Path = Path("data/prompts.jsonl")
    names: tuple[str, ...] = ("a", "b")
    colour: Colour = Colour.RED
    limit: float = math.inf
    reward: Any = math.sqrt
    nested: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    thing: Any = dataclasses.field(default_factory=object)


def test_a_configuration_becomes_plain_values_that_do_not_change_from_run_to_run() -> None:
    resolved = plain(Options())
    assert resolved == plain(Options())
    assert json.loads(json.dumps(resolved, allow_nan=False)) == resolved
    assert (resolved["path"], resolved["names"], resolved["colour"]) == ("data/prompts.jsonl", ["a", "b"], "red")
    assert (resolved["limit"], resolved["reward"], resolved["thing"]) == ("inf", "math.sqrt", "builtins.object")
    assert resolved["nested"]["learning_rate"] == 1e-6


def test_differing_options_are_named_by_their_full_name() -> None:
    before, after = plain(GRPOConfig()), plain(GRPOConfig(group_size=4, optimizer=OptimizerConfig(weight_decay=0.1)))
    assert [words for _, words in differences(before, after)] == [
        "group_size: 8 -> 4",
        "optimizer.weight_decay: 0.0 -> 0.1",
    ]
    assert differences({"a": 1}, {"b": None}) == [("a", "a: 1 -> absent"), ("b", "b: absent -> null")]


def started(path: Path, config: dict[str, Any]) -> RunDirectory:
    folder = RunDirectory(path)
    folder.check(config, resume=False)
    folder.start(config, describe_environment())
    return folder


def test_a_resume_with_other_options_is_refused_unless_they_are_harmless(tmp_path: Path) -> None:
    folder = started(tmp_path / "run", {"seed": 1, "run": {"save_every": 5}, "batch": 4})
    folder.check({"seed": 1, "run": {"save_every": 9}, "batch": 4}, resume=True)
    folder.check({"seed": 1, "run": {"save_every": 9}, "batch": 8}, resume=True, harmless=["batch"])
    with pytest.raises(
        RunError, match=r"started with other options: seed: 1 -> 2; batch: 4 -> 8. Resume with the same"
    ):
        folder.check({"seed": 2, "run": {"save_every": 9}, "batch": 8}, resume=True)


def test_only_a_run_can_be_resumed_and_only_an_empty_place_started(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run to resume: start it without --resume"):
        RunDirectory(tmp_path / "typo").check({}, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file: a run needs a directory"):
        RunDirectory(tmp_path / "file").check({}, resume=False)
    started(tmp_path / "run", {})
    with pytest.raises(RunError, match="already holds a run"):
        RunDirectory(tmp_path / "run").check({}, resume=False)


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"could not start a run in .*: Not a directory. See to the space"):
        RunDirectory(tmp_path / "file" / "run").start({}, {})


def test_lines_of_steps_that_are_taken_again_are_cut_off(tmp_path: Path) -> None:
    folder = started(tmp_path, {"a": 1})
    for name in ("metrics.jsonl", "completions.jsonl", "events.jsonl"):
        for step in range(1, 6):
            folder.append(name, {"step": step})
    folder.rewind(3, {"a": 1})
    for name in ("metrics.jsonl", "completions.jsonl", "events.jsonl"):
        assert [line["step"] for line in folder.read(name)] == [1, 2, 3]


@pytest.mark.parametrize("torn", ['{"step": 4, "re', "{", '{"step": 4', "\x00\x00\x00", '"text"', "4"])
def test_a_torn_last_line_is_dropped(torn: str, tmp_path: Path) -> None:
    folder = started(tmp_path, {})
    for step in (1, 2, 3):
        folder.append("metrics.jsonl", {"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    assert [line["step"] for line in folder.read("metrics.jsonl")] == [1, 2, 3]
    folder.rewind(3, {})
    folder.append("metrics.jsonl", {"step": 4})
    assert [line["step"] for line in folder.read("metrics.jsonl")] == [1, 2, 3, 4]


def test_a_broken_line_within_is_named_by_its_number(tmp_path: Path) -> None:
    folder = started(tmp_path, {})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"metrics.jsonl:2: expected a JSON object"):
        folder.read("metrics.jsonl")


def test_a_number_that_json_does_not_have_is_never_written(tmp_path: Path) -> None:
    folder = started(tmp_path, {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.append("metrics.jsonl", {"step": 1, "loss": math.nan})
    folder.append("metrics.jsonl", {"step": 1, "loss": None})
    assert math.isnan(folder.history()[0]["loss"])


def test_the_environment_names_versions_but_neither_host_nor_paths() -> None:
    environment = describe_environment(device="cpu", command="align grpo --out runs/a")
    assert environment["device"] == "cpu" and environment["command"] == "align grpo --out runs/a"
    assert environment["cpus"] == os.cpu_count() and "safetensors" in environment["packages"]
    told = json.dumps(environment)
    assert socket.gethostname() not in told and os.getcwd() not in told and str(Path.home()) + "/" not in told

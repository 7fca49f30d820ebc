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


def saved(folder: RunDirectory) -> None:
    (folder.checkpoints / "checkpoint-3").mkdir(parents=True)


def test_how_the_work_is_cut_may_differ_on_resume_and_is_told(tmp_path: Path) -> None:
    folder = started(tmp_path, {"grpo": {"optimizer": {"tokens_per_micro_batch": 8}, "tokens_per_batch": 9}, "keep": 2})
    saved(folder)
    cut = {"grpo": {"optimizer": {"tokens_per_micro_batch": 4}, "tokens_per_batch": 9}, "keep": 3}
    folder.check(cut, resume=True)
    assert folder.rounding(cut) == ["grpo.optimizer.tokens_per_micro_batch: 8 -> 4"]


def test_a_resume_with_other_options_is_refused_unless_they_are_harmless(tmp_path: Path) -> None:
    folder = started(tmp_path / "run", {"seed": 1, "run": {"save_every": 5}, "batch": 4})
    saved(folder)
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


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("start", r"was killed or still runs: if killed, go on with it \(--resume\), or name another directory"),
        ("stop", r"was stopped: go on with it \(--resume\), or name another"),
        ("error", r"failed: go on with it \(--resume\), or name another"),
        (
            "end",
            r"a finished run: keep it \(--resume\), or name another directory; to train its model further, give that "
            r"one --model .*/final\.",
        ),
    ],
)
def test_what_is_in_the_way_of_a_run_is_told_by_how_it_stands(kind: str, words: str, tmp_path: Path) -> None:
    folder = started(tmp_path, {"steps": 10})
    saved(folder)
    folder.final.mkdir()
    (folder.final / "config.json").write_text("{}")
    folder.append("events.jsonl", {"step": 10, "kind": kind})
    folder.append("events.jsonl", {"step": 10, "kind": "finding"})
    with pytest.raises(RunError, match=words):
        folder.check({"steps": 10}, resume=False)


def test_a_finished_run_that_is_to_go_on_is_refused_with_the_way_forward(tmp_path: Path) -> None:
    folder = started(tmp_path, {"steps": 10})
    saved(folder)
    folder.append("events.jsonl", {"step": 10, "kind": "end"})
    folder.check({"steps": 10}, resume=True)
    with pytest.raises(
        RunError, match=r"finished with other options: steps: 10 -> 20. .*a new run in another directory\."
    ):
        folder.check({"steps": 20}, resume=True)
    folder.final.mkdir()
    (folder.final / "adapter_config.json").write_text("{}")
    with pytest.raises(
        RunError, match=r"in another directory; to train its model further, give that one --model .*final"
    ):
        folder.check({"steps": 20}, resume=True)


def test_a_run_that_failed_before_its_first_checkpoint_makes_room_and_keeps_its_files(tmp_path: Path) -> None:
    for count in (1, 2):
        folder = started(tmp_path, {"reward": count})
        folder.append("metrics.jsonl", {"step": 1, "loss": count})
        folder.append("events.jsonl", {"step": 1, "kind": "error"})
        (tmp_path / "failed-step-2.safetensors").write_text(str(count))
    (tmp_path / "notes.txt").write_text("mine")
    folder.check({"reward": 3}, resume=True)
    folder.check({"reward": 3}, resume=False)
    assert folder.start({"reward": 3}, {}) == tmp_path / "earlier-2"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json", "earlier-1", "earlier-2", "environment.json", "notes.txt",
    ]  # fmt: skip
    for count in (1, 2):
        earlier = RunDirectory(tmp_path / f"earlier-{count}")
        assert earlier.config == {"reward": count} and earlier.history() == [{"step": 1, "loss": count}]
        assert earlier.standing == "error" and (earlier.path / "failed-step-2.safetensors").exists()


def test_a_run_that_may_still_go_on_is_begun_anew_only_where_a_resume_is_asked_for(tmp_path: Path) -> None:
    folder = started(tmp_path, {"reward": 1})
    folder.append("events.jsonl", {"step": 0, "kind": "start"})
    with pytest.raises(RunError, match="was killed or still runs"):
        folder.check({"reward": 2}, resume=False)
    folder.check({"reward": 2}, resume=True)


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

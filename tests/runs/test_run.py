"""A run can be stopped anywhere and resumed, and says what happened."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import threading
import time
from contextlib import suppress
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from toy_algorithm import Toy

from align.runs.checkpoint import CheckpointError, load_latest
from align.runs.directory import RunDirectory, RunError
from align.runs.journal import choose_examples, telling_group
from align.runs.run import RunResult, run


def go(directory: Path, algorithm: Toy | None = None, **options: Any) -> RunResult:
    algorithm = algorithm or Toy()
    options = {"config": {"seed": 0}, "console": Console(file=StringIO(), width=200), "save_every": 3, **options}
    return run(algorithm, directory, evaluate=algorithm.evaluate, evaluate_every=5, **options)


def final_weights(directory: Path) -> list[torch.Tensor]:
    found = load_latest(directory / "checkpoints")
    assert found
    return [found.state["model"]["weight"], found.state["model"]["bias"], found.state["generator"]]


def same_run(left: Path, right: Path) -> bool:
    """Bitwise the same weights and generator, the same metrics, the same completions."""
    logs = [
        [(folder / name).read_text() for name in ("metrics.jsonl", "completions.jsonl")] for folder in (left, right)
    ]
    return all(map(torch.equal, final_weights(left), final_weights(right))) and logs[0] == logs[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    directory = tmp_path_factory.mktemp("whole")
    go(directory)
    return directory


def test_a_run_leaves_its_files_and_its_numbers(whole: Path) -> None:
    folder = RunDirectory(whole)
    steps = [line["step"] for line in folder.read("metrics.jsonl")]
    assert steps == list(range(13))
    evaluated = [line["step"] for line in folder.read("metrics.jsonl") if "eval/error" in line]
    assert evaluated == [0, 5, 10, 12]
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["checkpoint-12", "checkpoint-9"]
    assert folder.config == {"seed": 0}
    assert folder.environment["packages"]["torch"] == metadata.version("torch")
    assert [event["kind"] for event in folder.read("events.jsonl") if event["kind"] != "evaluation"] == ["start", "end"]
    assert folder.report.read_text().startswith("<!doctype html>")


def test_the_result_tells_how_it_ended(tmp_path: Path) -> None:
    result = go(tmp_path / "run")
    assert (result.step, result.finished, result.exit_code) == (12, True, 0)
    assert result.metrics["eval/error"] == result.evaluation["error"]
    again = go(tmp_path / "run", resume=True)
    assert (again.step, again.metrics, again.evaluation) == (12, result.metrics, result.evaluation)


class Stops(Toy):
    """Sends this process a signal during a step."""

    def __init__(self, at: int, number: signal.Signals, **toy: Any) -> None:
        super().__init__(**toy)
        self.at, self.number = at, number

    def steps(self):
        for metrics in super().steps():
            if self.step == self.at:
                os.kill(os.getpid(), self.number)
            yield metrics


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_at_the_next_step_and_the_resumed_run_ends_the_same(
    number: signal.Signals, code: int, whole: Path, tmp_path: Path
) -> None:
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    console = Console(file=StringIO(), width=200)
    result = go(tmp_path, Stops(7, number), console=console, command="align toy")
    assert (result.step, result.finished, result.exit_code, result.stopped_by) == (7, False, code, number)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert "Go on with: align toy --resume" in console.file.getvalue()  # type: ignore[attr-defined]
    assert go(tmp_path, resume=True).finished
    assert same_run(whole, tmp_path)


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_second_signal_ends_the_run_at_once(
    number: signal.Signals, expected: int, children: Any, tmp_path: Path
) -> None:
    pid = children.start("run_toy", directory=str(tmp_path), total_steps=5, delay=30.0)
    started = wait_for(tmp_path / "metrics.jsonl", lines=1)
    time.sleep(0.3)  # well into the first step: before it, one signal would end the run cleanly
    os.kill(pid, number)
    time.sleep(0.2)
    os.kill(pid, number)
    code = children.wait()
    assert time.monotonic() - started < 20
    # The child reports a KeyboardInterrupt as any other exception.
    assert code == expected or (number == signal.SIGINT and "KeyboardInterrupt" in children.said)


def wait_for(path: Path, *, lines: int) -> float:
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_bytes().count(b"\n") >= lines):
        assert time.monotonic() < deadline, "the child did not get so far"
        time.sleep(0.002)
    return time.monotonic()


def test_a_signal_with_the_last_step_does_not_call_a_finished_run_stopped(tmp_path: Path) -> None:
    result = go(tmp_path, Stops(12, signal.SIGTERM))
    assert result.finished and result.exit_code == 0


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path: Path) -> None:
    results: list[RunResult] = []
    thread = threading.Thread(target=lambda: results.append(go(tmp_path)))
    thread.start()
    thread.join()
    assert results[0].finished


# --- kill -9 ---


def kill_and_resume(children: Any, directory: Path, draw: random.Random, **toy: Any) -> int:
    """Kill a run a few times at random instants, each time resuming it, and let the last one end; count the kills."""
    kills = 0
    for attempt in range(3):
        pid = children.start("run_toy", directory=str(directory), resume=attempt > 0, **toy)
        wait_for(directory / "config.json", lines=1)
        time.sleep(draw.uniform(0.0, 0.15))
        with suppress(ProcessLookupError):  # a quick one has ended already
            os.kill(pid, signal.SIGKILL)
        kills += children.wait() == -signal.SIGKILL
    code = children.do("run_toy", directory=str(directory), resume=True, **toy)
    assert code == 0, children.said
    return kills


def test_a_run_that_was_killed_and_resumed_ends_bitwise_as_one_left_alone(children: Any, tmp_path: Path) -> None:
    # A checkpoint every step, with ballast: more than half of the time is spent inside a save.
    toy = {"total_steps": 40, "ballast": 200_000}
    assert children.do("run_toy", directory=str(tmp_path / "whole"), **toy) == 0, children.said
    for seed in range(3):
        assert kill_and_resume(children, tmp_path / str(seed), random.Random(seed), **toy) > 0
        assert same_run(tmp_path / "whole", tmp_path / str(seed))


@pytest.mark.slow
@pytest.mark.parametrize("save_every", [1, 4])
def test_twenty_runs_killed_and_resumed_end_bitwise_the_same(save_every: int, children: Any, tmp_path: Path) -> None:
    toy = {"total_steps": 24, "ballast": 200_000, "save_every": save_every}
    assert children.do("run_toy", directory=str(tmp_path / "whole"), **toy) == 0, children.said
    for seed in range(10):
        kill_and_resume(children, tmp_path / str(seed), random.Random(seed), **toy)
        assert same_run(tmp_path / "whole", tmp_path / str(seed))


def test_without_a_checkpoint_yet_a_resume_starts_anew(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the toy broke"):
        go(tmp_path, Toy(fail_at=3))
    console = Console(file=StringIO(), width=200)
    go(tmp_path, resume=True, console=console, config={"seed": "another"})
    assert same_run(whole, tmp_path) and RunDirectory(tmp_path).config == {"seed": "another"}
    earlier = RunDirectory(tmp_path / "earlier-1")
    assert f"begins anew; the earlier one is in {earlier.path}" in console.file.getvalue()  # type: ignore[attr-defined]
    assert earlier.config == {"seed": 0} and earlier.history()[-1]["step"] == 2


def test_a_resume_that_cuts_the_work_anew_says_what_that_changes(tmp_path: Path) -> None:
    go(tmp_path, Stops(7, signal.SIGTERM), config={"tokens_per_batch": 8})
    console = Console(file=StringIO(), width=200)
    go(tmp_path, resume=True, console=console, config={"tokens_per_batch": 4})
    told = "warning: equal to a run left alone but for rounding, not bit for bit: tokens_per_batch: 8 -> 4.\n"
    assert told in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_damaged_checkpoint_is_told_and_the_run_ends_the_same(whole: Path, tmp_path: Path) -> None:
    go(tmp_path, Stops(7, signal.SIGTERM))
    (tmp_path / "checkpoints" / "checkpoint-7" / "state.json").write_text("{}")
    console = Console(file=StringIO(), width=200)
    go(tmp_path, resume=True, console=console)
    assert "warning: checkpoint-7 is damaged: state.json has 2 bytes" in console.file.getvalue()  # type: ignore[attr-defined]
    assert [event["step"] for event in RunDirectory(tmp_path).read("events.jsonl") if event["kind"] == "fault"] == [6]
    assert same_run(whole, tmp_path)


# --- what goes wrong ---


def test_an_algorithm_that_raises_is_recorded_and_its_broken_state_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the toy broke"):
        go(tmp_path, Toy(fail_at=9))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["checkpoint-3", "checkpoint-6"]
    last = RunDirectory(tmp_path).read("events.jsonl")[-1]
    assert (last["kind"], last["step"], last["words"]) == ("error", 8, "RuntimeError: the toy broke")
    assert "Failed</b> after step 8: RuntimeError: the toy broke" in (tmp_path / "report.html").read_text()


def test_the_batch_that_an_error_brings_as_evidence_is_kept(tmp_path: Path) -> None:
    class Explodes(Toy):
        def steps(self):
            yield next(super().steps())
            error = ArithmeticError("step 2: loss nan")
            error.evidence = {"input_ids": torch.arange(12).view(3, 4).t()}  # type: ignore[attr-defined]
            raise error

    with pytest.raises(ArithmeticError):
        go(tmp_path, Explodes())
    kept = load_file(tmp_path / "failed-step-2.safetensors")
    assert torch.equal(kept["input_ids"], torch.arange(12).view(3, 4).t())


def test_what_fails_while_a_failure_is_recorded_hides_neither_the_cause_nor_its_event(tmp_path: Path) -> None:
    class Explodes(Toy):
        def steps(self):
            yield next(super().steps())
            (tmp_path / "failed-step-2.safetensors").mkdir()  # no evidence can be written there
            (tmp_path / "metrics.jsonl").write_text('{"step": 1, "optim/loss": "low"}\n')  # and no report of that
            error = ArithmeticError("step 2: loss nan")
            error.evidence = {"input_ids": torch.arange(12)}  # type: ignore[attr-defined]
            raise error

    with pytest.raises(ArithmeticError, match="step 2: loss nan"):
        go(tmp_path, Explodes())
    last = RunDirectory(tmp_path).read("events.jsonl")[-1]
    assert (last["kind"], last["words"]) == ("error", "ArithmeticError: step 2: loss nan")


def test_a_metric_that_is_not_finite_is_written_as_null_and_told(tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=200)
    go(tmp_path, Toy(nan_at=4), console=console)
    lines = [
        json.loads(text, parse_constant=pytest.fail) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines[4]["reward/mean"] is None and math.isfinite(lines[4]["optim/loss"])
    assert "warning: not finite at step 4: reward/mean" in console.file.getvalue()  # type: ignore[attr-defined]
    events = [event for event in RunDirectory(tmp_path).read("events.jsonl") if event["kind"] == "not_finite"]
    assert [(event["step"], event["names"]) for event in events] == [(4, ["reward/mean"])]
    assert "reward/mean was not a finite number at step 4" in (tmp_path / "report.html").read_text()


def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_it_can_go_on(children: Any, tmp_path: Path) -> None:
    toy = {"total_steps": 4, "ballast": 100_000}
    assert children.do("run_toy", directory=str(tmp_path / "whole"), **toy) == 0
    assert children.do("run_toy", directory=str(tmp_path / "full"), limit=300_000, **toy) == 1
    assert "CheckpointError: the checkpoint of step 1 could not be written" in children.said
    assert RunDirectory(tmp_path / "full").read("events.jsonl")[-1]["kind"] == "error"
    assert children.do("run_toy", directory=str(tmp_path / "full"), resume=True, **toy) == 0, children.said
    assert same_run(tmp_path / "whole", tmp_path / "full")


def test_when_every_checkpoint_is_damaged_the_resume_is_refused(tmp_path: Path) -> None:
    go(tmp_path)
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-12 is damaged.*checkpoint-9 is damaged"):
        go(tmp_path, resume=True)


def test_a_directory_that_holds_a_run_is_not_overwritten(whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"holds a finished run: keep it \(--resume\), or name another directory"):
        go(whole)
    assert (whole / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("options", [{"save_every": 0}, {"keep": 1}])
def test_options_without_meaning_are_refused_before_anything_is_written(
    options: dict[str, int], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        go(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


# --- several processes ---


def test_of_two_processes_one_writes_and_both_give_their_state_and_stop_together(tmp_path: Path) -> None:
    barrier, flags, asked = threading.Barrier(2, timeout=20), [False, False], [0, 0]
    results: list[RunResult | None] = [None, None]

    class Counted(Toy):
        def __init__(self, rank: int) -> None:
            super().__init__()
            self.rank = rank

        def state(self):
            asked[self.rank] += 1
            barrier.wait()  # as a collective would
            return super().state()

    def process(rank: int) -> None:
        toy = Counted(rank)

        def any_process(flag: bool) -> bool:
            flags[rank] = flag or (rank == 1 and toy.step == 7)  # only the second one hears the signal
            barrier.wait()
            stops = any(flags)
            barrier.wait()
            return stops

        results[rank] = go(
            tmp_path, toy, is_main=rank == 0, barrier=lambda: barrier.wait() and None, any_process=any_process
        )

    threads = [threading.Thread(target=process, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [result and (result.step, result.exit_code) for result in results] == [(7, 143), (7, 143)]
    assert asked == [3, 3]  # after steps 3, 6 and 7
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 8


def test_a_process_that_is_not_the_main_one_writes_nothing(tmp_path: Path) -> None:
    assert go(tmp_path / "run", is_main=False).step == 12
    assert not (tmp_path / "run").exists()


# --- completions ---


def test_a_few_rollouts_are_kept_the_first_and_the_last_among_them(tmp_path: Path) -> None:
    go(tmp_path, Toy(total_steps=400), save_every=400)
    lines = RunDirectory(tmp_path).read("completions.jsonl")
    assert lines[0]["step"] == 1 and lines[-1]["step"] == 400 and len(lines) <= 21
    first = lines[0]
    assert [sample["role"] for sample in first["samples"]] == ["best", "worst", "random"]
    assert len(first["rewards"]) == 8 and len(first["group"]) == 4
    assert (
        first["samples"][0]["reward"] == max(first["rewards"]) > first["samples"][1]["reward"] == min(first["rewards"])
    )
    assert first["samples"][0]["parts"]["form"] == 1.0


def test_a_completion_that_was_not_judged_is_neither_best_nor_worst_and_makes_no_group_telling() -> None:
    rewards = {"good": -0.1, "unjudged": math.nan, "bad": -1.0}
    examples = [{"completion": text, "reward": reward, "group": 0} for text, reward in rewards.items()]
    best, worst, _ = choose_examples(examples, step=1)
    assert (best[1]["completion"], worst[1]["completion"]) == ("good", "bad")
    alike = [{"completion": "", "reward": reward, "group": 1} for reward in (5.0, math.nan, 5.0)]
    assert telling_group(alike + examples) == examples
    nobody = [{"completion": "", "reward": None, "group": 0}]
    assert choose_examples(nobody, step=1)[0] == ("best", nobody[0]) and telling_group(nobody) == nobody


def test_a_metric_that_is_not_finite_is_told_once_though_the_run_is_resumed(tmp_path: Path) -> None:
    class Broken(Toy):
        def steps(self):
            for metrics in super().steps():
                yield {**metrics, "reward/mean": math.nan}

    told = Console(file=StringIO(), width=200)
    go(tmp_path, Broken(total_steps=3), console=told)
    go(tmp_path, Broken(total_steps=6), console=told, resume=True)
    assert told.file.getvalue().count("warning: not finite") == 1  # type: ignore[attr-defined]
    assert sum(event["kind"] == "not_finite" for event in RunDirectory(tmp_path).read("events.jsonl")) == 6


def test_a_tracker_hears_of_every_step_what_is_written_down(tmp_path: Path) -> None:
    heard: list[tuple[int, dict[str, float]]] = []
    toy = Toy(3)
    run(toy, tmp_path, config={}, evaluate=toy.evaluate, quiet=True, track=lambda *told: heard.append(told))
    assert [{**metrics, "step": step} for step, metrics in heard] == RunDirectory(tmp_path).history()
    assert [step for step, _ in heard] == [0, 1, 2, 3]

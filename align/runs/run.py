"""Run an algorithm: iterate its steps, and give it a directory, checkpoints, a console and a report.

    result = run(algorithm, "runs/first", config=config, evaluate=held_out, evaluate_every=50)
    sys.exit(result.exit_code)

Nothing here knows what is learned: an algorithm is whatever has the five members of `Algorithm`. In a run of several
processes every process calls `run` with the same arguments but `is_main`; every one iterates, evaluates and gives its
state, and the main one writes. They need a common file system, for the directory and its checkpoints.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from safetensors.torch import save_file

from align.runs.checkpoint import Checkpoint, CheckpointError, load_checkpoint, load_latest, save_checkpoint
from align.runs.console import Display
from align.runs.directory import RunDirectory, describe_environment, differences, plain
from align.runs.journal import Journal
from align.runs.report import write_report


class Algorithm(Protocol):
    """What can be run.

    step: optimizer steps done.
    total_steps: steps of the whole run.
    """

    step: int
    total_steps: int

    def steps(self) -> Iterator[dict[str, float]]:
        """Take optimizer steps and yield the metrics of each; a new call goes on from `self.step`."""
        ...

    def state(self) -> dict[str, Any]:
        """Return all that the next step depends on, as tensors and plain values. Every process must call it."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        ...

    def examples(self) -> list[dict[str, Any]]:
        """Return the completions of the last rollout as plain values; an empty list where there are none.

        Each has prompt, completion, reward, advantage, parts ({name: float}), group, tokens and terminated.
        """
        ...


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    step: optimizer steps done.
    directory: its files; `directory.final` is for the trained model.
    metrics: those of the last step, evaluation included.
    evaluation: the latest evaluation, without the prefix "eval/".
    stopped_by: the signal that stopped it, or None where it came to its end.
    """

    step: int
    directory: RunDirectory
    metrics: dict[str, float] = field(default_factory=dict)
    evaluation: dict[str, float] = field(default_factory=dict)
    stopped_by: signal.Signals | None = None

    @property
    def finished(self) -> bool:
        """Whether every step was taken."""
        return self.stopped_by is None

    @property
    def exit_code(self) -> int:
        """0, or 128 + the signal: 130 after Ctrl-C, 143 after SIGTERM, as shells and schedulers expect."""
        return 0 if self.stopped_by is None else 128 + self.stopped_by


def run(
    algorithm: Algorithm,
    directory: str | Path,
    *,
    config: Any,
    command: str | None = None,
    resume: bool = False,
    save_every: int = 50,
    keep: int = 2,
    evaluate: Callable[[], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    console: Console | None = None,
    log_every: int = 1,
    quiet: bool = False,
    device: str | None = None,
    harmless: Iterable[str] = (),
    track: Callable[[int, dict[str, float]], None] | None = None,
    is_main: bool = True,
    barrier: Callable[[], None] | None = None,
    any_process: Callable[[bool], bool] | None = None,
) -> RunResult:
    """Run an algorithm to its end, or until SIGTERM or Ctrl-C, in a directory from which it can be resumed.

    The first signal lets the current step finish, saves a checkpoint and returns; a second one ends the run at once.
    An exception of the algorithm is recorded, the report written, and the exception raised again; the broken state is
    not saved. A resumed run ends in the same state, metrics and evaluations as one that was never interrupted,
    provided that the algorithm's state is complete and `evaluate` leaves it alone.

    Args:
        algorithm: what is run.
        directory: of the run; made where missing, refused where it already holds a run, unless `resume` or that one
            failed before its first checkpoint: its files are then set aside.
        config: the resolved options, a dataclass or dict, nested as needed. On resume they must be as they were.
        command: the command line, told in the report and when the run is stopped.
        resume: go on from the newest intact checkpoint, or from the start where none was saved yet.
        save_every: steps between checkpoints; one is always saved at the end.
        keep: checkpoints that stay, at least 2.
        evaluate: returns held-out numbers by name; they are recorded as "eval/<name>" at its step. Every process
            calls it, before the first step, every `evaluate_every` steps and after the last one.
        evaluate_every: steps between evaluations; 0 evaluates before and after only.
        console: rich's console; by default one on stdout.
        log_every: off a terminal, steps between lines.
        quiet: show nothing but warnings and how the run ended.
        device: what it runs on, in words, for the record.
        harmless: further options, by name, that may differ on resume; `HARMLESS` always may.
        track: called in the main process with each step and all its metrics, as they are written down.
        is_main: whether this process writes.
        barrier: waits for all processes; given in a run of several.
        any_process: tells whether a flag is set in any process, called once a step by each. Without it a run of
            several processes takes no notice of signals, since one process alone must not stop: the signal ends
            it at once, and it is resumed from its last checkpoint.

    Raises:
        RunError: if the directory cannot be used or written, or the options differ from those of the run resumed.
        CheckpointError: if no checkpoint is intact, or one could not be saved.
    """
    for name, value, least in (("save_every", save_every, 1), ("evaluate_every", evaluate_every, 0), ("keep", keep, 2)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    folder = RunDirectory(directory)
    wait = barrier or (lambda: None)
    # Every process looks before one of them writes, so that all refuse alike and none waits for another.
    folder.check(plain(config), resume=resume, harmless=harmless)
    checkpoint = load_latest(folder.checkpoints) if resume else None
    before = [line for line in folder.history() if checkpoint and line["step"] <= checkpoint.step]
    wait()
    if checkpoint:
        algorithm.load_state(checkpoint.state)
    display = Display(algorithm.total_steps, console, log_every=log_every, quiet=quiet or not is_main)
    journal = Journal(folder, display, track) if is_main else None
    if journal:
        _open(journal, plain(config), describe_environment(device=device, command=command), checkpoint)
    loop = _Loop(
        algorithm, folder, journal, save_every, keep, evaluate, evaluate_every, any_process,
        fresh=checkpoint is None, saved=checkpoint.step if checkpoint else None,
        metrics=_without_step(before[-1]) if before else {}, evaluation=_last_evaluation(before),
    )  # fmt: skip
    with display, _signals(active=barrier is None or any_process is not None) as caught:
        try:
            result = loop.go(caught, wait)
        except BaseException as error:
            if journal:
                _record_failure(journal, algorithm.step, error)
            raise
    if journal:
        _close(journal, result, command)
    wait()
    return result


def restore(
    algorithm: Algorithm, directory: str | Path, *, step: int | None = None, final: Path | None = None
) -> RunResult:
    """Take an algorithm to a checkpoint of its run, and return the result that the run would have had there.

    Nothing is written.

    Args:
        algorithm: made as for the run.
        directory: of the run.
        step: of the checkpoint; by default the newest that is intact.
        final: becomes `directory.final` of the result; by default `exported-N` in the run's directory, N the step.

    Raises:
        CheckpointError: if the checkpoint is damaged or not there, or none is intact.
    """
    folder = RunDirectory(directory)
    if step is None:
        checkpoint = load_latest(folder.checkpoints)
    else:
        checkpoint = load_checkpoint(folder.checkpoints / f"checkpoint-{step}")
    if checkpoint is None:
        raise CheckpointError(f"{folder.path} has no checkpoint: it ended before its first one (--save-every)")
    algorithm.load_state(checkpoint.state)
    folder.final = final or folder.path / f"exported-{checkpoint.step}"
    before = [line for line in folder.history() if line["step"] <= checkpoint.step]
    return RunResult(checkpoint.step, folder, _without_step(before[-1]) if before else {}, _last_evaluation(before))


@dataclass
class _Loop:
    """The loop over the steps, in every process; `journal` is None in those that write nothing."""

    algorithm: Algorithm
    folder: RunDirectory
    journal: Journal | None
    save_every: int
    keep: int
    evaluate: Callable[[], dict[str, float]] | None
    evaluate_every: int
    any_process: Callable[[bool], bool] | None
    fresh: bool
    saved: int | None
    metrics: dict[str, float] = field(default_factory=dict)
    evaluation: dict[str, float] = field(default_factory=dict)

    def go(self, caught: list[signal.Signals], wait: Callable[[], None]) -> RunResult:
        """Iterate to the end or to a signal, and save."""
        # Only before the very first step: a resumed run must evaluate no more often than one that was left alone.
        if self.fresh and (first := self._evaluated(self.algorithm.step)) and self.journal:
            self.journal.step(self.algorithm.step, first)
        if not self._stops(caught):
            for metrics in self.algorithm.steps():
                self._record(metrics)
                if self.algorithm.step % self.save_every == 0:
                    self._save(wait)
                if self._stops(caught):
                    self._save(wait)  # while the iterator still stands at its yield, not after it was closed
                    break
        stopped = caught[0] if caught and self.algorithm.step < self.algorithm.total_steps else None
        self._save(wait)
        return RunResult(self.algorithm.step, self.folder, self.metrics, self.evaluation, stopped)

    def _record(self, metrics: dict[str, float]) -> None:
        step = self.algorithm.step
        last = step >= self.algorithm.total_steps
        due = last or (self.evaluate_every and step % self.evaluate_every == 0)
        self.metrics = {**metrics, **(self._evaluated(step) if due else {})}
        if self.journal:
            self.journal.step(step, self.metrics)
            if self.journal.wants_examples(step):
                self.journal.examples(step, self.algorithm.examples())

    def _evaluated(self, step: int) -> dict[str, float]:
        if self.evaluate is None:
            return {}
        self.evaluation = dict(self.evaluate())
        if self.journal:
            told = {name: value if math.isfinite(value) else None for name, value in self.evaluation.items()}
            self.journal.event("evaluation", step, f"evaluated at step {step}", values=plain(told))
        return {f"eval/{name}": value for name, value in self.evaluation.items()}

    def _save(self, wait: Callable[[], None]) -> None:
        """Save a checkpoint of this step, once. Every process gives its state, since that may be collective."""
        if self.saved == self.algorithm.step:
            return
        state = self.algorithm.state()
        if self.journal:
            self.folder.sync()
            save_checkpoint(self.folder.checkpoints, self.algorithm.step, state, self.keep)
        self.saved = self.algorithm.step
        wait()

    def _stops(self, caught: list[signal.Signals]) -> bool:
        if self.any_process is None:
            return bool(caught)
        stops = self.any_process(bool(caught))
        if stops and not caught:
            caught.append(signal.SIGTERM)  # another process heard it
        return stops


def _without_step(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name != "step"}


def _last_evaluation(history: list[dict[str, float]]) -> dict[str, float]:
    """The latest evaluation of a history, named as `evaluate` named it."""
    for line in reversed(history):
        if found := {name[5:]: value for name, value in line.items() if name.startswith("eval/")}:
            return found
    return {}


def _open(journal: Journal, config: dict[str, Any], environment: dict[str, Any], checkpoint: Checkpoint | None) -> None:
    """Write the beginning of a run, or go back to where it is resumed."""
    folder = journal.directory
    if not checkpoint:
        if earlier := folder.start(config, environment):
            journal.display.say(
                f"No checkpoint was saved here, so the run begins anew; the earlier one is in {earlier}."
            )
        journal.event("start", 0, "started", total_steps=journal.display.total_steps)
        return
    step = checkpoint.step
    changed = [line for _, line in differences(folder.config, config)]
    rounding = folder.rounding(config)
    elsewhere = [line for name, line in differences(folder.environment, environment) if name != "command"]
    folder.rewind(step, config)
    journal.recall()
    journal.event("resume", step, f"resumed from step {step}", options=changed, environment=elsewhere)
    journal.display.say(f"Resumed from step {step} of {journal.display.total_steps}.")
    for fault in checkpoint.faults:
        journal.warn("fault", step, f"{fault}; resumed from step {step} instead.")
    if rounding:
        words = f"equal to a run left alone but for rounding, not bit for bit: {'; '.join(rounding)}."
        journal.warn("rounding", step, words)
    if elsewhere:
        journal.warn("environment", step, f"the environment differs, so the last digits may: {'; '.join(elsewhere)}.")


def _close(journal: Journal, result: RunResult, command: str | None) -> None:
    """Write how a run ended, and its report."""
    say = journal.display.say
    if result.stopped_by is None:
        journal.event("end", result.step, f"finished after {result.step} steps", total_steps=result.step)
        say(f"Finished after {result.step} steps. Report: {write_report(journal.directory.path)}", always=True)
        return
    again = f"{command} --resume" if command and "--resume" not in command else command or "run(..., resume=True)"
    journal.event("stop", result.step, f"stopped by {result.stopped_by.name} after step {result.step}")
    write_report(journal.directory.path)
    say(f"Stopped by {result.stopped_by.name} after step {result.step}; its checkpoint is saved.", always=True)
    say(f"Go on with: {again}", always=True)


def _record_failure(journal: Journal, step: int, error: BaseException) -> None:
    """Record what ended a run: the event, which matters most and needs least, then the evidence and the report.

    An error may bring its `evidence`, tensors by name such as the batch that gave a NaN: it is kept beside the logs.
    """
    # Here alone whatever is raised is passed over (a full disk, say): it must not hide what ended the run.
    with suppress(Exception):
        journal.event("error", step, f"{type(error).__name__}: {' '.join(str(error).split())}"[:2000])
    with suppress(Exception):
        if evidence := getattr(error, "evidence", None):
            save_file(
                {name: tensor.contiguous().cpu() for name, tensor in evidence.items()},
                journal.directory.path / f"failed-step-{step + 1}.safetensors",
            )
    with suppress(Exception):
        if isinstance(error, Exception):
            write_report(journal.directory.path)


@contextmanager
def _signals(*, active: bool) -> Iterator[list[signal.Signals]]:
    """Collect SIGINT and SIGTERM instead of dying of them; the second one ends the process as it always would."""
    caught: list[signal.Signals] = []

    def hear(number: int, _frame: object) -> None:
        if caught:
            restore()
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            os.kill(os.getpid(), number)
        caught.append(signal.Signals(number))

    before: dict[signal.Signals, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    # Python lets only the main thread have handlers; elsewhere signals stay the caller's matter.
    if active and threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        restore()

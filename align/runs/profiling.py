"""Where the time and the memory of a step go: an algorithm, with clocks laid around its parts from outside.

    profiled = Profiled(algorithm, "runs/first/profile.txt")
    run(profiled, "runs/first", config=config, evaluate=profiled.evaluating(held_out))

Nothing of an algorithm knows that it is profiled: for some steps, functions that it calls are replaced by ones that
call them between two looks at the clock. Random numbers and sums stay as they are, so the result does, bit for bit.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.runs.run import Algorithm

WARM_UP, TIMED, WATCHED, TRACED = 3, 20, 2, 2
"""Steps that are left alone, timed, looked at for memory, and traced for operators; then on to the end of a rollout."""
OPERATORS = 12
"""Rows of the table of operators."""
SAMPLING, REST = "sampling: draws, texts, the rest", "metrics and the rest"
OF_ALGORITHMS = {
    "sampler.sample": SAMPLING,
    "reference": "reference's log-probabilities",
    "_reference_point": "reference point",
    "trainer.cut": "data",
    "trainer.step": "loss and micro-batches",
    "trainer.optimizer.step": "clipping and optimizer",
    "trainer.optimizer.zero_grad": "clipping and optimizer",
    "accelerator.clip_grad_norm_": "clipping and optimizer",
    "player.play": "playing: the policy and the rest",
    "player.play_episodes": "playing: the policy and the rest",
    "player.stepper.step": "playing: environments",
    "judge": "advantages",
    "update": "forward and loss",
    "optimizer.step": "clipping and optimizer",
}
"""Where the functions of a part are, seen from an algorithm that has them."""
OF_MODULES = {"score_rollouts": "rewards", "see": "old log-probabilities and values", "rows_at": "data"}
"""What an algorithm's file imports, and the part that it is."""

Part = str | Callable[[dict[str, Any]], str | None]
"""What a call is part of, or a function of its keyword arguments that tells; None for what it is called from."""


class Clock:
    """Seconds, calls and the highest memory of each part; what a part takes within another is not the other's.

    cuda: wait for the GPU before each look, or its work would count where it is waited for.
    now: tells the time in seconds.
    """

    def __init__(self, *, cuda: bool = False, now: Callable[[], float] = time.perf_counter) -> None:
        self.cuda, self.now = cuda, now
        self.seconds: dict[str, float] = {}
        self.calls: Counter[str] = Counter()
        self.memory: dict[str, list[float]] = {}
        self.watches_memory = False
        self.within: list[str] = []
        self.thread = threading.get_ident()
        self.since = now()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens in here for a part."""
        self._look()
        depth = len(self.within)
        self.within.append(name)
        try:
            yield
        finally:
            self._look()
            del self.within[depth:]
            if not self.watches_memory:
                self.calls[name] += 1

    def around(self, function: Callable[..., Any], part: Part) -> Callable[..., Any]:
        """Return a function that counts for a part where it is called within a step, and else is only itself."""

        @wraps(function)
        def counted(*arguments: Any, **options: Any) -> Any:
            name = None
            if self.within and threading.get_ident() == self.thread:
                name = part if isinstance(part, str) else part(options)
            if name is None:
                return function(*arguments, **options)
            with self.part(name):
                return function(*arguments, **options)

        return counted

    def _look(self) -> None:
        if self.cuda:
            import torch

            torch.cuda.synchronize()
        if self.watches_memory:
            peaks = highest_memory(cuda=self.cuda)
            if self.within:
                before = self.memory.setdefault(self.within[-1], peaks)
                self.memory[self.within[-1]] = [max(pair) for pair in zip(before, peaks, strict=True)]
        elif self.within:
            part = self.within[-1]
            self.seconds[part] = self.seconds.get(part, 0.0) + self.now() - self.since
        self.since = self.now()


class Profiled:
    """An algorithm that can be run as the one inside, and tells in a file where its steps went.

    path: of the file; it is written when enough steps were seen, and again by `finish`.
    """

    def __init__(self, algorithm: Algorithm, path: str | Path) -> None:
        import torch

        least = WARM_UP + 1 + WATCHED + TRACED
        if algorithm.total_steps < least:
            raise ValueError(
                f"a profile needs at least {least} steps, of which {WARM_UP} warm up, got {algorithm.total_steps}: "
                "raise the steps, or leave the profile out"
            )
        self.algorithm, self.path = algorithm, Path(path)
        self.step, self.total_steps = algorithm.step, algorithm.total_steps
        self.cuda = torch.cuda.is_available()
        self.clock = Clock(cuda=self.cuda)
        self.timed: list[int] = []
        self.rollout = 1  # steps on the same completions, at most
        self.traced = 0
        self.operators: dict[str, tuple[float, int]] = {}
        self.outside: dict[str, list[float]] = {}
        self.saving: float | None = None

    def steps(self) -> Iterator[dict[str, float]]:
        """Take the steps of the algorithm, and measure some of them."""
        steps = self._noting_saves(self.algorithm.steps())
        yield from self._some(steps, WARM_UP, lambda: next(steps, None))
        with measured(self.algorithm, self.clock):
            later = max(WATCHED, self.rollout) + max(TRACED, self.rollout)
            left = max(1, self.total_steps - self.step - later)
            yield from self._some(steps, min(TIMED, left), lambda: self._timed(steps))
            self.clock.watches_memory = True
            yield from self._some(steps, WATCHED, lambda: self._timed(steps))
        yield from self._some(steps, TRACED, lambda: self._traced(steps))
        self.finish()
        yield from steps

    def state(self) -> dict[str, Any]:
        """Return the algorithm's state; from here to the next step is a checkpoint."""
        self.saving = time.perf_counter()
        return self.algorithm.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        self.algorithm.load_state(state)
        self.step = self.algorithm.step

    def examples(self) -> list[dict[str, Any]]:
        """Return the algorithm's examples."""
        return self.algorithm.examples()

    def evaluating(self, evaluate: Callable[[], dict[str, float]]) -> Callable[[], dict[str, float]]:
        """Return an evaluation that is timed."""

        def timed() -> dict[str, float]:
            started = time.perf_counter()
            result = evaluate()
            self.outside.setdefault("evaluation", []).append(time.perf_counter() - started)
            return result

        return timed

    def finish(self) -> str:
        """Write the file, and return what is in it."""
        text = told(self)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(text, encoding="utf-8")
        return text

    def _noting_saves(self, steps: Iterator[dict[str, float]]) -> Iterator[dict[str, float]]:
        for metrics in steps:
            self.step = self.algorithm.step
            yield metrics
            if self.saving is not None:
                self.outside.setdefault("checkpoint", []).append(time.perf_counter() - self.saving)
                self.saving = None

    def _some(self, steps: Any, least: int, take: Callable[[], Any]) -> Iterator[dict[str, float]]:
        """Take some steps, and go on until all updates on the current rollouts are taken, or there is no step left."""
        taken = since = 0
        while taken < least or since:
            metrics = take()
            if metrics is None:
                return
            taken, since = taken + 1, since + 1
            if not (hasattr(self.algorithm, "rollouts") and getattr(self.algorithm, "update", 0)):
                self.rollout, since = max(self.rollout, since), 0
            yield metrics

    def _timed(self, steps: Iterator[dict[str, float]]) -> dict[str, float] | None:
        with self.clock.part(REST):
            metrics = next(steps, None)
        if metrics is not None and not self.clock.watches_memory:
            self.timed.append(self.step)
        return metrics

    def _traced(self, steps: Iterator[dict[str, float]]) -> dict[str, float] | None:
        """Take a step under torch's profiler, which makes it slower: good for shares, and not for seconds."""
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it tells on stderr when it starts and stops
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        with profile(activities=activities, acc_events=True) as trace:
            metrics = next(steps, None)
        self.traced += metrics is not None
        for event in trace.key_averages():
            seconds, calls = self.operators.get(event.key, (0.0, 0))
            spent = event.self_device_time_total if self.cuda else event.self_cpu_time_total
            self.operators[event.key] = (seconds + spent / 1e6, calls + event.count)
        return metrics


@contextmanager
def measured(algorithm: Any, clock: Clock) -> Iterator[None]:
    """Lay the clock around the parts of an algorithm, and take it away again."""
    with ExitStack() as stack:
        for owner, name, part in list(parts_of(algorithm, clock)):
            stack.enter_context(replaced(owner, name, clock.around(getattr(owner, name), part)))
        yield


def parts_of(algorithm: Any, clock: Clock) -> Iterator[tuple[Any, str, Part]]:
    """Yield what holds a function, the function's name there, and the part of a step that it is."""
    import torch

    def through_sampler(options: dict[str, Any]) -> str | None:
        if clock.within[-1] != SAMPLING:
            return None
        return f"sampling: {'prompts' if options.get('past_key_values') is None else 'tokens'} through the model"

    def with_gradient(options: dict[str, Any]) -> str | None:
        return "forward" if torch.is_grad_enabled() else None

    special: dict[str, Part] = {
        "sampler.model.forward": through_sampler,
        "trainer.unwrapped.forward": with_gradient,
    }
    yield torch.Tensor, "backward", "backward"
    for path, part in {**OF_ALGORITHMS, **special}.items():
        *owners, name = path.split(".")
        owner = attribute(algorithm, owners)
        if callable(getattr(owner, name, None)):
            yield owner, name, part
    module = sys.modules[type(algorithm).__module__]
    for name, part in OF_MODULES.items():
        if hasattr(module, name):
            yield module, name, part
    for path in ("prompts", "data", "data.examples"):
        kind = type(attribute(algorithm, path.split(".")))
        if hasattr(kind, "select"):
            yield kind, "select", "data"


def attribute(thing: Any, names: Sequence[str]) -> Any:
    """Return an attribute of an attribute, and so on; None where there is none."""
    for name in names:
        thing = getattr(thing, name, None)
    return thing


@contextmanager
def replaced(owner: Any, name: str, by: Any) -> Iterator[None]:
    """Put something else in an attribute's place for a while."""
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, by)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def highest_memory(*, cuda: bool) -> list[float]:
    """Return the most memory since the last call, in MB: resident, where the system tells, and allocated on the GPU.

    What is free is given back to the system, or it would count for whatever comes next.
    """
    peaks = []
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if "VmHWM" in lines:
            peaks.append(int(lines["VmHWM"].split()[0]) / 1024)
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim:
                trim(0)
            reset.write_text("5")
    if cuda:
        import torch

        peaks.append(torch.cuda.max_memory_allocated() / 2**20)
        torch.cuda.reset_peak_memory_stats()
    return peaks


def told(profiled: Profiled) -> str:
    """Say in words and tables what was measured."""
    clock, steps = profiled.clock, len(profiled.timed)
    if not steps:
        return f"No step was measured: too few were taken after the {WARM_UP} that warm up.\n"
    whole = sum(clock.seconds.values())
    groups: dict[str, float] = {}
    for part, seconds in clock.seconds.items():
        group = part.split(":")[0]
        groups[group] = groups.get(group, 0.0) + seconds
    shares = [f"{name} {100 * groups[name] / whole:.0f} %" for name in sorted(groups, key=groups.__getitem__)[:-5:-1]]
    lines = [
        f"A step takes {1000 * whole / steps:.1f} ms, the mean of steps {profiled.timed[0]} to {profiled.timed[-1]}: "
        f"{', '.join(shares)}.",
        *told_of_memory(profiled),
        "",
        *table(["part of a step", "ms", "share, %", "calls", *memory_names(profiled)], rows_of_parts(profiled)),
    ]
    if profiled.outside:
        lines += ["", "Between steps, over the run so far:"]
        for name, seconds in profiled.outside.items():
            lines.append(f"  {name}: {len(seconds)} x {1000 * sum(seconds) / len(seconds):.1f} ms")
    if profiled.traced:
        where = "the GPU" if profiled.cuda else "the processor"
        lines += [
            "",
            f"Operators by their own time on {where}, of {profiled.traced} further steps under torch's profiler,",
            "which makes a step slower, and many small operators seem more than they are:",
            "",
            *table(["operator", "share, %", "calls a step"], rows_of_operators(profiled)),
        ]
    if profiled.cuda:
        lines += ["", "Each look at the clock waited for the GPU, so that a step here is slower than one left alone."]
    return "\n".join(lines) + "\n"


def told_of_memory(profiled: Profiled) -> list[str]:
    """Say which part needs the most memory, of each kind that is known."""
    lines = []
    for column, name in enumerate(memory_names(profiled)):
        part = max(profiled.clock.memory, key=lambda part: profiled.clock.memory[part][column])
        peaks = [each[column] for each in profiled.clock.memory.values()]
        lines.append(
            f"The most memory, {max(peaks):.0f} MB {name.split(',')[0]}, is held in: {part}; "
            f"the part that needs least has {min(peaks):.0f} MB."
        )
    return lines


def memory_names(profiled: Profiled) -> list[str]:
    """Return the names of the columns of memory that there are."""
    known = next(iter(profiled.clock.memory.values()), [])
    names = ["resident, MB", "on the GPU, MB"]
    return names[: len(known)] if len(known) != 1 or not profiled.cuda else names[1:]


def rows_of_parts(profiled: Profiled) -> Iterator[list[str]]:
    """Yield the parts, those that take longest first, and their sum."""
    clock, steps = profiled.clock, len(profiled.timed)
    whole = sum(clock.seconds.values())
    for part in sorted(clock.seconds, key=clock.seconds.__getitem__, reverse=True):
        seconds = clock.seconds[part]
        memory = [f"{megabytes:.0f}" for megabytes in clock.memory.get(part, [])]
        numbers = [f"{1000 * seconds / steps:.1f}", f"{100 * seconds / whole:.1f}", f"{clock.calls[part] / steps:.1f}"]
        yield [part, *numbers, *memory]
    yield ["the whole step", f"{1000 * whole / steps:.1f}", "100.0"]


def rows_of_operators(profiled: Profiled) -> Iterator[list[str]]:
    """Yield the operators that take longest."""
    whole = sum(seconds for seconds, _ in profiled.operators.values()) or 1.0
    longest = sorted(profiled.operators.items(), key=lambda each: each[1][0], reverse=True)[:OPERATORS]
    for name, (seconds, calls) in longest:
        yield [name[:60], f"{100 * seconds / whole:.1f}", f"{calls / profiled.traced:.1f}"]


def table(head: list[str], rows: Iterator[list[str]]) -> list[str]:
    """Align a table for the eye: its first column left, the others right."""
    lines = [head, *([*row, *[""] * (len(head) - len(row))] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]

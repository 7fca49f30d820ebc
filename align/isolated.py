"""Rewards in processes of their own: one that hangs, crashes or eats memory costs its sample and not the run.

    reward = isolated("my_rewards.py:runs_the_tests", deadline=5.0)

The worker is started at the first call and stays; one that misses its deadline is killed with all that it started, and
a new one takes its place. It sees few variables of the environment: no keys and no tokens.

These are limits, no sandbox. Nothing walls off the network, nor the files and the other processes of the user; and a
process that leaves its group and empties its environment is not found again. Code that nobody trusts needs a container
around it.
"""

from __future__ import annotations

import json
import math
import os
import queue
import re
import select
import signal
import subprocess
import sys
import time
import uuid
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from align.reward_faults import plain
from align.reward_worker import MARK, kill_started
from align.rewards import RewardError, RewardFunction

VISIBLE = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LC_\w+|TZ|TMPDIR|VIRTUAL_ENV|LD_LIBRARY_PATH|SSL_CERT_\w+"
    r"|(PYTHON|CONDA|XDG|HF|OMP|MKL|OPENBLAS|CUDA|NVIDIA|TOKENIZERS|TRANSFORMERS)\w*"
)
"""Variables of the environment that a worker sees, whose names hold no word of SECRET."""
SECRET = re.compile("TOKEN(?!IZERS)|KEY|SECRET|PASSW|CREDENTIAL|AUTH")
START = 60.0
"""Seconds in which a worker must have imported its reward."""


class IsolationError(RuntimeError):
    """What became of one completion in its worker; stands in the place of its reward."""


class WorkerEndedError(IsolationError):
    """The worker did not survive the completion: it missed its deadline and was killed, or crashed."""


def isolated(
    name: str,
    *,
    deadline: float = 10.0,
    memory_megabytes: int | None = 4096,
    file_megabytes: int | None = 1024,
    environment: Sequence[str] = (),
    workers: int = 1,
) -> RewardFunction:
    """Make a reward of one that is importable by name, called in another process on one completion at a time.

    What it raises, a missed deadline, too much memory and a crash are faults of that sample, told by name and treated
    as `on_error` of `align.rewards.score` says. Arguments travel as JSON, and only those that the reward takes.

    Args:
        name: `module:function` or `path.py:function`, a reward of the common signature, sync or async.
        deadline: seconds for one completion.
        memory_megabytes: largest address space of a worker, in which libraries count too; None sets no limit.
        file_megabytes: largest file that it, or what it starts, may write; None sets no limit.
        environment: names of further variables that it sees, such as that of a key.
        workers: processes that share the completions of a call.

    Raises:
        ValueError: if an option is out of its range, or the name is none that can be imported.
        RewardError: at the first call, if the reward cannot be loaded.
    """
    name = _absolute(name)
    if not (deadline > 0 and math.isfinite(deadline)):
        raise ValueError(f"deadline must be a number of seconds above 0, got {deadline}")
    if memory_megabytes is not None and memory_megabytes < 64:
        raise ValueError(f"memory_megabytes must be at least 64, which Python itself needs, got {memory_megabytes}")
    if file_megabytes is not None and file_megabytes < 1:
        raise ValueError(f"file_megabytes must be at least 1, got {file_megabytes}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for _ in range(workers):
        idle.put(_Worker(name, deadline, (memory_megabytes or 0, file_megabytes or 0), frozenset(environment)))

    def one(arguments: Mapping[str, Any]) -> float | IsolationError | None:
        worker = idle.get()
        try:
            return worker.ask(arguments)
        finally:
            idle.put(worker)

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Any]:
        everything = {"prompts": prompts, "completions": completions, **columns}
        each = [{key: [values[row]] for key, values in everything.items()} for row in range(len(completions))]
        if workers == 1:
            return [one(arguments) for arguments in each]
        with ThreadPoolExecutor(workers) as threads:
            return list(threads.map(one, each))

    reward.__name__ = name.rpartition(":")[2]
    return reward


def _absolute(name: str) -> str:
    """Return a name that means the same in any working directory."""
    place, _, attribute = name.rpartition(":")
    if not place or not attribute.isidentifier():
        raise ValueError(f"expected module:function or path.py:function, got {name!r}")
    if not place.endswith(".py"):
        return name
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"{place}: no such file")
    return f"{path}:{attribute}"


class _Worker:
    """A process that is started when it is first needed, and again after it was killed."""

    def __init__(self, name: str, deadline: float, megabytes: tuple[int, int], environment: frozenset[str]) -> None:
        self.name, self.deadline, self.megabytes, self.environment = name, deadline, megabytes, environment
        self.takes: list[str] | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.unread = b""
        self.end: weakref.finalize[Any, Any] | None = None

    def ask(self, arguments: Mapping[str, Any]) -> float | IsolationError | None:
        """Return the reward of one completion, or what became of it."""
        process = self.process or self._start()
        taken = {name: value for name, value in arguments.items() if self.takes is None or name in self.takes}
        try:
            request = json.dumps({"deadline": self.deadline, "arguments": taken}).encode() + b"\n"
        except TypeError as error:
            advice = "write it as text, or let the reward name the columns that it takes"
            raise RewardError(f"what an isolated reward is sent travels as JSON ({error}): {advice}") from None
        try:
            assert process.stdin is not None
            process.stdin.write(request)
            process.stdin.flush()
            answer = self._answer(self.deadline)
        except TimeoutError:
            self.stop()
            return WorkerEndedError(f"it took longer than {self.deadline:g} s and was killed")
        except (BrokenPipeError, EOFError):
            return WorkerEndedError(f"its process ended {self._how_it_ended()}")
        return IsolationError(answer["fault"]) if "fault" in answer else answer["value"]

    def stop(self) -> None:
        """Kill the process and all that it started."""
        if self.end is not None:
            self.end()
        self.process, self.unread = None, b""

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "align.reward_worker", self.name, *map(str, self.megabytes)]
        mark = uuid.uuid4().hex
        seen = {name: value for name, value in os.environ.items() if name in self.environment or _is_plain(name)}
        path = os.pathsep.join(place or os.getcwd() for place in sys.path)  # what can be imported here can be there
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**seen, "PYTHONPATH": path, MARK: mark},
            start_new_session=True,  # a group of its own, so that what it starts can be killed with it
        )
        self.process, self.unread = process, b""
        self.end = weakref.finalize(self, _kill, process, mark)
        try:
            loaded = self._answer(START)
        except TimeoutError:
            self.stop()
            raise RewardError(f"reward {self.name!r} was not loaded within {START:g} s") from None
        except EOFError:
            raise RewardError(
                f"reward {self.name!r}: its process ended {self._how_it_ended()} while it was loaded: try it alone, "
                "or raise memory_megabytes, in which libraries count too"
            ) from None
        if "fault" in loaded:
            self.stop()
            raise RewardError(f"reward {self.name!r} cannot be loaded: {plain(loaded['fault'], 400)}")
        self.takes = loaded["takes"]
        return process

    def _answer(self, seconds: float) -> dict[str, Any]:
        """Return the next line of the process, parsed."""
        assert self.process is not None and self.process.stdout is not None
        stream, until = self.process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self.unread:
            ready, _, _ = select.select([stream], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise TimeoutError
            read = os.read(stream, 65536)
            if not read:
                raise EOFError
            self.unread += read
        line, _, self.unread = self.unread.partition(b"\n")
        return json.loads(line)

    def _how_it_ended(self) -> str:
        assert self.process is not None
        process = self.process
        try:
            code = process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:  # it closed its streams and lives on
            self.stop()
            return "its answers"
        self.stop()
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def _is_plain(name: str) -> bool:
    """Tell whether a variable of the environment may be seen by code that a model wrote."""
    return VISIBLE.fullmatch(name) is not None and SECRET.search(name) is None


def _kill(process: subprocess.Popen[bytes], mark: str) -> None:
    kill_started(mark)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has ended, and so has all that it started
        process.poll()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except BrokenPipeError:  # what was still to be written has no reader
                continue

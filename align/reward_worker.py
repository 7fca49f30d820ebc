"""The other side of `align.isolated`: a process that loads one reward and calls it on one completion at a time.

    python -m align.reward_worker my_rewards.py:reward MEGABYTES MEGABYTES_OF_A_FILE

Lines of JSON come in on stdin, {"deadline": seconds, "arguments": {...}}, and go out on what was stdout: {"value": v}
or {"fault": words}; the first, {"takes": names}, says that the reward is loaded and what it wants to be sent. What the
reward itself prints goes to stderr. Only the standard library is imported here, so that the worker is as small and as
quick to start as the reward lets it be.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import json
import numbers
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

MARK = "ALIGN_REWARD_WORKER"
"""Environment variable by which a worker is known, and whatever it starts."""


def load(name: str) -> Callable[..., Any]:
    """Import `module:function` or `path.py:function`."""
    place, _, attribute = name.rpartition(":")
    if not place.endswith(".py"):
        return getattr(importlib.import_module(place), attribute)
    spec = importlib.util.spec_from_file_location(f"align_reward_{Path(place).stem}", place)
    assert spec is not None and spec.loader is not None  # of a name that ends in .py there is always one
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return getattr(module, attribute)


def call(function: Callable[..., Any], arguments: dict[str, Any]) -> float | None:
    """Call a reward on one completion, awaiting it if it is async."""
    result = function(**arguments)
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    values = result.tolist() if hasattr(result, "tolist") else result
    if not isinstance(values, list | tuple) or len(values) != 1:
        raise TypeError(f"expected a list of 1 number for 1 completion, got {values!r:.80}")
    value = values[0].item() if getattr(values[0], "ndim", None) == 0 else values[0]
    if not (value is None or isinstance(value, numbers.Real)):
        raise TypeError(f"expected a number or None, got {value!r:.80}")
    return None if value is None else float(value)


def taken_by(function: Callable[..., Any]) -> list[str] | None:
    """Return the names of the arguments that a reward takes, None if it takes them all."""
    parameters = inspect.signature(function).parameters.values()
    every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return None if every else [parameter.name for parameter in parameters]


def told(error: BaseException) -> str:
    """Say what was raised and where, in a line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"it raised {' '.join(''.join(traceback.format_exception_only(error)).split())[:200]}{place}"


def limit_sizes(memory: int, file: int) -> None:
    """Let allocations fail beyond megabytes of address space, writes beyond those of a file, and leave no core dump.

    0 sets no limit. What is started inherits them.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for limit, megabytes in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, file)):
        if megabytes:
            resource.setrlimit(limit, (megabytes * 2**20, megabytes * 2**20))


def limit_time(seconds: float) -> None:
    """Let the kernel end this process once it has computed that much more, also where no Python runs any longer."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 2, hard))


def die_with(parent: int, mark: str) -> None:
    """End this process and what it started once its parent is gone, killed perhaps; else the parent itself does it."""
    while os.getppid() == parent:
        time.sleep(1.0)
    kill_started(mark)
    os.killpg(0, signal.SIGKILL)


def kill_started(mark: str) -> None:
    """Kill what a worker started, also what left its group: all that inherited its mark, but not this process."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # of another user, or gone
            if f"{MARK}={mark}\0".encode() in environment.read_bytes() and environment.parent.name != str(os.getpid()):
                os.kill(int(environment.parent.name), signal.SIGKILL)


def serve(name: str, requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more."""

    def answer(**words: Any) -> None:
        answers.write(json.dumps(words) + "\n")
        answers.flush()

    try:
        function = load(name)
        takes = taken_by(function)
    except (Exception, SystemExit) as error:
        answer(fault=told(error))
        return
    answer(takes=takes)
    for line in requests:
        request = json.loads(line)
        limit_time(request["deadline"])
        try:
            value = call(function, request["arguments"])
        except (Exception, SystemExit) as error:  # whatever the user's code raises is told on the other side
            answer(fault=told(error))
        else:
            answer(value=value)


def main() -> None:
    """Serve on the standard streams."""
    name, memory, file = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a reward that prints must not speak in our place
    requests = os.fdopen(os.dup(0), "r")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    limit_sizes(int(memory), int(file))
    threading.Thread(target=die_with, args=(os.getppid(), os.environ[MARK]), daemon=True).start()
    serve(name, requests, answers)


if __name__ == "__main__":
    main()

"""Children that can be killed at the cost of a fork: a server imports once, and forks a child for each job.

    forks = Forks(log, "recipes.grpo_walk")
    pid = forks.start("recipes.grpo_walk:main", arguments=["--steps", "2"])
    os.kill(pid, signal.SIGKILL)
    code = forks.wait()

As a script it is the server: a line of JSON on stdin for each job, the child's pid and then its exit code on stdout.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


class Forks:
    """Runs functions in forked children, one after another."""

    def __init__(
        self, log: Path, *modules: str, directory: Path | None = None, environment: dict[str, str] | None = None
    ) -> None:
        self.log, self.directory = log, directory or Path.cwd()
        self.running: int | None = None
        environment = environment or dict(os.environ)
        paths = [str(ROOT), *environment.get("PYTHONPATH", "").split(os.pathsep)]
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.forks", *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )  # fmt: skip

    def start(self, function: str, **arguments: Any) -> int:
        """Call `module:function` with keyword arguments in a child; return its pid."""
        assert self.server.stdin and self.server.stdout
        if self.running:  # of a test that failed: its exit code must not be taken for the next child's
            with suppress(ProcessLookupError):
                os.kill(self.running, signal.SIGKILL)
            self.wait()
        self.log.write_text("")
        job = {"call": function, "with": arguments, "log": str(self.log), "directory": str(self.directory)}
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        self.running = int(self.server.stdout.readline())
        return self.running

    def wait(self) -> int:
        """Wait for the child; return its exit code, negative for a signal."""
        assert self.server.stdout
        code, self.running = int(self.server.stdout.readline()), None
        return code

    def do(self, function: str, **arguments: Any) -> int:
        """Start a job and wait for it."""
        self.start(function, **arguments)
        return self.wait()

    @property
    def said(self) -> str:
        """What the last child wrote."""
        return self.log.read_text()

    def close(self) -> None:
        """End the server."""
        assert self.server.stdin
        self.server.stdin.close()
        self.server.wait(timeout=30)


def child(job: dict[str, Any]) -> int:
    """Do one job in its directory with its output in a file; what it returns, or exits with, is the exit code."""
    os.chdir(job["directory"])
    with open(job["log"], "a") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            module, _, name = job["call"].partition(":")
            return int(getattr(importlib.import_module(module), name)(**job["with"]) or 0)
        except SystemExit as exit:
            return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        except BaseException:
            traceback.print_exc()
            return 1


def answer(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def serve(modules: list[str]) -> None:
    """Fork a child for each line of stdin. It runs one thread: the locks of another would stay shut in a fork."""
    import torch

    torch.set_num_threads(1)
    for name in modules:
        module = importlib.import_module(name)
        getattr(module, "warm", lambda: None)()  # what else is slow the first time
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os._exit(child(json.loads(line)))
        answer(pid)
        answer(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    serve(sys.argv[1:])

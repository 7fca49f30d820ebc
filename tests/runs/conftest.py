"""What the tests of runs share: the toy algorithm, and children that can be killed at the cost of a fork."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


class Children:
    """Runs jobs of toy_algorithm.py in forked children, one after another."""

    def __init__(self, log: Path) -> None:
        self.log = log
        paths = [str(HERE.parent.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        self.server = subprocess.Popen(
            [sys.executable, str(HERE / "toy_algorithm.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )  # fmt: skip

    def start(self, do: str, **arguments: Any) -> int:
        """Start a job; return the child's pid."""
        assert self.server.stdin and self.server.stdout
        self.log.write_text("")
        self.server.stdin.write(json.dumps({"do": do, "with": arguments, "log": str(self.log)}) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def wait(self) -> int:
        """Wait for the child; return its exit code, negative for a signal."""
        assert self.server.stdout
        return int(self.server.stdout.readline())

    def do(self, do: str, **arguments: Any) -> int:
        """Start a job and wait for it."""
        self.start(do, **arguments)
        return self.wait()

    @property
    def said(self) -> str:
        """What the last child wrote."""
        return self.log.read_text()


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory):
    served = Children(tmp_path_factory.mktemp("children") / "log")
    yield served
    assert served.server.stdin
    served.server.stdin.close()
    served.server.wait(timeout=30)

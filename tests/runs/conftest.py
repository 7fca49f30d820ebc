"""What the tests of runs share: the toy algorithm, in children that can be killed at the cost of a fork."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.forks import Forks

sys.path.insert(0, str(Path(__file__).parent))


class Children(Forks):
    """Runs jobs of toy_algorithm.py by the names they have there."""

    def start(self, do: str, **arguments: Any) -> int:
        return super().start(f"tests.runs.toy_algorithm:{do}", **arguments)


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory):
    served = Children(tmp_path_factory.mktemp("children") / "log", "tests.runs.toy_algorithm")
    yield served
    served.close()

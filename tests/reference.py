"""Numbers that other people's libraries computed; tests/reference/README.md says how."""

import json
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "reference"


@cache
def alignment_cases() -> dict[str, Any]:
    """Return the inputs and results of the losses on language models."""
    return json.loads((FOLDER / "alignment_loss_cases.json").read_text())


@cache
def classic_cases() -> dict[str, Any]:
    """Return the cases of classic RL by name."""
    return {case["name"]: case for case in json.loads((FOLDER / "classic_rl_cases.json").read_text())}


def classic_case(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the inputs and the expected results of one case."""
    case = classic_cases()[name]
    return case["inputs"], case["expected"]

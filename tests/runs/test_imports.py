"""What reads a run needs none of what makes one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MAKERS = ("gymnasium", "transformers", "accelerate", "datasets", "peft", "align.grpo", "align.sft")


@pytest.mark.parametrize(("module", "absent"), [("align.runs", ("torch", *MAKERS)), ("align.runs.run", MAKERS)])
def test_importing_stays_light(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; raise SystemExit(str([name for name in {absent} if name in sys.modules] or ''))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.stderr.strip() == ""


def test_nothing_here_can_unpickle() -> None:
    for path in (ROOT / "align" / "runs").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "pickle" not in text.replace("unpickled", "") and "torch.load" not in text, path.name

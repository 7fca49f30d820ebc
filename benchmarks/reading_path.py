"""The files that a reader opens on the way of one GRPO step, from the recipe to the gradient step.

    python -m benchmarks.reading_path

Runs one tiny step under a profiler and collects every file of the project in which a function ran. The recipe itself is
counted too, though its part is over when the step begins.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("align", "classic_rl", "recipes")
RECIPE = ROOT / "recipes/grpo_walk.py"
MOST_FILES, MOST_LINES = 10, 2_000


def files_run_by(do: Callable[[], object]) -> set[Path]:
    """Return the project's files in which a function runs while `do` does; what an import runs is no function."""
    names: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            names.add(frame.f_code.co_filename)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        do()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # pyright: ignore[reportArgumentType]
    rooms = [ROOT / room for room in ROOMS]
    return {path for path in map(Path, names) if any(room in path.parents for room in rooms)}


def reading_path() -> dict[str, int]:
    """Return the lines of each file on the way of one GRPO step of the recipe, by its path in the project."""
    from accelerate import Accelerator

    from align.config import GRPOConfig, SamplingConfig
    from align.rewards import Reward
    from recipes import grpo_walk, walk

    with tempfile.TemporaryDirectory() as directory:
        warm = Path(directory)
        walk.walk_model(seed=0).save_pretrained(warm)
        walk.walk_tokenizer().save_pretrained(warm)
        config = GRPOConfig(steps=1, prompts_per_step=2, sampling=SamplingConfig(max_new_tokens=4))
        algorithm, _ = grpo_walk.build(grpo_walk.Options(grpo=config), warm, Accelerator(cpu=True))
    # A model that has learned nothing earns nothing, and where all rewards are equal the loss is never asked.
    algorithm.rewards = [Reward(rising)]
    files = files_run_by(lambda: next(algorithm.steps())) | {RECIPE}
    return {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sorted(files)}


def rising(prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
    """Give each completion more than the one before."""
    return [float(row) for row in range(len(completions))]


def main() -> None:
    """Print the files, their lines and the totals."""
    files = reading_path()
    for name, lines in files.items():
        print(f"{lines:6}  {name}")
    print(f"{sum(files.values()):6}  lines in {len(files)} files; at most {MOST_LINES} in {MOST_FILES}")


if __name__ == "__main__":
    main()

"""The files that a reader opens on the way from a recipe to its gradient step, of GRPO and of RLHF's PPO.

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
LIMITS = {"grpo": (10, 2_000), "ppo": (12, 2_400)}
"""The most files and lines on the way of each."""


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


def reading_path(name: str) -> dict[str, int]:
    """Return the lines of each file on the way of one step of recipes/<name>_walk.py, by its path in the project."""
    from accelerate import Accelerator

    from align.config import GRPOConfig, PPOConfig, SamplingConfig
    from align.rewards import Reward
    from recipes import grpo_walk, ppo_walk, walk

    few: dict[str, Any] = {"steps": 1, "prompts_per_step": 2, "sampling": SamplingConfig(max_new_tokens=4)}
    with tempfile.TemporaryDirectory() as directory:
        warm, accelerator = Path(directory), Accelerator(cpu=True)
        walk.walk_model(seed=0).save_pretrained(warm)
        walk.walk_tokenizer().save_pretrained(warm)
        if name == "grpo":
            algorithm, _ = grpo_walk.build(grpo_walk.Options(grpo=GRPOConfig(**few)), warm, accelerator)
        else:
            algorithm, _ = ppo_walk.build(ppo_walk.Options(ppo=PPOConfig(**few)), warm, accelerator)
    # A model that has learned nothing earns nothing, and where all rewards are equal GRPO's loss is never asked.
    algorithm.rewards = [Reward(rising)]
    files = files_run_by(lambda: next(algorithm.steps())) | {ROOT / f"recipes/{name}_walk.py"}
    return {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sorted(files)}


def rising(prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
    """Give each completion more than the one before."""
    return [float(row) for row in range(len(completions))]


def main() -> None:
    """Print the files, their lines and the totals."""
    for recipe, (most_files, most_lines) in LIMITS.items():
        files = reading_path(recipe)
        for name, lines in files.items():
            print(f"{lines:6}  {name}")
        print(f"{sum(files.values()):6}  lines in {len(files)} files; at most {most_lines} in {most_files}")


if __name__ == "__main__":
    main()

"""Tokens a second of RLHF's PPO beside those of GRPO, on the walk task, in turns.

    python -m benchmarks.ppo_beside_grpo              a few minutes
    python -m benchmarks.ppo_beside_grpo --quick      half a minute: does it still run?

All start from one warm-up and sample 128 completions a rollout, at the settings of their recipes; a round is one turn
of each, in one process. GRPO takes one update of a rollout and PPO four; PPO asks its reference and its critic too. It
is measured a second time with a value model of the policy's size. Tokens generated are those sampled, tokens trained
those that gradients went through, so one that two epochs go through counts twice. GRPO leaves out rows without an
advantage, so its trained tokens become fewer along a run. Seconds are those of the one thread on its core, whatever
else the machine does. No peer is here: TRL 1.16 has no PPO.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.alternate import machine, spread, table, use_one_thread
from benchmarks.grpo_walk_vs_trl import Task, load, warm_up_apart


def algorithms(warm: Path) -> dict[str, Any]:
    """Return GRPO, PPO and PPO with a value model, each on its own copy of the warm-up's weights."""
    from accelerate import Accelerator

    from align.models import load_model
    from align.reward_head import RewardModel, reward_model_of
    from recipes import grpo_walk, ppo_walk

    accelerator = Accelerator(cpu=True)
    value_model = RewardModel(reward_model_of(load_model(warm), seed=0))
    grpo, _ = grpo_walk.build(grpo_walk.Options(), warm, accelerator)
    ppo, _ = ppo_walk.build(ppo_walk.Options(), warm, accelerator)
    with_model, _ = ppo_walk.build(ppo_walk.Options(), warm, accelerator, value_model=value_model)
    return {"GRPO": grpo, "PPO": ppo, "PPO, a value model": with_model}


def turn(steps: Iterator[dict[str, float]], rollouts: int, updates: int) -> dict[str, float]:
    """Take some rollouts with all their updates; return tokens generated and trained, and seconds, a rollout."""
    started, lines = time.process_time(), [next(steps) for _ in range(rollouts * updates)]
    seconds = time.process_time() - started
    total = {name: sum(line.get(f"tokens/{name}", 0.0) for line in lines) for name in ("generated", "trained")}
    return {name: tokens / seconds for name, tokens in total.items()} | {"seconds": seconds / rollouts}


def main() -> None:
    """Measure in turns and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two rounds of one rollout: does it still run?")
    quick = parser.parse_args().quick
    use_one_thread()
    rounds, rollouts = (2, 1) if quick else (8, 3)
    with tempfile.TemporaryDirectory() as directory:
        task = Task(
            seed=0, steps=1, steps_per_turn=1, warm_up_steps=20 if quick else 250, weights=Path(directory) / "w.pt"
        )
        warm_up_apart(task)
        for part in load(task):
            part.save_pretrained(directory)
        sides = algorithms(Path(directory))
    running = {name: side.steps() for name, side in sides.items()}
    updates = {
        name: 1 if name == "GRPO" else side.config.epochs * side.config.minibatches for name, side in sides.items()
    }
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, steps in running.items():
            measured[name].append(turn(steps, rollouts, updates[name]))
    print(f"{machine(('torch', 'transformers'))}\n")
    rows = []
    for name, turns in measured.items():
        ratio = [ours["generated"] / beside["generated"] for ours, beside in zip(turns, measured["GRPO"], strict=True)]
        cells = [
            spread([each[kind] for each in turns], digits)
            for kind, digits in (("seconds", 2), ("generated", 0), ("trained", 0))
        ]
        rows.append([name, *cells, spread(ratio, 2)])
    print(table(["", "seconds a rollout", "generated a second", "trained a second", "generated, to GRPO"], rows))


if __name__ == "__main__":
    main()

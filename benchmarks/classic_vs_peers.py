"""Classic agents against Stable-Baselines3 and CleanRL on CartPole-v1: steps a second, and time until it is solved.

    pip install -e '.[classic,peers]' -c constraints.txt
    git clone https://github.com/vwxyzjn/cleanrl ../cleanrl
    python -m benchmarks.classic_vs_peers --cleanrl ../cleanrl                  half an hour
    python -m benchmarks.classic_vs_peers --rounds 1 --steps 2000 --seeds 0     some minutes: does it still run?

Sides take turns, every turn in a process of its own with one thread. Seconds are the processor's, which other programs
disturb less than the clock. In `speed` both sides have the peer's hyper-parameters: for Stable-Baselines3 those that
its zoo has tuned and, in rows of their own, its defaults; for CleanRL its defaults. Eight seeds at once are compared
with one run of the peer, by the steps of all of them together. In `solve` each has its own, and plays 100 greedy
episodes about every 2,048 steps, off the clock; CartPole is solved once their mean return is 475.

CleanRL's files run as they are, but for three changes made to the text as it is read: a call where their own clock
starts, which starts ours, after imports as on all sides; one at the end of an iteration, which looks at the agent; and
in dqn.py the last observation of an episode, which Gymnasium 1.x gives in another place.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from benchmarks import classic_sides as sides
from benchmarks.alternate import machine, spread, table, use_one_thread
from benchmarks.classic_sides import ENV, Turn


@dataclass(frozen=True)
class Comparison:
    """Two sides, and the ratio between them that is aimed at."""

    name: str
    ours: Callable[[Turn], float]
    peer: Callable[[Turn], float]
    target: str = ""


SPEEDS = (
    Comparison("PPO, Stable-Baselines3's zoo", sides.ppo_as_sb3, sides.sb3_ppo, "2"),
    Comparison("PPO, Stable-Baselines3's defaults", sides.ppo_as_sb3_defaults, sides.sb3_ppo_defaults),
    Comparison("PPO, CleanRL", sides.ppo_as_cleanrl, sides.cleanrl_ppo, "3"),
    Comparison("8 PPOs at once, one of the zoo", sides.eight_as_sb3, sides.sb3_ppo, "8"),
    Comparison("8 PPOs at once, one of the defaults", sides.eight_as_sb3_defaults, sides.sb3_ppo_defaults, "8"),
    Comparison("8 PPOs at once by our preset, one of the zoo", sides.eight_by_preset, sides.sb3_ppo, "8"),
    Comparison("DQN, Stable-Baselines3's zoo", sides.dqn_as_sb3, sides.sb3_dqn, "2"),
    Comparison("DQN, Stable-Baselines3's defaults", sides.dqn_as_sb3_defaults, sides.sb3_dqn_defaults, "2"),
    Comparison("DQN, CleanRL", sides.dqn_as_cleanrl, sides.cleanrl_dqn),
)


SOLVES = (
    Comparison("PPO, Stable-Baselines3's zoo", sides.ppo_preset, sides.sb3_ppo, "4"),
    Comparison("PPO, CleanRL", sides.ppo_preset, sides.cleanrl_ppo, "4"),
    Comparison("DQN, Stable-Baselines3's zoo", sides.dqn_preset, sides.sb3_dqn),
    Comparison("DQN, CleanRL", sides.dqn_preset, sides.cleanrl_dqn),
)


def measured(turn: Turn) -> float:
    """Take a turn in this process."""
    use_one_thread()
    import torch

    torch.set_num_threads(1)
    return turn.side(turn)


def in_turns(turns: Iterable[Turn]) -> list[float]:
    """Take turns, each in a new process."""
    results = []
    for turn in turns:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            results.append(process.submit(measured, turn).result())
        print(json.dumps({"side": turn.side.__name__, "seed": turn.seed, "result": round(results[-1], 2)}), flush=True)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cleanrl", help="a clone of CleanRL; without it, its rows are left out")
    parser.add_argument("--rounds", type=int, default=5, help="of the speed of each row")
    parser.add_argument("--steps", type=int, default=20_000, help="environment steps of a turn of the speed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of the time until solved")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--what", choices=["speed", "solve"], help="one of the two")
    options = parser.parse_args(arguments)
    use_one_thread()
    print(machine(("torch", "gymnasium", "stable-baselines3")))
    folder = str(Path(options.cleanrl).resolve()) if options.cleanrl else None

    def chosen(name: str, what: str) -> bool:
        return options.what in (None, what) and options.only in name and bool(folder or "CleanRL" not in name)

    speeds = []
    for row in (row for row in SPEEDS if chosen(row.name, "speed")):
        order = [(side, seed) for seed in range(options.rounds) for side in (row.ours, row.peer)]
        results = in_turns(Turn(side, seed, options.steps, folder) for side, seed in order)
        one, other = results[::2], results[1::2]
        ratios = [ours / theirs for ours, theirs in zip(one, other, strict=True)]
        speeds.append([row.name, spread(one, 0), spread(other, 0), spread(ratios, 2), row.target])
    times = []
    for row in (row for row in SOLVES if chosen(row.name, "solve")):
        order = [(side, seed) for seed in options.seeds for side in (row.ours, row.peer)]
        results = in_turns(Turn(side, seed, None, folder) for side, seed in order)
        one, other = results[::2], results[1::2]
        ratio = statistics.median(other) / statistics.median(one)
        times.append([row.name, spread(one, 1), spread(other, 1), f"{ratio:.1f}", row.target])
    print(
        f"\nspeed: environment steps a second at the peer's hyper-parameters, {options.steps:,} steps a turn and seed"
    )
    print(table(["against", "ours", "peer", "ours / peer", "target"], speeds))
    print(f"\nsolve: seconds until {ENV} is solved, seeds {options.seeds}; ours by its preset")
    print(table(["against", "ours", "peer", "peer / ours, of the medians", "target"], times))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

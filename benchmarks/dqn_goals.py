"""DQN's presets: are environments solved, by how many steps, and how fast?

    python -m benchmarks.dqn_goals CartPole-v1                      five seeds, some minutes
    python -m benchmarks.dqn_goals Acrobot-v1 --seeds 0 1 --steps 2000   does it still run?

Each seed trains with the preset of the environment and plays 100 episodes greedily twice, from other seeds each time:
when 95 % of its steps are done, and at the end. A goal is met where both interquartile means over the seeds reach it,
so that a policy that was good for a moment does not count. Steps a second are environment steps of training by the
processor's time, which other programs disturb less than the clock.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.alternate import machine, use_one_thread

GOALS = {"CartPole-v1": 475.0, "Acrobot-v1": -90.0, "MountainCar-v0": -115.0, "LunarLander-v3": 150.0}
"""Mean return that each environment asks for."""


def train(env: str, seed: int, steps: int | None) -> tuple[float, float, float]:
    """Train one seed; return the mean returns of two evaluations, and environment steps a second."""
    from classic_rl.dqn import DQN
    from classic_rl.dqn_config import DQN_PRESETS
    from classic_rl.evaluate import evaluate

    config = replace(DQN_PRESETS[env], seed=seed)
    agent = DQN(env, replace(config, env_steps=steps) if steps else config)
    returns, seconds = [], 0.0
    for share in (0.95, 1.0):
        began = time.process_time()
        agent.learn(int(share * agent.config.env_steps))
        seconds += time.process_time() - began
        returns.append(evaluate(agent.act, env, episodes=100, seed=1_000 + len(returns)).returns.mean())
    return float(returns[0]), float(returns[1]), agent.env_steps / seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the seeds of one environment, and tell how they did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", choices=sorted(GOALS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, help="environment steps, instead of the preset's")
    options = parser.parse_args(arguments)
    use_one_thread()
    import torch

    from classic_rl.statistics import interquartile_mean

    torch.set_num_threads(1)
    print(machine(("torch", "gymnasium")))
    runs = []
    for seed in options.seeds:
        runs.append(train(options.env, seed, options.steps))
        print(f"seed {seed}: returns {runs[-1][0]:.1f} and {runs[-1][1]:.1f}, {runs[-1][2]:,.0f} steps/s", flush=True)
    means = [interquartile_mean([run[turn] for run in runs]) for turn in (0, 1)]
    goal = GOALS[options.env]
    met = "met" if min(means) >= goal else "not met"
    print(f"{options.env}: interquartile means {means[0]:.1f} and {means[1]:.1f}; the goal of {goal:g} is {met}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Presets of the classic agents: are environments solved, by how many steps, and how fast?

    python -m benchmarks.classic_goals dqn CartPole-v1                       five seeds, some minutes
    python -m benchmarks.classic_goals ppo Acrobot-v1 --seeds 0 1 --share 0.05   does it still run?

Each seed trains with the preset of the environment and plays 100 episodes greedily twice, from other seeds each time:
when 95 % of its steps are done, and at the end. A goal is met where both interquartile means over the seeds reach it,
so that a policy that was good for a moment does not count. Steps a second are environment steps of training by the
processor's time, which other programs disturb less than the clock.

PPO learns MountainCar-v0 from rewards that are shaped by the car's energy, since chance hardly ever gets to the goal;
it is measured without them.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.alternate import machine, use_one_thread

GOALS = {
    "reinforce": {"CartPole-v1": 475.0},
    "a2c": {"CartPole-v1": 475.0},
    "ppo": {
        "CartPole-v1": 475.0, "Acrobot-v1": -90.0, "MountainCar-v0": -115.0, "Pendulum-v1": -200.0,
        "LunarLander-v3": 200.0,
    },
    "dqn": {"CartPole-v1": 475.0, "Acrobot-v1": -90.0, "MountainCar-v0": -115.0, "LunarLander-v3": 150.0},
}  # fmt: skip
"""Mean return that each environment asks of each agent."""


def make(agent: str, env: str, seed: int, share: float) -> Any:
    """Make an agent with the preset of an environment, for a share of its steps."""
    from classic_rl import on_policy_config
    from classic_rl.a2c import A2C
    from classic_rl.dqn import DQN
    from classic_rl.dqn_config import DQN_PRESETS
    from classic_rl.ppo import PPO
    from classic_rl.reinforce import REINFORCE

    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "reinforce": (REINFORCE, on_policy_config.REINFORCE_PRESETS),
        "a2c": (A2C, on_policy_config.A2C_PRESETS),
        "ppo": (PPO, on_policy_config.PPO_PRESETS),
        "dqn": (DQN, DQN_PRESETS),
    }
    kind, presets = kinds[agent]
    length = "updates" if agent == "reinforce" else "env_steps"
    config = replace(presets[env], seed=seed, **{length: max(1, int(share * getattr(presets[env], length)))})
    return kind(shaped(config.gamma) if (agent, env) == ("ppo", "MountainCar-v0") else env, config)


def shaped(gamma: float) -> Any:
    """Return what makes a MountainCar whose rewards are shaped by its energy."""
    import gymnasium

    from classic_rl.shaping import PotentialShaping

    def energy(obs: Any) -> float:
        position, speed = map(float, obs)
        return 1e4 * (0.0025 / 3 * (math.sin(3 * position) + 1) + speed**2 / 2)

    return lambda: PotentialShaping(gymnasium.make("MountainCar-v0"), energy, gamma=gamma)


def train(agent: str, env: str, seed: int, share: float) -> tuple[float, float, float]:
    """Train one seed; return the mean returns of two evaluations, and environment steps a second."""
    from classic_rl.evaluate import evaluate

    learner = make(agent, env, seed, share)
    returns, seconds = [], 0.0
    updates = learner.steps()
    for part in (0.95, 1.0):
        began = time.process_time()
        while learner.step < part * learner.total_steps:
            next(updates)
        seconds += time.process_time() - began
        returns.append(evaluate(learner.act, env, episodes=100, seed=1_000 + len(returns)).returns.mean())
    return float(returns[0]), float(returns[1]), learner.env_steps / seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the seeds of one agent in one environment, and tell how they did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agent", choices=sorted(GOALS))
    parser.add_argument("env")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--share", type=float, default=1.0, help="of the preset's steps")
    options = parser.parse_args(arguments)
    goals = GOALS[options.agent]
    if options.env not in goals:
        parser.error(f"{options.agent} has goals in {', '.join(goals)}")
    use_one_thread()
    import torch

    from classic_rl.statistics import interquartile_mean

    torch.set_num_threads(1)
    print(machine(("torch", "gymnasium")))
    runs = []
    for seed in options.seeds:
        runs.append(train(options.agent, options.env, seed, options.share))
        print(f"seed {seed}: returns {runs[-1][0]:.1f} and {runs[-1][1]:.1f}, {runs[-1][2]:,.0f} steps/s", flush=True)
    means, goal = [interquartile_mean([run[turn] for run in runs]) for turn in (0, 1)], goals[options.env]
    met = "met" if min(means) >= goal else "not met"
    print(f"{options.env}: interquartile means {means[0]:.1f} and {means[1]:.1f}; the goal of {goal:g} is {met}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

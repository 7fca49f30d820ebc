"""Presets of the classic agents: are environments solved, by how many steps, and how fast?

    python -m benchmarks.classic_goals dqn CartPole-v1                       five seeds, some minutes
    python -m benchmarks.classic_goals all                                   every goal: the table of recipes/README.md
    python -m benchmarks.classic_goals all --seeds 0 1 --share 0.05 --episodes 2    does it still run?

Each seed trains as `align classic` does, with the settings known for the environment, and plays 100 episodes greedily
twice, from other seeds each time: when 95 % of its steps are done, and at the end. A goal is met where both
interquartile means over the seeds reach it, so that a policy that was good for a moment does not count. At last comes a
table: the interquartile mean at the end with its stratified bootstrap interval of 95 %, and what it took a seed.

Steps a second and minutes are those of the processor while it trains, which other programs disturb less than the clock.
PPO learns MountainCar-v0 from shaped rewards; it is measured without them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.alternate import machine, table, use_one_thread

ZOO, CLEANRL = "[zoo]", "[CleanRL]"


@dataclass(frozen=True)
class Goal:
    """What is asked of an agent in an environment: the mean return, and what others have published."""

    agent: str
    env: str
    mean: float
    published: str


GOALS = (
    Goal("reinforce", "CartPole-v1", 475, "none found"),
    Goal("a2c", "CartPole-v1", 475, f"500.0 after 500k steps {ZOO}"),
    Goal("ppo", "CartPole-v1", 475, f"500.0 after 100k {ZOO}; 488.8 ± 18.4 {CLEANRL}"),
    Goal("dqn", "CartPole-v1", 475, f"500.0 after 50k {ZOO}; 488.7 ± 16.1 after 500k {CLEANRL}"),
    Goal("ppo", "Acrobot-v1", -90, f"-73.5 after 1M {ZOO}; -82.5 ± 5.9 {CLEANRL}"),
    Goal("dqn", "Acrobot-v1", -90, f"-76.6 after 100k {ZOO}; -91.5 ± 7.2 after 500k {CLEANRL}"),
    Goal("ppo", "MountainCar-v0", -115, f"-110.4 after 1M {ZOO}; -200.0 ± 0.0 {CLEANRL}"),
    Goal("dqn", "MountainCar-v0", -115, f"-100.8 after 120k {ZOO}; -195.0 ± 8.5 after 500k {CLEANRL}"),
    Goal("ppo", "LunarLander-v3", 200, f"242.1 after 1M, v2 {ZOO}"),
    Goal("dqn", "LunarLander-v3", 150, f"154.4 after 100k, v2 {ZOO}"),
    Goal("ppo", "Pendulum-v1", -200, f"-172.2 after 100k {ZOO}"),
)
"""Sources: the zoo's benchmark.md has one run each; CleanRL's pages on PPO and DQN have means while learning."""

HEAD = ("agent", "environment", "steps", "return [95 %]", "published", "minutes", "commit")


@dataclass(frozen=True)
class Trained:
    """One seed: mean returns when 95 % of the steps are done and at the end, environment steps, and seconds."""

    early: float
    final: float
    env_steps: int
    seconds: float


def train(goal: Goal, *, seed: int, share: float, episodes: int) -> Trained:
    """Train one seed for a share of its steps, and measure it twice."""
    from classic_rl.evaluate import evaluate
    from recipes.classic import learner, options_of

    agent = learner(goal.agent, options_of(goal.agent, goal.env, seed=seed, share=share))
    returns: list[float] = []
    seconds, updates = 0.0, agent.steps()
    for part in (0.95, 1.0):
        began = time.process_time()
        while agent.step < part * agent.total_steps:
            next(updates)
        seconds += time.process_time() - began
        found = evaluate(agent.act, goal.env, episodes=episodes, seed=1_000 + len(returns))
        returns.append(float(found.returns.mean()))
    return Trained(*returns, env_steps=agent.env_steps, seconds=seconds)


def pursue(goal: Goal, seeds: Sequence[int], *, share: float, episodes: int) -> list[Trained]:
    """Train the seeds of a goal, telling of each, and tell whether it is met."""
    from classic_rl.statistics import interquartile_mean

    runs: list[Trained] = []
    for seed in seeds:
        runs.append(one := train(goal, seed=seed, share=share, episodes=episodes))
        speed = f"{one.env_steps / one.seconds:,.0f} steps/s"
        print(f"{goal.agent}, seed {seed}: returns {one.early:.1f} and {one.final:.1f}, {speed}", flush=True)
    early, final = (interquartile_mean([getattr(run, name) for run in runs]) for name in ("early", "final"))
    met = "met" if min(early, final) >= goal.mean else "not met"
    print(
        f"{goal.env}: interquartile means {early:.1f} and {final:.1f}; the goal of {goal.mean:g} is {met}", flush=True
    )
    return runs


def row(goal: Goal, runs: Sequence[Trained], commit: str) -> tuple[str, ...]:
    """Return the cells under HEAD; steps and minutes are means over the seeds."""
    from classic_rl.statistics import bootstrap_interval

    found = bootstrap_interval([run.final for run in runs])
    steps, seconds = (sum(getattr(run, name) for run in runs) / len(runs) for name in ("env_steps", "seconds"))
    interval = f"{found.estimate:.1f} [{found.low:.1f}, {found.high:.1f}]"
    return goal.agent, goal.env, f"{steps:,.0f}", interval, goal.published, f"{seconds / 60:.2g}", commit


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the seeds of one agent in one environment, or of all goals, and tell how they did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agent", choices=[*dict.fromkeys(goal.agent for goal in GOALS), "all"])
    parser.add_argument("env", nargs="?", help="an environment with a goal; by default all of the agent's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--share", type=float, default=1.0, help="of the steps that are known to do")
    parser.add_argument("--episodes", type=int, default=100, help="of each evaluation")
    options = parser.parse_args(arguments)
    asked = [goal for goal in GOALS if options.agent in (goal.agent, "all")]
    goals = [goal for goal in asked if options.env in (goal.env, None)]
    if not goals:
        known = ", ".join(dict.fromkeys(goal.env for goal in asked))
        parser.error(f"{options.agent} has goals in {known}, got {options.env}")
    use_one_thread()
    import torch

    from align.runs.directory import describe_environment

    torch.set_num_threads(1)
    print(machine(("torch", "gymnasium")))
    commit, _, changes = (describe_environment()["git"] or "unknown").partition(" ")
    rows: list[tuple[str, ...]] = []
    for goal in goals:
        runs = pursue(goal, options.seeds, share=options.share, episodes=options.episodes)
        rows.append(row(goal, runs, f"{commit[:7]} {changes}".strip()))
    print(f"\nSeeds {' '.join(map(str, options.seeds))}:\n\n{table(HEAD, rows)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

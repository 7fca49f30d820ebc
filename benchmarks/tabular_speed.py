"""Steps a second of tabular Q-learning: on the table, against the usual loop over `env.step` with a NumPy Q.

    python -m benchmarks.tabular_speed              about a minute
    python -m benchmarks.tabular_speed --quick      a few seconds: does it still run?

All learn with one step size and epsilon, and take turns. The usual loop is that of tutorials: `np.argmax`, `np.max`,
`action_space.sample()`. Of many runs at once the steps of all count together.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from benchmarks.alternate import machine, spread, table, use_one_thread

ALPHA, EPSILON, GAMMA = 0.1, 0.1, 0.99
EPISODES = {"FrozenLake-v1": 600, "CliffWalking-v1": 150, "Taxi-v4": 150}
"""Episodes of a turn, so that one of the usual loop takes about a quarter of a second."""


def usual_loop(name: str, seed: int, episodes: int) -> int:
    """Learn by the loop that everybody writes; return the steps taken."""
    import gymnasium
    import numpy as np

    env = gymnasium.make(name)
    q = np.zeros((env.observation_space.n, env.action_space.n))
    rng = np.random.default_rng(seed)
    env.action_space.seed(seed)
    state, _ = env.reset(seed=seed)
    steps = done = 0
    while done < episodes:
        action = env.action_space.sample() if rng.random() < EPSILON else int(np.argmax(q[state]))
        next_state, reward, terminated, truncated, _ = env.step(action)
        target = reward + GAMMA * np.max(q[next_state]) * (not terminated)
        q[state, action] += ALPHA * (target - q[state, action])
        state = next_state
        steps += 1
        if terminated or truncated:
            done += 1
            state, _ = env.reset()
    return steps


def agent(name: str, seed: int, episodes: int, *, on_table: bool = True) -> int:
    """Learn by `QLearning`; return the steps taken."""
    import gymnasium
    import numpy as np

    from classic_rl.tabular.behaviour import EpsilonGreedy
    from classic_rl.tabular.control import QLearning
    from classic_rl.tabular.stepping import EnvStepper, make_stepper

    env = gymnasium.make(name)
    stepper = make_stepper(env, seed=seed) if on_table else EnvStepper(env, seed)
    behaviour = EpsilonGreedy(EPSILON, np.random.default_rng(seed))
    learner = QLearning(stepper, behaviour, alpha=ALPHA, gamma=GAMMA, episodes=episodes)
    for _ in learner.steps():
        pass
    return learner.env_steps


def many(seed: int, runs: int, episodes: int) -> int:
    """Learn CliffWalking in many runs at once; return the steps of all."""
    import gymnasium
    import numpy as np

    from classic_rl.tabular.many_runs import control_runs, outcomes_of, q_learning

    cliff = outcomes_of(gymnasium.make("CliffWalking-v1"))
    settings = {"alpha": ALPHA, "epsilon": EPSILON, "gamma": GAMMA, "rng": np.random.default_rng(seed)}
    return int(control_runs(cliff, q_learning, runs=runs, episodes=episodes, **settings).lengths.sum())


def rate(learn: Callable[..., int], *arguments: object, **settings: object) -> float:
    """Return thousand steps a second of the processor's time, so that what else runs on the machine does not count."""
    began = time.process_time()
    steps = learn(*arguments, **settings)
    return steps / 1000 / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    use_one_thread()
    rounds, share = (1, 20) if options.quick else (options.rounds, 1)
    print(machine(("numpy", "gymnasium")))
    rows = []
    for name, episodes in EPISODES.items():
        ours, through, theirs = [], [], []
        for seed in range(rounds):
            theirs.append(rate(usual_loop, name, seed, episodes // share))
            ours.append(rate(agent, name, seed, 10 * episodes // share))
            through.append(rate(agent, name, seed, episodes // share, on_table=False))
        ratios = [mine / usual for mine, usual in zip(ours, theirs, strict=True)]
        per_second = [spread(side, 0) for side in (ours, through, theirs)]
        rows.append([name, *per_second, f"**{statistics.median(ratios):.1f}** ({min(ratios):.1f}-{max(ratios):.1f})"])
    head = ["thousand steps a second", "on the table", "through env.step", "usual loop", "table / usual loop"]
    print(table(head, rows))
    print("many runs at once, CliffWalking-v1, thousand steps a second of all together:")
    for runs in (30, 300, 3000):
        rates = [rate(many, seed, runs, 100 // share) for seed in range(min(rounds, 3))]
        print(f"  {runs} runs: {spread(rates, 0)}")


if __name__ == "__main__":
    main()

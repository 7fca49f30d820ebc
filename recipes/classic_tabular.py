"""Learn a small world from steps, and compare with the best policy, which planning knows exactly.

    python -m recipes.classic_tabular --world lake
    python -m recipes.classic_tabular --world taxi --agent expected-sarsa --seed 1

The run has a directory, checkpoints and a report as any other. Measured is the value of the greedy policy from the
start, computed on the world's table, not sampled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from recipes.common import RunOptions, execute, recipe

if TYPE_CHECKING:
    import gymnasium

    from classic_rl.tabular.control import Control

World = Literal["lake", "taxi", "cliff", "grid"]
Agent = Literal["q-learning", "sarsa", "expected-sarsa", "double-q-learning", "n-step-sarsa", "sarsa-lambda", "dyna-q"]
ARROWS = {"grid": "<v>^", "lake": "<v>^", "cliff": "^>v<"}
"""The actions of worlds that are a board."""
GAMMA = 0.99


@dataclass(frozen=True)
class Settings:
    """A world, and how to learn it: rates go from their first value to their last over the episodes."""

    name: str
    episodes: int
    alpha: tuple[float, float]
    epsilon: tuple[float, float]


WORLDS: dict[World, Settings] = {
    "lake": Settings("FrozenLake-v1", 20_000, (0.2, 0.002), (1.0, 0.1)),
    "taxi": Settings("Taxi-v4", 4_000, (1.0, 0.1), (1.0, 0.1)),
    "cliff": Settings("CliffWalking-v1", 500, (0.5, 0.5), (0.1, 0.1)),
    "grid": Settings("classic_rl.gridworld:classic_rl/GridWorld-v0", 300, (0.5, 0.5), (0.1, 0.1)),
}


@dataclass(frozen=True)
class Options:
    """Learn FrozenLake, Taxi, CliffWalking or GridWorld with a table."""

    world: World = "lake"
    """What is learned."""
    agent: Agent = "q-learning"
    """Which algorithm learns it."""
    seed: int = 0
    """Of the world and of the behaviour."""
    episodes: int | None = None
    """Episodes; by default enough for Q-learning."""
    run: RunOptions = field(default_factory=lambda: RunOptions(evaluate_every=10, log_every=10))


def train(options: Options, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    import gymnasium

    from classic_rl.tabular.mdp import mdp_from_env
    from classic_rl.tabular.planning import policy_iteration, start_value

    env = gymnasium.make(WORLDS[options.world].name)
    agent, mdp = build(options, env), mdp_from_env(env)
    best = start_value(mdp, policy_iteration(mdp, gamma=GAMMA).values)
    directory, began = options.run.resolve("classic_tabular"), time.perf_counter()
    result = execute(
        agent,
        directory,
        options.run,
        config=replace(options, run=RunOptions()),
        command=command,
        evaluate=lambda: {"greedy_value": greedy_value(agent, mdp)},
    )
    if result.finished and not options.run.quiet:
        seconds = time.perf_counter() - began
        print(f"best value from the start, by planning: {best:.4f}")
        print(f"value of the greedy policy learned:     {result.evaluation['greedy_value']:.4f}")
        print(f"{agent.env_steps} steps in {seconds:.1f} seconds, evaluations and files included")
        if options.world in ARROWS:
            print(board(agent, env, ARROWS[options.world]))
    return result.exit_code


def build(options: Options, env: gymnasium.Env[Any, Any]) -> Control:
    """Build the agent, with a hundred steps of metrics."""
    from classic_rl.schedules import linear
    from classic_rl.tabular import control, multi_step
    from classic_rl.tabular.behaviour import EpsilonGreedy
    from classic_rl.tabular.stepping import make_stepper

    agents: dict[Agent, tuple[Callable[..., Control], dict[str, Any]]] = {
        "q-learning": (control.QLearning, {}),
        "sarsa": (control.Sarsa, {}),
        "expected-sarsa": (control.ExpectedSarsa, {}),
        "double-q-learning": (control.DoubleQLearning, {}),
        "n-step-sarsa": (multi_step.NStepSarsa, {"n": 4}),
        "sarsa-lambda": (multi_step.SarsaLambda, {"lam": 0.8}),
        "dyna-q": (control.DynaQ, {"planning_steps": 10}),
    }
    settings = WORLDS[options.world]
    episodes = settings.episodes if options.episodes is None else options.episodes
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    kind, own = agents[options.agent]
    return kind(
        make_stepper(env, seed=options.seed),
        # Another stream than the world's: what slips must not depend on what explores.
        EpsilonGreedy(linear(*settings.epsilon, episodes), np.random.default_rng([options.seed, 1])),
        alpha=linear(*settings.alpha, episodes),
        gamma=GAMMA,
        episodes=episodes,
        episodes_per_step=max(episodes // 100, 1),
        **own,
    )


def greedy_value(agent: Control, mdp: Any) -> float:
    """Compute the discounted value of the greedy policy from the start."""
    from classic_rl.tabular.planning import exact_policy_evaluation, greedy_policy, start_value

    return start_value(mdp, exact_policy_evaluation(mdp, greedy_policy(np.array(agent.q)), gamma=GAMMA))


def board(agent: Control, env: gymnasium.Env[Any, Any], arrows: str) -> str:
    """Draw the best action of each state that an episode can be in; a dot elsewhere."""
    from classic_rl.tabular.mdp import mdp_from_env, reachable

    mdp: Any = mdp_from_env(env)
    live = reachable(mdp.transitions, mdp.start)
    columns = {16: 4, 48: 12, 64: 8}[mdp.n_states]
    best = np.array(agent.q).argmax(axis=1)
    signs = [arrows[action] if state else "." for action, state in zip(best, live, strict=True)]
    return "\n".join(" ".join(signs[at : at + columns]) for at in range(0, len(signs), columns))


main = recipe("python -m recipes.classic_tabular", Options, train)

if __name__ == "__main__":
    main()

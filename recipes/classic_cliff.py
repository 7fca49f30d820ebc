"""Walk along a cliff: Q-learning learns the shortest way and falls, SARSA learns a safe one.

    python -m recipes.classic_cliff

Example 6.6 of Sutton & Barto 2018. Measures what each earns while it learns and the greedy path that it ends with, and
draws both to `cliff.png`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipes.common import recipe
from recipes.pictures import COLOURS, place, pyplot

ROWS, COLUMNS = 4, 12
START, GOAL = 36, 47
LAST = 100
"""Episodes over which the online return is averaged."""


@dataclass(frozen=True)
class Options:
    """Compare Q-learning, SARSA and Expected SARSA on CliffWalking."""

    runs: int = 100
    """Independent runs of each algorithm."""
    episodes: int = 500
    """Episodes of a run."""
    alpha: float = 0.5
    """Step size."""
    epsilon: float = 0.1
    """Probability of a random action."""
    seed: int = 0
    """Of all runs together."""
    directory: Path | None = None
    """Where the picture goes; by default a new folder under runs/."""

    def __post_init__(self) -> None:
        for name in ("runs", "episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Learned:
    """returns: of every episode. [runs, episodes]; paths: states of each run's greedy path, cut where it circles."""

    returns: Any
    paths: list[tuple[int, ...]]

    @property
    def arrived(self) -> list[tuple[int, ...]]:
        """The paths that reach the goal."""
        return [path for path in self.paths if path[-1] == GOAL]


def train(options: Options, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    import gymnasium

    from classic_rl.tabular import many_runs

    env = gymnasium.make("CliffWalking-v1")
    table = many_runs.outcomes_of(env)
    settings = {"alpha": options.alpha, "epsilon": options.epsilon, "gamma": 1.0}
    found = {}
    print(f"{options.runs} runs of {options.episodes} episodes, alpha {options.alpha}, epsilon {options.epsilon}")
    rules = {"Q-learning": many_runs.q_learning, "SARSA": many_runs.sarsa, "Expected SARSA": many_runs.expected_sarsa}
    for name, rule in rules.items():
        rng = np.random.default_rng(options.seed)
        runs = many_runs.control_runs(table, rule, runs=options.runs, episodes=options.episodes, rng=rng, **settings)
        paths = [greedy_path(q, env.unwrapped.P) for q in runs.q]  # pyright: ignore[reportAttributeAccessIssue]
        found[name] = Learned(runs.returns, paths)
        print(summary(name, found[name]))
    picture = place(options.directory, "classic_cliff") / "cliff.png"
    draw(found, picture)
    print(f"picture: {picture}")
    return 0


def greedy_path(q: Any, table: Any) -> tuple[int, ...]:
    """Follow the best actions from the start to the goal, or until a state comes twice."""
    path = [START]
    while path[-1] != GOAL:
        after = table[path[-1]][int(np.argmax(q[path[-1]]))][0][1]
        if after in path:
            break
        path.append(after)
    return tuple(path)


def summary(name: str, learned: Learned) -> str:
    """Tell what an algorithm earned online, and how its greedy paths end."""
    online = learned.returns[:, -LAST:].mean(axis=1)
    error = online.std(ddof=1) / np.sqrt(len(online)) if len(online) > 1 else float("nan")
    told = f"{name:<15} online, last {LAST} episodes: {online.mean():6.1f} +- {error:.1f}; greedy: "
    if learned.arrived:
        told += f"{-np.median([len(path) - 1 for path in learned.arrived]):.0f} (median)"
    circles = len(learned.paths) - len(learned.arrived)
    return told + (f", {circles} of {len(learned.paths)} go in circles" if circles else "")


def draw(found: dict[str, Learned], file: Path) -> None:
    """Draw the commonest greedy path of two algorithms, and what all earned while they learned."""
    plot = pyplot()
    figure, (board, curves) = plot.subplots(2, 1, figsize=(8, 7.2), height_ratios=[1, 1.5], layout="constrained")
    draw_board(board, plot)
    for index, (name, learned) in enumerate(found.items()):
        colour, offset = COLOURS[index], 0.1 * (index - 1)
        if learned.arrived:
            path = Counter(learned.arrived).most_common(1)[0][0]
            columns, rows = [s % COLUMNS + 0.5 + offset for s in path], [s // COLUMNS + 0.5 + offset for s in path]
            board.plot(columns, rows, color=colour, linewidth=2.5, label=f"{name}, {1 - len(path)}")
        mean = smooth(learned.returns.mean(axis=0))
        curves.plot(np.arange(len(mean)) + 1, mean, color=colour, linewidth=2, label=name)
    if board.get_legend_handles_labels()[0]:
        board.legend(loc="upper center", bbox_to_anchor=(0.5, 1.22), ncols=3, frameon=False)
    curves.set(xlabel="episode", ylabel="return while exploring", ylim=(-100, 0))
    curves.legend(loc="lower right", frameon=False)
    curves.set_title(f"mean of {len(learned.returns)} runs, smoothed over 10 episodes", fontsize=10)
    figure.savefig(file, dpi=150)
    plot.close(figure)


def draw_board(board: Any, plot: Any) -> None:
    """Draw start, cliff and goal."""
    board.set(xlim=(0, COLUMNS), ylim=(ROWS, 0), aspect="equal", xticks=range(COLUMNS + 1), yticks=range(ROWS + 1))
    board.tick_params(labelbottom=False, labelleft=False, length=0)
    board.add_patch(plot.Rectangle((1, ROWS - 1), COLUMNS - 2, 1, color="#4a5568"))
    board.text(COLUMNS / 2, ROWS - 0.5, "cliff: -100, and back to the start", color="white", ha="center", va="center")
    for state, letter in ((START, "S"), (GOAL, "G")):
        board.text(state % COLUMNS + 0.18, state // COLUMNS + 0.85, letter, weight="bold", ha="center")


def smooth(values: Any, width: int = 10) -> Any:
    """Average each value with those just before it."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


main = recipe("python -m recipes.classic_cliff", Options, train)

if __name__ == "__main__":
    main()

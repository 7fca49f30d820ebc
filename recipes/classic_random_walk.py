"""How far to look ahead: errors of n-step TD and TD(lambda) on a random walk of 19 states, against the step size.

    python -m recipes.classic_random_walk

The figures 7.2, 12.3 and 12.6 of Sutton & Barto 2018: values start at 0, and the root mean squared error over states
is averaged over the first 10 episodes and over runs. Draws to `random_walk.png`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from recipes.common import recipe
from recipes.pictures import COLOURS, place, pyplot

STATES = 19
NS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LAMBDAS = (0.0, 0.4, 0.8, 0.9, 0.95, 0.975, 0.99, 1.0)
WORST = 0.55
"""Where the picture ends: some settings diverge."""


@dataclass(frozen=True)
class Options:
    """Compare n-step TD, the lambda return and TD(lambda) on the 19-state random walk."""

    runs: int = 100
    """Independent runs, the same walks for every setting."""
    episodes: int = 10
    """Episodes of a run, over which the error is averaged."""
    alphas: int = 21
    """Step sizes between 0 and 1."""
    seed: int = 0
    """Of the walks."""
    directory: Path | None = None
    """Where the picture goes; by default a new folder under runs/."""

    def __post_init__(self) -> None:
        for name, least in (("runs", 1), ("episodes", 1), ("alphas", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


Rule = Callable[..., Any]


def train(options: Options, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    from classic_rl.tabular import prediction

    alphas = np.linspace(0, 1, options.alphas) ** 1.5  # closer together where long returns have their best
    walks = sample_walks(options)
    studies: dict[str, dict[str, Rule]] = {
        "n-step TD": {f"n = {n}": partial(prediction.n_step_td, n=n) for n in NS},
        "lambda return, offline": {
            f"lambda = {lam:g}": partial(prediction.offline_lambda_return, lam=lam) for lam in LAMBDAS
        },
        "TD(lambda), online": {f"lambda = {lam:g}": partial(prediction.td_lambda, lam=lam) for lam in LAMBDAS},
    }
    found = {}
    print(f"{options.runs} runs of {options.episodes} episodes; least error of each setting, and the step size:")
    for study, rules in studies.items():
        print(study)
        found[study] = {}
        for name, rule in rules.items():
            found[study][name] = errors = study_errors(rule, walks, alphas, options.runs)
            print(f"  {name:<15} {np.nanmin(errors):.3f} at alpha = {alphas[np.nanargmin(errors)]:.2f}", flush=True)
    picture = place(options.directory, "classic_random_walk") / "random_walk.png"
    draw(found, alphas, picture)
    print(f"picture: {picture}")
    return 0


def true_values() -> Any:
    """Values of the states from left to right, with the two ends. [STATES + 2]"""
    values = np.linspace(-1, 1, STATES + 2)
    values[[0, -1]] = 0
    return values


def sample_walks(options: Options) -> list[Any]:
    """Walk from the middle until an end, -1 on the left and 1 on the right; all runs of an episode are one record."""
    from classic_rl.tabular.many_runs import outcomes_of, sample_episodes
    from classic_rl.tabular.mdp import mdp_from_arrays
    from classic_rl.tabular.planning import uniform_policy

    n = STATES + 2
    transitions, rewards = np.zeros((n, 2, n)), np.zeros((n, 2))
    inner = np.arange(1, STATES + 1)
    transitions[inner, 0, inner - 1] = transitions[inner, 1, inner + 1] = 1
    rewards[1, 0], rewards[STATES, 1] = -1, 1
    ends = np.isin(np.arange(n), (0, n - 1))
    mdp = mdp_from_arrays(transitions, rewards, terminal=ends, start=np.eye(n)[n // 2])
    rng = np.random.default_rng(options.seed)
    table, policy = outcomes_of(mdp), uniform_policy(mdp)
    return [sample_episodes(table, policy, options.runs, rng) for _ in range(options.episodes)]


def study_errors(rule: Rule, walks: list[Any], alphas: Any, runs: int) -> Any:
    """Learn with all step sizes at once; return the mean error of each, NaN or large where it diverges. [alphas]"""
    values = np.zeros((len(alphas), runs, STATES + 2))
    errors = np.zeros(len(alphas))
    with np.errstate(over="ignore", invalid="ignore"):
        for episodes in walks:
            values = rule(values, episodes, alpha=alphas[:, None], gamma=1.0)
            squared = (values - true_values())[..., 1:-1] ** 2
            errors += np.sqrt(squared.mean(axis=-1)).mean(axis=-1) / len(walks)
    return errors


def draw(found: dict[str, dict[str, Any]], alphas: Any, file: Path) -> None:
    """Draw a panel a study and a line a setting."""
    plot = pyplot()
    figure, panels = plot.subplots(1, len(found), figsize=(13, 4.6), sharey=True, layout="constrained")
    for panel, (study, lines) in zip(panels, found.items(), strict=True):
        for index, (name, errors) in enumerate(lines.items()):
            panel.plot(alphas, np.where(errors < 9, errors, np.nan), color=COLOURS[index], linewidth=1.8, label=name)
        panel.set(xlabel="step size $\\alpha$", xlim=(0, 1), ylim=(0.15, WORST))
        panel.set_title(study, fontsize=11)
        panel.legend(fontsize=8, frameon=False, loc="lower right", ncols=2)
    panels[0].set_ylabel("RMS error, mean of first episodes and runs")
    figure.savefig(file, dpi=150)
    plot.close(figure)


main = recipe("python -m recipes.classic_random_walk", Options, train)

if __name__ == "__main__":
    main()

"""What a comparison of agents shows: its numbers, its table and its pictures, as HTML and as PNG. Nothing here trains.

An outcome is one run of one agent; a standing is an agent over its seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from align.runs.directory import RunDirectory
from classic_rl.statistics import (
    Interval,
    bootstrap_interval,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)
from recipes.comparison_page import Curve, drawing
from recipes.pictures import pyplot

RETURN = "eval/episode/return"
RESAMPLES = 500
"""Of the bootstrap at each point of a curve; the table has more."""
PALETTE = ("#6b6a65", "#0072b2", "#8a63c9", "#d55e00")
"""The page's colours, for the PNG."""


@dataclass(frozen=True)
class Outcome:
    """One run: what it came to, and what it took.

    curve: (environment steps, mean return of the evaluation), the first before any training.
    seconds: of acting and learning, without evaluations.
    """

    agent: str
    seed: int
    curve: tuple[tuple[float, float], ...]
    seconds: float

    @property
    def final(self) -> float:
        """Mean return of the last evaluation."""
        return self.curve[-1][1]

    @property
    def env_steps(self) -> float:
        """Environment steps that were learned from."""
        return self.curve[-1][0]


@dataclass(frozen=True)
class Standing:
    """An agent over its seeds."""

    agent: str
    outcomes: tuple[Outcome, ...]

    @property
    def finals(self) -> list[float]:
        """The final return of each seed."""
        return [outcome.final for outcome in self.outcomes]

    def mean(self, name: str) -> float:
        """The mean of a number of the outcomes."""
        return sum(getattr(outcome, name) for outcome in self.outcomes) / len(self.outcomes)

    def curve(self) -> list[tuple[float, Interval]]:
        """Return (environment steps, interquartile mean over seeds with its interval), up to where all seeds got."""
        end = min(outcome.env_steps for outcome in self.outcomes)
        # Of most agents every seed has evaluations at these steps; elsewhere they lie on the line between two.
        grid = np.array([*(x for x, _ in self.outcomes[0].curve if x < end), end])
        curves = [np.array(outcome.curve) for outcome in self.outcomes]  # [evaluations, 2] each
        rows = np.stack([np.interp(grid, curve[:, 0], curve[:, 1]) for curve in curves])  # [seeds, x]
        return [
            (float(x), bootstrap_interval(column, samples=RESAMPLES)) for x, column in zip(grid, rows.T, strict=True)
        ]


def outcome_of(path: Path, agent: str, seed: int) -> Outcome:
    """Read a finished run."""
    history = RunDirectory(path).history()
    curve = tuple((line.get("steps/total", 0.0), line[RETURN]) for line in history if RETURN in line)
    return Outcome(agent, seed, curve, sum(line.get("time/step", 0.0) for line in history))


def ranked(outcomes: Sequence[Outcome]) -> list[Standing]:
    """Rank agents by the interquartile mean of their final returns; of equal ones who learned from fewer steps."""
    agents = dict.fromkeys(outcome.agent for outcome in outcomes)
    standings = [Standing(name, tuple(one for one in outcomes if one.agent == name)) for name in agents]
    return sorted(standings, key=lambda s: (-interquartile_mean(s.finals), s.mean("env_steps")))


# --- the table -------------------------------------------------------------------------------------------------------

HEAD = ("agent", "return", "95%", "each seed", "P(better)", "env steps", "seconds")
NOTE = (
    "Return: interquartile mean over seeds of the final evaluation's mean return; 95%: its stratified bootstrap "
    "interval, which with few seeds is narrower than it says. P(better): how likely a run beats one of the best other "
    "agent, ties counted half. Environment steps and seconds are means over seeds; seconds leave out evaluations."
)


def rows(standings: Sequence[Standing]) -> list[tuple[str, ...]]:
    """Write each standing as the cells under HEAD."""
    cells: list[tuple[str, ...]] = []
    for one in standings:
        interval = bootstrap_interval(one.finals)
        # they are ranked, so the best other one is the first, or for the first the second
        other = next((s for s in standings if s is not one), None)
        better = "" if other is None else f"{probability_of_improvement(one.finals, other.finals):.2f}"
        cells.append(
            (
                one.agent,
                f"{interval.estimate:.1f}",
                f"{interval.low:.1f} to {interval.high:.1f}",
                " ".join(f"{value:.0f}" for value in one.finals),
                better,
                f"{one.mean('env_steps'):,.0f}",
                f"{one.mean('seconds'):.0f}",
            )
        )
    return cells


# --- pictures --------------------------------------------------------------------------------------------------------


def learning_curves(standings: Sequence[Standing], agents: Sequence[str]) -> list[Curve]:
    """Return each agent's curve; it keeps the colour of its place in `agents`, whatever its rank."""
    return [
        Curve(
            one.agent,
            agents.index(one.agent) + 1,
            [(x, middle, low, high) for x, (middle, low, high) in one.curve()],
        )
        for one in standings
    ]


def profiles(standings: Sequence[Standing], agents: Sequence[str]) -> list[Curve]:
    """Return the share of each agent's runs whose final return is above a level: it falls at the return of each run."""
    everything = [value for one in standings for value in one.finals]
    low, high = min(everything), max(everything)
    margin = 0.02 * (high - low) or 1.0
    curves: list[Curve] = []
    for one in standings:
        reached = np.repeat(np.unique(one.finals), 2)
        reached[::2] = np.nextafter(reached[::2], -np.inf)  # just before a run's return, and at it
        levels = np.array([low - margin, *reached, high + margin])
        shares = performance_profile(one.finals, levels)
        points = [(float(x), float(y), float(y), float(y)) for x, y in zip(levels, shares, strict=True)]
        curves.append(Curve(one.agent, agents.index(one.agent) + 1, points))
    return curves


def figures(curves: Sequence[Curve], shares: Sequence[Curve]) -> list[str]:
    """Draw both pictures for the page."""
    return [
        drawing(curves, x_label="environment steps", y_label="return of the evaluation", form=".1f"),
        drawing(shares, x_label="final return", y_label="share of runs above it", form=".0%", height=260),
    ]


def save_picture(file: Path, curves: Sequence[Curve], shares: Sequence[Curve], *, title: str) -> None:
    """Draw both pictures into a PNG."""
    plot = pyplot()
    figure, (left, right) = plot.subplots(1, 2, figsize=(10, 4), width_ratios=[2, 1.2], layout="constrained")
    for one in reversed(curves):
        x, middle, low, high = zip(*one.points, strict=True)
        colour = PALETTE[one.colour - 1]
        left.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
        left.plot(x, middle, color=colour, linewidth=2, label=one.name)
    for one in reversed(shares):
        x, share, _, _ = zip(*one.points, strict=True)
        right.plot(x, share, color=PALETTE[one.colour - 1], linewidth=2)
    left.set(xlabel="environment steps", ylabel="return of the evaluation")
    left.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    right.set(xlabel="final return", ylabel="share of runs above it", ylim=(-0.03, 1.03))
    right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    handles, labels = left.get_legend_handles_labels()
    left.legend(handles[::-1], labels[::-1], frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(file, dpi=150)
    plot.close(figure)

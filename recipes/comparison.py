"""What a comparison of methods shows: its table, its picture, and the page and the file that hold them.

An outcome is one run of one method; a standing is a method over its seeds. Nothing here trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from align.runs.directory import RunDirectory
from recipes.comparison_page import Comparison, Curve, drawing, write

GOAL = 0.9
"""Held-out accuracy; the table tells after how many trained tokens it was reached."""
ACCURACY, THINKING, KL = "eval/reward/right_square", "eval/reward/thinks", "eval/kl/completion"


@dataclass(frozen=True)
class Outcome:
    """One run: what it came to, and what it took.

    curve: (trained tokens, held-out accuracy) of each evaluation, the first before any training.
    thinking: share of held-out completions that think, at the end.
    kl: k1 estimate of KL(policy || start) of a held-out completion at the end, nats.
    generated: completion tokens sampled to learn from, whether they were trained or not.
    seconds: of the steps, and of sampling what is learned from.
    """

    method: str
    seed: int
    curve: tuple[tuple[float, float], ...]
    thinking: float
    kl: float
    generated: int
    seconds: float

    @property
    def accuracy(self) -> float:
        """Held-out accuracy at the end."""
        return self.curve[-1][1]

    @property
    def trained(self) -> float:
        """Tokens whose log-probability the gradient went through."""
        return self.curve[-1][0]

    @property
    def to_goal(self) -> float | None:
        """Trained tokens at which the curve first reaches the goal, on the line between two evaluations."""
        if self.curve[0][1] >= GOAL:
            return self.curve[0][0]
        for (x0, y0), (x1, y1) in pairwise(self.curve):
            if y1 >= GOAL:
                return x0 + (x1 - x0) * (GOAL - y0) / (y1 - y0)
        return None

    def accuracy_at(self, tokens: float) -> float:
        """Held-out accuracy after so many trained tokens, on the line between two evaluations."""
        for (x0, y0), (x1, y1) in pairwise(self.curve):
            if tokens <= x1:
                return y0 + (y1 - y0) * (tokens - x0) / (x1 - x0)
        return self.accuracy


@dataclass(frozen=True)
class Standing:
    """A method over its seeds: means, and of the accuracy also the lowest and the highest."""

    method: str
    outcomes: tuple[Outcome, ...]

    def mean(self, name: str) -> float:
        """The mean of a number of the outcomes."""
        return sum(getattr(outcome, name) for outcome in self.outcomes) / len(self.outcomes)

    @property
    def accuracies(self) -> list[float]:
        """Held-out accuracy of each seed."""
        return [outcome.accuracy for outcome in self.outcomes]

    @property
    def to_goal(self) -> float | None:
        """Mean trained tokens to the goal, if every seed reached it."""
        reached = [outcome.to_goal for outcome in self.outcomes if outcome.to_goal is not None]
        return sum(reached) / len(reached) if len(reached) == len(self.outcomes) else None


def outcome_of(path: Path, method: str, seed: int, *, generated: int, seconds: float) -> Outcome:
    """Read a finished run.

    Args:
        path: its directory.
        method, seed: what it was.
        generated, seconds: tokens and time of what was sampled for it before it began.
    """
    trained, curve, last = 0.0, [], {}
    for line in RunDirectory(path).history():
        trained += line.get("tokens/trained", 0.0)
        generated += int(line.get("tokens/generated", 0.0))
        seconds += line.get("time/step", 0.0)
        if ACCURACY in line:
            curve.append((trained, line[ACCURACY]))
            last = line
    return Outcome(method, seed, tuple(curve), last[THINKING], last[KL], generated, seconds)


def ranked(outcomes: Sequence[Outcome]) -> list[Standing]:
    """Rank methods by their mean accuracy at the end of one budget; of equal ones who trained or sampled less."""
    methods = dict.fromkeys(outcome.method for outcome in outcomes)
    standings = [Standing(name, tuple(one for one in outcomes if one.method == name)) for name in methods]
    return sorted(standings, key=lambda s: (-s.mean("accuracy"), s.mean("trained"), s.mean("generated")))


# --- the table -------------------------------------------------------------------------------------------------------

HEAD = ("method", "accuracy", "range", "thinking", "KL", "trained", f"to {GOAL:.0%}", "generated", "seconds")
"""Short, so that a table fits into a terminal of 80 columns; NOTE says what they are."""
NOTE = (
    "Range: accuracy of the worst and of the best seed. Thinking: share of held-out answers that think. KL: of a whole "
    f"answer to the start, nats. To {GOAL:.0%}: trained tokens until that accuracy, where every seed reached it."
)


def rows(standings: Sequence[Standing]) -> list[tuple[str, ...]]:
    """Write each standing as the cells under HEAD."""
    return [
        (
            one.method,
            f"{one.mean('accuracy'):.1%}",
            f"{100 * min(one.accuracies):.1f} to {max(one.accuracies):.1%}",
            f"{one.mean('thinking'):.0%}",
            f"{one.mean('kl'):.2f}",
            f"{one.mean('trained'):,.0f}",
            "not all" if one.to_goal is None else f"{one.to_goal:,.0f}",
            f"{one.mean('generated'):,.0f}",
            f"{one.mean('seconds'):.0f}",
        )
        for one in standings
    ]


# --- the page --------------------------------------------------------------------------------------------------------


def picture(standings: Sequence[Standing], colours: Sequence[str]) -> str:
    """Draw accuracy against trained tokens: the mean of a method's seeds, and a band from the lowest to the highest.

    Args:
        standings: in the order of the key.
        colours: methods in the order of the style sheet's colours, so that a method keeps its own in every ranking.
    """
    curves: list[Curve] = []
    for one in standings:
        points: list[tuple[float, float, float, float]] = []
        # every seed has an evaluation near these, the first one's own
        for x, _ in one.outcomes[0].curve:
            values = [outcome.accuracy_at(x) for outcome in one.outcomes]
            points.append((x, sum(values) / len(values), min(values), max(values)))
        curves.append(Curve(one.method, colours.index(one.method) + 1, points))
    return drawing(curves, x_label="trained tokens", y_label="held-out accuracy", form=".1%")


def written(
    directory: Path, outcomes: Sequence[Outcome], *, title: str, rule: str, words: dict[str, str], command: str
) -> list[Standing]:
    """Write comparison.md and comparison.html into a directory, and return the standings.

    Args:
        directory: of the comparison.
        outcomes: of every run.
        title: of the page.
        rule: what was the same for all.
        words: what each method is, in the order of their colours.
        command: to repeat it.
    """
    standings = ranked(outcomes)
    told = [(one.method, words[one.method]) for one in standings]
    footer = "Lines: mean of the seeds; bands: from the lowest to the highest. Each run has a report in its own folder."
    figures = [picture(standings, list(words))]
    write(directory, Comparison(title, rule, NOTE, HEAD, rows(standings), told, command, figures, footer))
    return standings

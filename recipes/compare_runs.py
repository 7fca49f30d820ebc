"""Runs side by side: `align compare RUN RUN ...` says how they began and ended, and draws their curves together."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

from align.runs.directory import RunDirectory, RunError, flat
from align.runs.names import in_order, label
from align.runs.report import STEPS_TO_READ, axis_of, from_to
from align.runs.text import shorten, visible
from recipes.comparison_page import Comparison, Curve, chart, key, print_table, write

MOST_RUNS = 6
"""The page has so many colours."""
PARTS = 60
"""Points of a curve of training: means over so many parts of its run."""
LEFT_OUT = {"reward/std", "optim/learning_rate", "steps/total", "episode/count", "tokens/total", "optim/updates"}
"""Metrics that were asked for, only count, or go with another."""
COSTS = ("time/", "tokens/", "steps/")
"""How metrics begin that say what a run took, not what it learned: in the table, and not drawn."""
OF_THE_RUN = {"run.directory", "run.resume", "run.quiet"}
"""Settings that say where a run lies, not what it is."""

NOTE = (
    f"Means of up to {STEPS_TO_READ} steps at either end; of evaluations and of what is set or counted, the first and "
    "the last value."
)
"""What the columns are."""
OF_ANY_RUN = {"time", "tokens", "optim", "steps"}
"""Groups of metrics that say nothing of what was learned."""
LONGEST_NAME = 60
"""Characters of a file's name, without its ending."""

History = Sequence[Mapping[str, float]]


def compare(runs: Sequence[RunDirectory]) -> list[Path]:
    """Print how runs began and ended and where their settings differ, write a page, and return its files.

    compare-A+B.md and compare-A+B.html go into the nearest directory above all runs A and B.

    Raises:
        RunError: if there are too few or too many runs, one is named twice, or a file of one cannot be read.
    """
    places = [run.path.resolve() for run in runs]
    if not 2 <= len(set(places)) == len(places) <= MOST_RUNS:
        raise RunError(
            f"expected 2 to {MOST_RUNS} different runs, got {len(places)}, {len(set(places))} of them different"
        )
    above = Path(os.path.commonpath([place.parent for place in places]))
    names = [visible(str(place.relative_to(above))) for place in places]
    histories = [run.history() for run in runs]
    metrics, alone = shared(histories)
    settings = differing([run.config for run in runs])
    found = Comparison(
        title=", ".join(names),
        rule=f"Settings that differ: {len(settings)}." if settings else "The settings are the same.",
        note=NOTE,
        head=("", *names),
        rows=[(visible(label(name).words), *(began_and_ended(name, one) for one in histories)) for name in metrics],
        told=[(name, " | ".join(values)) for name, *values in settings],
        command=shlex.join(["align", "compare", *map(str, (run.path for run in runs))]),
        figures=[charts(metrics, names, histories)],
        footer="Made from the files of the runs alone. Curves of training: means over a sixtieth of the run.",
    )
    print_table(found.head, found.rows)
    print(f"\n{NOTE}")
    if all(name.split("/")[0] in OF_ANY_RUN for name in metrics):
        print("\nThese are runs of different kinds: they share no number that tells what was learned.")
    if alone:
        print(f"\nIn one run alone: {', '.join(visible(label(name).words) for name in alone)}.")
    print(f"\n{found.rule}")
    if settings:
        print_table(found.head, settings)
    here = Path.cwd()
    return write(above.relative_to(here) if above.is_relative_to(here) else above, found, file_name(names))


def shared(histories: Sequence[History]) -> tuple[list[str], list[str]]:
    """Return the metrics that more than one run has, and those of one run alone, in order."""
    have = Counter(name for one in histories for name in {name for line in one for name in line})
    told = in_order(set(have) - LEFT_OUT)
    return [name for name in told if have[name] > 1], [name for name in told if have[name] == 1]


def file_name(names: Sequence[str]) -> str:
    """Return what the page of these runs is called; a long name ends in what tells it from others.

    >>> file_name(["grpo", "seed-1/ppo"])
    'compare-grpo+seed-1_ppo'
    """
    name = f"compare-{'+'.join(names)}".replace(os.sep, "_")
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}-{sha256(name.encode()).hexdigest()[:8]}"


def began_and_ended(metric: str, history: History) -> str:
    """Write how a metric began and ended in one run."""
    ends = from_to(metric, history)
    return f"{ends.began} → {ends.ended}" if ends else ""


def differing(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return (dotted name, its value in each run) of every setting that is not the same in all."""
    own = {key for config in configs for key in config if not all(key in one for one in configs)}
    trees = [flat(without_group(config, own)) for config in configs]
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys(name for tree in trees for name in tree):
        values = tuple(json.dumps(tree[name]) if name in tree else "" for tree in trees)
        if len({*values}) > 1 and name not in OF_THE_RUN:
            rows.append((visible(name), *(visible(shorten(value, 60)) for value in values)))
    return rows


def without_group(config: Mapping[str, Any], own: Set[str]) -> dict[str, Any]:
    """Lift the settings of a command, which stand under its name, so that those of two commands can be compared."""
    lifted: dict[str, Any] = {}
    for group, value in config.items():
        lifted |= value if group in own and isinstance(value, dict) else {group: value}
    return lifted


def charts(metrics: Sequence[str], names: Sequence[str], histories: Sequence[History]) -> str:
    """Draw what was learned, two charts beside each other, under one key; as HTML."""
    drawn = [figure(name, names, histories) for name in metrics if not name.startswith(COSTS)]
    whose = key((name, colour) for colour, name in enumerate(names, start=1))
    return f'{whose}\n<div class="charts">{"".join(drawn)}</div>'


def figure(metric: str, names: Sequence[str], histories: Sequence[History]) -> str:
    """Draw one metric of all runs that have it, as HTML."""
    # Runs of different kinds have only their steps in common.
    axis = axis_of(histories[0]) if len({axis_of(history) for history in histories}) == 1 else "step"
    curves = [
        Curve(name, colour, points)
        for colour, (name, history) in enumerate(zip(names, histories, strict=True), start=1)
        if (points := points_of(metric, history, axis))
    ]
    words, unit, form = label(metric)
    over = "environment steps" if axis != "step" else "optimizer steps"
    y_label = visible(f"{words}, {unit}" if unit else words)
    return chart(curves, x_label=over, y_label=y_label, form=form)


def points_of(metric: str, history: History, axis: str) -> list[tuple[float, float, float, float]]:
    """Return the curve of a metric without a band, thinned where it is one of training."""
    found = [(line.get(axis, 0.0), line[metric]) for line in history if math.isfinite(line.get(metric, math.nan))]
    size = 1 if metric.startswith("eval/") else math.ceil(len(found) / PARTS) or 1
    chunks = [found[start : start + size] for start in range(0, len(found), size)]
    means = [(fmean(x for x, _ in chunk), fmean(y for _, y in chunk)) for chunk in chunks]
    return [(x, y, y, y) for x, y in means]

"""Runs side by side: `align compare RUN RUN ...` says how they began and ended, and draws their curves together."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from align.runs.directory import RunDirectory, RunError, flat
from align.runs.names import in_order, label
from align.runs.report import axis_of, from_to
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

History = Sequence[Mapping[str, float]]


def compare(runs: Sequence[RunDirectory]) -> list[Path]:
    """Print how runs began and ended and where their settings differ, write a page, and return its files.

    comparison.md and comparison.html go into the nearest directory above all runs.

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
    metrics = in_order({name for one in histories for line in one for name in line} - LEFT_OUT)
    head = ("", *names)
    rows = [(visible(label(name).words), *(began_and_ended(name, one) for one in histories)) for name in metrics]
    settings = differing([run.config for run in runs])
    print_table(head, rows)
    print("\nSettings that differ:" if settings else "\nThe settings are the same.")
    if settings:
        print_table(head, settings)
    return write(
        above,
        Comparison(
            title=", ".join(names),
            rule=f"{len(settings)} settings differ." if settings else "The settings are the same.",
            note="Means of the first 10 steps and of the last 10; of evaluations the first and the last.",
            head=head,
            rows=rows,
            told=[(name, " | ".join(values)) for name, *values in settings],
            command=shlex.join(["align", "compare", *map(str, (run.path for run in runs))]),
            figures=[charts(metrics, names, histories)],
            footer="Made from the files of the runs alone. Curves of training: means over a sixtieth of the run.",
        ),
    )


def began_and_ended(metric: str, history: History) -> str:
    """Write how a metric began and ended in one run."""
    ends = from_to(metric, history)
    return f"{ends[0]} → {ends[1]}" if ends else ""


def differing(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return (dotted name, its value in each run) of every setting that is not the same in all."""
    trees = [flat(config) for config in configs]
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys(name for tree in trees for name in tree):
        values = tuple(json.dumps(tree[name]) if name in tree else "" for tree in trees)
        if len({*values}) > 1 and name not in OF_THE_RUN:
            rows.append((visible(name), *(visible(shorten(value, 60)) for value in values)))
    return rows


def figure(metric: str, names: Sequence[str], histories: Sequence[History]) -> str:
    """Draw one metric of all runs that have it, as HTML."""
    curves = [
        Curve(name, colour, points)
        for colour, (name, history) in enumerate(zip(names, histories, strict=True), start=1)
        if (points := points_of(metric, history))
    ]
    words, unit, form = label(metric)
    over = "environment steps" if axis_of(histories[0]) != "step" else "optimizer steps"
    y_label = visible(f"{words}, {unit}" if unit else words)
    return chart(curves, x_label=over, y_label=y_label, form=form)


def points_of(metric: str, history: History) -> list[tuple[float, float, float, float]]:
    """Return the curve of a metric without a band, thinned where it is one of training."""
    axis = axis_of(history)
    found = [(line.get(axis, 0.0), line[metric]) for line in history if math.isfinite(line.get(metric, math.nan))]
    size = 1 if metric.startswith("eval/") else math.ceil(len(found) / PARTS) or 1
    chunks = [found[start : start + size] for start in range(0, len(found), size)]
    means = [(fmean(x for x, _ in chunk), fmean(y for _, y in chunk)) for chunk in chunks]
    return [(x, y, y, y) for x, y in means]


def charts(metrics: Sequence[str], names: Sequence[str], histories: Sequence[History]) -> str:
    """Draw what was learned, two charts beside each other, under one key; as HTML."""
    drawn = [figure(name, names, histories) for name in metrics if not name.startswith(COSTS)]
    whose = key((name, colour) for colour, name in enumerate(names, start=1))
    return f'{whose}\n<div class="charts">{"".join(drawn)}</div>'

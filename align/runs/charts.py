"""Draw curves and histograms as inline SVG: text, coloured by the page's style sheet, without any script.

Coordinates are pixels of a box, WIDTH x HEIGHT unless told, that the page scales; what is drawn is inside its margins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from typing import NamedTuple

WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 24, 40
MOST_POINTS = 300
"""Points of a curve; beyond, neighbours are averaged, since a screen shows no more."""


class Point(NamedTuple):
    """A value at a step; `spread` draws a band of that half-width around it."""

    x: float
    y: float
    spread: float = 0.0


@dataclass(frozen=True)
class Series:
    """One curve. `kind` is its class in the style sheet: "train" is noisy and smoothed, "exact" is one of training
    that is not, and of a "band ..." only the spread is drawn; of any other, such as "eval", the points are few and each
    is drawn, called by `name` and its x.
    """

    kind: str
    points: list[Point]
    name: str = "step"


class Frame(NamedTuple):
    """From values to pixels, and the box that they are in."""

    x: Callable[[float], float]
    y: Callable[[float], float]
    width: int = WIDTH
    height: int = HEIGHT


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    form: str = "g",
    width: int = WIDTH,
    height: int = HEIGHT,
) -> str:
    """Draw curves over a common axis; values that are not finite leave a gap in nothing but themselves."""
    drawn = [replace(one, points=_thinned([p for p in one.points if math.isfinite(p.y)])) for one in series]
    everything = [point for one in drawn for point in one.points]
    if not everything:
        return '<p class="none">no finite value</p>'
    xs = [point.x for point in everything]
    lows, highs = zip(*((p.y - p.spread, p.y + p.spread) for p in everything), strict=True)
    y_ticks, x_ticks = ticks(min(lows), max(highs), max(4, height // 60)), whole_ticks(min(xs), max(xs), 5)
    y_range = (min(y_ticks[0], min(lows)), max(y_ticks[-1], max(highs)))
    frame = _frame((min(xs), max(xs)), y_range, width, height)
    marks = [_grid(frame, x_ticks, y_ticks, form), _axis_names(frame, x_label, y_label)]
    return _svg(frame, [*marks, *(_curve(one, frame, form) for one in drawn)], y_label)


def histogram(first: Sequence[float], last: Sequence[float], *, x_label: str, y_label: str) -> str:
    """Draw how values are spread in two samples, bars side by side, each sample as shares of its own size."""
    names, bins = _bins([*first, *last])
    shares = [[_share(values, low, high) for low, high in bins] for values in (first, last)]
    y_ticks = ticks(0.0, max(max(row) for row in shares), 4)
    frame = _frame((0, len(bins)), (0, y_ticks[-1]))
    every = math.ceil(len(names) / 7)
    labels = {index + 0.5: name for index, name in enumerate(names) if index % every == 0}
    marks = [_grid(frame, [], y_ticks, ".0%"), _axis_names(frame, x_label, y_label)]
    marks += [_text(frame.x(x), HEIGHT - BOTTOM + 15, name, "tick", "middle") for x, name in labels.items()]
    for place, (kind, row) in enumerate(zip(("first", "last"), shares, strict=True)):
        marks += [_bar(frame, index + 0.1 + 0.4 * place, share, kind, names[index]) for index, share in enumerate(row)]
    return _svg(frame, marks, x_label)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return round numbers that cover a range: steps of 1, 2, 2.5 or 5 times a power of ten.

    >>> ticks(0.03, 0.94, 4)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-12):
        low, high = low - abs(low) / 2, high + abs(high) / 2 or 1.0  # a constant is drawn in the middle, but 0 below
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    return [index * step for index in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def whole_ticks(low: float, high: float, about: int) -> list[float]:
    """Return round whole numbers within a range.

    >>> whole_ticks(1, 250, 5)
    [50.0, 100.0, 150.0, 200.0, 250.0]
    """
    if high <= low:
        return [low]
    inside = [tick for tick in ticks(low, high, about) if low <= tick <= high and tick == int(tick)]
    return inside or [low, high]


# --- parts -----------------------------------------------------------------------------------------------------------


def _frame(
    x_range: tuple[float, float], y_range: tuple[float, float], width: int = WIDTH, height: int = HEIGHT
) -> Frame:
    (x0, x1), (y0, y1) = x_range, y_range
    x_scale = (width - LEFT - RIGHT) / ((x1 - x0) or 1.0)
    y_scale = (height - TOP - BOTTOM) / ((y1 - y0) or 1.0)
    return Frame(lambda x: LEFT + (x - x0) * x_scale, lambda y: height - BOTTOM - (y - y0) * y_scale, width, height)


def _thinned(points: list[Point]) -> list[Point]:
    size = math.ceil(len(points) / MOST_POINTS) or 1
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    return [Point(*(sum(values) / len(chunk) for values in zip(*chunk, strict=True))) for chunk in chunks]


def _smoothed(points: list[Point]) -> list[Point]:
    """The running mean over a tenth of the curve, centred; shorter at its ends."""
    reach = len(points) // 20
    spans = [points[max(0, i - reach) : i + reach + 1] for i in range(len(points))]
    return [Point(p.x, sum(q.y for q in span) / len(span)) for p, span in zip(points, spans, strict=True)]


def _curve(series: Series, frame: Frame, form: str) -> str:
    points = series.points
    if series.kind.startswith("band"):
        return _band(points, frame, series.kind)
    if series.kind not in ("train", "exact"):
        dots = [
            f'<circle class="{series.kind}" cx="{frame.x(p.x):.1f}" cy="{frame.y(p.y):.1f}" r="2.6">'
            f"<title>{escape(series.name)} {p.x:,.12g}: {format(p.y, form)}</title></circle>"
            for p in points
        ]
        return _path(points, frame, series.kind) + "".join(dots)
    parts = [_band(_smoothed_spread(points), frame, "band")] if any(p.spread for p in points) else []
    if series.kind == "train":  # with few points the curve is its own mean
        parts.append(_path(points, frame, "raw"))
        points = _smoothed(points)
    parts.append(_path(points, frame, "train"))
    if len(points) == 1:
        parts.append(f'<circle class="train" cx="{frame.x(points[0].x):.1f}" cy="{frame.y(points[0].y):.1f}" r="2.6"/>')
    return "".join(parts)


def _path(points: Sequence[Point], frame: Frame, kind: str) -> str:
    line = " ".join(f"{frame.x(p.x):.1f},{frame.y(p.y):.1f}" for p in points)
    return f'<polyline class="{kind}" points="{line}"/>'


def _band(points: list[Point], frame: Frame, kind: str) -> str:
    above = [Point(p.x, p.y + p.spread) for p in points]
    below = [Point(p.x, p.y - p.spread) for p in reversed(points)]
    edge = " ".join(f"{frame.x(p.x):.1f},{frame.y(p.y):.1f}" for p in [*above, *below])
    return f'<polygon class="{kind}" points="{edge}"/>'


def _smoothed_spread(points: list[Point]) -> list[Point]:
    spreads = _smoothed([Point(p.x, p.spread) for p in points])
    return [Point(m.x, m.y, s.y) for m, s in zip(_smoothed(points), spreads, strict=True)]


def _grid(frame: Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], form: str) -> str:
    right, floor = frame.width - RIGHT, frame.height - BOTTOM
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{frame.y(y):.1f}" y2="{frame.y(y):.1f}"/>'
        + _text(LEFT - 6, frame.y(y) + 4, _tick_text(y, form), "tick", "end")
        for y in y_ticks
    ]
    lines += [
        f'<line class="axis" x1="{frame.x(x):.1f}" x2="{frame.x(x):.1f}" y1="{floor}" y2="{floor + 4}"/>'
        + _text(frame.x(x), floor + 16, f"{x:,.0f}", "tick", "middle")
        for x in x_ticks
    ]
    lines.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{floor}" y2="{floor}"/>')
    return "".join(lines)


def _tick_text(value: float, form: str) -> str:
    if form.endswith("%"):
        return f"{100 * value:.3g}%"
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.6g}"


def _axis_names(frame: Frame, x_label: str, y_label: str) -> str:
    right = _text(frame.width - RIGHT, frame.height - 6, x_label, "name", "end")
    return right + _text(2, 12, y_label, "name", "start")


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _bar(frame: Frame, x: float, share: float, kind: str, name: str) -> str:
    top = frame.y(share)
    return (
        f'<rect class="{kind}" x="{frame.x(x):.1f}" y="{top:.1f}" width="{frame.x(x + 0.4) - frame.x(x):.1f}" '
        f'height="{HEIGHT - BOTTOM - top:.1f}"><title>{escape(name)}: {share:.0%}</title></rect>'
    )


def _svg(frame: Frame, marks: Sequence[str], name: str) -> str:
    head = f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(name, quote=True)}">'
    return f"{head}{''.join(marks)}</svg>"


def _bins(values: Sequence[float]) -> tuple[list[str], list[tuple[float, float]]]:
    """Names and half-open ranges: each value its own bin where they are few, twelve equal ones otherwise."""
    distinct = sorted(set(values)) or [0.0]
    if len(distinct) <= 8:
        return [f"{value:.3g}" for value in distinct], [(v, math.nextafter(v, math.inf)) for v in distinct]
    width = (distinct[-1] - distinct[0]) / 12
    edges = [distinct[0] + index * width for index in range(12)] + [math.nextafter(distinct[-1], math.inf)]
    bins = list(pairwise(edges))
    return [f"{(low + high) / 2:.2g}" for low, high in bins], bins


def _share(values: Sequence[float], low: float, high: float) -> float:
    return sum(low <= value < high for value in values) / len(values) if values else 0.0

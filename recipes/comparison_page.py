"""What comparisons share: a table for README, page and terminal, a chart with bands, and the files that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rich.console import Console
from rich.table import Table

from align.runs.charts import Point, Series, line_chart
from align.runs.report import page

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Curve:
    """The line of one competitor, and the band around it. `colour` counts those of the style sheet, from 1 to 6.

    points: (x, middle, low, high).
    """

    name: str
    colour: int
    points: Sequence[tuple[float, float, float, float]]


@dataclass(frozen=True)
class Comparison:
    """All that is told of a comparison.

    rule: what was the same for all.
    note: what the columns are.
    head, rows: of the table, the competitor first.
    told: competitors and what each is.
    command: to repeat it.
    figures: drawn already, as HTML.
    footer: what the lines and bands are.
    """

    title: str
    rule: str
    note: str
    head: Sequence[str]
    rows: Rows
    told: Sequence[tuple[str, str]]
    command: str
    figures: Sequence[str]
    footer: str


def markdown(head: Sequence[str], rows: Rows) -> str:
    """Write a table for a README."""
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def drawing(curves: Sequence[Curve], *, x_label: str, y_label: str, form: str, height: int = 420) -> str:
    """Draw curves as wide as the page, with a key of their own."""
    drawn = chart(curves, x_label=x_label, y_label=y_label, form=form, width=880, height=height)
    return f"{key([(one.name, one.colour) for one in curves])}\n{drawn}"


def chart(curves: Sequence[Curve], *, x_label: str, y_label: str, form: str, **size: int) -> str:
    """Draw curves with their bands; those that come first lie on top."""
    bands = [
        Series(f"band m{one.colour}", [Point(x, (high + low) / 2, (high - low) / 2) for x, _, low, high in one.points])
        for one in curves
    ]
    lines = [
        Series(f"m{one.colour}", [Point(x, y) for x, y, _, _ in one.points], name=f"{one.name} at") for one in curves
    ]
    return f"<figure>{line_chart([*bands, *lines[::-1]], x_label=x_label, y_label=y_label, form=form, **size)}</figure>"


def key(colours: Iterable[tuple[str, int]]) -> str:
    """Say whose colour is which."""
    spans = [f'<span><i class="m{colour}"></i>{escape(name)}</span>' for name, colour in colours]
    return f'<p class="key">{"".join(spans)}</p>'


def write(directory: Path, found: Comparison) -> list[Path]:
    """Write comparison.md and comparison.html into a directory, and return their paths."""
    listed = "".join(f"* **{name}**: {what}\n" for name, what in found.told)
    table = markdown(found.head, found.rows)
    text = f"# {found.title}\n\n{table}\n{found.rule} {found.note}\n\n{listed}\n    {found.command}\n"
    files = [directory / "comparison.md", directory / "comparison.html"]
    files[0].write_text(text, encoding="utf-8")
    head, *cells = [
        "".join(f'<{tag} class="{"n" if place else ""}">{escape(cell)}</{tag}>' for place, cell in enumerate(row))
        for tag, row in [("th", found.head), *(("td", row) for row in found.rows)]
    ]
    inside = f"<thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in cells)}</tbody>"
    items = "".join(f"<tr><td>{escape(name)}</td><td>{escape(what)}</td></tr>" for name, what in found.told)
    figures = "".join(f'<section class="gap">\n{figure}\n</section>\n' for figure in found.figures)
    body = (
        f'<header>\n<h1>{escape(found.title)}</h1>\n<p class="status">{escape(found.rule)}</p>\n</header>\n{figures}'
        f'<section class="gap">\n<div class="wide"><table>{inside}</table></div>\n'
        f'<p class="soft">{escape(found.note)}</p>\n</section>\n'
        f'<section>\n<h2>What is compared</h2>\n<div class="wide"><table><tbody>{items}</tbody></table></div>\n'
        f'</section>\n<section>\n<h2>To reproduce</h2>\n<pre class="command">{escape(found.command)}</pre>\n'
        "</section>\n"
    )
    files[1].write_text(page(escape(found.title), body, found.footer), encoding="utf-8")
    return files


def print_table(head: Sequence[str], rows: Rows) -> None:
    """Print a table."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for place, title in enumerate(head):
        table.add_column(title, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)

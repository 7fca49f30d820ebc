"""Write report.html of a run from the files of its directory: one file, no server, no script.

Everything that comes from a model, from data or from options passes through `_shown`, which escapes HTML and writes
control characters out; the page's own policy forbids scripts and requests besides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from align.runs.charts import Point, Series, histogram, line_chart
from align.runs.directory import RunDirectory, flat
from align.runs.health import RULES, findings
from align.runs.names import EXACT, duration, evaluated, in_order, label, number
from align.runs.text import shorten, visible

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
LATEST_EVENTS = 40
STEPS_TO_READ = 10
"""First and last steps whose mean is told as where a noisy metric began and ended."""
TOLD_FIRST = {"reward/mean", "episode/return", "sft/accuracy", "preference/accuracy"}
"""Told at the head of the page, beside all evaluations."""
EMPTY = '<span class="soft">(empty)</span>'
"""What stands for a text without a character."""
BESIDE = {"reward/std"}
"""Drawn as the band of another chart."""

Lines = list[dict[str, Any]]


class Ends(NamedTuple):
    """How a metric began and ended, each the mean of so many steps."""

    began: str
    ended: str
    steps: int


def write_report(directory: str | Path) -> Path:
    """Write `report.html` into the directory of a run, finished or not, and return its path.

    Raises:
        RunError: if a file of the run cannot be read.
    """
    run = RunDirectory(directory)
    history = run.history()
    events, rollouts = run.read("events.jsonl"), run.read("completions.jsonl")
    name = _shown(run.path.resolve().name)
    sections = [
        _head(name, history, events),
        _section("Health", _health(history, events)),
        _section("Curves", _curves(history)),
        _section("Rewards, first and last rollout", _rewards(rollouts)),
        _section("Completions, before and after", _completions(rollouts)),
        _section("A group and its advantages", _groups(rollouts)),
        _section("Events", _events(events)),
        _section("Configuration", _table(run.config)),
        _section("Environment", _table({k: v for k, v in run.environment.items() if k != "command"})),
        _section("To reproduce", _command(run.environment)),
    ]
    footer = (
        "Made from the files of the run's directory alone. "
        "Curves: faint, every step; strong, the mean over a tenth of the run."
    )
    run.write_report(page(name, "".join(sections), footer))
    return run.report


def page(title: str, body: str, footer: str) -> str:
    """Return a page in the style of the reports, whole in itself; what is given is HTML already."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}"
        f"<footer>{footer}</footer>\n</body>\n</html>\n"
    )


# --- sections --------------------------------------------------------------------------------------------------------


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{body}\n</section>\n" if body else ""


def _head(name: str, history: Sequence[Mapping[str, float]], events: Lines) -> str:
    steps = int(max((line["step"] for line in history), default=0))
    total = next((event["total_steps"] for event in reversed(events) if "total_steps" in event), None)
    tiles = [("steps", f"{steps:,}" + (f" <small>of {int(total):,}</small>" if total else ""))]
    for metric in in_order({name for line in history for name in line}):
        if metric.startswith("eval/") or metric in TOLD_FIRST:
            ends = from_to(metric, history)
            over = f", means of {ends.steps} steps" if ends and ends.steps > 1 else ""
            tiles.append((_shown(label(metric).words) + over, _from_to(ends)))
    seconds = sum(value for line in history if math.isfinite(value := line.get("time/step", 0.0)))
    if seconds:
        tiles.append(("time in steps", duration(seconds)))
    listed = "".join(f"<div><dt>{words}</dt><dd>{value}</dd></div>" for words, value in tiles)
    return f'<header>\n<h1>{name}</h1>\n{_status(events)}\n<dl class="tiles">{listed}</dl>\n</header>\n'


def _status(events: Lines) -> str:
    ends = [event for event in events if event.get("kind") in ("end", "stop", "error", "start", "resume")]
    last = ends[-1] if ends else {"kind": "none"}
    words = _shown(str(last.get("words", "")))
    resumes = sum(event["kind"] == "resume" for event in ends)
    told = {
        "end": "<b>Finished</b>",
        "stop": f'<b class="bad">Stopped</b>: {words}',
        "error": f'<b class="bad">Failed</b> after step {last.get("step")}: {words}',
    }.get(str(last["kind"]), "<b>Running</b>, or ended without a word")
    return f'<p class="status">{told}{f", resumed {resumes} times" if resumes > 1 else ", resumed once" * resumes}</p>'


def from_to(metric: str, history: Sequence[Mapping[str, float]]) -> Ends | None:
    """Return how a metric began and ended, over a few steps where it is noisy; None where nothing was finite."""
    values = [value for line in history if math.isfinite(value := line.get(metric, math.nan))]
    if not values:
        return None
    exact = metric in EXACT or metric.startswith("eval/")
    few = 1 if exact else min(STEPS_TO_READ, max(1, len(values) // 2))
    return Ends(number(metric, sum(values[:few]) / few), number(metric, sum(values[-few:]) / few), few)


def _from_to(ends: Ends | None) -> str:
    return f"<small>{ends.began} →</small> {ends.ended}" if ends else "not finite"


def _health(history: Sequence[Mapping[str, float]], events: Lines) -> str:
    found = findings(history)
    if not found:
        return f'<p class="soft">Nothing found by the {len(RULES)} rules.</p>'
    items = [
        f"<li><h3>{_shown(finding.name[:1].upper() + finding.name[1:])} "
        f'<span class="soft">from step {finding.step}</span></h3>'
        f'<p>{_shown(finding.words)}</p><p class="soft">{_shown(finding.advice)}</p></li>'
        for finding in found
    ]
    return f'<ul class="findings">{"".join(items)}</ul>'


def _curves(history: Sequence[Mapping[str, float]]) -> str:
    present = {name for line in history for name in line}
    beside = BESIDE | {axis_of(history)}
    names = [name for name in in_order(present) if name not in beside and not _drawn_with_training(name, present)]
    charts = [_chart(name, history) for name in names]
    has_both = any(name.startswith("eval/") for name in present)
    key = "<span><i></i>training</span>"
    key += f'<span><i class="eval"></i>{evaluated(present)}</span>' if has_both else ""
    key += f"<span>numbers where it is noisy: means of up to {STEPS_TO_READ} steps at either end</span>"
    return f'<p class="key">{key}</p><div class="charts">{"".join(charts)}</div>' if charts else ""


def _drawn_with_training(name: str, present: set[str]) -> bool:
    return name.startswith("eval/") and name.removeprefix("eval/") in present


def axis_of(history: Sequence[Mapping[str, float]]) -> str:
    """Return what curves are drawn over: environment steps where they are counted, since learning costs those."""
    return "steps/total" if any("steps/total" in line for line in history) else "step"


def _chart(name: str, history: Sequence[Mapping[str, float]]) -> str:
    words, unit, form = label(name)
    spread = "reward/std" if name == "reward/mean" else ""
    axis = axis_of(history)
    over = "optimizer step" if axis == "step" else "environment step"
    series = [
        Series(
            "eval" if metric.startswith("eval/") else "exact" if metric in EXACT else "train",
            [
                Point(_finite(line.get(axis, 0.0)), line[metric], _finite(line.get(spread, 0.0)))
                for line in history
                if metric in line
            ],
            name=over if axis != "step" else "step",
        )
        for metric in (name, f"eval/{name}")
        if any(metric in line for line in history)
    ]
    drawing = line_chart(series, x_label=over, y_label=visible(unit or words), form=form)
    ends = from_to(name, history)
    over = f' title="means of {ends.steps} steps"' if ends and ends.steps > 1 else ""
    return f"<figure><figcaption>{_shown(words)}<span{over}>{_from_to(ends)}</span></figcaption>{drawing}</figure>"


def _rewards(rollouts: Lines) -> str:
    with_rewards = [line for line in rollouts if line.get("rewards")]
    if not with_rewards:
        return ""
    first, last = with_rewards[0], with_rewards[-1]
    values = [[reward for reward in line["rewards"] if reward is not None] for line in (first, last)]
    drawing = histogram(*values, x_label="reward", y_label="share of completions")
    key = "".join(
        f'<span><i class="{kind}"></i>step {line["step"]}, {len(rewards)} completions</span>'
        for kind, line, rewards in zip(("first", "last"), (first, last), values, strict=True)
    )
    return f'<p class="key">{key}</p><div class="charts"><figure>{drawing}</figure></div>'


def _completions(rollouts: Lines) -> str:
    if not rollouts:
        return ""
    first, last = rollouts[0], rollouts[-1]
    rows = []
    for before, after in zip(first.get("samples", []), last.get("samples", []), strict=False):
        rows.append(f'<div class="pair">{_card(before, first["step"])}{_card(after, last["step"])}</div>')
    return "".join(rows)


def _card(sample: Mapping[str, Any], step: int) -> str:
    ended = "" if sample.get("terminated", True) else ", cut"
    parts = sample.get("parts") or {}
    listed = ", ".join(f"{_shown(name)} {_value(value)}" for name, value in parts.items())
    return (
        f'<article class="card"><header><span><b>{_shown(str(sample.get("role", "")))}</b> of step {step}</span>'
        f"<span>reward <b>{_value(sample.get('reward'))}</b>, {int(sample.get('tokens', 0))} tokens{ended}</span>"
        f'</header><pre class="prompt">{_shown(sample.get("prompt", ""), lines=True)}</pre>'
        f"<pre>{_shown(sample.get('completion', ''), lines=True) or EMPTY}</pre>"
        + (f'<p class="parts">{listed}</p>' if len(parts) > 1 else "")
        + "</article>"
    )


def _groups(rollouts: Lines) -> str:
    tables = [_group_table(line) for line in (rollouts[:1] + rollouts[1:][-1:]) if line.get("group")]
    return '<div class="gap"></div>'.join(tables)


def _group_table(line: Mapping[str, Any]) -> str:
    group = line["group"]
    rows = "".join(
        f'<tr><td class="text">{_shown(shorten(str(one.get("completion", "")), 300)) or EMPTY}</td>'
        f'<td class="n">{int(one.get("tokens", 0))}</td><td class="n">{_value(one.get("reward"))}</td>'
        f'<td class="n {_sign(one.get("advantage"))}">{_value(one.get("advantage"), "+.2f")}</td></tr>'
        for one in group
    )
    return (
        f'<div class="wide"><table><caption>Step {line["step"]}</caption><thead>'
        f'<tr><th colspan="4"><code>{_shown(shorten(str(group[0].get("prompt", "")), 400))}</code></th></tr>'
        '<tr><th>completion</th><th class="n">tokens</th><th class="n">reward</th><th class="n">advantage</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _events(events: Lines) -> str:
    told = [event for event in events if event.get("kind") != "evaluation"]
    rows = "".join(
        f'<tr><td class="n">{int(event.get("step", 0))}</td><td>{_shown(str(event.get("kind", "")))}</td>'
        f"<td>{_shown(str(event.get('words', '')))}</td></tr>"
        for event in told[-LATEST_EVENTS:]
    )
    left = f'<p class="soft">the latest {LATEST_EVENTS} of {len(told)}</p>' if len(told) > LATEST_EVENTS else ""
    head = '<thead><tr><th class="n">step</th><th>what</th><th></th></tr></thead>'
    return f'{left}<div class="wide"><table>{head}<tbody>{rows}</tbody></table></div>' if told else ""


def _command(environment: Mapping[str, Any]) -> str:
    command = environment.get("command")
    return f'<pre class="command">{_shown(str(command))}</pre>' if command else ""


def _table(tree: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><td class="key-name">{_shown(name)}</td>'
        f'<td class="text">{_shown(value if isinstance(value, str) else json.dumps(value))}</td></tr>'
        for name, value in flat(tree).items()
    )
    return f'<div class="wide"><table><tbody>{rows}</tbody></table></div>' if rows else ""


# --- small things ----------------------------------------------------------------------------------------------------


def _shown(text: str, *, lines: bool = False) -> str:
    """Text of others as HTML that shows it and does nothing else."""
    return escape(visible(text, keep_newlines=lines), quote=True)


def _value(value: float | None, form: str = ".3g") -> str:
    return "–" if value is None else format(value, form)  # noqa: RUF001 - the dash of an empty cell


def _sign(value: float | None) -> str:
    return "" if not value else "up" if value > 0 else "down"


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0

"""Show a run while it goes: one live region on a terminal, one short line a step elsewhere.

Whatever comes from a model or from data goes through `visible` and into `Text`, which knows no markup, so that no
completion can move the cursor, colour the screen or pass for a message of the run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from align.runs.names import duration, evaluated, in_order, label, number
from align.runs.text import shorten, visible

REFRESH_SECONDS = 0.1
BARS = "▁▂▃▄▅▆▇█"

SHORT = {
    "reward/mean": "reward",
    "episode/return": "return",
    "episode/length": "length",
    "sft/accuracy": "accuracy",
    "kl/reference": "kl",
    "policy/entropy": "entropy",
    "completion/length": "length",
    "completion/truncated": "cut",
    "group/silent": "silent",
    "optim/loss": "loss",
    "preference/accuracy": "accuracy",
    "preference/margin": "margin",
    "preference/chosen_reward": "chosen",
    "preference/rejected_reward": "rejected",
}
"""What a line tells, under which name; "reward/std" is written beside the reward."""

SPEED = {"tokens/per_second": "tok/s", "steps/per_second": "steps/s"}
"""What tells how fast it goes, and its unit."""

MAIN = ("reward/mean", "episode/return")
"""What is to rise: bold, and drawn where there is room."""

LONGEST_NAME = 22
"""Characters of a metric's name in the live region."""

Metrics = Mapping[str, float]


class Display:
    """What a user sees of a run. Used as a context manager; `console` decides about terminal, width and colour.

    Args:
        total_steps: steps of the whole run.
        console: rich's console; by default one on stdout, which honours NO_COLOR.
        log_every: off a terminal, a line every so many steps.
        quiet: nothing but warnings and the last word.
    """

    def __init__(
        self, total_steps: int, console: Console | None = None, *, log_every: int = 1, quiet: bool = False
    ) -> None:
        if log_every < 1:
            raise ValueError(f"log_every must be at least 1, got {log_every}: use quiet to see no steps at all")
        self.console = console or Console()
        self.total_steps, self.log_every, self.quiet = total_steps, log_every, quiet
        self._ascii = not self.console.encoding.lower().startswith("utf")
        self._live: Live | None = None
        self._step = 0
        self._metrics: dict[str, float] = {}
        self._evaluation: tuple[int, dict[str, float]] | None = None
        self._samples: tuple[int, list[tuple[str, dict[str, Any]]]] | None = None
        self._warnings: deque[str] = deque(maxlen=3)
        self._rewards: deque[float] = deque(maxlen=240)
        self._began: tuple[int, float] | None = None
        self._drawn = 0.0

    def __enter__(self) -> Display:
        if self.console.is_terminal and not self.console.is_dumb_terminal and not self.quiet:
            # No thread of its own: between two steps nothing changes but the clock.
            self._live = Live(console=self.console, auto_refresh=False, vertical_overflow="crop")
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._draw(now=True)
            self._live.stop()
            self._live = None

    def step(self, step: int, metrics: Metrics) -> None:
        """Show the metrics of a step."""
        if self._began is None:
            self._began = (step - 1, time.monotonic() - metrics.get("time/step", 0.0))
        self._step = step
        evaluated = {name: value for name, value in metrics.items() if name.startswith("eval/")}
        told = {name: value for name, value in metrics.items() if name not in evaluated}
        # What a rollout measures comes with the first update from it, and holds until the next one is measured.
        self._metrics = told if any(name in told for name in MAIN) else {**self._metrics, **told}
        self._rewards.extend([metrics[name] for name in MAIN if name in metrics][:1])
        if evaluated:
            self._evaluation = (step, evaluated)
        if self._live:
            self._draw(now=step >= self.total_steps)
        elif not self.quiet and (step % self.log_every == 0 or step >= self.total_steps or evaluated):
            self._print(self._line())

    def evaluation(self, step: int, metrics: Metrics) -> None:
        """Show an evaluation that belongs to no training step, such as the one before the first."""
        self._evaluation = (step, dict(metrics))
        if self._live:
            self._draw(now=True)
        elif not self.quiet:
            self._print(Text.assemble(f"step {step}/{self.total_steps}  ", self._told(metrics)))

    def samples(self, step: int, samples: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Show some completions: (role, example) pairs, the role being best, worst or random."""
        self._samples = (step, list(samples))
        if self._live:
            self._draw()

    def warn(self, words: str) -> None:
        """Tell a warning, in every mode."""
        if self._live:
            self._warnings.append(words)
            self._draw(now=True)
        else:
            self._print(Text.assemble(("warning: ", "yellow"), self._plain(words)))

    def say(self, words: str, *, always: bool = False) -> None:
        """Tell something; where quiet was asked for only what is said `always`."""
        if always or not self.quiet:
            self._print(Text(self._plain(words)))

    # --- a line a step ---

    def _print(self, text: Text) -> None:
        # soft_wrap: a log file has no width, and a line broken at 80 cannot be grepped.
        self.console.print(text, soft_wrap=True)

    def _line(self) -> Text:
        parts = [f"step {self._step}/{self.total_steps}"]
        for name, short in SHORT.items():
            if name in self._metrics:
                parts.append(f"{short} {self._value(name)}")
        parts += [f"{self._value(name)} {unit}" for name, unit in SPEED.items() if name in self._metrics]
        if left := self._time_left():
            parts.append(f"left {left}")
        line = Text("  ".join(parts))
        if self._evaluation and self._evaluation[0] == self._step:
            line.append("  ").append(self._told(self._evaluation[1]))
        return line

    def _value(self, name: str) -> str:
        told = number(name, self._metrics[name])
        if name == "reward/mean" and "reward/std" in self._metrics:
            told += f" {'+-' if self._ascii else '±'}{number('reward/std', self._metrics['reward/std'])}"
        return told

    def _told(self, evaluation: Metrics) -> Text:
        told = [f"{_short(name.removeprefix('eval/'))} {number(name, value)}" for name, value in evaluation.items()]
        return Text(self._plain(f"{evaluated(evaluation).replace('-', ' ')}: {', '.join(told)}"))

    def _time_left(self) -> str:
        if self._began is None or self._step >= self.total_steps:
            return ""
        first, since = self._began
        return duration((time.monotonic() - since) / (self._step - first) * (self.total_steps - self._step))

    def _plain(self, text: str) -> str:
        return visible(text, ascii_only=self._ascii)

    # --- the live region ---

    def _draw(self, *, now: bool = False) -> None:
        if self._live and (now or time.monotonic() - self._drawn > REFRESH_SECONDS):
            self._drawn = time.monotonic()
            self._live.update(self._region(), refresh=True)

    def _region(self) -> Group:
        rows: list[Any] = [self._header(), Padding(self._numbers(), (0, 0, 0, 2))]
        if self._evaluation:
            step, evaluation = self._evaluation
            rows.append(Text.assemble((f"  step {step}  ", "dim"), self._told(evaluation), overflow="ellipsis"))
        if self._samples and self._samples[1]:
            rows.append(Padding(self._sample_table(), (1, 0, 0, 2)))
        for words in self._warnings:
            rows.append(Text.assemble(("! ", "bold yellow"), (self._plain(words), "yellow")))
        return Group(*rows)

    def _header(self) -> Table:
        header = Table.grid(padding=(0, 2), expand=True)
        header.add_column(no_wrap=True)
        header.add_column(ratio=1)
        header.add_column(no_wrap=True, justify="right")
        told = [f"{self._time_left()} left"] if self._time_left() else []
        told += [f"{self._value(name)} {unit}" for name, unit in SPEED.items() if name in self._metrics]
        bar = ProgressBar(total=max(1, self.total_steps), completed=self._step, complete_style="cyan")
        header.add_row(Text(f"step {self._step}/{self.total_steps}", "bold"), bar, Text("   ".join(told), "dim"))
        return header

    def _numbers(self) -> Table:
        """The metrics in as many columns as the width allows, in reading order, top to bottom."""
        hidden = {"reward/std", "tokens/total", *SPEED}
        names = [name for name in in_order(self._metrics) if name not in hidden]
        columns = max(1, min(4, (self.console.width - 2) // 38))
        height = max(1, -(-len(names) // columns))
        grid = Table.grid(padding=(0, 4 if columns > 1 else 2))
        for row in range(height):
            cells = [self._cell(name) for name in names[row::height]]
            grid.add_row(*cells)
        return grid

    def _cell(self, name: str) -> Text:
        style = "bold" if name in MAIN else ""
        words = self._plain(label(name).words)
        words = words if len(words) <= LONGEST_NAME else f"{words[: LONGEST_NAME - 3]}..."
        cell = Text.assemble(
            (f"{words:<{LONGEST_NAME}} ", "dim"), (self._value(name), style), no_wrap=True, overflow="ellipsis"
        )
        if name in MAIN and not self._ascii and self.console.width >= 100:
            cell.append(f" {sparkline(list(self._rewards), 8)}", "cyan")
        return cell

    def _sample_table(self) -> Table:
        assert self._samples
        step, samples = self._samples
        # Height is precious on a terminal: two lines each, the rest is in the report.
        room = max(40, 2 * (self.console.width - 24))
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(overflow="fold")
        table.add_row("", "", Text(shorten(f"completions of step {step}", room), "dim"))
        for role, example in samples:
            completion = str(example.get("completion") or "")
            answer = Text(shorten(self._plain(completion), room)) if completion else Text("(empty)", "dim")
            parts = example.get("parts") or {}
            if len(parts) > 1:
                told = "  ".join(f"{name} {value:.3g}" for name, value in parts.items())
                answer.append(f"  {shorten(self._plain(told), room)}", "dim")
            reward = example.get("reward")
            table.add_row(Text(role, "cyan"), "" if reward is None else f"{reward:.3g}", answer)
        return table


def _short(name: str) -> str:
    return SHORT.get(name) or label(name).words.removeprefix("reward: ")


def sparkline(values: list[float], width: int) -> str:
    """Draw values as a row of `width` bars, each the mean of its share of them.

    >>> sparkline([0.0, 0.0, 0.5, 0.5, 1.0, 1.0], 3)
    '▁▅█'
    """
    values = [value for value in values if abs(value) < float("inf")]
    if not values:
        return ""
    width = min(width, len(values))
    cuts = [len(values) * index // width for index in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[int((mean - low) * scale + 0.5)] for mean in means)

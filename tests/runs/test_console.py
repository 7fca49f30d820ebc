"""The console shows what a run measures, and nothing that a completion says can act on the terminal."""

from __future__ import annotations

import random
import re
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from align.metrics import METRICS as OF_ALIGN
from align.runs.console import LONGEST_NAME, Display, sparkline
from align.runs.names import LABELS, duration, in_order, label, number
from align.runs.text import shorten, visible
from classic_rl.metrics import METRICS as OF_AGENTS

METRICS = {
    "reward/mean": 0.512, "reward/std": 0.3, "reward/exact_answer": 0.5, "kl/reference": 0.0123, "policy/entropy": 0.84,
    "completion/length": 15.25, "completion/truncated": 0.02, "group/silent": 0.31, "optim/loss": -0.0012,
    "tokens/per_second": 4123.0, "time/step": 0.2, "optim/learning_rate": 1e-6,
}  # fmt: skip


def hostile(count: int) -> list[str]:
    """Strings of control characters, escape sequences, bidi overrides, surrogates, markup and HTML."""
    draw = random.Random(0)
    pieces = [
        "\x1b[2J", "\x1b]0;title\x07", "\x1b[31m", "\x9b31m", "\x90q\x9c", "\r", "\n", "\t", "\x00", "\x08" * 5, "\x7f",
        "\u202eabc", "\u2066", "\u200b", "\ud800", "\udfff", "\U000e0001", "\u2028", "[bold red]", "[/]",
        "[link=x]y[/link]",
        ":boom:", "<script>alert(1)</script>", "</pre>", "\"'><img src=x onerror=alert(1)>", "&lt;", "]]>", "<!--",
        "javascript:alert(1)", "é", "漢字", "🙂", "e\u0301" * 9, "\\x1b", "%s{}", "plain words ", "x" * 300,
    ]  # fmt: skip
    return [
        "".join(draw.choices([*pieces, chr(draw.randrange(0x110000))], k=draw.randrange(1, 9))) for _ in range(count)
    ]


UNSEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0001]")


def shown(*, terminal: bool, width: int = 100, encoding: str = "utf-8", **options: Any) -> tuple[Display, StringIO]:
    file = StringIO()
    console = Console(
        file=file, force_terminal=terminal, width=width, height=50, no_color=True, color_system=None,
        _environ={"TERM": "xterm"}, legacy_windows=False,
    )  # fmt: skip
    if encoding != "utf-8":
        console = type("Narrow", (Console,), {"encoding": encoding})(file=file, width=width)
    return Display(10, console, **options), file


def without_own_moves(text: str) -> str:
    """The live region's own cursor movements removed: what is left came from the content."""
    return re.sub(r"\x1b\[(\?25[lh]|\d*A|2K|\d*G|1m|2m|0m)|\r", "", text)


def test_off_a_terminal_a_step_is_one_short_line() -> None:
    display, file = shown(terminal=False)
    with display:
        display.step(3, {**METRICS, "eval/accuracy": 0.25})
    assert file.getvalue().count("\n") == 1
    assert file.getvalue().startswith(
        "step 3/10  reward 0.512 ±0.3  kl 0.0123  entropy 0.84  length 15.2  cut 2%  silent 31%  "
        "loss -0.0012  4,123 tok/s"
    )
    assert file.getvalue().endswith("held out: accuracy 0.25\n")


def test_what_a_rollout_measured_is_shown_until_the_next_one() -> None:
    display, file = shown(terminal=False)
    with display:
        display.step(1, {"reward/mean": 0.5, "reward/std": 0.1, "reward/tidy": 1.0, "optim/loss": 1.0})
        display.step(2, {"optim/loss": 2.0})
        display.step(3, {"reward/mean": 0.75, "optim/loss": 3.0})
    assert [line.rpartition("  left")[0] for line in file.getvalue().splitlines()] == [
        "step 1/10  reward 0.5 ±0.1  loss 1",
        "step 2/10  reward 0.5 ±0.1  loss 2",
        "step 3/10  reward 0.75  loss 3",
    ]


def test_a_line_of_preferences_tells_whether_they_are_learned() -> None:
    learned = {"preference/accuracy": 0.71875, "preference/margin": 0.25, "preference/chosen_reward": -0.5}
    display, file = shown(terminal=False)
    with display:
        display.step(10, {"optim/loss": 0.69, **learned, **{f"eval/{name}": value for name, value in learned.items()}})
    told = "accuracy 71.9%  margin 0.25  chosen -0.5"
    assert file.getvalue() == f"step 10/10  loss 0.69  {told}  held out: {told.replace('  ', ', ')}\n"


def test_lines_come_every_so_many_steps_and_always_at_the_end() -> None:
    display, file = shown(terminal=False, log_every=4)
    with display:
        for step in range(1, 11):
            display.step(step, {"optim/loss": 1.0})
    assert [line.split()[1] for line in file.getvalue().splitlines()] == ["4/10", "8/10", "10/10"]


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_leaves_warnings_and_the_last_word(terminal: bool) -> None:
    display, file = shown(terminal=terminal, quiet=True)
    with display:
        display.step(1, METRICS)
        display.say("chatter")
        display.warn("the reward is flat")
        display.say("stopped", always=True)
    assert file.getvalue() == "warning: the reward is flat\nstopped\n"


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, coloured in (("1", False), (None, True)):
        monkeypatch.setenv("NO_COLOR", value) if value else monkeypatch.delenv("NO_COLOR", raising=False)
        file = StringIO()
        console = Console(file=file, force_terminal=True, color_system="standard", _environ=None)
        with Display(10, console) as display:
            display.warn("careful")
        assert bool(re.search(r"\x1b\[(\d+;)?3\dm", file.getvalue())) == coloured


def test_a_dumb_terminal_gets_lines() -> None:
    file = StringIO()
    with Display(10, Console(file=file, force_terminal=True, _environ={"TERM": "dumb"})) as display:
        display.step(1, METRICS)
    assert file.getvalue().startswith("step 1/10  reward") and "\x1b" not in file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_the_live_region_shows_all_that_matters_at_any_width(width: int) -> None:
    display, file = shown(terminal=True, width=width)
    with display:
        display.step(10, {**METRICS, "eval/accuracy": 0.25})
        display.warn("94% of completions hit max_new_tokens")
        display.samples(10, [("best", {"completion": "42", "reward": 1.0, "parts": {"exact": 1.0, "form": 0.5}})])
    region = without_own_moves(file.getvalue()).rpartition("step 10/10")[2]
    for words in (
        "reward",
        "0.512 ±0.3",
        "entropy",
        "0.84",
        "31%",
        "4,123",
        "accuracy 0.25",
        "best",
        "42",
        "form 0.5",
        "94%",
    ):
        assert words in region
    lines = [without_own_moves(line) for line in re.split(r"[\r\n]", file.getvalue())]
    assert max(map(len, lines)) <= width


def test_the_loss_is_read_last_in_reinforcement_learning_and_first_elsewhere() -> None:
    names = in_order(METRICS)
    assert names[0] == "reward/mean" and names.index("optim/loss") > names.index("policy/entropy")
    assert in_order(["optim/grad_norm", "sft/accuracy", "optim/loss"])[0] == "optim/loss"


def test_absent_or_strange_metrics_never_break_it() -> None:
    draw = random.Random(5)
    for terminal in (True, False):
        display, _ = shown(terminal=terminal)
        with display:
            display.samples(0, [])
            for step in range(1, 60):
                names = draw.sample([*METRICS, "eval/x", "odd name", "reward/[bold]", "\x1b[2J"], draw.randrange(9))
                display.step(
                    step, {name: draw.choice([0.0, 1e30, -1e-30, float("nan"), float("inf")]) for name in names}
                )
                display.samples(step, [("best", {}), ("worst", {"completion": None, "reward": None, "parts": None})])


@pytest.mark.parametrize("terminal", [True, False])
def test_a_thousand_hostile_strings_are_shown_and_do_nothing(terminal: bool) -> None:
    display, file = shown(terminal=terminal)
    with display:
        for text in hostile(1000):
            display.step(1, {**METRICS, f"eval/{text}": 1.0, f"reward/{text}": 1.0})
            display.samples(1, [("random", {"completion": text, "reward": 0.0, "parts": {text: 1.0, "b": 0.0}})])
            display.warn(text)  # draws all of it
            said = without_own_moves(file.getvalue())
            assert len(said) > 100 and not UNSEEN.search(said), (text, said)
            said.encode()  # no surrogate is left
            file.seek(0)
            file.truncate()


def test_markup_in_a_completion_is_shown_as_it_is() -> None:
    display, file = shown(terminal=True)
    with display:
        display.samples(1, [("best", {"completion": "[bold]x[/bold] :boom: \x1b[31m", "reward": 1.0})])
        display.step(10, METRICS)
    assert r"[bold]x[/bold] :boom: \x1b[31m" in file.getvalue()


def test_an_empty_completion_is_said_to_be_empty() -> None:
    display, file = shown(terminal=True)
    with display:
        display.samples(1, [("worst", {"completion": "", "reward": 0.0})])
    assert re.search(r"worst +0 +\(empty\)", file.getvalue())


def test_a_terminal_without_unicode_gets_ascii() -> None:
    display, file = shown(terminal=False, encoding="ascii")
    with display:
        display.step(1, METRICS)
        display.warn("漢字 é")
    assert file.getvalue().isascii()
    assert "reward 0.512 +-0.3" in file.getvalue() and r"\u6f22\u5b57 \xe9" in file.getvalue()


def test_visible_text_is_left_alone_and_long_text_is_cut() -> None:
    assert visible("Grüße, 漢字 🙂 e\u0301") == "Grüße, 漢字 🙂 e\u0301"
    assert visible("a\nb\tc", keep_newlines=True) == "a\nb\\tc"
    assert all(len(shorten("x" * size, 80)) <= 80 for size in (81, 1_000, 10**6)) and shorten("short", 80) == "short"


def test_numbers_are_written_as_they_are_read() -> None:
    assert number("completion/truncated", 0.945) == "94%" and number("tokens/per_second", 12345.6) == "12,346"
    assert number("reward/mean", float("nan")) == "not finite" and number("unknown", 0.123456) == "0.123"
    assert (duration(62), duration(7530), duration(-1)) == ("1:02", "2:05:30", "0:00")
    assert (
        label("eval/reward/mean").words == "held-out reward"
        and label("reward/exact_answer").words == "reward: exact answer"
    )


def test_each_metric_has_a_name_in_words_for_which_there_is_room() -> None:
    names = {name.removeprefix("eval/") for name in {**OF_ALIGN, **OF_AGENTS}} - {"<name>", "reward/<name>"}
    assert names - set(LABELS) == set()
    assert [words for words, _, _ in LABELS.values() if not words or "/" in words or len(words) > LONGEST_NAME] == []


def test_a_name_without_room_says_how_it_begins() -> None:
    display, file = shown(terminal=True, width=80)
    with display:
        display.step(1, {"reward/answers_of_the_longest_kind": 0.5})
    assert "reward: answers of ... 0.5" in file.getvalue()


def test_a_sparkline_follows_its_values() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([], 8) == "" and sparkline([float("nan"), 1.0], 8) == "▁" and len(sparkline([1.0] * 99, 8)) == 8


def test_log_every_nought_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="log_every must be at least 1, got 0: use quiet"):
        Display(10, log_every=0)


def test_an_agent_is_told_by_its_return_and_its_steps_a_second() -> None:
    display, file = shown(terminal=False)
    with display:
        display.step(
            3,
            {
                "episode/return": 123.456,
                "episode/length": 99.0,
                "steps/per_second": 20_123.4,
                "eval/episode/return": 500.0,
            },
        )
    assert file.getvalue().startswith("step 3/10  return 123.5  length 99.0  20,123 steps/s")
    assert file.getvalue().endswith("evaluated: return 500\n")

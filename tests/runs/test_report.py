"""The report is one file that tells a run, made from its directory, in which data is only ever text."""

from __future__ import annotations

import math
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from test_console import UNSEEN, hostile

from align.runs.charts import Point, Series, histogram, line_chart, ticks, whole_ticks
from align.runs.directory import RunDirectory
from align.runs.report import write_report


def example(index: int, **more: Any) -> dict[str, Any]:
    return {
        "prompt": f"prompt {index}", "completion": f"answer {index}", "reward": index / 4, "advantage": index - 2.0,
        "parts": {"exact": 1.0, "form": 0.5}, "group": 0, "tokens": 5, "terminated": index != 1, **more,
    }  # fmt: skip


def written(path: Path, **more: Any) -> RunDirectory:
    """The files of a run of 60 steps."""
    folder = RunDirectory(path)
    folder.start(
        {"seed": 3, "optimizer": {"learning_rate": 1e-6}}, {"python": "3.11.0", "command": "align toy --seed 3"}
    )
    folder.append("events.jsonl", {"step": 0, "kind": "start", "words": "started", "total_steps": 60})
    folder.append("metrics.jsonl", {"step": 0, "eval/accuracy": 0.25})
    for step in range(1, 61):
        line = {"reward/mean": step / 60, "reward/std": 0.2, "optim/loss": None if step == 9 else -0.01, **more}
        folder.append(
            "metrics.jsonl", {**line, "step": step, **({"eval/accuracy": step / 60} if step % 20 == 0 else {})}
        )
    for step in (1, 60):
        group = [example(index) for index in range(4)]
        samples = [{"role": role, **example(index)} for index, role in enumerate(("best", "worst", "random"))]
        rewards = [0.0, 0.25, 0.5, None, 1.0 if step > 1 else 0.0]
        folder.append("completions.jsonl", {"step": step, "rewards": rewards, "samples": samples, "group": group})
    folder.append("events.jsonl", {"step": 60, "kind": "end", "words": "finished after 60 steps"})
    return folder


class Elements(HTMLParser):
    """Collects the elements, their attributes and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


def test_a_report_tells_the_whole_run(tmp_path: Path) -> None:
    page = Elements(write_report(written(tmp_path / "first").path).read_text())
    for words in (
        "first", "Finished", "60 of 60", "held-out accuracy", "0.25 → 1", "optimizer step", "mean of the rollout",
        "optim/loss was not a finite number at step 9", "step 1, 4 completions", "share of completions",
        "best of step 1",
        "best of step 60", "prompt 0", "answer 1", "5 tokens, cut", "exact 1, form 0.5", "+1.00", "-2.00",
        "optimizer.learning_rate", "1e-06", "3.11.0", "align toy --seed 3", "finished after 60 steps",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.open == []


def test_what_is_set_or_counted_is_told_and_drawn_as_it_was_and_means_are_called_means(tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path / "run")
    folder.start({}, {})
    for step in range(1, 61):
        rate = 0.01 * (61 - step) / 60
        folder.append("metrics.jsonl", {"step": step, "reward/mean": float(step), "optim/learning_rate": rate})
    page = Elements(write_report(folder.path).read_text())
    assert "learning rate1.00e-02 → 1.67e-04" in page.text
    assert "reward, means of 10 steps5.5 → 55.5" in page.text and ("title", "means of 10 steps") in page.attributes
    lines = re.findall(r'<polyline class="(\w+)" points="54.0,([\d.]+) ', folder.report.read_text())
    assert [kind for kind, _ in lines] == ["raw", "train", "train"] and float(lines[2][1]) == 24.0


def test_an_empty_completion_is_said_to_be_empty(tmp_path: Path) -> None:
    folder = written(tmp_path)
    silent = [{"role": "best", **example(0, completion="")}]
    folder.append("completions.jsonl", {"step": 60, "rewards": [0.0], "samples": silent, "group": silent})
    assert Elements(write_report(tmp_path).read_text()).text.count("(empty)") == 2


def test_it_is_one_file_that_asks_for_nothing_and_runs_nothing(tmp_path: Path) -> None:
    text = write_report(written(tmp_path).path).read_text()
    page = Elements(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "a", "base"} & set(page.tags)
    assert not [
        name for name, _ in page.attributes if name.startswith("on") or name in ("href", "src", "style", "action")
    ]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert "url(" not in text and "@import" not in text and "http://" not in text and "https://" not in text
    assert str(tmp_path) not in text


def test_it_depends_on_the_files_of_the_directory_alone(tmp_path: Path) -> None:
    before = write_report(written(tmp_path / "here" / "run").path).read_text()
    shutil.move(tmp_path / "here" / "run", tmp_path / "run")
    assert write_report(tmp_path / "run").read_text() == before


def test_light_and_dark_have_the_same_colours_to_choose(tmp_path: Path) -> None:
    text = write_report(written(tmp_path).path).read_text()
    light, dark = (set(re.findall(r"(--[a-z]+):", block)) for block in re.findall(r":root \{([^}]*)\}", text))
    assert light == dark and set(re.findall(r"var\((--[a-z]+)\)", text)) <= light


def test_a_thousand_hostile_strings_are_text(tmp_path: Path) -> None:
    texts = hostile(1000)
    folder = written(tmp_path, **{f"reward/{texts[0]}": 1.0, f"eval/{texts[1]}": 0.5, texts[2]: 0.1})
    for kind, text in zip(("finding", "fault", "error"), texts[3:6], strict=True):
        folder.append("events.jsonl", {"step": 60, "kind": kind, "words": text})
    for start in range(0, 1000, 50):
        group = [
            example(index, completion=text, prompt=text, parts={text: 1.0, "b": 0.0}, role=text)
            for index, text in enumerate(texts[start : start + 50])
        ]
        (tmp_path / "completions.jsonl").unlink()
        folder.append("completions.jsonl", {"step": 1, "rewards": [0.0], "samples": group, "group": group})
        folder.rewind(60, {texts[start]: texts[start + 1], "nested": {texts[start + 2]: [texts[start + 3]]}})
        text = write_report(tmp_path).read_text()
        page = Elements(text)
        assert not {"script", "img", "a"} & set(page.tags)
        assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("href", "src")]
        assert not UNSEEN.search(text) and page.open == []


@pytest.mark.parametrize("missing", ["metrics.jsonl", "completions.jsonl", "events.jsonl", "environment.json", "all"])
def test_a_run_of_which_something_is_missing_still_has_a_report(missing: str, tmp_path: Path) -> None:
    folder = written(tmp_path)
    for path in folder.path.iterdir():
        if missing in (path.name, "all"):
            path.unlink()
    assert Elements(write_report(tmp_path).read_text()).open == []


@pytest.mark.parametrize(
    ("kind", "words"), [("stop", "Stopped: by hand"), ("error", "Failed after step 60: by hand"), ("resume", "Running")]
)
def test_the_head_tells_how_a_run_stands(kind: str, words: str, tmp_path: Path) -> None:
    folder = written(tmp_path)
    folder.append("events.jsonl", {"step": 60, "kind": kind, "words": "by hand"})
    assert words in Elements(write_report(tmp_path).read_text()).text


# --- charts ---

SAMPLES = [
    [Point(1, 1.0)],
    [Point(step, 0.0) for step in range(5)],
    [Point(step, math.nan) for step in range(5)],
    [Point(step, math.nan if step % 2 else 1e9 * step) for step in range(5)],
    [Point(step, math.sin(step) * 1e-9, 1e-9) for step in range(5000)],
    [Point(1, -1e300), Point(2, 1e300)],
    [],
]


@pytest.mark.parametrize("points", SAMPLES, ids=range(len(SAMPLES)))
def test_any_curve_is_well_formed_and_inside_its_box(points: list[Point]) -> None:
    drawing = line_chart([Series("train", points), Series("eval", points[:9])], x_label="a < b", y_label='"c"')
    root = ElementTree.fromstring(drawing)
    coordinates = [float(n) for line in root.iter("polyline") for n in re.split("[ ,]", line.get("points", "")) if n]
    assert all(0 <= x <= 440 for x in coordinates[::2]) and all(0 <= y <= 230 for y in coordinates[1::2])
    assert len(drawing) < 60_000


def test_a_curve_goes_where_its_values_are() -> None:
    root = ElementTree.fromstring(line_chart([Series("eval", [Point(0, 0), Point(10, 1)])], x_label="x", y_label="y"))
    dots = [(float(dot.get("cx", 0)), float(dot.get("cy", 0))) for dot in root.iter("circle")]
    assert dots == [(54.0, 190.0), (428.0, 24.0)]
    assert [dot[0].text for dot in root.iter("circle")] == ["step 0: 0", "step 10: 1"]


def test_a_band_is_drawn_as_it_is_and_a_chart_may_be_larger() -> None:
    series = [Series("band a", [Point(0, 5, 5), Point(1, 5, 0)]), Series("a", [Point(0, 5), Point(1, 5)], name="a at")]
    root = ElementTree.fromstring(line_chart(series, x_label="x", y_label="y", width=600, height=300))
    assert root.get("viewBox") == "0 0 600 300"
    (band,), dots = list(root.iter("polygon")), list(root.iter("circle"))
    assert band.get("class") == "band a" and band.get("points") == "54.0,24.0 588.0,142.0 588.0,142.0 54.0,260.0"
    assert [dot[0].text for dot in dots] == ["a at 0: 5", "a at 1: 5"]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3, 7), (0.001, 0.0012), (5, 5), (0, 0), (-1e-9, 1e12), (1e15, 1e15 + 8)]
)
def test_ticks_cover_their_range_with_few_round_numbers(low: float, high: float) -> None:
    found = ticks(low, high, 4)
    slack = 1e-8 * max(1e-6, high - low)
    assert found[0] <= low + slack and found[-1] >= high - slack and 2 <= len(found) <= 8
    first, last = int(low), int(high)
    assert all(tick == int(tick) and first <= tick <= last for tick in whole_ticks(first, last, 5))


def test_a_histogram_gives_each_sample_its_own_hundred_per_cent() -> None:
    root = ElementTree.fromstring(histogram([0, 0, 0, 1], [1, 1], x_label="reward", y_label="share"))
    assert [bar[0].text for bar in root.iter("rect")] == ["0: 75%", "1: 25%", "0: 0%", "1: 100%"]
    many = histogram([index / 99 for index in range(100)], [0.5], x_label="reward", y_label="share")
    assert len(list(ElementTree.fromstring(many).iter("rect"))) == 24
    assert ElementTree.fromstring(histogram([], [], x_label="reward", y_label="share")).tag == "svg"

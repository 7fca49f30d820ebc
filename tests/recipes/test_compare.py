"""The comparison of methods: a budget that is kept, a ranking, a table and a picture, and a small run of it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipes.budget import EVALUATIONS, Budgeted
from recipes.comparison import HEAD, Outcome, picture, ranked, rows, written
from recipes.comparison_page import markdown
from tests.forks import Forks


class Toy:
    """An algorithm that trains given numbers of tokens, step after step."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens, self.step, self.total_steps = tokens, 0, len(tokens)
        self.trainer = SimpleNamespace(total_steps=self.total_steps)
        self.schedule: list[float] = []

    def steps(self):
        while self.step < self.total_steps:
            self.schedule.append(self.step / self.trainer.total_steps)
            self.step += 1
            yield {"tokens/trained": float(self.tokens[self.step - 1])}

    def state(self):
        return {"step": self.step}

    def load_state(self, state):
        self.step = state["step"]

    def examples(self):
        return []


def budgeted(tokens: list[int], budget: int) -> Budgeted:
    return Budgeted(Toy(tokens), budget, lambda: {"accuracy": 0.5})


def test_the_step_that_uses_the_budget_up_is_the_last():
    run = budgeted([30, 0, 50, 40, 10], budget=100)
    assert [metrics["tokens/trained"] for metrics in run.steps()] == [30, 0, 50, 40]
    assert run.used == 120 and run.step == run.total_steps == 4


def test_a_run_whose_steps_are_over_ends_below_its_budget():
    run = budgeted([30, 0], budget=100)
    assert len(list(run.steps())) == 2 and run.used == 30 and run.total_steps == 2


def test_the_schedule_of_the_learning_rate_falls_with_the_budget_and_not_with_the_steps():
    tokens = [100 - step for step in range(100)]
    run = budgeted(tokens, budget=sum(tokens))
    list(run.steps())
    used = [part / sum(tokens) for part in accumulate(tokens)]
    assert run.algorithm.schedule[0] == 0.0
    assert run.algorithm.schedule[10:] == pytest.approx(used[9:-1], abs=0.03)  # the number of steps is a whole one


def test_evaluations_are_even_in_tokens_and_the_last_one_is_left_to_the_run():
    history = list(budgeted([1] * 240, budget=240).steps())
    evaluated = [step for step, metrics in enumerate(history, start=1) if "eval/accuracy" in metrics]
    assert evaluated == [20 * part for part in range(1, EVALUATIONS)]


def test_a_run_goes_on_with_the_budget_that_was_left():
    whole, first, second = (budgeted([7] * 40, budget=200) for _ in range(3))
    list(whole.steps())
    steps = first.steps()
    for _ in range(10):
        next(steps)
    second.load_state(first.state())
    list(second.steps())
    assert second.used == whole.used and second.step == whole.step
    assert second.algorithm.schedule == whole.algorithm.schedule[10:]
    first.load_state(whole.state())
    assert list(first.steps()) == []


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1 trained token"):
        budgeted([1], budget=0)


def outcome(method: str, seed: int, end: float, **more) -> Outcome:
    numbers = {"thinking": 0.75, "kl": 1.25, "generated": 2000, "seconds": 3.0, **more}
    return Outcome(method, seed, ((0.0, 0.3), (500.0, 0.8), (1000.0, end)), **numbers)


def test_the_highest_mean_accuracy_at_the_end_of_the_budget_comes_first():
    made_up = [outcome("A", 0, 0.99), outcome("B", 0, 0.95), outcome("A", 1, 0.85), outcome("B", 1, 0.93)]
    assert [one.method for one in ranked(made_up)] == ["B", "A"]  # the means are 0.94 and 0.92


def test_of_two_that_are_equally_right_the_one_that_trained_and_then_the_one_that_sampled_less_comes_first():
    def curve(tokens: float) -> tuple[tuple[float, float], ...]:
        return ((0.0, 0.3), (tokens, 0.9))

    made_up = [
        Outcome("late", 0, curve(1100.0), 1.0, 1.0, 500, 1.0),
        Outcome("talkative", 0, curve(1000.0), 1.0, 1.0, 900, 1.0),
        Outcome("brief", 0, curve(1000.0), 1.0, 1.0, 800, 1.0),
    ]
    assert [one.method for one in ranked(made_up)] == ["brief", "talkative", "late"]


def test_the_tokens_to_the_goal_lie_on_the_line_between_two_evaluations_and_every_seed_must_get_there():
    early, late = outcome("A", 0, 1.0), outcome("A", 1, 0.88)
    assert early.to_goal == pytest.approx(750) and late.to_goal is None
    assert ranked([early])[0].to_goal == pytest.approx(750) and ranked([early, late])[0].to_goal is None
    assert early.accuracy_at(250) == pytest.approx(0.55) and early.accuracy_at(2000) == 1.0


def test_the_table_has_a_line_a_method_with_its_numbers():
    table = ranked([outcome("A", 0, 0.96, seconds=5.0), outcome("A", 1, 0.98), outcome("B", 0, 0.5)])
    assert rows(table) == [
        ("A", "97.0%", "96.0 to 98.0%", "75%", "1.25", "1,000", "795", "2,000", "4"),  # (812.5 + 777.8) / 2
        ("B", "50.0%", "50.0 to 50.0%", "75%", "1.25", "1,000", "not all", "2,000", "3"),
    ]
    assert markdown(HEAD, rows(table)).splitlines()[2].startswith("| A | 97.0% | 96.0 to 98.0% |")


def test_the_picture_has_a_line_through_the_means_and_a_band_from_the_lowest_to_the_highest():
    outcomes = [outcome("A", 0, 0.9), outcome("A", 1, 1.0), outcome("B & C", 0, 0.6), outcome("B & C", 1, 0.6)]
    drawing = picture(ranked(outcomes), ["B & C", "A"])
    root = ElementTree.fromstring(f"<div>{drawing}</div>")
    assert [(key.text, key[0].get("class")) for key in root.iter("span") if len(key)] == [(None, "m2"), (None, "m1")]
    lines = {line.get("class"): line.get("points", "").split() for line in root.iter("polyline")}
    bands = {band.get("class"): band.get("points", "").split() for band in root.iter("polygon")}
    assert set(lines) == {"m1", "m2"} and set(bands) == {"band m1", "band m2"}
    assert [dot[0].text for dot in root.iter("circle") if dot.get("class") == "m2"][-1] == "A at 1,000: 95.0%"
    y = [float(point.split(",")[1]) for point in bands["band m2"]]
    middle = float(lines["m2"][-1].split(",")[1])
    assert y[2] < middle < y[3] and (y[2] + y[3]) / 2 == pytest.approx(middle, abs=0.1)
    assert len(set(bands["band m1"])) == 3  # both seeds are the same: a band without breadth


def test_the_page_is_whole_in_itself_and_what_is_given_is_only_text(tmp_path):
    words = {"A": "learns <b>", "B": "does not"}
    written(
        tmp_path, [outcome("A", 0, 0.9)], title="T & U", rule="all alike", words=words, command="python -m x --y '<'"
    )
    page = (tmp_path / "comparison.html").read_text()
    assert "<svg" in page and "T &amp; U" in page and "learns &lt;b&gt;" in page and "&#x27;&lt;&#x27;" in page
    assert "<script" not in page and "href" not in page and "does not" not in page
    text = (tmp_path / "comparison.md").read_text()
    assert "| A | 90.0% |" in text and "all alike" in text and "python -m x" in text


# --- a small run of it ---


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    served = Forks(tmp_path_factory.mktemp("compare") / "log", "recipes.compare_methods", "accelerate", "transformers")
    yield served
    served.close()


def trained(directory: Path) -> list[float]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line["tokens/trained"] for line in lines if "tokens/trained" in line]


def test_a_small_comparison_keeps_its_budget_and_its_finished_runs(forks, tmp_path):
    arguments = ["--quick", "--seeds", "1", "--methods", "sft", "rloo", "--directory", str(tmp_path)]
    assert forks.do("recipes.compare_methods:main", arguments=arguments) == 0, forks.said
    for name in ("sft", "rloo"):
        run = tmp_path / "seed-1" / name
        tokens = trained(run)
        assert sum(tokens) >= 4000 > sum(tokens[:-1]), tokens
        assert (run / "report.html").exists() and (run / "final" / "model.safetensors").exists()
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert lines[0]["eval/kl/completion"] == pytest.approx(0, abs=1e-3)
        assert abs(lines[-1]["eval/kl/completion"]) > 1e-3
        if name == "sft":  # the other has hardly more steps than its rate takes to rise
            assert lines[-1]["optim/learning_rate"] < 0.35 * max(line.get("optim/learning_rate", 0) for line in lines)
    table = (tmp_path / "comparison.md").read_text()
    answers = json.loads((tmp_path / "seed-1" / "answers.json").read_text())
    assert "| SFT |" in table and "| RLOO |" in table and f"{answers['generated']:,}" in table
    assert (tmp_path / "comparison.html").stat().st_size > 10_000
    assert "RLOO" in forks.said and "comparison.html" in forks.said

    assert forks.do("recipes.compare_methods:main", arguments=arguments) == 2
    assert "--resume" in forks.said
    before = (tmp_path / "seed-1" / "rloo" / "events.jsonl").read_bytes()
    assert forks.do("recipes.compare_methods:main", arguments=[*arguments, "--resume"]) == 0, forks.said
    assert (tmp_path / "seed-1" / "rloo" / "events.jsonl").read_bytes() == before
    assert (tmp_path / "comparison.md").read_text() == table

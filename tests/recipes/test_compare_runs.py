"""`align compare`: what two runs came to, where their settings differ, and their curves on one page."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.runs import RunDirectory, RunError
from recipes.cli import main
from recipes.compare_runs import compare, differing, points_of


def a_run(path: Path, *, rate: float, rewards: list[float]) -> RunDirectory:
    run = RunDirectory(path)
    run.start({"optimizer": {"learning_rate": rate}, "run": {"directory": str(path)}}, {})
    run.append("events.jsonl", {"step": 0, "kind": "start", "words": ""})
    for step, reward in enumerate(rewards, start=1):
        run.append("metrics.jsonl", {"step": step, "reward/mean": reward, "optim/grad_norm": 1.0})
    return run


def two_runs(folder: Path) -> list[RunDirectory]:
    return [
        a_run(folder / "slow", rate=0.001, rewards=[0.0, 0.25]),
        a_run(folder / "fast", rate=0.01, rewards=[0.0, 1.0, 1.0, 1.0]),
    ]


def test_runs_are_told_from_begin_to_end_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    two_runs(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["compare", str(tmp_path / "slow"), str(tmp_path / "fast")])
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert "slow" in told and "0 → 0.25" in told and "0.5 → 1" in told  # means over half of so few steps
    assert "optimizer.learning_rate" in told and "0.001" in told and "run.directory" not in told
    assert str(tmp_path / "comparison.html") in told


def test_the_page_draws_each_metric_once_and_holds_no_script(tmp_path: Path):
    _, page = compare(two_runs(tmp_path))
    text = page.read_text()
    assert text.count("<figure>") == 2 and "gradient norm" in text and "<script" not in text


def test_the_page_has_one_key_and_does_not_draw_what_a_run_took(tmp_path: Path):
    runs = two_runs(tmp_path)
    for run in runs:
        run.append("metrics.jsonl", {"step": 5, "time/step": 0.5, "tokens/per_second": 900.0})
    text = compare(runs)[1].read_text()
    assert text.count("<figure>") == 2 and text.count('<p class="key">') == 1
    assert "time of a step" in text and "speed" in text


def test_long_names_of_runs_are_told_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = [f"ppo-CartPole-v1-2025010{day}-120000" for day in range(1, 7)]
    compare([a_run(tmp_path / name, rate=0.1, rewards=[1.0]) for name in names])
    assert "…" not in capsys.readouterr().out


def test_settings_are_compared_by_their_dotted_names_wherever_one_lacks_them():
    assert differing([{"a": {"b": 1}, "same": 0}, {"a": {"b": 2}, "same": 0, "c": "x"}]) == [
        ("a.b", "1", "2"),
        ("c", "", '"x"'),
    ]


def test_a_long_curve_is_thinned_to_means_and_evaluations_are_not():
    history = [{"step": float(step), "loss": float(step), "eval/loss": 1.0} for step in range(600)]
    assert len(points_of("loss", history)) == 60 and len(points_of("eval/loss", history)) == 600
    assert points_of("loss", history)[0][:2] == (4.5, 4.5)


def test_what_cannot_be_compared_is_refused_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first, second = two_runs(tmp_path)
    with pytest.raises(RunError, match="2 to 6 different runs"):
        compare([first, second, first])
    with pytest.raises(SystemExit) as end:
        main(["compare", str(first.path)])
    assert end.value.code == 2 and "the directories of two runs" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["compare", str(first.path), str(tmp_path / "missing")])
    assert end.value.code == 2 and "no run is here" in capsys.readouterr().err

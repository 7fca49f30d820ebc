"""Comparing agents: ranks and numbers, the pictures, and a small comparison from beginning to end."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from recipes import compare_classic
from recipes.comparison_classic import Outcome, figures, learning_curves, profiles, ranked, rows


def outcome(agent: str, seed: int, final: float, steps: float = 1000.0) -> Outcome:
    return Outcome(agent, seed, ((0.0, 10.0), (steps / 2, 20.0), (steps, final)), seconds=4.0)


def test_agents_are_ranked_by_interquartile_mean_and_then_by_steps():
    lucky = [outcome("lucky", seed, final) for seed, final in enumerate([0.0, 10.0, 10.0, 1000.0])]
    steady = [outcome("steady", seed, 20.0) for seed in range(4)]
    quick = [outcome("quick", seed, 20.0, steps=500.0) for seed in range(4)]
    assert [one.agent for one in ranked([*lucky, *steady, *quick])] == ["quick", "steady", "lucky"]


def test_a_row_has_the_interval_each_seed_and_how_likely_it_beats_the_best_other():
    table = rows(ranked([outcome("a", 0, 30.0), outcome("a", 1, 30.0), outcome("b", 0, 30.0), outcome("b", 1, 10.0)]))
    assert table == [
        ("a", "30.0", "30.0 to 30.0", "30 30", "0.75", "1,000", "4"),
        ("b", "20.0", "10.0 to 30.0", "30 10", "0.25", "1,000", "4"),
    ]
    assert rows(ranked([outcome("a", 0, 30.0)]))[0][4] == ""


def test_a_curve_ends_where_the_first_seed_ended_and_reads_others_between_their_evaluations():
    (curve,) = learning_curves(ranked([outcome("a", 0, 40.0), outcome("a", 1, 60.0, steps=800.0)]), ["a"])
    assert [point[0] for point in curve.points] == [0.0, 500.0, 800.0]
    middle = {point[0]: point[1] for point in curve.points}
    assert middle[500.0] == pytest.approx((20.0 + 30.0) / 2)  # the other one is a quarter of the way from 20 to 60
    assert middle[800.0] == pytest.approx((32.0 + 60.0) / 2)
    assert all(low <= at <= high for _, at, low, high in curve.points)


def test_a_profile_falls_by_a_run_at_the_return_of_that_run():
    (curve,) = profiles(ranked([outcome("a", 0, 10.0), outcome("a", 1, 30.0)]), ["a"])
    assert [share for _, share, _, _ in curve.points] == [1.0, 1.0, 0.5, 0.5, 0.0, 0.0]
    assert [round(x, 3) for x, _, _, _ in curve.points] == [9.6, 10.0, 10.0, 30.0, 30.0, 30.4]


def test_an_agent_keeps_its_colour_whatever_its_rank():
    standings = ranked([outcome("a", 0, 10.0), outcome("b", 0, 30.0)])
    drawn = figures(learning_curves(standings, ["a", "b"]), profiles(standings, ["a", "b"]))
    for one in drawn:
        root = ElementTree.fromstring(f"<div>{one}</div>")
        keys = {key[0].tail: key[0].get("class") for key in root.iter("span")}
        assert keys == {"b": "m2", "a": "m1"} and {line.get("class") for line in root.iter("polyline")} == {"m1", "m2"}


def compare(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        compare_classic.main([str(argument) for argument in arguments])
    return ended.value.code


def test_a_small_comparison_is_told_drawn_and_kept(tmp_path: Path, capsys):
    words = ("--agents", "reinforce", "ppo", "--seeds", 0, 1, "--share", 0.03, "--directory", tmp_path)
    assert compare(*words, "--eval-episodes", 2) == 0
    said = capsys.readouterr().out
    assert "seed 1, ppo: return" in said and "P(better)" in said
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    page, table = ((tmp_path / f"comparison.{kind}").read_text() for kind in ("html", "md"))
    assert page.count("<svg") == 2 and "<script" not in page and "src=" not in page
    assert "| ppo |" in table and "| reinforce |" in table and "--share 0.03" in table
    report = tmp_path / "ppo" / "seed-0" / "report.html"
    before = report.stat().st_mtime_ns
    assert compare(*words, "--eval-episodes", 2) == 0
    assert report.stat().st_mtime_ns == before and (tmp_path / "comparison.md").read_text() == table
    assert compare(*words, "--eval-episodes", 3) == 2
    assert "eval_episodes" in capsys.readouterr().err


def test_who_learns_from_shaped_rewards_is_told_and_measured_by_the_true_ones(tmp_path: Path, capsys):
    words = ("--env", "MountainCar-v0", "--agents", "ppo", "dqn", "--seeds", 0, "--share", 0.02)
    assert compare(*words, "--directory", tmp_path, "--eval-episodes", 2) == 0
    assert "seed 0, ppo: return -200.0" in capsys.readouterr().out
    assert "measured by the true ones: ppo." in (tmp_path / "comparison.md").read_text()
    for agent, rewards in (("ppo", "shaped"), ("dqn", "true")):
        run = json.loads((tmp_path / agent / "seed-0" / "environment.json").read_text())
        assert f"--env MountainCar-v0 --rewards {rewards}" in run["command"]


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("--env", "CartPol-v1"), "did you mean 'CartPole-v1'"),
        (("--seeds", 1, 1), "each once"),
        (("--share", 0), "share must be above 0"),
        (("--agents", "reinforce", "ppo", "--share", 1e-6), "at least one update"),
        (("--env", "Pendulum-v1", "--agents", "a2c", "dqn"), "must be Discrete"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(tmp_path: Path, capsys, arguments, advice):
    assert compare(*arguments, "--directory", tmp_path / "runs") == 2
    assert advice in capsys.readouterr().err
    assert not (tmp_path / "runs").exists(), "it was found after a run"

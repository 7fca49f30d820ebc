"""The goals of the presets: every one by one command, a finished table, and figures that are what they say."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from benchmarks import classic_goals
from benchmarks.classic_goals import GOALS, HEAD, Trained, main, row
from recipes.classic import AGENTS


def test_every_goal_has_settings_and_every_setting_a_goal():
    assert {(goal.agent, goal.env) for goal in GOALS} == {
        (kind, env) for kind in AGENTS for env in AGENTS[kind].presets
    }


def test_a_row_has_the_middle_of_the_seeds_with_its_interval_and_means_of_what_it_took():
    runs = [Trained(0.0, final, 1000 + index, 60.0) for index, final in enumerate([1.0, 2.0, 3.0, 4.0, 500.0])]
    cells = dict(zip(HEAD, row(GOALS[0], runs, "1234567"), strict=True))
    assert cells["return [95 %]"].startswith("3.0 [1.") and cells["steps"] == "1,002" and cells["minutes"] == "1"
    equal = row(GOALS[0], [Trained(0.0, 7.0, 10, 6.0)] * 5, "")
    assert equal[3] == "7.0 [7.0, 7.0]" and equal[5] == "0.1"


def test_one_command_trains_an_agent_in_shaped_rewards_and_measures_it_by_the_true_ones(capsys):
    words = ["ppo", "MountainCar-v0", "--seeds", "0", "--share", "0.02", "--episodes", "2"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "ppo, seed 0: returns -200.0 and -200.0" in said and "the goal of -115 is not met" in said
    assert "| ppo | MountainCar-v0 | 4,096 | -200.0 [-200.0, -200.0] | -110.4 after 1M [zoo]" in said


def test_all_goals_make_one_table_and_one_is_met_where_both_evaluations_reach_it(monkeypatch, capsys):
    def trained(goal: Any, *, seed: int, share: float, episodes: int) -> Trained:
        return Trained(goal.mean, goal.mean - (goal.agent == "dqn"), 100, 1.0)

    monkeypatch.setattr(classic_goals, "train", trained)
    assert main(["all", "--seeds", "0", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = [(one.split(",")[0], two) for one, two in pairwise(lines) if "interquartile" in two]
    assert len(told) == len(GOALS)
    assert all(two.endswith("is not met" if agent == "dqn" else "is met") for agent, two in told)
    assert sum(line.startswith("| ") for line in lines) == 1 + len(GOALS)


def test_an_environment_without_a_goal_is_refused_with_those_that_have_one(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["a2c", "Acrobot-v1"])
    assert ended.value.code == 2 and "a2c has goals in CartPole-v1, got Acrobot-v1" in capsys.readouterr().err

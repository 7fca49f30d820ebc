"""The recipes of classic RL at a tiny size: what they print, draw and leave behind."""

from __future__ import annotations

import json
import sys

import gymnasium
import numpy as np
import pytest

from classic_rl.ppo import PPO
from recipes import classic_cliff, classic_random_walk, classic_seeds, classic_tabular


def run(recipe, *arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        recipe.main([str(argument) for argument in arguments])
    return ended.value.code


def test_the_cliff_is_measured_and_drawn(tmp_path, capsys):
    assert run(classic_cliff, "--runs", 3, "--episodes", 120, "--directory", tmp_path) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("Q-learning", "SARSA", "Expected SARSA", "cliff.png"))
    assert (tmp_path / "cliff.png").read_bytes().startswith(b"\x89PNG")


def test_the_random_walk_is_measured_and_drawn(tmp_path, capsys):
    assert run(classic_random_walk, "--runs", 2, "--episodes", 1, "--alphas", 3, "--directory", tmp_path) == 0
    said = capsys.readouterr().out
    assert "n = 512" in said and "lambda = 0.975" in said
    assert (tmp_path / "random_walk.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("world", ["lake", "taxi", "cliff", "grid"])
def test_a_small_world_is_learned_a_little_with_a_report(world, tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = ["--world", world, "--agent", "expected-sarsa", "--episodes", 20, "--directory", folder]
    assert run(classic_tabular, *arguments) == 0
    assert "by planning" in capsys.readouterr().out and (folder / "report.html").stat().st_size > 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 20 and "eval/greedy_value" in lines[-1]


def test_a_world_and_who_acts_in_it_draw_different_numbers_of_one_seed():
    agent = classic_tabular.build(classic_tabular.Options(seed=3), gymnasium.make("FrozenLake-v1"))
    assert agent.env.uniforms.next() != agent.behaviour.uniforms.next()


def test_several_seeds_learn_at_once_and_each_leaves_its_policy(tmp_path, capsys):
    folder, short = tmp_path / "run", ["--seeds", 3, 5, "--share", 0.03, "--eval-episodes", 2]
    assert run(classic_seeds, *short, "--directory", folder) == 0
    said = capsys.readouterr().out
    assert "interquartile mean of 2 seeds" in said and (folder / "report.html").stat().st_size > 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"seeds/return_low", "seeds/return_high", "eval/episode/return", "eval/seeds/return_low"} <= lines[-1].keys()
    obs = np.array([[0.01, 0.2, -0.03, 0.4]])
    for seed in (3, 5):
        assert PPO.load(folder / "final" / f"seed-{seed}").act(obs, deterministic=True).shape == (1,)
    assert run(classic_seeds, *short, "--directory", folder, "--resume", "--seeds", 3, 4) != 0
    assert "seeds" in capsys.readouterr().err


def test_without_matplotlib_a_recipe_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(classic_cliff, "--runs", 1, "--episodes", 2, "--directory", tmp_path) == 2
    assert "pip install 'align-rl[classic]'" in capsys.readouterr().err

"""GridWorld: its layouts, its rules, its pictures, and Gymnasium's checker."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from classic_rl.gridworld import ID, GridWorld, all_reach_the_goal, place_obstacles
from classic_rl.tabular.mdp import mdp_from_env
from classic_rl.tabular.planning import policy_iteration, start_value

LEFT, DOWN, RIGHT, UP = range(4)


@pytest.mark.parametrize("mode", [None, "ansi", "rgb_array", "human"])
def test_gymnasiums_checker_finds_nothing_to_say(mode, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(ID, render_mode=mode, slip=0.1, rows=4, columns=5, obstacles=3)
        check_env(env.unwrapped, skip_render_check=mode == "human")
        env.reset(seed=0)
        env.step(RIGHT)
        env.close()
        env.close()


def test_a_large_board_keeps_no_matrix_of_all_cells_for_its_start():
    start = GridWorld(rows=30, columns=30, obstacles=0).initial_state_distrib
    assert start.shape == (900,) and start[0] == start.sum() == 1
    assert start.base is None or start.base.size == 900


@given(rows=st.integers(2, 7), columns=st.integers(2, 7), obstacles=st.integers(0, 50), seed=st.integers(0, 1000))
def test_obstacles_never_cut_a_cell_off_the_goal(rows, columns, obstacles, seed):
    walls = place_obstacles(rows, columns, obstacles, np.random.default_rng(seed))
    assert all_reach_the_goal(walls) and walls.sum() <= obstacles
    assert not walls[0, 0] and not walls[-1, -1]
    env = GridWorld(rows, columns, obstacles, layout_seed=seed, step_cost=1.0, goal_reward=0.0)
    steps = -start_value(mdp_from_env(env), policy_iteration(mdp_from_env(env), gamma=0.999).values)
    assert 0 < steps < rows * columns


def test_a_wall_across_the_board_would_be_noticed():
    walls = np.zeros((3, 3), dtype=bool)
    walls[1] = True
    assert not all_reach_the_goal(walls)
    walls[1, 1] = False
    assert all_reach_the_goal(walls)


def test_as_many_obstacles_as_asked_for_are_there_and_a_layout_is_that_of_its_seed():
    layouts = [GridWorld(layout_seed=seed).walls for seed in (0, 0, 1)]
    assert [walls.sum() for walls in layouts] == [12, 12, 12]
    assert (layouts[0] == layouts[1]).all() and (layouts[0] != layouts[2]).any()


def test_steps_cost_walls_stop_and_the_goal_pays_and_terminates():
    env = GridWorld(2, 2, obstacles=0, step_cost=0.25, goal_reward=2.0)
    assert env.reset(seed=0)[0] == 0
    assert env.step(UP)[:4] == (0, -0.25, False, False)
    assert env.step(RIGHT)[:4] == (1, -0.25, False, False)
    assert env.step(DOWN)[:4] == (3, 1.75, True, False)


def test_the_time_limit_truncates():
    env = gymnasium.make(ID, max_episode_steps=3)
    env.reset(seed=0)
    assert [env.step(UP)[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]


def test_slipping_moves_to_either_side_alike():
    outcomes = GridWorld(3, 3, obstacles=0, slip=0.4).P[4][RIGHT]
    assert [outcome[:2] for outcome in outcomes] == [(0.6, 5), (0.2, 1), (0.2, 7)]


def test_the_board_is_drawn_as_text_and_as_a_picture():
    env = GridWorld(2, 3, obstacles=1, layout_seed=0, render_mode="ansi")
    env.reset(seed=0)
    text = env.render()
    assert text[0] == "@" and text.count("#") == 1 and text.splitlines()[1][-1] == "G"
    env.render_mode = "rgb_array"
    before = env.render()
    assert before.shape == (64, 96, 3) and before.dtype == np.uint8
    env.step(RIGHT if not env.walls[0, 1] else DOWN)
    assert (env.render() != before).any()


def test_what_makes_no_board_is_refused():
    for wrong, told in (
        ({"rows": 1}, "at least 2"),
        ({"step_cost": -1.0}, "at least 0"),
        ({"slip": 1.5}, "probability of moving aside"),
        ({"render_mode": "video"}, "ansi, rgb_array, human or None"),
    ):
        with pytest.raises(ValueError, match=told):
            GridWorld(**wrong)

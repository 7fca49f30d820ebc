"""Steps on a table against `env.step`, number by number."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import classic_rl.gridworld
from classic_rl.tabular.stepping import BLOCK, EnvStepper, TableStepper, Uniforms, make_stepper, mdp_stepper
from tests.classic_rl.tabular.mdps import random_walk

GRID = classic_rl.gridworld.ID
ENVS = {
    "FrozenLake-v1": {},
    "FrozenLake8x8-v1": {"success_rate": 0.7},
    "CliffWalking-v1": {},
    "CliffWalkingSlippery-v1": {},
    "Taxi-v4": {"is_rainy": True},
    GRID: {"slip": 0.3},
}


def walk(stepper, n, seed=1):
    """Steps of random actions, resets among them."""
    actions = np.random.default_rng(seed).integers(stepper.n_actions, size=n)
    told = [stepper.reset()]
    for action in actions.tolist():
        told.append(stepper.step(action))
        if told[-1][2] or told[-1][3]:
            told.append(stepper.reset())
    return told


@pytest.mark.parametrize("name", ENVS)
def test_a_table_gives_the_trajectory_of_the_environment_with_the_same_seed(name):
    table = make_stepper(gymnasium.make(name, **ENVS[name]), seed=5)
    assert isinstance(table, TableStepper)
    told = walk(table, 6000)
    assert told == walk(EnvStepper(gymnasium.make(name, **ENVS[name]), seed=5), 6000)
    # CliffWalking has no time limit, and random steps end in the cliff for ever.
    assert any(len(step) == 4 and (step[2] or step[3]) for step in told if isinstance(step, tuple)) or "Cliff" in name


def test_a_time_limit_truncates_and_may_fall_on_the_end():
    table = make_stepper(gymnasium.make("CliffWalking-v1", max_episode_steps=3), seed=0)
    table.reset()
    assert [table.step(0)[2:] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    corridor = mdp_stepper(random_walk(1), seed=0, max_episode_steps=1)
    corridor.reset()
    assert corridor.step(1)[1:] == (1.0, True, True)


@pytest.mark.parametrize("make", [make_stepper, lambda env, seed: EnvStepper(env, seed)])
def test_a_stepper_goes_on_from_its_state_as_if_it_had_never_stopped(make):
    def steps():
        return make(gymnasium.make("FrozenLake-v1"), seed=3)

    def episodes(stepper, n):
        told = []
        for _ in range(n):
            told.append(stepper.reset())
            while True:
                told.append(stepper.step(len(told) % 4))
                if told[-1][2] or told[-1][3]:
                    break
        return told

    whole = steps()
    begin = whole.state()
    first = episodes(whole, 700)
    middle = whole.state()
    rest = episodes(whole, 20)
    again = steps()
    again.load_state(middle)
    assert episodes(again, 20) == rest
    again.load_state(begin)
    assert episodes(again, 700) == first


def test_a_wrapper_or_a_rule_that_the_table_does_not_know_is_stepped_through():
    lake = gymnasium.make("FrozenLake-v1")
    wrapped = gymnasium.wrappers.TransformReward(lake, lambda reward: reward + 1)
    assert isinstance(make_stepper(wrapped, seed=0), EnvStepper)
    assert isinstance(make_stepper(gymnasium.make("Taxi-v4", fickle_passenger=True), seed=0), EnvStepper)
    shorter = gymnasium.wrappers.TimeLimit(lake, 7)
    assert make_stepper(shorter, seed=0).limit == 7


def test_other_spaces_than_discrete_ones_from_0_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match="use an agent with a network"):
        make_stepper(gymnasium.make("CartPole-v1"), seed=0)


class Lamps(gymnasium.Env):
    """Three lamps, each on or off: eight states, which are no numbers."""

    observation_space, action_space = gymnasium.spaces.MultiBinary(3), gymnasium.spaces.Discrete(2)


def test_states_that_are_no_numbers_are_refused_before_the_first_of_them():
    with pytest.raises(ValueError, match="needs a Discrete observation space that starts at 0, got MultiBinary"):
        make_stepper(Lamps(), seed=0)


def test_blocks_of_uniforms_are_the_numbers_drawn_one_by_one():
    one_by_one = np.random.default_rng(2)
    uniforms = Uniforms(np.random.default_rng(2))
    assert [uniforms.next() for _ in range(10_000)] == [one_by_one.random() for _ in range(10_000)]


@pytest.mark.parametrize("drawn", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_uniforms_go_on_from_their_state_wherever_in_a_block_that_was(drawn):
    one, other = (Uniforms(np.random.default_rng(seed)) for seed in (0, 1))
    for _ in range(drawn):
        one.next()
    other.load_state(one.state())
    assert [other.next() for _ in range(BLOCK + 2)] == [one.next() for _ in range(BLOCK + 2)]


def test_a_limit_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="None sets no limit"):
        mdp_stepper(random_walk(), seed=0, max_episode_steps=0)

"""Stepping environments: what is a transition, whatever the mode of resetting, and going on where it was."""

import json
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from align.runs.checkpoint import load_latest, save_checkpoint
from classic_rl.envs import Episode, Stepper, make_envs
from tests.classic_rl.counting import Counter, Unrepeatable, Walk
from tests.reference import classic_case

MODES = list(AutoresetMode)


def counters(mode: AutoresetMode, *ends: int, cuts: tuple[int, ...] = ()) -> SyncVectorEnv:
    cuts = cuts or (0,) * len(ends)
    return SyncVectorEnv(
        [lambda e=end, c=cut: Counter(e, c) for end, cut in zip(ends, cuts, strict=True)], autoreset_mode=mode
    )


def walk(stepper: Stepper, steps: int, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    return [stepper.step(rng.integers(0, 2, stepper.num_envs)) for _ in range(steps)]


def test_the_rows_that_gymnasium_resets_are_the_rows_that_do_not_count():
    inputs, expected = classic_case("gym_autoreset_NEXT_STEP")
    stepper = Stepper(counters(AutoresetMode.NEXT_STEP, 2, 3), seed=0)
    ended_before = np.zeros(2, dtype=bool)
    for row in expected["steps"][: inputs["steps"]]:
        step = stepper.step(np.zeros(2, dtype=np.int64))
        np.testing.assert_array_equal(step.next_obs[:, 0], row["obs"])
        np.testing.assert_array_equal(step.rewards, row["reward"])
        np.testing.assert_array_equal(step.terminated, np.array(row["terminated"], dtype=bool))
        np.testing.assert_array_equal(step.valid, ~ended_before)
        for index in np.flatnonzero(step.terminated):
            assert Episode(row["ep_r"][index], row["ep_l"][index]) in stepper.latest[0]
        ended_before = step.terminated


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=30)
@given(ends=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=4), steps=st.integers(1, 25))
def test_in_every_mode_each_valid_row_is_a_true_transition_and_each_episode_counts_once(mode, ends, steps):
    stepper = Stepper(counters(mode, *(end for end, _ in ends), cuts=tuple(cut for _, cut in ends)), seed=0)
    rows = walk(stepper, steps)
    for index, (end, cut) in enumerate(ends):
        length = min(end, cut or end)
        told = [step for step in rows if step.valid[index]]
        for count, step in enumerate(told):
            t = count % length
            assert step.obs[index, 0] == t and step.next_obs[index, 0] == t + 1 == step.rewards[index]
            assert step.terminated[index] == (t + 1 == end)  # termination wins where both flags are set
            assert step.truncated[index] == (t + 1 == length and length != end)
        if mode is not AutoresetMode.NEXT_STEP:
            assert len(told) == steps
    whole = sum(sum(step.valid[i] for step in rows) // min(e, c or e) for i, (e, c) in enumerate(ends))
    assert stepper.episodes == whole
    assert set(stepper.latest[0]) <= {Episode(n * (n + 1) / 2, n) for n in (min(e, c or e) for e, c in ends)}


def test_what_is_acted_on_after_an_end_is_the_first_observation_of_the_next_episode():
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
        stepper = Stepper(counters(mode, 2), seed=0)
        assert walk(stepper, 2)[-1].next_obs[0, 0] == 2
        assert stepper.obs[0, 0] == 0


def test_episodes_are_told_once_there_is_one():
    stepper = Stepper(counters(AutoresetMode.DISABLED, 2, 3), seed=0)
    assert stepper.metrics() == {"episode/count": 0.0}
    walk(stepper, 3)
    assert stepper.metrics() == {"episode/return": 4.5, "episode/length": 2.5, "episode/count": 2.0}


def test_make_envs_never_gives_the_native_vector_environment_of_an_id():
    envs = make_envs("CartPole-v1", 3)
    assert type(envs) is SyncVectorEnv and len(envs.envs) == 3
    assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED


class Doubled(SyncVectorEnv):
    """Pays twice what its environments do."""

    def step(self, actions):
        obs, rewards, *rest = super().step(actions)
        return obs, 2 * rewards, *rest


@pytest.mark.parametrize("mode", MODES)
def test_a_vector_with_a_step_of_its_own_is_stepped_by_it(mode):
    stepper = Stepper(Doubled([lambda: Counter(3)], autoreset_mode=mode), seed=0)
    assert [step.rewards[0] for step in walk(stepper, 3)] == [2.0, 4.0, 6.0]
    assert stepper.latest[0][0] == Episode(12.0, 3)


def test_gymnasiums_native_cart_poles_are_stepped_and_no_row_of_a_reset_counts():
    native = gymnasium.make_vec("CartPole-v1", 4)
    assert not isinstance(native.unwrapped, SyncVectorEnv)
    stepper = Stepper(native, seed=0)
    rows = walk(stepper, 200)
    for step in rows:
        moved = step.obs[:, 0] + 0.02 * step.obs[:, 1]  # where the speed takes the cart
        np.testing.assert_allclose(step.next_obs[step.valid, 0], moved[step.valid], atol=1e-6)
        np.testing.assert_array_equal(step.rewards, step.valid)  # the environment pays nothing for a reset
    ends = [step.terminated | step.truncated for step in rows[:-1]]
    np.testing.assert_array_equal(ends, [~step.valid for step in rows[1:]])
    assert stepper.episodes > 20
    again = walk(Stepper(gymnasium.make_vec("CartPole-v1", 4), seed=0), 200)
    np.testing.assert_array_equal(again[-1].obs, rows[-1].obs)


def test_runs_of_neighbouring_seeds_share_no_environment():
    first, second = (Stepper(make_envs("CartPole-v1", 4), seed).obs for seed in (0, 1))
    assert len(np.unique(np.concatenate([first, second]), axis=0)) == 8


@pytest.mark.parametrize("env", ["CartPole-v1", "FrozenLake-v1", "Pendulum-v1", Walk])
@pytest.mark.parametrize("before", [0, 7, 260])
def test_environments_come_back_from_a_checkpoint_exactly_where_they_were(env, before, tmp_path):
    def act(stepper: Stepper, steps: int) -> list:
        stepper.envs.action_space.seed(before)
        return [stepper.step(stepper.envs.action_space.sample()) for _ in range(steps)]

    one = Stepper(make_envs(env, 3), seed=1)
    act(one, before)
    save_checkpoint(tmp_path, 1, one.state())
    checkpoint = load_latest(tmp_path)
    assert checkpoint
    other = Stepper(make_envs(env, 3), seed=2)
    act(other, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state(checkpoint.state)
    np.testing.assert_array_equal(one.obs, other.obs)
    for left, right in zip(act(one, 230), act(other, 230), strict=True):
        for ours, theirs in zip(left, right, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert one.metrics() == other.metrics()
    assert json.dumps(one.state()["origins"]) == json.dumps(other.state()["origins"])


@pytest.mark.parametrize(
    "make", [lambda: make_envs(Unrepeatable, 2), lambda: counters(AutoresetMode.NEXT_STEP, 5, 7)], ids=["noise", "mode"]
)
def test_a_resume_that_cannot_be_exact_says_so_and_begins_new_episodes(make):
    one = Stepper(make(), seed=0)
    walk(one, 3)
    other = Stepper(make(), seed=0)
    with pytest.warns(UserWarning, match="resume is inexact: the open episodes of 2 of 2"):
        other.load_state(one.state())
    step = other.step(np.zeros(2, dtype=np.int64))
    assert step.valid.all()
    assert other.episodes == one.episodes


def test_environments_that_cannot_be_stepped_truly_are_refused():
    class Pair(Counter):
        observation_space = spaces.Dict(a=spaces.Discrete(2))

    with pytest.raises(ValueError, match="FlattenObservation"):
        Stepper(make_envs(Pair, 1), seed=0)
    silent = counters(AutoresetMode.DISABLED, 2)
    del silent.metadata["autoreset_mode"]
    with pytest.raises(ValueError, match="does not say how it resets"):
        Stepper(silent, seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        make_envs("CartPole-v1", 0)
    with pytest.raises(ValueError, match="inside"):
        make_envs(lambda: gymnasium.make("CartPole-v1"), 1, render_mode="human")

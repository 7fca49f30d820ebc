"""The replay memory: its ring, returns over n steps, priorities, and the numbers of other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from classic_rl.replay import PRIORITY_FLOOR, Replay, SumTree
from tests.reference import classic_case


def memory(capacity: int = 8, num_envs: int = 1, *, gamma: float = 0.9, **options) -> Replay:
    return Replay(capacity, num_envs, (), gamma=gamma, **options)


def fill(replay: Replay, steps: int, *, terminated: tuple[int, ...] = (), truncated: tuple[int, ...] = ()) -> Replay:
    """Step i has observation i, next observation i + 1, action i % 2 and reward i."""
    for i in range(steps):
        replay.add([i], [i % 2], [i], [i + 1], [i in terminated], [i in truncated])
    return replay


def everything(replay: Replay):
    slots = np.arange(len(replay))
    return replay.gather(slots, np.ones(len(replay), dtype=np.float32))


# -- the ring


def test_the_ring_of_stable_baselines3_and_its_time_limits():
    _, expected = classic_case("replay_ring_and_timeout")
    replay = fill(memory(4), 6, terminated=(2,), truncated=(4,))
    batch = everything(replay)
    assert len(replay) == 4
    for name in ("obs", "next_obs", "actions", "rewards"):
        assert getattr(batch, name).tolist() == expected[name]
    assert batch.terminated.tolist() == [done == 1 for done in expected["dones"]]


@given(capacity=st.integers(6, 30), steps=st.integers(1, 60), num_envs=st.integers(1, 3))
def test_the_ring_holds_the_newest_transitions_and_overwrites_the_oldest(capacity, steps, num_envs):
    replay = memory(capacity, num_envs)
    added: list[float] = []
    for step in range(steps):
        obs = [100 * env + step for env in range(num_envs)]
        replay.add(obs, [0] * num_envs, [0] * num_envs, obs, [False] * num_envs, [False] * num_envs)
        added += obs
    assert sorted(everything(replay).obs.tolist()) == sorted(added[-capacity:])


def test_steps_that_only_reset_an_environment_are_not_kept():
    replay = memory(8, 2)
    replay.add([1, 2], [0, 0], [0, 0], [3, 4], [True, False], [False, False])
    replay.add([3, 4], [0, 0], [0, 0], [5, 6], [False, False], [False, False], valid=[False, True])
    assert everything(replay).obs.tolist() == [1, 2, 4]


def test_observations_keep_their_shape_and_type():
    replay = Replay(4, 1, (2, 3), obs_dtype=np.uint8, gamma=0.9)
    picture = np.full((1, 2, 3), 255, dtype=np.uint8)
    replay.add(picture, [0], [0.0], picture, [False], [False])
    batch = replay.sample(5, np.random.default_rng(0))
    assert batch.obs.shape == (5, 2, 3) and batch.obs.dtype == torch.uint8 and batch.obs.min() == 255


# -- returns over n steps


@pytest.mark.parametrize("name", ["nstep_replay_plain", "nstep_replay_['done_at']"])
def test_n_step_replay_of_stable_baselines3(name):
    inputs, expected = classic_case(name)
    replay = memory(20, gamma=inputs["gamma"], n_step=inputs["n_steps"])
    for i in range(8):
        replay.add([i], [0], [i + 1], [i + 1], [i == inputs.get("done_at")], [False])
    batch = everything(replay)
    assert_close(batch.rewards, torch.tensor(expected["rewards"]))
    assert_close(batch.discounts, torch.tensor(expected["discounts"]))
    assert batch.next_obs.tolist() == expected["next_obs"]
    assert batch.terminated.tolist() == [done == 1 for done in expected["dones"]]


@pytest.mark.parametrize("name", ["nstep_return_n1", "nstep_return_n2"])
def test_n_step_returns_of_tianshou(name):
    inputs, expected = classic_case(name)
    replay = memory(20, gamma=inputs["gamma"], n_step=inputs["n_step"])
    for i, reward in enumerate(inputs["rewards"]):
        replay.add([i], [0], [reward], [i], [inputs["terminated"][i] == 1], [inputs["truncated"][i] == 1])
    batch = everything(replay)
    q_next = 10 * (batch.next_obs + 1)
    returns = batch.rewards + batch.discounts * torch.where(batch.terminated, 0.0, q_next)
    assert_close(returns, torch.tensor(expected["returns"]))


@settings(max_examples=60)
@given(
    data=st.data(), steps=st.integers(1, 40), num_envs=st.integers(1, 3), n=st.integers(1, 5),
    capacity=st.integers(6, 50),
)  # fmt: skip
def test_n_steps_end_with_the_episode_or_the_newest_step_whatever_is_overwritten(data, steps, num_envs, n, capacity):
    """Against the sum written out over each environment's own list of steps."""
    gamma, replay = 0.5, Replay(capacity, num_envs, (2,), gamma=0.5, n_step=n)
    endings = st.lists(st.sampled_from(["", "", "", "terminated", "truncated"]), min_size=steps, max_size=steps)
    ends = [data.draw(endings) for _ in range(num_envs)]
    rewards = np.random.default_rng(0).integers(0, 9, (num_envs, steps)).astype(np.float64)
    for t in range(steps):
        obs, next_obs = ([[env, at] for env in range(num_envs)] for at in (t, t + 1))
        end = np.array([ends[env][t] for env in range(num_envs)])
        replay.add(obs, np.zeros(num_envs), rewards[:, t], next_obs, end == "terminated", end == "truncated")
    batch = everything(replay)
    for row, (env, t) in enumerate(batch.obs.int().tolist()):
        last = t
        while last < min(steps - 1, t + n - 1) and not ends[env][last]:
            last += 1
        total = sum(gamma ** (k - t) * rewards[env, k] for k in range(t, last + 1))
        assert batch.rewards[row].item() == pytest.approx(total)
        assert batch.discounts[row].item() == gamma ** (last + 1 - t)
        assert batch.next_obs[row].tolist() == [env, last + 1]
        assert batch.terminated[row].item() == (ends[env][last] == "terminated")


def test_after_a_cut_the_next_step_follows_nothing():
    replay = fill(memory(n_step=2), 2)
    replay.cut([0])
    replay.add([9], [0], [9], [10], [False], [False])
    assert everything(replay).rewards.tolist() == pytest.approx([0.9, 1, 9])


# -- the sum tree


def test_the_segment_tree_of_tianshou():
    inputs, expected = classic_case("segtree")
    tree = SumTree(inputs["size"])
    tree.set(range(inputs["size"]), inputs["leaves"])
    assert tree.total == expected["total"]
    queries = np.maximum(inputs["queries"], np.finfo(float).tiny)  # a sum of exactly 0 is none of ours
    assert tree.find(queries).tolist() == expected["prefix_idx"]


@given(size=st.integers(1, 70), data=st.data())
def test_a_tree_holds_what_was_set_last_and_its_sum(size, data):
    tree, leaves = SumTree(size), np.zeros(size)
    for _ in range(data.draw(st.integers(1, 5))):
        indices = data.draw(st.lists(st.integers(0, size - 1), max_size=20))
        values = data.draw(st.lists(st.floats(0, 1e6), min_size=len(indices), max_size=len(indices)))
        tree.set(indices, values)
        for index, value in zip(indices, values, strict=True):
            leaves[index] = value
    np.testing.assert_array_equal(tree.leaves, leaves)
    assert tree.total == pytest.approx(leaves.sum())


@given(
    leaves=st.lists(st.one_of(st.just(0.0), st.floats(1e-300, 1e300)), min_size=1, max_size=40).filter(any),
    share=st.floats(0, 1, exclude_min=True),
)
def test_an_empty_leaf_is_never_found_however_sums_are_rounded(leaves, share):
    tree = SumTree(len(leaves))
    tree.set(range(len(leaves)), leaves)
    found = tree.find([max(share * tree.total, np.nextafter(0, 1)), tree.total])
    assert all(leaves[index] > 0 for index in found)


@given(weights=st.lists(st.integers(0, 9), min_size=1, max_size=40).filter(any))
def test_a_tree_finds_what_a_running_sum_finds(weights):
    tree = SumTree(len(weights))
    tree.set(range(len(weights)), weights)
    sums = np.arange(0.5, tree.total, 0.5)
    assert tree.find(sums).tolist() == np.searchsorted(np.cumsum(weights), sums).tolist()


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_tree_refuses_what_is_no_priority(value):
    with pytest.raises(ValueError, match="is a TD error NaN"):
        SumTree(2).set([1], [value])


# -- priorities


def test_prioritised_replay_of_tianshou():
    inputs, expected = classic_case("per_probabilities_weights")
    errors = inputs["td_errors"]
    replay = fill(memory(6, priority_exponent=inputs["alpha"]), len(errors))
    slots = np.arange(len(errors))
    replay.set_priorities(slots, errors)
    rtol = 10 * PRIORITY_FLOOR / min(errors)  # their floor is another one
    np.testing.assert_allclose(replay.probabilities(slots), expected["prob"], rtol=rtol)
    np.testing.assert_allclose(replay.weights(slots, beta=inputs["beta"]), expected["weight"], rtol=rtol)
    new = replay.add([9], [0], [0], [9], [False], [False])
    ratio = replay.probabilities(new)[0] / replay.probabilities(slots[:1])[0]
    assert ratio == pytest.approx(expected["new_sample_priority"] / expected["priority"][0], rel=rtol)


@settings(max_examples=25)
@given(errors=st.lists(st.floats(0, 10), min_size=2, max_size=12), alpha=st.floats(0.2, 1.0), seed=st.integers(0, 999))
def test_draws_are_as_frequent_as_the_priorities_say(errors, alpha, seed):
    replay = fill(memory(16, priority_exponent=alpha), len(errors))
    replay.set_priorities(np.arange(len(errors)), errors)
    priorities = (np.array(errors) + PRIORITY_FLOOR) ** alpha
    expected = 4000 * priorities / priorities.sum()
    batch = replay.sample(4000, np.random.default_rng(seed))
    counts = np.bincount(batch.slots, minlength=len(errors))
    # Draws are stratified: those of one slot fill whole strata but for the two at its rims.
    assert np.abs(counts - expected).max() <= 2
    assert_close(batch.weights.max(), torch.tensor(1.0))


def test_single_draws_follow_the_priorities_by_the_chi_square_test():
    errors = np.array([0.1, 1.0, 2.0, 0.5, 4.0])
    replay, rng = fill(memory(8, priority_exponent=0.7), 5), np.random.default_rng(0)
    replay.set_priorities(np.arange(5), errors)
    counts = np.bincount([replay.sample(1, rng).slots[0] for _ in range(5000)], minlength=5)
    expected = 5000 * errors**0.7 / (errors**0.7).sum()
    assert ((counts - expected) ** 2 / expected).sum() < 18.5, "the 99.9 % quantile at 4 degrees of freedom"


def test_uniform_draws_are_uniform_by_the_chi_square_test():
    batch = fill(memory(), 5).sample(5000, np.random.default_rng(0))
    counts = np.bincount(batch.slots, minlength=5)
    assert ((counts - 1000) ** 2 / 1000).sum() < 18.5 and batch.weights is None


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=8))
def test_with_beta_one_the_weighted_mean_of_draws_is_the_mean_of_the_memory(errors):
    replay = fill(memory(priority_exponent=0.6), len(errors))
    slots = np.arange(len(errors))
    replay.set_priorities(slots, errors)
    weighted = replay.probabilities(slots) * replay.weights(slots, beta=1.0)
    np.testing.assert_allclose(weighted / weighted.sum(), 1 / len(errors), rtol=1e-5)


def test_a_new_transition_has_the_largest_priority_so_far_even_if_that_one_is_gone():
    replay = fill(memory(4, priority_exponent=1.0), 4)
    replay.set_priorities(np.arange(4), [5.0, 1.0, 1.0, 1.0])
    slot = replay.add([4], [0], [0], [5], [False], [False])
    assert slot[0] == 0, "over the one that had priority 5"
    assert replay.probabilities(slot)[0] == pytest.approx(5 / 8)


# -- state and refusals


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_a_memory_goes_on_from_its_state_bit_for_bit(alpha):
    def go_on(replay: Replay, rng: np.random.Generator) -> list[list[float]]:
        drawn = []
        for i in range(12, 30):
            replay.add([i, i], [0, 1], [i, i], [i + 1, i + 1], [i % 5 == 0, False], [False, i % 7 == 0])
            batch = replay.sample(6, rng, beta=0.5)
            replay.set_priorities(batch.slots, batch.obs.numpy() % 4)
            drawn += [part.tolist() for part in batch if part is not None]
        return drawn

    def new() -> Replay:
        return memory(14, 2, n_step=3, priority_exponent=alpha)

    first = new()
    for i in range(5):
        first.add([i, i], [0, 1], [i, i], [i + 1, i + 1], [False, False], [False, False])
    first.set_priorities(np.arange(4), [0.5, 3.0, 1.0, 0.0])
    state = first.state()
    expected = go_on(first, np.random.default_rng(3))
    second = new()
    second.load_state(state)  # taken before `first` went on: a state is a copy
    assert go_on(second, np.random.default_rng(3)) == expected


def test_the_state_of_another_memory_is_refused():
    state = fill(memory(8), 5).state()
    with pytest.raises(ValueError, match="another memory"):
        memory(4).load_state(state)
    with pytest.raises(ValueError, match="other priorities"):
        memory(8, priority_exponent=0.5).load_state(state)


def test_what_cannot_be_a_memory_is_refused():
    with pytest.raises(ValueError, match="raise it"):
        memory(3, 2)
    with pytest.raises(ValueError, match="n_step >= 1"):
        memory(n_step=0)
    with pytest.raises(ValueError, match="is empty"):
        memory().sample(2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="size must be"):
        SumTree(0)

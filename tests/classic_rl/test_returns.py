from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from classic_rl.returns import discounted_returns, generalized_advantages, lambda_returns, n_step_returns
from tests.reference import classic_case

GAMMA, LAM = 0.9, 0.8


def flags(*indices, length=6):
    chosen = torch.zeros(length, dtype=torch.bool)
    chosen[list(indices)] = True
    return chosen


def trajectory(*shape, seed=0, terminated=0.2, truncated=0.2):
    """rewards, values, next_values, terminated, truncated; next_values are what a critic says, not values shifted."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(3, *shape, dtype=torch.float64, generator=generator)
    chances = torch.rand(2, *shape, generator=generator)
    return (*numbers, chances[0] < terminated, chances[1] < truncated)


def end_of_episode(t, terminated, truncated):
    """The index of the last step of the episode of t, in this tensor."""
    ends = [k for k in range(t, len(terminated)) if terminated[k] or truncated[k]]
    return ends[0] if ends else len(terminated) - 1


def n_step_by_definition(t, n, rewards, next_values, terminated, truncated, gamma):
    last = min(t + n - 1, end_of_episode(t, terminated, truncated))
    total = torch.stack([gamma ** (k - t) * rewards[k] for k in range(t, last + 1)]).sum()
    return total if terminated[last] else total + gamma ** (last + 1 - t) * next_values[last]


def all_estimators():
    """Every estimator as a function of (rewards, values, next_values, terminated, truncated)."""
    return {
        "discounted": lambda r, v, nv, te, tr: discounted_returns(r, te, tr, nv, gamma=GAMMA),
        "n-step": lambda r, v, nv, te, tr: n_step_returns(r, nv, te, tr, gamma=GAMMA, n=3),
        "lambda": lambda r, v, nv, te, tr: lambda_returns(r, nv, te, tr, gamma=GAMMA, lam=LAM),
        "GAE": partial(generalized_advantages, gamma=GAMMA, lam=LAM),
    }


every_estimator = pytest.mark.parametrize("estimator", all_estimators().values(), ids=all_estimators().keys())


# The equations


@pytest.mark.parametrize("n", [1, 2, 3, 10])
@pytest.mark.parametrize("seed", range(5))
def test_n_step_returns_follow_the_definition(n, seed):
    rewards, _, next_values, terminated, truncated = trajectory(8, seed=seed)
    expected = [n_step_by_definition(t, n, rewards, next_values, terminated, truncated, GAMMA) for t in range(8)]
    actual = n_step_returns(rewards, next_values, terminated, truncated, gamma=GAMMA, n=n)
    assert_close(actual, torch.stack(expected))


@pytest.mark.parametrize("seed", range(5))
def test_lambda_returns_are_the_mixture_of_the_n_step_returns(seed):
    rewards, _, next_values, terminated, truncated = trajectory(8, seed=seed)
    actual = lambda_returns(rewards, next_values, terminated, truncated, gamma=GAMMA, lam=LAM)
    for t in range(8):
        longest = end_of_episode(t, terminated, truncated) - t + 1
        returns = [
            n_step_by_definition(t, n, rewards, next_values, terminated, truncated, GAMMA)
            for n in range(1, longest + 1)
        ]
        mixture = sum((1 - LAM) * LAM ** (n - 1) * returns[n - 1] for n in range(1, longest))
        assert_close(actual[t], mixture + LAM ** (longest - 1) * returns[-1])


@pytest.mark.parametrize("seed", range(5))
def test_advantages_are_the_discounted_sum_of_td_errors_up_to_the_end_of_the_episode(seed):
    rewards, values, next_values, terminated, truncated = trajectory(8, seed=seed)
    deltas = [rewards[t] + (0.0 if terminated[t] else GAMMA * next_values[t]) - values[t] for t in range(8)]
    actual = generalized_advantages(rewards, values, next_values, terminated, truncated, gamma=GAMMA, lam=LAM)
    for t in range(8):
        last = end_of_episode(t, terminated, truncated)
        assert_close(actual[t], sum((GAMMA * LAM) ** (k - t) * deltas[k] for k in range(t, last + 1)))


@pytest.mark.parametrize("seed", range(5))
def test_discounted_returns_sum_the_rewards_of_the_episode(seed):
    rewards, _, next_values, terminated, truncated = trajectory(8, seed=seed)
    expected = [n_step_by_definition(t, 8, rewards, next_values, terminated, truncated, GAMMA) for t in range(8)]
    assert_close(discounted_returns(rewards, terminated, truncated, next_values, gamma=GAMMA), torch.stack(expected))


def test_the_worked_example():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 10.0], dtype=torch.float64)
    values = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    next_values = torch.tensor([4.0, 3.0, 2.0, 1.0, torch.nan], dtype=torch.float64)
    terminated, truncated = flags(4, length=5), flags(length=5)
    estimate = partial(generalized_advantages, rewards, values, next_values, terminated, truncated, gamma=0.99)
    errors = torch.tensor([-0.04, -1.03, -1.02, -1.01, 9.0], dtype=torch.float64)
    assert_close(estimate(lam=0.0), errors)
    weights = torch.tensor([(0.99 * 0.95) ** k for k in range(5)], dtype=torch.float64)
    assert round(weights[4].item(), 4) == 0.7824  # 0.95^4 = 0.8145 is what some textbooks print
    assert_close(estimate(lam=0.95)[0], (weights * errors).sum())


# The ends of episodes


@every_estimator
def test_truncation_bootstraps_and_termination_does_not(estimator):
    rewards, values, next_values, *_ = trajectory(6)
    truncated_end = estimator(rewards, values, next_values, flags(), flags(5))
    terminated_end = estimator(rewards, values, next_values, flags(5), flags())
    assert_close(truncated_end[5] - terminated_end[5], GAMMA * next_values[5])


@every_estimator
def test_an_open_last_step_bootstraps_like_a_truncated_one(estimator):
    rewards, values, next_values, *_ = trajectory(6)
    open_end = estimator(rewards, values, next_values, flags(2), flags())
    assert_close(open_end, estimator(rewards, values, next_values, flags(2), flags(5)))


@every_estimator
def test_where_both_flags_are_set_termination_wins(estimator):
    rewards, values, next_values, *_ = trajectory(6)
    both = estimator(rewards, values, next_values, flags(2, 5), flags(2, 5))
    assert_close(both, estimator(rewards, values, next_values, flags(2, 5), flags()))


@every_estimator
@pytest.mark.parametrize(("terminated", "truncated"), [(flags(2), flags()), (flags(), flags(2))])
def test_what_follows_an_end_never_reaches_back_even_if_it_is_nan(estimator, terminated, truncated):
    rewards, values, next_values, *_ = trajectory(6)
    expected = estimator(rewards[:3], values[:3], next_values[:3], terminated[:3], truncated[:3])
    for x in (rewards, values, next_values):
        x[3:] = torch.nan
    assert_close(estimator(rewards, values, next_values, terminated, truncated)[:3], expected)


@every_estimator
def test_the_value_after_a_termination_is_never_read(estimator):
    rewards, values, next_values, *_ = trajectory(6)
    expected = estimator(rewards, values, next_values, flags(2, 5), flags())
    next_values[[2, 5]] = torch.nan
    assert_close(estimator(rewards, values, next_values, flags(2, 5), flags()), expected)


def test_discounted_returns_read_next_values_only_where_the_future_was_not_seen():
    rewards = torch.ones(4, dtype=torch.float64)
    next_values = torch.tensor([torch.nan, 10.0, torch.nan, 20.0], dtype=torch.float64)
    actual = discounted_returns(rewards, flags(length=4), flags(1, length=4), next_values, gamma=0.5)
    assert_close(actual, torch.tensor([1 + 0.5 * 6, 1 + 5, 1 + 0.5 * 11, 1 + 10], dtype=torch.float64))


def test_discounted_returns_without_values_count_the_unseen_future_as_zero():
    actual = discounted_returns(torch.ones(4), flags(length=4), flags(1, length=4), gamma=0.5)
    assert_close(actual, torch.tensor([1.5, 1.0, 1.5, 1.0]))
    assert_close(discounted_returns(torch.ones(2), flags(length=2), gamma=0.5), torch.tensor([1.5, 1.0]))


def test_a_gradient_through_the_values_stops_at_the_ends():
    rewards, values, next_values, *_ = trajectory(6)
    next_values.requires_grad_()
    generalized_advantages(rewards, values, next_values, flags(2, 5), flags(), gamma=GAMMA, lam=LAM)[0].backward()
    assert next_values.grad is not None
    expected = [GAMMA, GAMMA * GAMMA * LAM, 0.0, 0.0, 0.0, 0.0]
    assert_close(next_values.grad, torch.tensor(expected, dtype=torch.float64))


# Limits and identities


trajectories = st.builds(trajectory, st.integers(1, 9), seed=st.integers(0, 10**6))


@settings(max_examples=30)
@given(trajectories, st.floats(0, 1))
def test_lambda_zero_is_the_td_error(steps, gamma):
    rewards, values, next_values, terminated, truncated = steps
    td_target = n_step_returns(rewards, next_values, terminated, truncated, gamma=gamma, n=1)
    assert_close(generalized_advantages(*steps, gamma=gamma, lam=0.0), td_target - values)
    assert_close(lambda_returns(rewards, next_values, terminated, truncated, gamma=gamma, lam=0.0), td_target)


def consistent(steps):
    """The same steps with next_values equal to the next step's value wherever the episode goes on."""
    rewards, values, next_values, terminated, truncated = steps
    ended = terminated | truncated
    ended[..., -1] = True
    return rewards, values, torch.where(ended, next_values, values.roll(-1, -1)), terminated, truncated


@settings(max_examples=30)
@given(trajectories, st.floats(0, 1))
def test_lambda_one_is_the_monte_carlo_return_minus_the_baseline(steps, gamma):
    rewards, values, next_values, terminated, truncated = consistent(steps)
    returns = discounted_returns(rewards, terminated, truncated, next_values, gamma=gamma)
    advantages = generalized_advantages(rewards, values, next_values, terminated, truncated, gamma=gamma, lam=1.0)
    assert_close(advantages, returns - values)
    assert_close(lambda_returns(rewards, next_values, terminated, truncated, gamma=gamma, lam=1.0), returns)


@settings(max_examples=30)
@given(trajectories, st.floats(0, 1), st.floats(0, 1))
def test_advantages_plus_values_are_the_lambda_returns(steps, gamma, lam):
    rewards, values, next_values, terminated, truncated = consistent(steps)
    advantages = generalized_advantages(rewards, values, next_values, terminated, truncated, gamma=gamma, lam=lam)
    targets = lambda_returns(rewards, next_values, terminated, truncated, gamma=gamma, lam=lam)
    assert_close(advantages + values, targets)


@every_estimator
def test_time_is_the_last_axis_whatever_stands_before_it(estimator):
    steps = trajectory(2, 3, 7)
    actual = estimator(*steps)
    assert_close(actual.flatten(0, 1), estimator(*(x.flatten(0, 1) for x in steps)))
    for a in range(2):
        for b in range(3):
            assert_close(actual[a, b], estimator(*(x[a, b] for x in steps)))


@every_estimator
def test_no_steps_give_no_returns(estimator):
    assert estimator(*trajectory(2, 0)).shape == (2, 0)


# Refusals


@every_estimator
@pytest.mark.parametrize("odd", [0, 2, 3, 4])
def test_shapes_that_would_broadcast_are_refused(estimator, odd):
    steps = list(trajectory(4))
    steps[odd] = steps[odd][:, None]
    with pytest.raises(ValueError, match="Squeeze or expand"):
        estimator(*steps)


def test_values_of_another_shape_are_refused():
    rewards, values, *rest = trajectory(4)
    with pytest.raises(ValueError, match=r"values \[4, 1\].*Squeeze or expand"):
        generalized_advantages(rewards, values[:, None], *rest, gamma=GAMMA, lam=LAM)


def test_n_below_one_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"n must be at least 1, got 0.*raise n"):
        n_step_returns(torch.zeros(3), torch.zeros(3), flags(length=3), flags(length=3), gamma=1.0, n=0)


# Other people's numbers


def per_environment(rows):
    """[T, n_envs] lists as [n_envs, T] in the float32 that the library used."""
    return torch.tensor(rows, dtype=torch.float32).T


@pytest.mark.parametrize("name", ["gae_rollout_gamma0.99_lambda0.95", "gae_rollout_gamma0.9_lambda0.0", "gae_cleanrl"])
def test_gae_agrees_with_stable_baselines3_and_cleanrl(name):
    inputs, expected = classic_case(name)
    inputs = classic_case(inputs["same_as"])[0] if "same_as" in inputs else inputs
    values = per_environment(inputs["values"])
    # They mark the first step of an episode, and give the value and the flag after the last step apart.
    starts = torch.cat([per_environment(inputs["episode_starts"]), torch.tensor(inputs["last_dones"])[:, None]], dim=1)
    next_values = torch.cat([values[:, 1:], torch.tensor(inputs["last_values"])[:, None]], dim=1)
    terminated = starts[:, 1:].bool()
    advantages = generalized_advantages(
        per_environment(inputs["rewards"]), values, next_values, terminated, torch.zeros_like(terminated),
        gamma=inputs["gamma"], lam=inputs["gae_lambda"],
    )  # fmt: skip
    assert_close(advantages, per_environment(expected["advantages"]))
    assert_close(advantages + values, per_environment(expected["returns"]))


def test_gae_over_several_episodes_agrees_with_tianshou():
    inputs, expected = classic_case("gae_episodic_terminated")
    terminated, truncated = (torch.tensor(inputs[name]).bool() for name in ("terminated", "truncated"))
    rewards, v_next = (torch.tensor(inputs[name], dtype=torch.float64) for name in ("rewards", "v_next"))
    # np.roll of v_next after 0 was put in at terminations: `returns - advantages` of the case shows it.
    values = torch.where(terminated, 0.0, v_next).roll(1)
    advantages = generalized_advantages(
        rewards, values, v_next, terminated, truncated, gamma=inputs["gamma"], lam=inputs["gae_lambda"]
    )
    assert_close(advantages, torch.tensor(expected["advantages"], dtype=torch.float64))
    assert_close(advantages + values, torch.tensor(expected["returns"], dtype=torch.float64))


def test_reward_to_go_agrees_with_tianshou():
    inputs, expected = classic_case("mc_return_to_go")
    rewards = torch.tensor(inputs["rewards"], dtype=torch.float64)
    actual = discounted_returns(rewards, flags(4, length=5), gamma=inputs["gamma"])
    assert_close(actual, torch.tensor(expected["returns"], dtype=torch.float64))


@pytest.mark.parametrize("name", ["nstep_return_n1", "nstep_return_n2"])
def test_n_step_returns_agree_with_tianshou(name):
    inputs, expected = classic_case(name)
    actual = n_step_returns(
        torch.tensor(inputs["rewards"]), 10 * torch.arange(1.0, 9.0), torch.tensor(inputs["terminated"]).bool(),
        torch.tensor(inputs["truncated"]).bool(), gamma=inputs["gamma"], n=inputs["n_step"],
    )  # fmt: skip
    assert_close(actual, torch.tensor(expected["returns"]))


@pytest.mark.parametrize("name", ["nstep_replay_['done_at']", "nstep_replay_plain"])
def test_n_step_returns_agree_with_the_replay_of_stable_baselines3(name):
    inputs, expected = classic_case(name)
    value_of = lambda state: 100 + 7 * state  # noqa: E731
    done = flags(*([inputs["done_at"]] if "done_at" in inputs else []), length=8)
    actual = n_step_returns(
        torch.arange(1.0, 9.0), value_of(torch.arange(1.0, 9.0)), done, flags(length=8),
        gamma=inputs["gamma"], n=inputs["n_steps"],
    )  # fmt: skip
    rewards, dones, discounts, next_obs = (
        torch.tensor(expected[name]) for name in ("rewards", "dones", "discounts", "next_obs")
    )
    assert_close(actual, rewards + discounts * (1 - dones) * value_of(next_obs))


@pytest.mark.parametrize("name", ["rlax_nstep", "rlax_discounted_returns"])
def test_returns_agree_with_rlax(name):
    inputs, expected = classic_case(name)
    rewards, next_values = torch.tensor(inputs["r_t"]), torch.tensor(inputs["v_t"])
    terminated = torch.tensor(inputs["discount_t"]) == 0
    gamma = inputs["discount_t"][0]
    if name == "rlax_nstep":
        actual = n_step_returns(
            rewards, next_values, terminated, torch.zeros_like(terminated), gamma=gamma, n=inputs["n"]
        )
    else:
        actual = discounted_returns(rewards, terminated, None, next_values, gamma=gamma)
    assert_close(actual, torch.tensor(expected["returns"]))

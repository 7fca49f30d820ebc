"""The equations of RLHF's PPO: token rewards, advantages of completions, the KL's weight, running statistics."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from align.config import PPOConfig, TokenRewardConfig
from align.critic import last_actions
from align.ppo import Moments, adapted_kl_coef, completion_advantages, kl_penalised_rewards
from classic_rl.losses import clipped_surrogate_loss, policy_gradient_loss
from tests.toy_policy import LAST, MASK, gradient, kl, probabilities, random_logits, rewards, token_logprobs

BETA = 0.3


def garbage(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, x, torch.nan)


# Token rewards


def test_every_action_pays_for_its_kl_and_the_last_real_one_is_paid_the_score():
    mask = torch.tensor([[False, True, True, True], [False, True, False, False], [False, False, False, False]])
    logprobs = torch.tensor([[0.0, -1.0, -2.0, -3.0], [0.0, -0.5, 0.0, 0.0], [0.0] * 4])
    ref = torch.tensor([[0.0, -1.5, -1.0, -3.0], [0.0, -2.5, 0.0, 0.0], [0.0] * 4])
    paid = kl_penalised_rewards(
        torch.tensor([10.0, -1.0, 7.0]), garbage(logprobs, mask), garbage(ref, mask), mask, kl_coef=0.1
    )
    expected = torch.tensor([[0.0, -0.05, 0.1, 10.0], [0.0, -1.2, 0.0, 0.0], [0.0] * 4])
    assert_close(paid, expected)


def test_rewards_are_constants_and_shapes_that_would_broadcast_are_refused():
    logprobs = torch.zeros(2, 3, requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert not kl_penalised_rewards(torch.ones(2), logprobs, torch.zeros(2, 3), mask, kl_coef=1.0).requires_grad
    with pytest.raises(ValueError, match="broadcast"):
        kl_penalised_rewards(torch.ones(2, 1), logprobs, torch.zeros(2, 3), mask, kl_coef=1.0)


def test_the_last_action_is_the_last_even_after_a_gap():
    mask = torch.tensor([[True, False, True, False], [False] * 4])
    assert last_actions(mask).tolist() == [[False, False, True, False], [False] * 4]
    assert torch.equal(last_actions(MASK), LAST)


def toy_rewards(logits, ref_logits):
    return kl_penalised_rewards(
        rewards(), garbage(token_logprobs(logits), MASK), garbage(token_logprobs(ref_logits), MASK), MASK, kl_coef=BETA
    )


def test_the_expected_sum_of_token_rewards_is_the_score_minus_beta_times_the_kl():
    logits, ref_logits = random_logits(0), random_logits(1)
    p = probabilities(logits)
    expected = (p * rewards()).sum() - BETA * kl(logits, ref_logits)
    assert_close((p * toy_rewards(logits, ref_logits).sum(dim=1)).sum(), expected)


@pytest.mark.parametrize("loss", [policy_gradient_loss, clipped_surrogate_loss])
def test_the_policy_gradient_of_the_token_rewards_is_that_of_the_objective(loss):
    """k1 inside the reward is not differentiated, and still gives the gradient of the KL."""
    logits, ref_logits = random_logits(0), random_logits(1)
    p, logprobs = probabilities(logits), token_logprobs(logits)
    objective = (p * rewards()).sum() - BETA * kl(logits, ref_logits)
    token_rewards = toy_rewards(logits, ref_logits)
    # gamma = lambda = 1 and no critic: the advantage of a token is the sum of what comes from it on
    advantages = completion_advantages(token_rewards, torch.zeros_like(token_rewards), MASK, gamma=1.0, lam=1.0)
    arguments = (logprobs, advantages) if loss is policy_gradient_loss else (logprobs, logprobs.detach(), advantages)
    surrogate = (p.detach() * loss(*arguments).sum(dim=1)).sum()
    assert_close(gradient(-surrogate, logits), gradient(objective, logits))


def test_any_critic_leaves_the_expected_gradient_where_it_is_if_lambda_is_1():
    logits, ref_logits = random_logits(2), random_logits(3)
    p, logprobs = probabilities(logits), token_logprobs(logits)
    objective = (p * rewards()).sum() - BETA * kl(logits, ref_logits)
    from tests.toy_policy import STATES

    values = torch.randn(7, dtype=torch.float64)[STATES]  # a value for every prefix
    advantages = completion_advantages(toy_rewards(logits, ref_logits), values, MASK, gamma=1.0, lam=1.0)
    surrogate = (p.detach() * policy_gradient_loss(logprobs, advantages).sum(dim=1)).sum()
    assert_close(gradient(-surrogate, logits), gradient(objective, logits))


# Advantages


def advantages_of_one(rewards, values, final_value, gamma, lam):
    """GAE of one completion, from the equation; `final_value` is 0 where it ended."""
    advantages, later = [0.0] * len(rewards), 0.0
    for t in reversed(range(len(rewards))):
        after = values[t + 1] if t + 1 < len(values) else final_value
        later = rewards[t] + gamma * after - values[t] + gamma * lam * later
        advantages[t] = later
    return advantages


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6), st.booleans()), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.9, 1.0]),
    st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    st.integers(0, 1000),
)
def test_advantages_are_those_of_each_completion_alone(shapes, gamma, lam, seed):
    """shapes: prompt tokens, completion tokens, whether it was cut."""
    width = max(prompt + length for prompt, length, _ in shapes) + 1
    torch.manual_seed(seed)
    rewards, values = torch.randn(2, len(shapes), width, dtype=torch.float64)
    final_values = torch.randn(len(shapes), dtype=torch.float64)
    truncated = torch.tensor([cut for _, _, cut in shapes])
    start = torch.tensor([[prompt] for prompt, _, _ in shapes])
    length = torch.tensor([[length] for _, length, _ in shapes])
    t = torch.arange(width)
    mask = (t >= start) & (t < start + length)
    expected = torch.zeros_like(rewards)
    for row, (prompt, n, cut) in enumerate(shapes):
        span = slice(prompt, prompt + n)
        after = float(final_values[row]) if cut else 0.0
        alone = advantages_of_one(rewards[row, span].tolist(), values[row, span].tolist(), after, gamma, lam)
        expected[row, span] = torch.tensor(alone, dtype=torch.float64)
    # an ended completion's final value is never read
    final_values = torch.where(truncated, final_values, torch.nan)
    advantages = completion_advantages(
        garbage(rewards, mask), garbage(values, mask), mask, truncated, final_values, gamma=gamma, lam=lam
    )
    assert_close(advantages, expected)


def test_actions_in_two_runs_and_a_missing_final_value_are_refused():
    x, mask = torch.zeros(1, 3), torch.tensor([[True, False, True]])
    with pytest.raises(ValueError, match="split it into rows"):
        completion_advantages(x, x, mask, gamma=1.0, lam=1.0)
    with pytest.raises(ValueError, match="final_values"):
        completion_advantages(x, x, mask | True, torch.tensor([True]), gamma=1.0, lam=1.0)


# The KL's weight and the running statistics


def test_the_weight_of_the_kl_rises_above_the_target_falls_below_and_never_jumps():
    assert adapted_kl_coef(0.2, 6.0, target=6.0) == 0.2
    assert adapted_kl_coef(0.2, 1e9, target=6.0) == pytest.approx(0.2 * 1.02)
    assert adapted_kl_coef(0.2, -5.0, target=6.0) == pytest.approx(0.2 * 0.98)
    assert adapted_kl_coef(0.2, 6.6, target=6.0) == pytest.approx(0.2 * 1.01)


@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=8), min_size=1, max_size=6))
def test_moments_joined_piece_by_piece_are_those_of_everything(pieces):
    moments = Moments()
    for piece in pieces:
        x = torch.tensor(piece, dtype=torch.float64)
        mean = x.mean() if len(x) else x.sum()
        moments = moments.joined(Moments(len(x), float(mean), float((x - mean).square().sum())))
    everything = torch.tensor([number for piece in pieces for number in piece], dtype=torch.float64)
    assert moments.count == len(everything)
    if len(everything) > 1:
        assert moments.mean == pytest.approx(float(everything.mean()), abs=1e-9)
        assert moments.std == pytest.approx(float(everything.std()), rel=1e-6, abs=1e-6)


# Settings


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda: TokenRewardConfig(truncated="bootstrapped", missing_eos_penalty=1.0), "set it to 0"),
        (lambda: TokenRewardConfig(kl_coef=0.0, kl_target=1.0), "kl_coef above 0"),
        (lambda: TokenRewardConfig(score_clip=0.0), "or None"),
        (lambda: PPOConfig(prompts_per_step=2, minibatches=3), "raise prompts_per_step"),
        (lambda: PPOConfig(epochs=0), "epochs must be at least 1"),
        (lambda: PPOConfig(entropy_coef=-1.0), "must not be negative"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_with_the_way_out(make, advice):
    with pytest.raises(ValueError, match=advice):
        make()

"""RLOO: a leave-one-out baseline, and the KL in the reward, composed from GRPO's functions."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from align.grpo import GRPO, centre_by_group
from align.models import reference_of
from align.surrogates import kl_penalty, leave_one_out
from classic_rl.losses import policy_gradient_loss
from tests.small_runs import share_of_letter, small_grpo
from tests.toy_policy import COMPLETIONS, gradient, kl, probabilities, random_logits, rewards, token_logprobs


@pytest.mark.parametrize("group_size", [2, 5])
def test_the_baseline_is_the_mean_of_the_others(group_size):
    x = torch.randn(6 * group_size, dtype=torch.float64)
    groups = x.view(6, group_size)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (group_size - 1)
    assert_close(leave_one_out(x, group_size), (groups - others).flatten())
    assert_close(leave_one_out(x, group_size), centre_by_group(x, group_size) * group_size / (group_size - 1))


def test_a_missing_reward_is_nobodys_baseline_and_a_reward_alone_has_none():
    nan = torch.nan
    advantages = leave_one_out(torch.tensor([1.0, nan, 3.0, nan, 5.0, nan]), 3)
    assert advantages.tolist() == [-2.0, 0.0, 2.0, 0.0, 0.0, 0.0]


def test_the_expected_gradient_of_a_pair_is_that_of_score_minus_kl():
    """Every pair of completions, weighed by its probability."""
    logits, ref_logits, beta = random_logits(0), random_logits(1), 0.3
    p, logprobs = probabilities(logits), token_logprobs(logits)
    objective = (p * rewards()).sum() - beta * kl(logits, ref_logits)
    penalised = (rewards() - beta * (logprobs - token_logprobs(ref_logits)).sum(dim=1)).detach()
    first, second = torch.cartesian_prod(*2 * [torch.arange(len(COMPLETIONS))]).T
    pairs = torch.stack([first, second], dim=1)
    advantages = leave_one_out(penalised[pairs].flatten(), 2).view(-1, 2)
    losses = policy_gradient_loss(logprobs.sum(dim=1)[pairs], advantages).mean(dim=1)
    weights = (p[first] * p[second]).detach()
    assert_close(gradient(-(weights * losses).sum(), logits), gradient(objective, logits))


@pytest.mark.parametrize("micro", [10_000, 20])
def test_the_loop_takes_the_kl_off_the_reward(micro):
    plain = small_grpo(group_size=2)
    policy = plain.trainer.unwrapped
    reference = reference_of(policy)
    penalty = kl_penalty(reference, plain.accelerator, kl_coef=0.5, tokens_per_micro_batch=micro)
    rloo = GRPO(
        policy, plain.sampler, plain.prompts, [share_of_letter], plain.config, plain.accelerator,
        advantages=leave_one_out, penalty=penalty,
    )  # fmt: skip
    metrics = list(rloo.steps())
    assert metrics[0]["reward/mean"] == pytest.approx(metrics[0]["reward/share_of_letter"], abs=1e-5)
    rollouts = rloo.rollouts
    ref_logprobs = reference(rollouts.sequences.input_ids, rollouts.sequences.action_mask)
    k1 = (rollouts.logprobs - ref_logprobs).sum(dim=1)
    assert k1.abs().max() > 0.01
    assert_close(rollouts.rewards, rollouts.parts["share_of_letter"] - 0.5 * k1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("penalty", "told"),
    [
        (lambda rollouts: torch.full((len(rollouts),), torch.nan), r"got \[16\] with 16 not finite"),
        (lambda rollouts: torch.zeros(len(rollouts), 1), r"got \[16, 1\] with 0 not finite"),
    ],
)
def test_a_penalty_that_is_no_finite_number_a_completion_is_refused_by_its_name(penalty, told):
    algorithm = small_grpo()
    penalty.__name__ = "my_penalty"
    algorithm.penalty = penalty
    with pytest.raises(ValueError, match=rf"penalty 'my_penalty' must give a finite number for each of 16 .*{told}"):
        next(algorithm.steps())

import pytest
import torch
from torch.testing import assert_close

from classic_rl.losses import (
    clipped_surrogate_loss,
    clipped_value_loss,
    double_q_targets,
    dueling_q_values,
    policy_gradient_loss,
    q_targets,
)
from classic_rl.returns import discounted_returns, generalized_advantages
from tests.reference import classic_case
from tests.toy_policy import (
    LAST,
    MASK,
    gradient,
    kl,
    probabilities,
    random_logits,
    rewards,
    token_logprobs,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Policies


def test_the_enumerated_completions_are_all_there_are():
    assert_close(probabilities(random_logits(1)).sum(), torch.tensor(1.0, dtype=torch.float64))


def test_the_policy_gradient_is_exact_on_an_enumerated_policy():
    logits = random_logits(1)
    objective = (probabilities(logits) * rewards()).sum()
    advantages = rewards()[:, None].expand_as(MASK)
    loss = policy_gradient_loss(token_logprobs(logits), advantages).sum(dim=-1)
    assert_close(gradient((probabilities(logits).detach() * loss).sum(), logits), -gradient(objective, logits))


def test_k1_in_the_reward_gives_the_gradient_of_the_kl_regularised_objective():
    """And each action is credited with what comes after it only, which leaves the mean gradient as it is."""
    logits, ref_logits, kl_coef = random_logits(1), random_logits(2).detach(), 0.3
    objective = (probabilities(logits) * rewards()).sum() - kl_coef * kl(logits, ref_logits)
    logprobs = token_logprobs(logits)
    k1 = (logprobs - token_logprobs(ref_logits)).detach()
    token_rewards = torch.where(LAST, rewards()[:, None], 0.0) - kl_coef * k1
    returns = discounted_returns(token_rewards, LAST, gamma=1.0)
    loss = policy_gradient_loss(logprobs, torch.where(MASK, returns, 0.0)).sum(dim=-1)
    assert_close(gradient((probabilities(logits).detach() * loss).sum(), logits), -gradient(objective, logits))


def test_the_clipped_surrogate_follows_its_formula():
    logprobs, old_logprobs, advantages = randn(3, 4, 50)
    ratio = (logprobs - old_logprobs).exp()
    clipped = torch.clip(ratio, 1 - 0.1, 1 + 0.3)
    expected = -torch.min(torch.stack([ratio * advantages, clipped * advantages]), dim=0).values
    actual = clipped_surrogate_loss(logprobs, old_logprobs, advantages, clip_low=0.1, clip_high=0.3)
    assert actual.shape == (4, 50)
    assert_close(actual, expected)


def test_at_ratio_one_the_gradient_of_the_clipped_surrogate_is_the_policy_gradient():
    logits, advantages = random_logits(1), randn(*MASK.shape)
    for clip in (0.0, 0.2):
        logprobs = token_logprobs(logits)
        surrogate = clipped_surrogate_loss(logprobs, logprobs.detach(), advantages, clip_low=clip, clip_high=clip)
        expected = gradient(policy_gradient_loss(logprobs, advantages).sum(), logits)
        assert_close(gradient(surrogate.sum(), logits), expected)


@pytest.mark.parametrize(
    ("ratio", "advantage", "learns"),
    [(1.5, 1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False), (1.25, 1.0, True)],
)
def test_a_ratio_that_has_gone_far_enough_has_no_gradient_and_one_that_should_return_has(ratio, advantage, learns):
    logprobs = torch.tensor([ratio]).log().requires_grad_()
    clipped_surrogate_loss(
        logprobs, torch.zeros(1), torch.tensor([advantage]), clip_low=0.2, clip_high=0.3
    ).sum().backward()
    assert logprobs.grad is not None and (logprobs.grad.item() != 0) == learns


def test_the_clipped_surrogate_and_its_gradient_agree_with_rlax():
    inputs, expected = classic_case("rlax_ppo_clip")
    ratio = torch.tensor(inputs["ratio"], requires_grad=True)
    epsilon = inputs["epsilon"]
    loss = clipped_surrogate_loss(
        ratio.log(), torch.zeros(5), torch.tensor(inputs["advantage"]), clip_low=epsilon, clip_high=epsilon
    ).mean()
    loss.backward()
    assert_close(loss, torch.tensor(expected["loss"]))
    assert_close(ratio.grad, torch.tensor(expected["grad_ratio"]))


def test_the_policy_gradient_loss_and_its_gradient_agree_with_rlax():
    inputs, expected = classic_case("rlax_pg")
    logits = torch.tensor(inputs["logits"], requires_grad=True)
    logprobs = logits.log_softmax(-1)[torch.arange(2), inputs["actions"]]
    loss = policy_gradient_loss(logprobs, torch.tensor(inputs["advantages"])).mean()
    loss.backward()
    assert_close(loss, torch.tensor(expected["pg_loss"]))
    assert_close(logits.grad, torch.tensor(expected["grad"]))


def test_no_gradient_flows_into_advantages_or_old_logprobs():
    logprobs, old_logprobs, advantages = randn(3, 5).requires_grad_()
    for loss in (
        policy_gradient_loss(logprobs, advantages),
        clipped_surrogate_loss(logprobs, old_logprobs, advantages),
    ):
        grads = torch.autograd.grad(loss.sum(), [logprobs, old_logprobs, advantages], allow_unused=True)
        assert grads[0] is not None and grads[1] is None and grads[2] is None


def test_old_logprobs_may_be_the_logprobs_themselves():
    logprobs = randn(5).requires_grad_()
    clipped_surrogate_loss(logprobs, logprobs, torch.ones(5, dtype=torch.float64)).sum().backward()
    assert_close(logprobs.grad, -torch.ones(5, dtype=torch.float64))


# Values


def test_the_value_loss_without_a_clip_is_half_the_squared_error():
    values, old_values, returns = randn(3, 20)
    assert_close(clipped_value_loss(values, old_values, returns), (values - returns) ** 2 / 2)


def test_the_clipped_value_loss_follows_its_formula():
    values, old_values, returns = randn(3, 200)
    clipped = old_values + torch.clip(values - old_values, -0.3, 0.3)
    expected = torch.stack([(values - returns) ** 2, (clipped - returns) ** 2]).amax(dim=0) / 2
    assert_close(clipped_value_loss(values, old_values, returns, clip=0.3), expected)


def test_a_value_near_its_old_one_learns_as_without_a_clip_and_one_that_went_too_far_does_not():
    old_values, returns = torch.zeros(2), torch.full((2,), 4.0)
    values = torch.tensor([0.5, 3.0], requires_grad=True)
    clipped_value_loss(values, old_values, returns, clip=1.0).sum().backward()
    assert_close(values.grad, torch.tensor([-3.5, 0.0]))


# Q-learning


def test_q_targets_bootstrap_from_the_best_action_unless_terminated():
    rewards, next_q = randn(6), randn(6, 3, seed=1)
    terminated = torch.tensor([False, True, False, True, False, False])
    expected = [r if end else r + 0.9 * max(q) for r, q, end in zip(rewards, next_q, terminated, strict=True)]
    assert_close(q_targets(rewards, next_q, terminated, gamma=0.9), torch.stack(expected))


def test_double_q_targets_choose_with_one_network_and_value_with_the_other():
    rewards, online, target = randn(6), randn(6, 3, seed=1), randn(6, 3, seed=2)
    terminated = torch.tensor([False, True, False, True, False, False])
    expected = torch.stack(
        [rewards[i] + (0.0 if terminated[i] else 0.9 * target[i, int(online[i].argmax())]) for i in range(6)]
    )
    assert_close(double_q_targets(rewards, online, target, terminated, gamma=0.9), expected)
    same = double_q_targets(rewards, target, target, terminated, gamma=0.9)
    assert_close(same, q_targets(rewards, target, terminated, gamma=0.9))


def test_q_values_past_a_termination_are_never_read():
    next_q = torch.full((1, 3), torch.nan)
    ended = torch.tensor([True])
    assert q_targets(torch.ones(1), next_q, ended, gamma=0.9) == 1
    assert double_q_targets(torch.ones(1), next_q, next_q, ended, gamma=0.9) == 1


def test_gamma_may_differ_from_row_to_row_or_be_a_scalar_tensor():
    rewards, next_q, terminated = randn(4), randn(4, 3, seed=1), torch.zeros(4, dtype=torch.bool)
    gamma = torch.tensor([0.9, 0.81, 0.729, 0.9], dtype=torch.float64)
    assert_close(q_targets(rewards, next_q, terminated, gamma=gamma), rewards + gamma * next_q.amax(-1))
    assert_close(q_targets(rewards, next_q, terminated, gamma=gamma[0]), rewards + 0.9 * next_q.amax(-1))


def test_targets_are_constants():
    next_q = randn(4, 3).requires_grad_()
    flags = torch.zeros(4, dtype=torch.bool)
    assert not q_targets(randn(4), next_q, flags, gamma=0.9).requires_grad
    assert not double_q_targets(randn(4), next_q, next_q, flags, gamma=0.9).requires_grad


def test_td_errors_agree_with_rlax():
    flag = torch.tensor([False])
    inputs, expected = classic_case("rlax_td0")
    v_tm1, r_t, v_t = (torch.tensor([inputs[name]]) for name in ("v_tm1", "r_t", "v_t"))
    error = generalized_advantages(r_t, v_tm1, v_t, flag, flag, gamma=inputs["discount_t"], lam=0.0)
    assert_close(error, torch.tensor([expected["td"]]))

    for name in ("rlax_q_learning", "rlax_sarsa"):
        inputs, expected = classic_case(name)
        next_q = torch.tensor(inputs["q_t"])
        if "a_t" in inputs:  # SARSA has one action to choose from, the one taken
            next_q = next_q[[inputs["a_t"]]]
        target = q_targets(torch.tensor([inputs["r_t"]]), next_q[None], flag, gamma=inputs["discount_t"])
        assert_close(target - inputs["q_tm1"][inputs["a_tm1"]], torch.tensor([expected["td"]]))


def test_dueling_values_agree_with_tianshou():
    inputs, expected = classic_case("dueling_mean")
    x, w_adv, b_adv, w_val, b_val = (torch.tensor(inputs[name]) for name in ("x", "W_adv", "b_adv", "W_val", "b_val"))
    actual = dueling_q_values((x @ w_val.T + b_val).squeeze(-1), x @ w_adv.T + b_adv)
    assert_close(actual, torch.tensor(expected["q"]))


def test_the_mean_over_actions_of_dueling_values_is_the_state_value():
    values = randn(5)
    assert_close(dueling_q_values(values, randn(5, 4, seed=1)).mean(dim=-1), values)


# Refusals

B, BX1, BXA = torch.zeros(4), torch.zeros(4, 1), torch.zeros(4, 3)
ENDS = torch.zeros(4, dtype=torch.bool)


@pytest.mark.parametrize(
    "call",
    [
        lambda: policy_gradient_loss(B, BX1),
        lambda: clipped_surrogate_loss(B, BX1, B),
        lambda: clipped_surrogate_loss(B, B, BX1),
        lambda: clipped_value_loss(BX1, B, B),
        lambda: clipped_value_loss(B, BX1, B),
        lambda: clipped_value_loss(B, B, BX1, clip=1.0),
        lambda: q_targets(BX1, BXA, ENDS, gamma=1.0),
        lambda: q_targets(B, B, ENDS, gamma=1.0),
        lambda: q_targets(B, BXA, ENDS[:, None], gamma=1.0),
        lambda: q_targets(B, BXA, ENDS, gamma=BX1),
        lambda: double_q_targets(BX1, BXA, BXA, ENDS, gamma=1.0),
        lambda: double_q_targets(B, BXA, BX1, ENDS, gamma=1.0),
        lambda: dueling_q_values(BX1, BXA),
    ],
)
def test_shapes_that_would_broadcast_are_refused(call):
    with pytest.raises(ValueError, match="Squeeze or expand"):
        call()

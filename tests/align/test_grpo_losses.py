from functools import partial
from itertools import product

import pytest
import torch
from torch.testing import assert_close

from align.aggregate import fixed_length_mean, per_fixed_length, per_sequence, per_token, sequence_mean, token_mean
from align.grpo import centre_by_group, grpo_loss, ratio_weighted_k3, standardize_by_group
from align.surrogates import cispo_loss, sequence_ratio_loss
from classic_rl.divergences import kl_k3
from tests.reference import alignment_cases
from tests.toy_policy import (
    COMPLETIONS,
    MASK,
    PREFIXES,
    STATES,
    gradient,
    kl,
    probabilities,
    random_logits,
    rewards,
    token_logprobs,
)


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


INPUTS = alignment_cases()["inputs"]
LOGPROBS, OLD, REF, ADVANTAGES = (float64(INPUTS[name]) for name in ("logps", "old", "ref", "adv"))
ACTIONS = torch.arange(6) < torch.tensor(INPUTS["lens"])[:, None]

SURROGATES = {
    "GRPO": grpo_loss,
    "GRPO, clipped above": partial(grpo_loss, clip_high=0.28),
    "GSPO": partial(sequence_ratio_loss, clip_low=0.2, clip_high=0.2),
    "CISPO": cispo_loss,
    "CISPO, bounded": partial(cispo_loss, max_ratio=1.1),
}
every_surrogate = pytest.mark.parametrize("surrogate", SURROGATES.values(), ids=SURROGATES.keys())
AVERAGES = {"token": per_token, "sequence": per_sequence, "fixed length": per_fixed_length(8)}
every_average = pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES.keys())


def with_kl(surrogate):
    """A surrogate plus a KL term; `ref` stands in for a fifth input."""
    return lambda logprobs, old, advantages, mask, ref: (
        surrogate(logprobs, old, advantages, mask) + 0.1 * ratio_weighted_k3(logprobs, old, ref, mask)
    )


# Other people's numbers


@pytest.mark.parametrize("name", alignment_cases()["grpo"])
def test_losses_and_gradient_norms_agree_with_the_published_implementation(name):
    aggregation, _, beta, weighted = name.split("/")
    kl_coef = float(beta.removeprefix("beta"))
    logprobs = LOGPROBS.clone().requires_grad_()
    if aggregation == "cispo":
        loss = cispo_loss(logprobs, OLD, ADVANTAGES, ACTIONS, max_ratio=5.0)
        if weighted == "ub1":
            loss = loss + kl_coef * ratio_weighted_k3(logprobs, OLD, REF, ACTIONS)
    else:
        loss = grpo_loss(
            logprobs, OLD, ADVANTAGES, ACTIONS,
            ref_logprobs=REF, clip_low=0.2, clip_high=0.28, kl_coef=kl_coef if weighted == "ub1" else 0.0,
        )  # fmt: skip
    if weighted == "ub0":
        loss = loss + kl_coef * kl_k3(logprobs, REF)
    average = {
        "grpo": partial(sequence_mean, denominator=4),
        "dapo": partial(token_mean, denominator=ACTIONS.sum()),
        "dr_grpo": partial(fixed_length_mean, length=8, denominator=4),
        "cispo": partial(token_mean, denominator=ACTIONS.sum()),
    }[aggregation]
    value = average(loss, ACTIONS)
    value.backward()
    assert logprobs.grad is not None
    assert_close(torch.stack([value.detach(), logprobs.grad.norm()]), float64(alignment_cases()["grpo"][name]))


# The equations


def test_the_token_level_loss_follows_its_formula():
    actual = grpo_loss(LOGPROBS, OLD, ADVANTAGES, ACTIONS, ref_logprobs=REF, clip_low=0.1, clip_high=0.3, kl_coef=0.5)
    for i, t in ACTIONS.nonzero().tolist():
        ratio, advantage = (LOGPROBS[i, t] - OLD[i, t]).exp(), ADVANTAGES[i]
        surrogate = min(ratio * advantage, ratio.clip(0.9, 1.3) * advantage)
        ref_ratio = (REF[i, t] - LOGPROBS[i, t]).exp()
        assert_close(actual[i, t], -surrogate + 0.5 * ratio * (ref_ratio - ref_ratio.log() - 1))


def test_the_sequence_level_objective_is_the_papers():
    logprobs = LOGPROBS.clone().requires_grad_()
    terms = []
    for i, length in enumerate(INPUTS["lens"]):
        ratio = (logprobs[i, :length].sum() - OLD[i, :length].sum()).exp() ** (1 / length)
        terms.append(torch.minimum(ratio * ADVANTAGES[i], ratio.clip(0.95, 1.1) * ADVANTAGES[i]))
    objective = torch.stack(terms).mean()
    loss = sequence_ratio_loss(logprobs, OLD, ADVANTAGES, ACTIONS, clip_low=0.05, clip_high=0.1)
    value = sequence_mean(loss, ACTIONS, denominator=4)
    assert_close(value, -objective)
    assert_close(torch.autograd.grad(value, logprobs), torch.autograd.grad(-objective, logprobs))


def test_cispo_weighs_each_log_probability_by_a_bounded_constant():
    logprobs = LOGPROBS.clone().requires_grad_()
    weights = (LOGPROBS - OLD).exp().clip(max=1.1) * ADVANTAGES[:, None]
    loss = cispo_loss(logprobs, OLD, ADVANTAGES, ACTIONS, max_ratio=1.1)
    assert_close(loss, torch.where(ACTIONS, -weights * LOGPROBS, 0.0))
    loss.sum().backward()
    assert_close(logprobs.grad, torch.where(ACTIONS, -weights, 0.0))


def test_a_kl_coef_without_a_reference_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="pass ref_logprobs, or kl_coef=0"):
        grpo_loss(LOGPROBS, OLD, ADVANTAGES, ACTIONS, kl_coef=0.1)


# Expectations on a policy whose completions are all known


@pytest.mark.parametrize("group_size", [2, 3])
@every_surrogate
def test_over_every_group_that_can_be_drawn_centred_rewards_give_g_minus_one_gth_of_the_gradient(surrogate, group_size):
    logits = random_logits(1)
    groups = torch.tensor(list(product(range(len(COMPLETIONS)), repeat=group_size)))
    weights = probabilities(logits).detach()[groups].prod(dim=1)
    rows = groups.flatten()
    advantages = centre_by_group(rewards()[rows], group_size)
    logprobs = token_logprobs(logits)[rows]
    loss = surrogate(logprobs, logprobs.detach(), advantages, MASK[rows]).sum(dim=1)
    estimate = (weights * loss.view(-1, group_size).mean(dim=1)).sum()
    objective = (probabilities(logits) * rewards()).sum()
    assert_close(gradient(estimate, logits), -(group_size - 1) / group_size * gradient(objective, logits))


def test_leave_one_out_baselines_are_centred_rewards_times_g_over_g_minus_one():
    drawn = rewards()[:12].view(-1, 4)
    others = (drawn.sum(dim=1, keepdim=True) - drawn) / 3
    assert_close(4 / 3 * centre_by_group(drawn.flatten(), 4), (drawn - others).flatten())


@every_surrogate
def test_at_ratio_one_every_surrogate_has_the_policy_gradient(surrogate):
    logits = random_logits(1)
    logprobs = token_logprobs(logits)
    advantages = rewards()
    loss = surrogate(logprobs, logprobs.detach(), advantages, MASK)
    expected = gradient((-logprobs.sum(dim=1) * advantages).sum(), logits)
    assert_close(gradient(loss.sum(), logits), expected)


def test_off_policy_the_weighted_k3_has_the_value_and_the_gradient_of_the_reverse_kl():
    logits, old_logits, ref_logits = random_logits(1), random_logits(3).detach(), random_logits(2).detach()
    old_weights = probabilities(old_logits)
    logprobs, old, ref = (token_logprobs(x) for x in (logits, old_logits, ref_logits))

    # Token by token: the KL between next-token distributions at the states that the old policy visits.
    visits = torch.zeros(len(PREFIXES), dtype=torch.float64)
    visits.index_add_(0, STATES[MASK], old_weights[:, None].expand_as(MASK)[MASK])
    log_p, log_q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    expected = (visits * (log_p.exp() * (log_p - log_q)).sum(-1)).sum()
    actual = (old_weights * ratio_weighted_k3(logprobs, old, ref, MASK).sum(-1)).sum()
    assert_close(actual, expected)
    assert_close(gradient(actual, logits), gradient(expected, logits))

    # With a whole completion as one action: all of the KL.
    logprobs, old, ref = (x.sum(-1, keepdim=True) for x in (logprobs, old, ref))
    actual = (old_weights * ratio_weighted_k3(logprobs, old, ref, torch.ones_like(old).bool()).sum(-1)).sum()
    assert_close(actual, kl(logits, ref_logits))
    assert_close(gradient(actual, logits), gradient(kl(logits, ref_logits), logits))


# Invariances


def value_and_gradient(surrogate, average, pieces, logprobs=LOGPROBS, old=OLD, ref=REF, adv=ADVANTAGES, mask=ACTIONS):
    logprobs = logprobs.clone().requires_grad_()
    denominator = average.count(mask)
    parts = [
        average.mean(
            with_kl(surrogate)(logprobs[rows], old[rows], adv[rows], mask[rows], ref[rows]), mask[rows],
            denominator=denominator,
        )
        for rows in pieces
    ]  # fmt: skip
    total = torch.stack(parts).sum()
    return total.detach(), torch.autograd.grad(total, logprobs)[0]


WHOLE = [[0, 1, 2, 3]]


@every_surrogate
@every_average
@pytest.mark.parametrize("pieces", [[[0], [1], [2], [3]], [[3, 1], [0, 2]]])
def test_how_a_batch_is_cut_into_micro_batches_never_changes_its_gradient(surrogate, average, pieces):
    assert_close(value_and_gradient(surrogate, average, pieces), value_and_gradient(surrogate, average, WHOLE))


@every_surrogate
@every_average
@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -torch.inf, 1e6])
def test_neither_padding_nor_what_stands_in_it_changes_value_or_gradient(surrogate, average, garbage):
    value, grad = value_and_gradient(surrogate, average, WHOLE)
    spoilt = [
        torch.cat([torch.where(ACTIONS, x, garbage), torch.full((4, 2), garbage, dtype=x.dtype)], dim=1)
        for x in (LOGPROBS, OLD, REF)
    ]
    mask = torch.cat([ACTIONS, torch.zeros(4, 2, dtype=torch.bool)], dim=1)
    spoilt_value, spoilt_grad = value_and_gradient(surrogate, average, WHOLE, *spoilt, mask=mask)
    assert_close(spoilt_value, value)
    assert_close(spoilt_grad[:, :6], torch.where(ACTIONS, grad, 0.0))
    assert (spoilt_grad[~mask] == 0).all()


@every_surrogate
def test_one_spoilt_input_alone_reaches_nothing(surrogate):
    expected = surrogate(LOGPROBS, OLD, ADVANTAGES, ACTIONS)
    for spoilt in range(2):
        inputs = [LOGPROBS.clone(), OLD.clone()]
        inputs[spoilt][~ACTIONS] = torch.nan
        logprobs = inputs[0].requires_grad_()
        loss = surrogate(logprobs, inputs[1], ADVANTAGES, ACTIONS)
        loss.sum().backward()
        assert_close(loss, expected)
        assert logprobs.grad is not None and logprobs.grad.isfinite().all()


@every_surrogate
def test_a_row_without_actions_is_zero_even_if_its_advantage_is_nan(surrogate):
    mask, advantages = ACTIONS.clone(), ADVANTAGES.clone()
    mask[2], advantages[2] = False, torch.nan
    logprobs = LOGPROBS.clone().requires_grad_()
    loss = surrogate(logprobs, OLD, advantages, mask)
    loss.sum().backward()
    assert (loss[2] == 0).all() and logprobs.grad is not None and (logprobs.grad[2] == 0).all()
    assert logprobs.grad.isfinite().all()


@every_surrogate
@every_average
def test_the_order_of_rows_changes_nothing_but_the_order_of_gradients(surrogate, average):
    value, grad = value_and_gradient(surrogate, average, WHOLE)
    order = torch.tensor([2, 0, 3, 1])
    rows = [x[order] for x in (LOGPROBS, OLD, REF, ADVANTAGES, ACTIONS)]
    assert_close(value_and_gradient(surrogate, average, WHOLE, *rows), (value, grad[order]))


@every_surrogate
def test_results_are_zero_where_the_mask_is_false(surrogate):
    assert (with_kl(surrogate)(LOGPROBS, OLD, ADVANTAGES, ACTIONS, REF)[~ACTIONS] == 0).all()


@every_surrogate
@pytest.mark.parametrize(
    "inputs",
    [
        (LOGPROBS[:, :1], OLD, ADVANTAGES, ACTIONS),
        (LOGPROBS, OLD[:1], ADVANTAGES, ACTIONS),
        (LOGPROBS, OLD, ADVANTAGES[:1], ACTIONS),
        (LOGPROBS, OLD, ADVANTAGES[:, None], ACTIONS),
        (LOGPROBS, OLD, ADVANTAGES, ACTIONS[:, :1]),
    ],
)
def test_shapes_that_would_broadcast_are_refused(surrogate, inputs):
    with pytest.raises(ValueError, match="Squeeze or expand"):
        surrogate(*inputs)


def test_a_reference_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"ref_logprobs \[4, 1\].*Squeeze or expand"):
        ratio_weighted_k3(LOGPROBS, OLD, REF[:, :1], ACTIONS)


# Groups

by_group = pytest.mark.parametrize("rule", [centre_by_group, standardize_by_group])


def test_centred_rewards_are_rewards_minus_the_mean_of_their_group():
    actual = centre_by_group(float64([1, 2, 6, 0, 0, 3]), 3)
    assert_close(actual, float64([-2, -1, 3, -1, -1, 2]))


def test_standardised_rewards_divide_by_the_unbiased_std_and_eps_is_added_to_it():
    groups = rewards()[:12].view(3, 4)
    expected = (groups - groups.mean(dim=1, keepdim=True)) / (groups.std(dim=1, keepdim=True) + 0.1)
    assert_close(standardize_by_group(groups.flatten(), 4, eps=0.1), expected.flatten())
    default = (groups - groups.mean(dim=1, keepdim=True)) / (groups.std(dim=1, keepdim=True) + 1e-4)
    assert_close(standardize_by_group(groups.flatten(), 4), default.flatten())


@by_group
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e8 + 0.3, -7.7])
@pytest.mark.parametrize("group_size", [3, 7])
def test_equal_rewards_give_exactly_zero_though_their_float_mean_may_differ(rule, value, group_size):
    assert (rule(torch.full((2 * group_size,), value), group_size) == 0).all()


@by_group
def test_equal_rewards_give_zero_without_eps_too(rule):
    rule = partial(rule, eps=0.0) if rule is standardize_by_group else rule
    assert (rule(torch.full((4,), 0.1), 4) == 0).all()


@by_group
def test_a_missing_reward_is_left_out_of_the_group_and_gets_zero(rule):
    actual = rule(float64([1.0, torch.nan, 3.0, 8.0, 5.0, 5.0, 1.0, 3.0]), 4)
    kept = rule(float64([1.0, 3.0, 8.0]), 3)
    assert_close(actual[:4], torch.stack([kept[0], float64(0.0), kept[1], kept[2]]))
    assert_close(actual[4:], rule(float64([5.0, 5.0, 1.0, 3.0]), 4))


@by_group
def test_fewer_than_two_valid_rewards_or_equal_ones_beside_missing_ones_give_zero(rule):
    nan = torch.nan
    assert (rule(float64([nan, nan, nan, nan, 7.0, nan, 0.1, nan, 0.1]), 3) == 0).all()


@by_group
def test_an_infinite_reward_does_not_pass_for_an_advantage(rule):
    assert rule(float64([1.0, torch.inf]), 2).isnan().any()


@by_group
def test_a_group_of_one_is_refused_with_the_way_out(rule):
    with pytest.raises(ValueError, match=r"at least 2, got 1: one completion is its own mean.*Raise group_size"):
        rule(torch.zeros(4), 1)


@by_group
@pytest.mark.parametrize("shape", [(7,), (2, 4)])
def test_rewards_that_are_not_whole_groups_are_refused_with_what_to_do(rule, shape):
    with pytest.raises(ValueError, match=r"expected rewards \[N \* 4\].*pass complete groups"):
        rule(torch.zeros(shape), 4)

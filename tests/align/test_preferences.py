import inspect
from functools import partial
from math import exp, log

import pytest
import torch
from torch.testing import assert_close

from align import preferences
from align.aggregate import token_mean
from align.preferences import (
    apo_down_loss,
    apo_zero_loss,
    bradley_terry_loss,
    dpo_loss,
    dpo_margins,
    hinge_loss,
    ipo_loss,
    kto_loss,
    logistic_loss,
    orpo_loss,
    robust_loss,
    simpo_loss,
)
from tests.reference import alignment_cases
from tests.toy_policy import COMPLETIONS, PREFIXES, VOCABULARY, gradient, probabilities, random_logits, rewards
from tests.toy_policy import token_logprobs as toy_token_logprobs


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def drawn(seed, rows=5):
    generator = torch.Generator().manual_seed(seed)
    return -8 * torch.rand(rows, dtype=torch.float64, generator=generator) - 0.1


CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED = FOUR = [drawn(seed) for seed in range(4)]
MARGINS = dpo_margins(*FOUR)
LABELS = torch.tensor([True, False, False, True, True])

OF_MARGINS = {
    "logistic": logistic_loss,
    "smoothed": partial(logistic_loss, label_smoothing=0.2),
    "robust": partial(robust_loss, label_smoothing=0.2),
    "hinge": hinge_loss,
    "IPO": ipo_loss,
}
OF_PAIRS = {
    "APO-zero": apo_zero_loss,
    "APO-down": apo_down_loss,
    "SimPO": simpo_loss,
    "ORPO": orpo_loss,
    "Bradley-Terry": bradley_terry_loss,
}
# Every loss with the inputs it takes, one entry a row.
CASES = {
    **{name: (loss, [MARGINS]) for name, loss in OF_MARGINS.items()},
    **{name: (loss, [CHOSEN, REJECTED]) for name, loss in OF_PAIRS.items()},
    "DPO": (dpo_loss, FOUR),
    "margins": (dpo_margins, FOUR),
    "Bradley-Terry with margins": (lambda c, r, m: bradley_terry_loss(c, r, margin=m), [CHOSEN, REJECTED, MARGINS]),
    "KTO": (lambda log_ratios, labels: kto_loss(log_ratios, labels, 0.5), [MARGINS, LABELS]),
}
every_loss = pytest.mark.parametrize(("loss", "inputs"), CASES.values(), ids=CASES.keys())


def sigmoid(x):
    return 1 / (1 + exp(-x))


# Other people's numbers

LOGPROBS, REF_C, REF_R = (float64(alignment_cases()["inputs"][name]) for name in ("dpo_logps", "ref_c", "ref_r"))
TOKENS = torch.tensor(alignment_cases()["inputs"]["dpo_mask"]).bool()[:, 1:]
PUBLISHED = {
    "sigmoid": lambda c, r: dpo_loss(c, r, REF_C, REF_R, beta=0.1).mean(),
    "hinge": lambda c, r: hinge_loss(dpo_margins(c, r, REF_C, REF_R), beta=0.1).mean(),
    "robust": lambda c, r: robust_loss(dpo_margins(c, r, REF_C, REF_R), beta=0.1, label_smoothing=0.1).mean(),
    "apo_zero": lambda c, r: apo_zero_loss(c - REF_C, r - REF_R, beta=0.1).mean(),
}


@pytest.mark.parametrize("name", alignment_cases()["dpo"])
def test_losses_and_gradient_norms_agree_with_the_published_implementation(name):
    logprobs = LOGPROBS.clone().requires_grad_()
    if name == "sft":  # the term that a mixture adds, per token
        value = token_mean(-logprobs[:3], TOKENS[:3], denominator=TOKENS[:3].sum())
    else:
        value = PUBLISHED[name](*torch.where(TOKENS, logprobs, 0.0).sum(dim=1).chunk(2))
    value.backward()
    assert logprobs.grad is not None
    actual = torch.stack([value.detach(), logprobs.grad.norm()])
    # The published numbers are rounded to ten digits.
    assert_close(actual, float64(alignment_cases()["dpo"][name]), atol=1e-10, rtol=0)


# The equations


def test_the_margin_is_the_difference_of_log_ratios():
    expected = [
        log(exp(c) / exp(ref_c)) - log(exp(r) / exp(ref_r))
        for c, r, ref_c, ref_r in zip(*(x.tolist() for x in FOUR), strict=True)
    ]
    assert_close(dpo_margins(*FOUR), float64(expected))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_and_its_function_of_the_margin_follow_the_papers(smoothing):
    expected = [
        -(1 - smoothing) * log(sigmoid(0.3 * m)) - smoothing * log(sigmoid(-0.3 * m))
        for m in MARGINS.tolist()
    ]  # fmt: skip
    assert_close(dpo_loss(*FOUR, beta=0.3, label_smoothing=smoothing), float64(expected))
    assert_close(logistic_loss(MARGINS, beta=0.3, label_smoothing=smoothing), float64(expected))


def test_dpo_is_bradley_terry_on_the_implicit_rewards():
    implicit = [0.3 * (CHOSEN - REF_CHOSEN), 0.3 * (REJECTED - REF_REJECTED)]
    assert_close(dpo_loss(*FOUR, beta=0.3), bradley_terry_loss(*implicit))


def test_the_robust_loss_follows_its_paper():
    expected = [(-0.7 * log(sigmoid(0.4 * m)) + 0.3 * log(sigmoid(-0.4 * m))) / (1 - 2 * 0.3) for m in MARGINS.tolist()]
    assert_close(robust_loss(MARGINS, beta=0.4, label_smoothing=0.3), float64(expected))


def test_the_hinge_loss_follows_its_papers():
    actual = hinge_loss(MARGINS, beta=3.0)
    assert_close(actual, float64([max(0.0, 1 - 3 * m) for m in MARGINS.tolist()]))
    assert (actual == 0).any() and (actual > 1).any()
    # SLiC: max(0, delta - log p(chosen) + log p(rejected))
    delta, none = 3.0, torch.zeros_like(CHOSEN)
    expected = [max(0.0, delta - c + r) for c, r in zip(CHOSEN.tolist(), REJECTED.tolist(), strict=True)]
    assert_close(delta * hinge_loss(dpo_margins(CHOSEN, REJECTED, none, none), beta=1 / delta), float64(expected))


def test_ipo_follows_its_paper():
    assert_close(ipo_loss(MARGINS, beta=0.2), float64([(m - 1 / (2 * 0.2)) ** 2 for m in MARGINS.tolist()]))


def test_both_anchored_losses_follow_their_paper_up_to_a_constant():
    chosen, rejected = CHOSEN - REF_CHOSEN, REJECTED - REF_REJECTED
    pairs = list(zip((0.3 * chosen).tolist(), (0.3 * rejected).tolist(), strict=True))
    zero, down = apo_zero_loss(chosen, rejected, beta=0.3), apo_down_loss(chosen, rejected, beta=0.3)
    assert_close(zero - 1, float64([-sigmoid(c) + sigmoid(r) for c, r in pairs]))
    assert_close(down - 1, float64([sigmoid(c) - sigmoid(c - r) for c, r in pairs]))


def test_anchored_losses_move_each_completion_the_way_they_say():
    for loss, chosen_goes_up in ((apo_zero_loss, True), (apo_down_loss, False)):
        chosen, rejected = (torch.zeros(1, requires_grad=True) for _ in range(2))
        loss(chosen, rejected).sum().backward()
        assert chosen.grad is not None and rejected.grad is not None
        assert rejected.grad > 0
        if chosen_goes_up:
            assert chosen.grad < 0
        else:  # its two terms cancel at the start; beyond it the chosen one is held down
            assert chosen.grad == 0
    chosen = torch.tensor([5.0], requires_grad=True)
    apo_down_loss(chosen, torch.tensor([-5.0]), beta=1.0).sum().backward()
    assert chosen.grad is not None and chosen.grad > 0


def test_simpo_on_two_pairs_by_hand():
    # Four tokens that sum to -2 and five that sum to -5, then two of -6 and one of -1.
    chosen, rejected = float64([-2 / 4, -6 / 2]), float64([-5 / 5, -1 / 1])
    # 2 * 0.5 - 0.6 = 0.4 and 2 * (-2) - 0.6 = -4.6
    expected = float64([log(1 + exp(-0.4)), log(1 + exp(4.6))])
    assert_close(simpo_loss(chosen, rejected, beta=2.0, margin=0.6), expected)


def test_orpo_on_two_pairs_by_hand():
    # Per-token probabilities 3/4 and 1/2 have odds 3 and 1; 1/5 and 2/3 have 1/4 and 2. sigmoid(log(x)) = x / (1 + x).
    chosen, rejected = float64([3 / 4, 1 / 5]).log(), float64([1 / 2, 2 / 3]).log()
    assert_close(orpo_loss(chosen, rejected), -float64([3 / 4, (1 / 8) / (9 / 8)]).log())


def test_kto_by_hand_for_both_labels():
    log_ratios = float64([3.0, 3.0, -1.0, -1.0])
    desirable = torch.tensor([True, False, True, False])
    actual = kto_loss(log_ratios, desirable, 1.0, beta=0.5, desirable_weight=1.1, undesirable_weight=1.3)
    # beta * (log_ratio - z) is 1 and -1; the value of the paper is weight * sigmoid(+-that), the loss weight - value.
    expected = [1.1 * (1 - sigmoid(1)), 1.3 * (1 - sigmoid(-1)), 1.1 * (1 - sigmoid(-1)), 1.3 * (1 - sigmoid(1))]
    assert_close(actual, float64(expected))


def test_the_reference_point_of_kto_is_at_least_zero_and_passes_no_gradient():
    log_ratios = MARGINS.clone().requires_grad_()
    for point in (-2.0, float64(-2.0)):
        assert_close(kto_loss(log_ratios, LABELS, point), kto_loss(log_ratios, LABELS, 0.0))
    point = log_ratios.mean() ** 2 + 0.1
    losses = kto_loss(log_ratios, LABELS, point)
    assert_close(losses, kto_loss(log_ratios, LABELS, point.item()))
    given = kto_loss(log_ratios, LABELS, point.item())
    assert_close(torch.autograd.grad(losses.sum(), log_ratios), torch.autograd.grad(given.sum(), log_ratios))


def test_a_margin_of_bradley_terry_is_subtracted_from_the_difference():
    chosen, rejected, margins = float64([2.0, 0.5]), float64([1.0, 1.0]), float64([0.0, 3.0])
    expected = float64([log(1 + exp(-1.0)), log(1 + exp(3.5))])
    assert_close(bradley_terry_loss(chosen, rejected, margin=margins), expected)
    assert_close(bradley_terry_loss(chosen, rejected, margin=3.0)[1], expected[1])
    assert_close(bradley_terry_loss(chosen, rejected), bradley_terry_loss(chosen, rejected, margin=0 * margins))


# Closed forms


def test_the_gradient_of_dpo_is_the_margins_weighted_by_how_wrong_the_implicit_reward_is():
    logits, reference = random_logits(1), token_sums(random_logits(2)).detach()
    logprobs = token_sums(logits)
    first, second = torch.tensor([0, 5, 9]), torch.tensor([3, 2, 14])
    loss = dpo_loss(logprobs[first], logprobs[second], reference[first], reference[second], beta=0.4)
    expected = torch.zeros_like(logits)
    for i, j in zip(first, second, strict=True):
        margin = (logprobs[i] - reference[i] - logprobs[j] + reference[j]).detach()
        difference = gradient(logprobs[i], logits) - gradient(logprobs[j], logits)
        expected -= 0.4 * torch.sigmoid(-0.4 * margin) * difference
    assert_close(gradient(loss.sum(), logits), expected)


def slope(loss, margin):
    margins = float64([margin]).requires_grad_()
    return torch.autograd.grad(loss(margins).sum(), margins)[0].item()


def test_a_label_smoothing_of_a_half_has_no_gradient_at_margin_zero():
    assert slope(partial(logistic_loss, label_smoothing=0.5), 0.0) == 0
    assert slope(logistic_loss, 0.0) == pytest.approx(-0.05)


def test_smoothing_is_least_where_the_sigmoid_is_one_minus_it_and_ipo_at_half_of_one_over_beta():
    assert slope(partial(logistic_loss, beta=0.3, label_smoothing=0.2), log(4) / 0.3) == pytest.approx(0, abs=1e-12)
    assert slope(partial(ipo_loss, beta=0.3), 1 / 0.6) == 0
    assert slope(partial(ipo_loss, beta=0.3), 1.6) < 0 < slope(partial(ipo_loss, beta=0.3), 1.7)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.45])
def test_over_label_flips_the_robust_loss_is_the_loss_of_the_true_labels(share):
    margins = MARGINS.clone().requires_grad_()
    loss = partial(robust_loss, beta=0.3, label_smoothing=share)
    flipped = dpo_margins(REJECTED, CHOSEN, REF_REJECTED, REF_CHOSEN)
    assert_close(flipped, -MARGINS)
    expected = (1 - share) * loss(margins) + share * loss(-margins)
    true = logistic_loss(margins, beta=0.3)
    assert_close(expected, true)
    assert_close(torch.autograd.grad(expected.sum(), margins), torch.autograd.grad(true.sum(), margins))


# On a policy whose completions are all known

BETA = 0.5
FIRST, SECOND = torch.cartesian_prod(*[torch.arange(len(COMPLETIONS))] * 2).T  # every pair of completions


def token_sums(logits):
    return toy_token_logprobs(logits).sum(dim=-1)


def optimum_of_kl_regularised_reward(ref_logits):
    """Logits whose completions have probability ref * exp(r / beta) / Z."""
    weights = (token_sums(ref_logits) + rewards() / BETA).softmax(dim=0).detach()
    masses = torch.zeros(len(PREFIXES), VOCABULARY, dtype=torch.float64)
    for completion, weight in zip(COMPLETIONS, weights, strict=True):
        for t, token in enumerate(completion):
            masses[PREFIXES.index(completion[:t]), token] += weight
    logits = masses.log().requires_grad_()
    assert_close(probabilities(logits), weights)
    return logits


def expected_dpo_loss(logits, ref_logits):
    """The mean over pairs drawn from the reference, the first of which is preferred with sigmoid(r_1 - r_2)."""
    logprobs, reference = token_sums(logits), token_sums(ref_logits).detach()
    weights = reference.exp()[FIRST] * reference.exp()[SECOND]
    preferred = torch.sigmoid(rewards()[FIRST] - rewards()[SECOND])
    loss = dpo_loss(logprobs[FIRST], logprobs[SECOND], reference[FIRST], reference[SECOND], beta=BETA)
    return (2 * weights * preferred * loss).sum()  # twice: the pair the other way round is another entry


def test_where_the_policy_is_optimal_for_a_reward_its_implicit_rewards_differ_as_the_reward_does():
    ref_logits = random_logits(2)
    logprobs, reference = token_sums(optimum_of_kl_regularised_reward(ref_logits)), token_sums(ref_logits)
    margins = dpo_margins(logprobs[FIRST], logprobs[SECOND], reference[FIRST], reference[SECOND])
    assert_close(BETA * margins, rewards()[FIRST] - rewards()[SECOND])


def test_labels_drawn_from_a_reward_lead_dpo_to_the_optimum_of_the_kl_regularised_reward():
    ref_logits = random_logits(2)
    optimum = optimum_of_kl_regularised_reward(ref_logits)
    least = expected_dpo_loss(optimum, ref_logits)
    assert_close(gradient(least, optimum), torch.zeros_like(optimum))
    for seed in range(3, 8):
        elsewhere = random_logits(seed)
        assert expected_dpo_loss(elsewhere, ref_logits) > least
        assert gradient(expected_dpo_loss(elsewhere, ref_logits), elsewhere).norm() > 1e-3


@pytest.mark.parametrize("preferred", [0.5, 0.7, 1.0])
def test_ipo_settles_where_the_margin_is_the_difference_of_win_rates_over_beta(preferred):
    # Of two completions the first wins against a fair draw of the two with 1/4 + preferred / 2, the second likewise.
    difference = (1 / 4 + preferred / 2) - (1 / 4 + (1 - preferred) / 2)
    expected = partial(
        lambda margins, loss: preferred * loss(margins) + (1 - preferred) * loss(-margins),
        loss=partial(ipo_loss, beta=BETA),
    )
    assert slope(expected, difference / BETA) == pytest.approx(0, abs=1e-12)


# Invariances and extremes


@every_loss
def test_each_row_is_judged_alone_whatever_the_order(loss, inputs):
    order = torch.tensor([2, 0, 4, 3, 1])
    whole = loss(*inputs)
    assert whole.shape == (5,)
    assert_close(loss(*(x[order] for x in inputs)), whole[order])
    assert_close(torch.cat([loss(*(x[i : i + 1] for x in inputs)) for i in range(5)]), whole)


def test_zeros_in_place_of_a_reference_compare_the_policy_with_itself_alone():
    none = torch.zeros_like(CHOSEN)
    assert_close(dpo_loss(CHOSEN, REJECTED, none, none), logistic_loss(CHOSEN - REJECTED))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_loss
def test_extreme_inputs_give_finite_values_and_gradients(loss, inputs, dtype):
    high, low = (torch.tensor(x, dtype=dtype) for x in ([0.0, -1e4, 0.0, -1e4, -1e-7], [-1e4, 0.0, 0.0, -1e4, -1e4]))
    floats = [x for x in inputs if x.is_floating_point()]
    # One alone is a margin or a log-ratio: 1e4, -1e4 and 0.
    extremes = [high - low] if len(floats) == 1 else [high, low, low, high][: len(floats)]
    given = [x.clone().requires_grad_() for x in extremes]
    result = loss(*given, *inputs[len(given) :])
    assert result.dtype == dtype and result.isfinite().all()
    for grad in torch.autograd.grad(result.sum(), given):
        assert grad.isfinite().all()


@pytest.mark.parametrize("logprob", [-1e-7, -1e-3, -0.69, -30.0, -200.0])
def test_the_odds_keep_their_precision_near_certainty_and_near_impossibility(logprob):
    value = torch.tensor([logprob], requires_grad=True)  # float32
    orpo_loss(torch.tensor([-1.0]), value).sum().backward()
    assert value.grad is not None
    x = float64([logprob]).requires_grad_()
    log_odds = x - torch.log(-torch.expm1(x))
    torch.nn.functional.softplus(log_odds - (-1.0 - log(1 - exp(-1.0)))).sum().backward()
    assert x.grad is not None
    assert_close(value.grad, x.grad.float(), atol=0, rtol=1e-5)


@every_loss
def test_a_nan_never_passes_for_a_loss(loss, inputs):
    for i, x in enumerate(inputs):
        if x.is_floating_point():
            spoilt = [*inputs[:i], torch.where(torch.arange(5) == 1, torch.nan, x), *inputs[i + 1 :]]
            assert loss(*spoilt).isnan().tolist() == [False, True, False, False, False]


def test_a_probability_above_one_gives_nan_not_a_loss():
    assert orpo_loss(float64([0.1]), float64([-1.0])).isnan().all()


def test_the_numbers_given_to_kto_take_the_precision_of_the_log_ratios():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        loss = kto_loss(MARGINS.to(dtype), LABELS, 0.1, desirable_weight=1.3, undesirable_weight=0.7)
        assert loss.dtype == dtype
    expected = [
        1.3 * sigmoid(0.1 * (0.1 - m)) if label else 0.7 * sigmoid(0.1 * (m - 0.1))
        for m, label in zip(MARGINS.tolist(), LABELS.tolist(), strict=True)
    ]
    # Tighter than the default, which would let numbers rounded to float32 pass.
    assert_close(loss, float64(expected), atol=0, rtol=1e-12)


# Refusals


@every_loss
def test_shapes_that_would_broadcast_are_refused(loss, inputs):
    for i in range(len(inputs) if len(inputs) > 1 else 0):
        for odd in (inputs[i][:1], inputs[i][:, None], inputs[i][0]):
            with pytest.raises(ValueError, match="Squeeze or expand"):
                loss(*inputs[:i], odd, *inputs[i + 1 :])


@pytest.mark.parametrize("point", [torch.zeros(1), torch.zeros(5), torch.zeros(5, 1)])
def test_a_reference_point_for_each_row_is_refused_with_what_to_do(point):
    with pytest.raises(ValueError, match=r"scalar reference_point, got \[.*average it over the optimizer step"):
        kto_loss(MARGINS, LABELS, point)


@pytest.mark.parametrize("share", [-0.1, 0.5, 0.9])
def test_a_share_of_flips_that_cannot_be_undone_is_refused_with_what_to_do(share):
    with pytest.raises(ValueError, match=r"below 0\.5, got .*swap chosen and rejected"):
        robust_loss(MARGINS, label_smoothing=share)


def test_every_coefficient_is_keyword_only():
    for name, function in inspect.getmembers(preferences, inspect.isfunction):
        if name.endswith("_loss"):
            for parameter in inspect.signature(function).parameters.values():
                has_default = parameter.default is not parameter.empty
                assert not has_default or parameter.kind is parameter.KEYWORD_ONLY, (name, parameter)

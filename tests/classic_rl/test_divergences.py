import pytest
import torch
from torch.testing import assert_close

from classic_rl.divergences import kl_k1, kl_k2, kl_k3
from tests.toy_policy import MASK, PREFIXES, STATES, gradient, kl, probabilities, random_logits, token_logprobs

LOGITS, REF_LOGITS = random_logits(1), random_logits(2).detach()
LOGPROBS, REF_LOGPROBS = token_logprobs(LOGITS), token_logprobs(REF_LOGITS)
WEIGHTS = probabilities(LOGITS).detach()


def mean_over_completions(per_token):
    """The exact mean over the policy's own completions of the sum over their tokens; the draws are held fixed."""
    return (WEIGHTS * torch.where(MASK, per_token, 0.0).sum(dim=-1)).sum()


def kl_of_each_state(logits, ref_logits):
    """KL between next-token distributions, weighted by how often the policy of `WEIGHTS` comes by."""
    visits = torch.zeros(len(PREFIXES), dtype=torch.float64)
    visits.index_add_(0, STATES[MASK], WEIGHTS[:, None].expand_as(MASK)[MASK])
    log_p, log_q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return (visits * (log_p.exp() * (log_p - log_q)).sum(-1)).sum()


def test_each_estimate_follows_its_formula():
    p, q = LOGPROBS.exp(), REF_LOGPROBS.exp()
    assert_close(kl_k1(LOGPROBS, REF_LOGPROBS), torch.log(p / q))
    assert_close(kl_k2(LOGPROBS, REF_LOGPROBS), torch.log(p / q) ** 2 / 2)
    assert_close(kl_k3(LOGPROBS, REF_LOGPROBS), q / p - 1 - torch.log(q / p))


@pytest.mark.parametrize("estimate", [kl_k1, kl_k3])
def test_k1_and_k3_are_unbiased(estimate):
    assert_close(mean_over_completions(estimate(LOGPROBS, REF_LOGPROBS)), kl(LOGITS, REF_LOGITS))


def test_k2_is_biased():
    assert not torch.isclose(mean_over_completions(kl_k2(LOGPROBS, REF_LOGPROBS)), kl(LOGITS, REF_LOGITS), rtol=0.01)


def test_the_mean_gradient_of_k1_vanishes():
    assert_close(gradient(mean_over_completions(kl_k1(LOGPROBS, REF_LOGPROBS)), LOGITS), torch.zeros_like(LOGITS))


def test_the_mean_gradient_of_k2_is_that_of_kl_from_policy_to_reference():
    actual = gradient(mean_over_completions(kl_k2(LOGPROBS, REF_LOGPROBS)), LOGITS)
    assert_close(actual, gradient(kl_of_each_state(LOGITS, REF_LOGITS), LOGITS))


def test_the_mean_gradient_of_k3_is_that_of_kl_from_reference_to_policy():
    actual = gradient(mean_over_completions(kl_k3(LOGPROBS, REF_LOGPROBS)), LOGITS)
    assert_close(actual, gradient(kl_of_each_state(REF_LOGITS, LOGITS), LOGITS))


def test_of_whole_completions_the_gradients_are_those_of_the_whole_kl():
    """With a completion as one action no state is left out, so k2 and k3 see all of the two divergences."""
    whole, ref_whole = LOGPROBS.sum(-1), REF_LOGPROBS.sum(-1)
    k2 = gradient((WEIGHTS * kl_k2(whole, ref_whole)).sum(), LOGITS)
    k3 = gradient((WEIGHTS * kl_k3(whole, ref_whole)).sum(), LOGITS)
    assert_close(k2, gradient(kl(LOGITS, REF_LOGITS), LOGITS))
    assert_close(k3, gradient(kl(REF_LOGITS, LOGITS), LOGITS))


def test_k3_is_never_negative_even_where_the_policies_agree_to_the_last_digits():
    logprobs, noise = torch.rand(2, 1000, generator=torch.Generator().manual_seed(0)) - 0.5
    assert (kl_k3(logprobs, logprobs + 1e-4 * noise) >= 0).all()
    assert (kl_k3(logprobs, logprobs) == 0).all()


@pytest.mark.parametrize("estimate", [kl_k1, kl_k2, kl_k3])
def test_shapes_that_would_broadcast_are_refused(estimate):
    with pytest.raises(ValueError, match="Squeeze or expand"):
        estimate(torch.zeros(4), torch.zeros(4, 1))

"""Importance weights: what one distribution drew, weighed for the policy that learns from it.

    drawn by                               log-probabilities recorded       learned without weights
    the policy itself                      the policy's own                 on-policy: nothing to weigh
    the policy, cut by top_p or top_k      the truncated, renormalised      what is kept counts 1 / p(kept) times
    another precision, kernel or program   that one's                       off-policy, by as much as the two disagree

The policy's log-probabilities are of its full distribution at the temperature, whatever drew the tokens. Where that
was another distribution, two ratios are kept apart: policy / policy when drawn, which the surrogate clips, and policy
when drawn / sampler, which is a constant weight: in GRPO of the token's loss, its KL included, in PPO of its advantage,
not of what the critic learns. A token of weight 0 has no gradient, but counts in the denominator.

Words that were left out are never seen, so what they would have earned is not learned. The other way, to train the
truncated distribution itself on the words that were kept (DeepSeek-AI 2025, arXiv:2512.02556), needs those words
stored for every token, and is not taken here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from align.config import ImportanceMode, check_choice
from classic_rl.masked import check_same_shape

if TYPE_CHECKING:
    from align.config import ImportanceConfig, SamplingConfig


class Weights(NamedTuple):
    """A weight for the loss of each token, and where the ratio lay outside the bounds; 0 and False elsewhere. [B, T]"""

    weights: Tensor
    outside: Tensor

    def sums(self, action_mask: Tensor) -> dict[str, Tensor]:
        """Return what `importance_metrics` needs, to be added up over micro-batches and processes."""
        return {"weights": self.weights[action_mask].sum(), "outside": self.outside[action_mask].sum()}


def importance_weights(
    logprobs: Tensor,
    sampler_logprobs: Tensor,
    action_mask: Tensor,
    *,
    mode: ImportanceMode = "token-truncate",
    low: float = 0.0,
    high: float = 2.0,
) -> Weights:
    """Weigh each token by policy / sampler, within bounds; a constant, without gradient.

        r_t = pi(token_t) / mu(token_t) for token-..., and its product over the completion for sequence-...
        w_t = clip(r_t, low, high)                              for ...-truncate
        w_t = r_t if low <= r_t <= high, otherwise 0            for ...-mask

    With low 0 and high without end, the mean of w under the sampler is 1 if it may draw all that the policy may; a
    truncated sampler's mean is the probability that it keeps. Ratios of a sequence are exact where those of tokens
    leave out how the sampler came to the state, but a product over many tokens is near 0 or beyond `high`, above all
    under top_p or top_k, where every factor is below 1: token-... is for those.

    Source: truncated, Ionides 2008, "Truncated importance sampling"; against a sampler's arithmetic, Yao et al. 2025,
    "Your efficient RL framework secretly brings you off-policy RL training"; masked, Ling Team 2025
    (arXiv:2510.18855), IcePop.

    Args:
        logprobs: of the policy when the tokens were drawn. [B, T]
        sampler_logprobs: of the distribution that drew them. [B, T]
        action_mask: bool, the tokens that were drawn; what stands elsewhere, even NaN, reaches nothing. [B, T]
        mode: over what the ratio is taken, and what becomes of one outside the bounds.
        low, high: the bounds.

    Returns:
        Weights, whose `outside` is True at tokens whose ratio, or whose sequence's, lay outside the bounds. [B, T]

    Raises:
        ValueError: if the shapes differ, or there is no such mode.

    >>> mask = torch.tensor([[True, True, False]])
    >>> policy, sampler = torch.tensor([[0.2, 0.9, 0.5]]).log(), torch.tensor([[0.4, 0.1, torch.nan]]).log()
    >>> importance_weights(policy, sampler, mask).weights
    tensor([[0.5000, 2.0000, 0.0000]])
    """
    check_same_shape(logprobs=logprobs, sampler_logprobs=sampler_logprobs, action_mask=action_mask)
    check_choice("mode", mode, ImportanceMode)
    over, outside_is = mode.split("-")
    log_ratios = torch.where(action_mask, logprobs - sampler_logprobs, 0.0).detach()
    if over == "sequence":
        log_ratios = log_ratios.sum(dim=1, keepdim=True).expand_as(log_ratios)
    ratios = log_ratios.exp()
    outside = action_mask & ((ratios < low) | (ratios > high))
    bounded = ratios.clamp(low, high) if outside_is == "truncate" else torch.where(outside, 0.0, ratios)
    return Weights(torch.where(action_mask, bounded, 0.0), outside)


def importance_of(
    config: ImportanceConfig, sampling: SamplingConfig
) -> Callable[[Tensor, Tensor, Tensor], Weights] | None:
    """Return `importance_weights` as the settings have it; None where what samples is what learns.

    Args:
        config: names a mode, or none.
        sampling: of the sampler; with top_p or top_k it draws from another distribution than the policy's, and where
            no mode is named "token-truncate" is taken.
    """
    truncates = sampling.top_p < 1 or sampling.top_k > 0
    mode = config.importance or ("token-truncate" if truncates else None)
    if mode is None:
        return None
    return partial(importance_weights, mode=mode, low=config.importance_low, high=config.importance_high)


def importance_metrics(sums: dict[str, float], tokens: float) -> dict[str, float]:
    """Return the metrics of weights, from sums over all processes and the tokens they are of; without any, none."""
    if tokens == 0:
        return {}
    return {"policy/importance_weight": sums["weights"] / tokens, "policy/importance_cut": sums["outside"] / tokens}

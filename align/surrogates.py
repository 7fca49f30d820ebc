"""The rest of GRPO's family: surrogates with the signature of `align.grpo.grpo_loss`, to be passed in its place.

DAPO is `grpo_loss` with a higher clip_high; Dr. GRPO is `grpo_loss` with `centre_by_group` and `per_fixed_length`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from align.grpo import counted
from classic_rl.losses import clipped_surrogate_loss, policy_gradient_loss


def sequence_ratio_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    action_mask: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Tensor:
    """Clip one ratio per sequence, the geometric mean of its tokens' (GSPO); each token carries its row's loss.

        s = exp(mean_t log(pi / pi_old)),   L_t = -min(s * A, clip(s, 1 - clip_low, 1 + clip_high) * A)

    Averaged `per_sequence` it is the paper's objective. Such a ratio stays near 1, hence the narrow bounds.

    Source: Zheng et al. 2025 (arXiv:2507.18071), the bounds from its experiments. Otherwise as `grpo_loss`.
    """
    logprobs, old_logprobs, advantages = counted(logprobs, old_logprobs, advantages, action_mask)
    log_ratios = logprobs - old_logprobs.detach()
    mean = log_ratios.sum(dim=1, keepdim=True) / action_mask.sum(dim=1, keepdim=True).clamp(min=1)
    return clipped_surrogate_loss(
        mean.expand_as(log_ratios), torch.zeros_like(log_ratios), advantages, clip_low=clip_low, clip_high=clip_high
    )


def cispo_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, action_mask: Tensor, *, max_ratio: float = 5.0
) -> Tensor:
    """Bound the weight of each token instead of silencing it (CISPO).

        L_t = -stop_gradient(min(ratio_t, max_ratio)) * A * log pi

    Source: MiniMax 2025 (arXiv:2506.13585), where max_ratio is 1 + epsilon_high. Otherwise as `grpo_loss`.
    """
    logprobs, old_logprobs, advantages = counted(logprobs, old_logprobs, advantages, action_mask)
    ratio = torch.exp(logprobs - old_logprobs).clamp(max=max_ratio)
    return policy_gradient_loss(logprobs, ratio * advantages)  # which detaches its weights

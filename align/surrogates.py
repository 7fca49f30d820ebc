"""The rest of GRPO's family: surrogates with the signature of `align.grpo.grpo_loss`, to be passed in its place.

DAPO is `grpo_loss` with a higher clip_high; Dr. GRPO is `grpo_loss` with `centre_by_group` and `per_fixed_length`.
RLOO, with one update a rollout, where the gradient of the surrogate is the policy gradient, is

    GRPO(..., advantages=leave_one_out, penalty=kl_penalty(reference, accelerator, kl_coef=0.05))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from align.batch import Rollouts
from align.grpo import centre_by_group, counted
from align.training import cut_by_tokens
from classic_rl.divergences import kl_k1
from classic_rl.losses import clipped_surrogate_loss, policy_gradient_loss

if TYPE_CHECKING:
    from accelerate import Accelerator

    from align.models import Reference


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


def leave_one_out(rewards: Tensor, group_size: int) -> Tensor:
    """Subtract from each reward the mean of the others of its group: A_i = r_i - mean(r_j, j != i).

    It is `centre_by_group` times n / (n - 1), n the rewards that are there, so that the expected gradient is the policy
    gradient itself.

    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. 2024
    (arXiv:2402.14740), RLOO. Otherwise as `centre_by_group`.

    >>> leave_one_out(torch.tensor([1.0, 0.0, 0.0, 3.0]), group_size=4)
    tensor([ 0.0000, -1.3333, -1.3333,  2.6667])
    """
    centred = centre_by_group(rewards, group_size).view(-1, group_size)
    counts = (~rewards.isnan()).view(-1, group_size).sum(dim=1, keepdim=True)
    return (centred * counts / (counts - 1).clamp(min=1)).flatten()


def kl_penalty(
    reference: Reference, accelerator: Accelerator, *, kl_coef: float, tokens_per_micro_batch: int = 16_384
) -> Callable[[Rollouts], Tensor]:
    """Return a penalty for `GRPO`: kl_coef * sum_t (log pi - log pi_ref)_t, k1 of the whole completion.

    Taken off the reward it has the KL's own policy gradient; the policy's log-probabilities are those sampled with.
    Under top_p or top_k those are the truncated distribution's, and so is the KL.
    What `reward/mean` then reports is the penalised reward; the parts stay as they are.

    Args:
        reference: as `align.models.reference_of` gives it.
        accelerator: that of the run, for its device and its arithmetic.
        kl_coef: score per nat.
        tokens_per_micro_batch: tokens of one forward pass, padding included.
    """

    def penalty(rollouts: Rollouts) -> Tensor:
        sums = torch.zeros_like(rollouts.rewards)
        for rows in cut_by_tokens(rollouts.sequences.lengths, tokens_per_micro_batch):
            batch = rollouts.sequences.select(rows).to(accelerator.device)
            with accelerator.autocast():
                ref_logprobs = reference(batch.input_ids, batch.action_mask).cpu()
            # both are 0 where nothing counts
            sums[rows] = kl_k1(rollouts.logprobs[rows, : ref_logprobs.shape[1]], ref_logprobs).sum(dim=1).to(sums.dtype)
        return kl_coef * sums

    return penalty

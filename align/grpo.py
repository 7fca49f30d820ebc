"""GRPO: completions of one prompt judge each other, so that no value model is needed.

A surrogate is a function (logprobs [B, T], old_logprobs [B, T], advantages [B], action_mask [B, T]) -> loss [B, T],
0 where the mask is False: what stands there, even NaN, reaches neither the loss nor its gradient. One is passed in, not
named, and averaging is another function (`align.aggregate`). k3 without the ratio: add `kl_coef * kl_k3(...)`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from classic_rl.divergences import kl_k3
from classic_rl.losses import clipped_surrogate_loss, policy_gradient_loss
from classic_rl.masked import check_same_shape


def centre_by_group(rewards: Tensor, group_size: int) -> Tensor:
    """Subtract from each reward the mean of its group: A_i = r_i - mean(r_1 ... r_G).

    Equal rewards, or fewer than two, carry no signal and give exactly 0. As the mean includes r_i itself, the expected
    gradient is (G - 1) / G of the policy gradient, and unbiased but for that factor.

    Source: Liu et al. 2025 (arXiv:2503.20783), Dr. GRPO.

    Args:
        rewards: one per completion, group after group; NaN is a missing one, left out of the mean. [B = N * G]
        group_size: G, at least 2.

    Returns:
        Advantages, 0 where the reward is missing. [B]

    Raises:
        ValueError: if rewards are not whole groups, or group_size is below 2.

    >>> centre_by_group(torch.tensor([1.0, 0.0, 0.1, 0.1]), group_size=2)
    tensor([ 0.5000, -0.5000,  0.0000,  0.0000])
    """
    return _centred(rewards, group_size)[0].flatten()


def standardize_by_group(rewards: Tensor, group_size: int, *, eps: float = 1e-4) -> Tensor:
    """Centre, and divide by the group's standard deviation: A_i = (r_i - mean) / (std + eps), std unbiased.

    Source: Shao et al. 2024 (arXiv:2402.03300); eps, not in the paper, bounds what nearly equal rewards give.
    Otherwise as `centre_by_group`.

    >>> standardize_by_group(torch.tensor([1.0, 2.0, 3.0, 0.1, 0.1, 0.1]), group_size=3, eps=0.0)
    tensor([-1.,  0.,  1.,  0.,  0.,  0.])
    """
    centred, counts = _centred(rewards, group_size)
    std = (centred.square().sum(dim=1, keepdim=True) / (counts - 1).clamp(min=1)).sqrt()
    return torch.where(centred == 0, 0.0, centred / (std + eps)).flatten()


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    action_mask: Tensor,
    *,
    ref_logprobs: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coef: float = 0.0,
) -> Tensor:
    """Clip the ratio of each token, ratio_t = pi / pi_old, and optionally hold the policy near a reference.

        L_t = -min(ratio_t * A, clip(ratio_t, 1 - clip_low, 1 + clip_high) * A) + kl_coef * ratio_t * k3_t

    The ratio before k3, which the paper has not, gives the KL's own gradient: see `ratio_weighted_k3`.

    Source: Shao et al. 2024 (arXiv:2402.03300); two bounds: Yu et al. 2025 (arXiv:2503.14476).

    Args:
        logprobs, old_logprobs: log-probabilities now, and of the policy that sampled. [B, T]
        advantages: of each completion. [B]
        action_mask: bool, the tokens that the policy chose. [B, T]
        ref_logprobs: of the reference, read if kl_coef is not 0. [B, T]
        clip_low, clip_high: how far below and above 1 the ratio still earns.
        kl_coef: weight of the KL to the reference.

    Returns:
        The loss of each token. [B, T]

    Raises:
        ValueError: if shapes do not fit, or kl_coef comes without ref_logprobs.

    >>> mask = torch.tensor([[True, True, False]])
    >>> grpo_loss(torch.tensor([[0.5, 2.0, torch.nan]]).log(), torch.zeros(1, 3), torch.tensor([-1.0]), mask)
    tensor([[0.8000, 2.0000, -0.0000]])
    """
    loss = clipped_surrogate_loss(
        *_counted(logprobs, old_logprobs, advantages, action_mask), clip_low=clip_low, clip_high=clip_high
    )
    if kl_coef == 0:
        return loss
    if ref_logprobs is None:
        raise ValueError(f"kl_coef is {kl_coef} but ref_logprobs is None: pass ref_logprobs, or kl_coef=0.")
    return loss + kl_coef * ratio_weighted_k3(logprobs, old_logprobs, ref_logprobs, action_mask)


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
    logprobs, old_logprobs, advantages = _counted(logprobs, old_logprobs, advantages, action_mask)
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
    logprobs, old_logprobs, advantages = _counted(logprobs, old_logprobs, advantages, action_mask)
    ratio = torch.exp(logprobs - old_logprobs).clamp(max=max_ratio)
    return policy_gradient_loss(logprobs, ratio * advantages)  # which detaches its weights


def ratio_weighted_k3(logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, action_mask: Tensor) -> Tensor:
    """Estimate KL(policy || reference) per token without bias, and its gradient too.

        L_t = pi / pi_old * (ref / pi - 1 - log(ref / pi))

    The ratio is not clipped and is differentiated: the mean under pi_old is the KL, at the states it visits.

    Source: DeepSeek-AI 2025 (arXiv:2512.02556), its unbiased KL estimate. Otherwise as `grpo_loss`.
    """
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs, action_mask=action_mask)
    logprobs, old_logprobs, ref_logprobs = _zero_uncounted(action_mask, logprobs, old_logprobs, ref_logprobs)
    return torch.exp(logprobs - old_logprobs.detach()) * kl_k3(logprobs, ref_logprobs)


def _centred(rewards: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Rewards minus their group's mean [N, G], 0 in groups without signal, and the valid rewards per group [N, 1]."""
    if group_size < 2:
        raise ValueError(
            f"group_size must be at least 2, got {group_size}: one completion is its own mean, "
            "so every advantage would be 0. Raise group_size."
        )
    if rewards.ndim != 1 or len(rewards) % group_size:
        raise ValueError(
            f"expected rewards [N * {group_size}], got {list(rewards.shape)}: "
            "pass complete groups, one after another, with NaN for a reward that is missing."
        )
    groups = rewards.reshape(-1, group_size)
    valid = ~groups.isnan()
    counts = valid.sum(dim=1, keepdim=True)
    mean = groups.nansum(dim=1, keepdim=True) / counts.clamp(min=1)
    lowest = torch.where(valid, groups, torch.inf).amin(dim=1, keepdim=True)
    highest = torch.where(valid, groups, -torch.inf).amax(dim=1, keepdim=True)
    # By the extremes: the mean of three times 0.1 is not 0.1, and a small std would blow the difference up.
    return torch.where(valid & (lowest < highest), groups - mean, 0.0), counts


def _counted(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, action_mask: Tensor) -> list[Tensor]:
    """A surrogate's inputs as [B, T]: where the mask is False the ratio is 1 and the advantage 0, hence the loss 0."""
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, action_mask=action_mask)
    check_same_shape(advantages=advantages, rows_of_action_mask=action_mask.any(dim=1))
    return _zero_uncounted(action_mask, logprobs, old_logprobs, advantages[:, None])


def _zero_uncounted(action_mask: Tensor, *tensors: Tensor) -> list[Tensor]:
    # where, before any exp: what does not count may be NaN or huge, and a 0 gradient times inf is NaN.
    return [torch.where(action_mask, x, 0.0) for x in tensors]

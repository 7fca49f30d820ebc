"""Losses per step of policies and critics; the targets of Q-learning, which have names here too, are in `q_learning`.

A loss is per step and averaging is another function, so that one loss serves environments (`.mean()`) and tokens (see
`align.aggregate`). What an equation treats as a constant (advantages, old log-probabilities, returns, targets) is
detached here: a critic never learns through the policy's loss, nor a target through the error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from classic_rl.masked import check_same_shape
from classic_rl.q_learning import double_q_targets as double_q_targets
from classic_rl.q_learning import dueling_q_values as dueling_q_values
from classic_rl.q_learning import q_targets as q_targets


def policy_gradient_loss(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Weigh log-probabilities so that the gradient of the mean is minus the policy gradient.

        L_t = -log pi(a_t | s_t) * A_t

    Source: Williams 1992, "Simple statistical gradient-following algorithms" (REINFORCE).

    Args:
        logprobs: log pi(a_t | s_t) of the actions taken. [..., T]
        advantages: A_t, or returns; constants. [..., T]

    Returns:
        The loss of each step. [..., T]

    Raises:
        ValueError: if the shapes differ.

    >>> policy_gradient_loss(torch.tensor([-0.5, -2.0]), torch.tensor([1.0, -1.0]))
    tensor([ 0.5000, -2.0000])
    """
    check_same_shape(logprobs=logprobs, advantages=advantages)
    return -logprobs * advantages.detach()


def clipped_surrogate_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.2
) -> Tensor:
    """Reward a change of the policy only as far as the ratio to the old one stays within bounds.

        L_t = -min(ratio_t * A_t, clip(ratio_t, 1 - clip_low, 1 + clip_high) * A_t),   ratio_t = pi / pi_old

    Source: Schulman et al. 2017 (arXiv:1707.06347); two bounds instead of one: Yu et al. 2025 (arXiv:2503.14476).

    Args:
        logprobs: log pi(a_t | s_t). [..., T]
        old_logprobs: log pi_old(a_t | s_t), of the policy that acted. [..., T]
        advantages: A_t. [..., T]
        clip_low, clip_high: how far below and above 1 the ratio still earns.

    Returns:
        The loss of each step, no mean taken. [..., T]

    Raises:
        ValueError: if the shapes differ.

    >>> clipped_surrogate_loss(torch.tensor([1.5, 0.5]).log(), torch.zeros(2), torch.tensor([1.0, 1.0]))
    tensor([-1.2000, -0.5000])
    """
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    ratio, advantages = torch.exp(logprobs - old_logprobs.detach()), advantages.detach()
    # The clipped product wins only where the ratio is beyond the bound on the side that earns, and is constant there.
    earned, most = ratio * advantages, advantages * torch.where(advantages > 0, 1 + clip_high, 1 - clip_low)
    return -torch.where(earned > most, most, earned)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None = None) -> Tensor:
    """Regress values on returns; with `clip`, moving away from the old value by more than that earns nothing.

        L_t = max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2) / 2,   or (V - R)^2 / 2 without a clip

    Source: PPO's original implementation (openai/baselines, ppo2); the paper has no clip of values.

    Args:
        values, old_values: V(s_t) of the critic now, and when the data was collected. [..., T]
        returns: R_t, the targets. [..., T]
        clip: c, in the unit of the returns; None does not clip.

    Returns:
        The loss of each step. [..., T]

    Raises:
        ValueError: if the shapes differ.

    >>> clipped_value_loss(torch.tensor([3.0]), torch.tensor([0.0]), torch.tensor([4.0]), clip=1.0)
    tensor([4.5000])
    """
    check_same_shape(values=values, old_values=old_values, returns=returns)
    old_values, returns = old_values.detach(), returns.detach()
    error = (values - returns).square()
    if clip is not None:
        error = torch.maximum(error, (old_values + (values - old_values).clamp(-clip, clip) - returns).square())
    return error / 2

"""Losses per step of policies and critics, and the targets of Q-learning.

A loss is per step and averaging is another function, so that one loss serves environments (`.mean()`) and tokens (see
`align.aggregate`). What an equation treats as a constant (advantages, old log-probabilities, returns, targets) is
detached here: a critic never learns through the policy's loss, nor a target through the error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from classic_rl.masked import check_same_shape


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
    ratio = torch.exp(logprobs - old_logprobs.detach())
    advantages = advantages.detach()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


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


def q_targets(rewards: Tensor, next_q_values: Tensor, terminated: Tensor, *, gamma: float | Tensor) -> Tensor:
    """Bootstrap from the best next action, unless the step terminated.

        y = r + gamma * (1 - terminated) * max_a Q(s', a)

    A truncated step is not terminated, so it bootstraps: s' is then the state before the reset.

    Source: Watkins & Dayan 1992; with a target network, Mnih et al. 2015.

    Args:
        rewards: r, or the discounted sum of n rewards. [B]
        next_q_values: Q(s', .), of the target network in DQN. [B, A]
        terminated: bool. [B]
        gamma: discount, in [0, 1]; after n rewards its n-th power, which may differ from row to row. Scalar or [B]

    Returns:
        y, detached. [B]

    Raises:
        ValueError: if the shapes do not fit.

    >>> q_targets(torch.ones(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([False, True]), gamma=0.5)
    tensor([2., 1.])
    """
    return _bootstrap(rewards, next_q_values.amax(dim=-1), terminated, gamma)


def double_q_targets(
    rewards: Tensor, next_q_online: Tensor, next_q_target: Tensor, terminated: Tensor, *, gamma: float | Tensor
) -> Tensor:
    """Let the online network choose the next action and the target network value it, against overestimation.

        y = r + gamma * (1 - terminated) * Q_target(s', argmax_a Q_online(s', a))

    Source: van Hasselt et al. 2016 (arXiv:1509.06461). Args, Returns and Raises are those of `q_targets`.

    >>> online, target = torch.tensor([[1.0, 2.0]]), torch.tensor([[9.0, 4.0]])
    >>> double_q_targets(torch.ones(1), online, target, torch.tensor([False]), gamma=0.5)
    tensor([3.])
    """
    check_same_shape(next_q_online=next_q_online, next_q_target=next_q_target)
    best = next_q_online.argmax(dim=-1, keepdim=True)
    return _bootstrap(rewards, next_q_target.gather(-1, best).squeeze(-1), terminated, gamma)


def dueling_q_values(values: Tensor, advantages: Tensor) -> Tensor:
    """Join a dueling network's two heads: Q(s, a) = V(s) + A(s, a) - mean_a A(s, a).

    Source: Wang et al. 2016 (arXiv:1511.06581), the variant with the mean.

    Args:
        values: V(s). [B]
        advantages: A(s, .). [B, A]

    Returns:
        Q(s, .). [B, A]

    Raises:
        ValueError: if there is not one value per row of advantages.

    >>> dueling_q_values(torch.tensor([5.0]), torch.tensor([[1.0, 3.0]]))
    tensor([[4., 6.]])
    """
    check_same_shape(values=values, advantages_of_one_action=advantages[..., 0])
    return values[..., None] + advantages - advantages.mean(dim=-1, keepdim=True)


def _bootstrap(rewards: Tensor, next_values: Tensor, terminated: Tensor, gamma: float | Tensor) -> Tensor:
    check_same_shape(rewards=rewards, best_next_q_values=next_values, terminated=terminated)
    if isinstance(gamma, Tensor) and gamma.ndim:
        check_same_shape(rewards=rewards, gamma=gamma)
    return rewards + gamma * torch.where(terminated, 0.0, next_values.detach())

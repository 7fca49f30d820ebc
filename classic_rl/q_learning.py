"""Targets of Q-learning, and how a dueling network makes its values.

A terminated step has no future; a truncated one has, and bootstraps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from classic_rl.masked import check_same_shape


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

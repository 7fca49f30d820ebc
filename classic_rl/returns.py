"""Returns and advantages of trajectories; time is the last axis, whatever stands before it.

A terminated step has no future, so nothing is bootstrapped. A truncated step has one that was not seen: it bootstraps
from `next_values`. The last step of a tensor, where it is neither, is open and bootstraps too. Where both flags are
set, termination wins. After either flag another episode may follow on the same axis, and nothing of it flows back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from classic_rl.masked import check_same_shape


def discounted_returns(
    rewards: Tensor,
    terminated: Tensor,
    truncated: Tensor | None = None,
    next_values: Tensor | None = None,
    *,
    gamma: float,
) -> Tensor:
    """Sum the discounted rewards to go.

        G_t = r_t + gamma * G_{t+1}         within an episode
        G_t = r_t                           where it terminated
        G_t = r_t + gamma * V(s_{t+1})      where it was truncated or is still open at the last step

    Source: Sutton & Barto 2018, section 3.3.

    Args:
        rewards: r_t, reward for the action taken at t. [..., T]
        terminated, truncated: bool, in Gymnasium's sense; `truncated=None` cuts nothing. [..., T]
        next_values: V(s_{t+1}), read at truncated and open steps only; None counts the unseen future as 0. [..., T]
        gamma: discount per step, in [0, 1].

    Returns:
        G_t. [..., T]

    Raises:
        ValueError: if the tensors differ in shape.

    >>> discounted_returns(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([False, False, True]), gamma=0.5)
    tensor([1.5000, 1.0000, 2.0000])
    """
    truncated = torch.zeros_like(terminated) if truncated is None else truncated
    next_values = torch.zeros_like(rewards) if next_values is None else next_values
    check_same_shape(rewards=rewards, terminated=terminated, truncated=truncated, next_values=next_values)
    cut = _or_last(truncated) & ~terminated
    return _sum_backwards(rewards + gamma * torch.where(cut, next_values, 0.0), terminated | truncated, gamma)


def n_step_returns(
    rewards: Tensor, next_values: Tensor, terminated: Tensor, truncated: Tensor, *, gamma: float, n: int
) -> Tensor:
    """Sum n discounted rewards and bootstrap from the state that they lead to, or from an earlier end.

        G_t = r_t + gamma * r_{t+1} + ... + gamma^(m-1) * r_{t+m-1} + gamma^m * V(s_{t+m})

    with m = n, or fewer where the episode or the tensor ends first; no V(s_{t+m}) after a termination.

    Source: Sutton & Barto 2018, section 7.1.

    Args:
        rewards: r_t. [..., T]
        next_values: V(s_{t+1}); for a truncated step the state before the reset, not after it. [..., T]
        terminated, truncated: bool, in Gymnasium's sense. [..., T]
        gamma: discount per step, in [0, 1].
        n: number of rewards, at least 1.

    Returns:
        G_t. [..., T]

    Raises:
        ValueError: if the tensors differ in shape, or n is below 1.

    >>> flags = torch.tensor([False, False, False])
    >>> n_step_returns(torch.tensor([1.0, 2.0, 3.0]), torch.full((3,), 8.0), flags, flags, gamma=0.5, n=2)
    tensor([4.0000, 5.5000, 7.0000])
    """
    check_same_shape(rewards=rewards, next_values=next_values, terminated=terminated, truncated=truncated)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}: 1 is the one-step TD target; raise n towards Monte Carlo.")
    cut = _or_last(truncated)
    future = next_values
    for _ in range(n - 1):
        # One more reward a turn: a return with k rewards is r_t and then the return with k - 1 from t + 1 on.
        returns = rewards + gamma * torch.where(terminated, 0.0, future)
        future = torch.where(cut, next_values, returns.roll(-1, dims=-1))
    return rewards + gamma * torch.where(terminated, 0.0, future)


def lambda_returns(
    rewards: Tensor, next_values: Tensor, terminated: Tensor, truncated: Tensor, *, gamma: float, lam: float
) -> Tensor:
    """Mix the n-step returns of all n with weights (1 - lambda) * lambda^(n-1), the rest of the weight on the longest.

        G_t = r_t + gamma * ((1 - lambda) * V(s_{t+1}) + lambda * G_{t+1})

    with V alone in the brackets at a truncated or open step, and 0 at a terminated one.

    Source: Sutton & Barto 2018, section 12.1; the recursion is the backward form of that mixture.

    Args and Raises are those of `n_step_returns`, with lam in place of n: 0 gives the one-step TD target, 1 the
    Monte Carlo return. Returns G_t. [..., T]

    >>> flags = torch.tensor([False, False, True])
    >>> lambda_returns(torch.ones(3), torch.full((3,), 8.0), flags, ~flags & flags, gamma=1.0, lam=0.5)
    tensor([7.7500, 5.5000, 1.0000])
    """
    check_same_shape(rewards=rewards, next_values=next_values, terminated=terminated, truncated=truncated)
    share = torch.where(_or_last(truncated), next_values, (1 - lam) * next_values)
    return _sum_backwards(rewards + gamma * torch.where(terminated, 0.0, share), terminated | truncated, gamma * lam)


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float,
    lam: float,
) -> Tensor:
    """Estimate advantages with GAE(gamma, lambda).

        delta_t = r_t + gamma * (1 - terminated_t) * V(s_{t+1}) - V(s_t)
        A_t     = delta_t + gamma * lambda * (1 - ended_t) * A_{t+1},   ended = terminated or truncated

    Source: Schulman et al. 2016 (arXiv:1506.02438); the recursion is the backward form of its estimator.

    Args:
        rewards: r_t, reward for the action taken at t. [..., T]
        values: V(s_t), the state acted in. [..., T]
        next_values: V(s_{t+1}), the state that action led to; for a truncated step the state before the reset, not
            after it. [..., T]
        terminated, truncated: bool, in Gymnasium's sense. [..., T]
        gamma: discount per step, in [0, 1].
        lam: 0 gives the one-step TD error, 1 the Monte Carlo return minus the baseline.

    Returns:
        A_t, not normalised. [..., T]. `advantages + values` are the TD(lambda) value targets.

    Raises:
        ValueError: if the five tensors differ in shape.

    >>> rewards, values = torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.8])
    >>> next_values, terminated = torch.tensor([0.8, torch.nan]), torch.tensor([False, True])
    >>> generalized_advantages(rewards, values, next_values, terminated, ~terminated & terminated, gamma=1.0, lam=0.5)
    tensor([0.4000, 0.2000])
    """
    check_same_shape(
        rewards=rewards, values=values, next_values=next_values, terminated=terminated, truncated=truncated
    )
    # where, not a product: past the end there may be NaN, and 0 * NaN is NaN.
    deltas = rewards + gamma * torch.where(terminated, 0.0, next_values) - values
    return _sum_backwards(deltas, terminated | truncated, gamma * lam)


def _or_last(flags: Tensor) -> Tensor:
    flags = flags.clone()
    flags[..., -1:] = True
    return flags


def _sum_backwards(x: Tensor, ended: Tensor, discount: float) -> Tensor:
    """S_t = x_t + discount * S_{t+1}, and x_t alone where an episode ended."""
    if not x.shape[-1]:
        return x
    *earlier, following = x.unbind(-1)
    sums = [following]
    for now, end in zip(reversed(earlier), reversed(ended.unbind(-1)[:-1]), strict=True):
        sums.append(now + torch.where(end, 0.0, discount * sums[-1]))
    return torch.stack(sums[::-1], dim=-1)

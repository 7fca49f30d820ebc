"""From a loss per token to one number: three averages, whose denominators are counted over the whole optimizer step.

A micro-batch gives its part of the step's average, so the parts add up and how a batch is cut never changes its
gradient. A row without an action adds nothing, and is not counted as a sequence either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from classic_rl.masked import check_same_shape


@dataclass(frozen=True)
class Average:
    """A mean and what it divides by; an algorithm sums `count` over the step and passes it to `mean`.

    mean: (loss [B, T], mask [B, T], denominator=...) -> scalar, the part of this batch.
    count: mask [B, T] -> scalar, the part of this batch in the denominator.
    """

    mean: Callable[..., Tensor]
    count: Callable[[Tensor], Tensor]


def token_mean(loss: Tensor, mask: Tensor, *, denominator: Tensor | float) -> Tensor:
    """Weigh every token of the step alike: the sum over counted tokens / denominator.

    Source: Yu et al. 2025 (arXiv:2503.14476), the token-level loss of DAPO.

    Args:
        loss: of each token; where the mask is False it may be anything. [B, T]
        mask: bool, the actions. [B, T]
        denominator: actions of the whole optimizer step, or its sequences in the other means. Where gradients are
            averaged over processes, divided by their number. 0, in a step without actions, gives 0.

    Returns:
        This batch's part of the mean, a scalar; it has a gradient even if nothing counts.

    Raises:
        ValueError: if the shapes of loss and mask differ.

    >>> mask = torch.tensor([[True, True, True], [True, False, False]])
    >>> token_mean(torch.tensor([[1.0, 1.0, 1.0], [5.0, 0.0, 0.0]]), mask, denominator=4)
    tensor(2.)
    """
    check_same_shape(loss=loss, mask=mask)
    return torch.where(mask, loss, 0.0).sum() / (denominator + (denominator == 0))


def sequence_mean(loss: Tensor, mask: Tensor, *, denominator: Tensor | float) -> Tensor:
    """Weigh every sequence alike: each row averaged over its own actions, their sum / denominator.

    Source: Shao et al. 2024 (arXiv:2402.03300), the objective of GRPO. Args, Returns and Raises: see `token_mean`.

    >>> mask = torch.tensor([[True, True, True], [True, False, False]])
    >>> sequence_mean(torch.tensor([[1.0, 1.0, 1.0], [5.0, 0.0, 0.0]]), mask, denominator=2)
    tensor(3.)
    """
    check_same_shape(loss=loss, mask=mask)
    return token_mean(loss / mask.sum(dim=-1, keepdim=True).clamp(min=1), mask, denominator=denominator)


def fixed_length_mean(loss: Tensor, mask: Tensor, *, length: int, denominator: Tensor | float) -> Tensor:
    """Divide each row's sum by one length for all, so that no token's weight depends on the length of its row.

    Source: Liu et al. 2025 (arXiv:2503.20783), Dr. GRPO. `length` is a constant such as the length cap of a completion;
    for the rest see `token_mean`.
    """
    return token_mean(loss, mask, denominator=denominator) / length


def _sequences(mask: Tensor) -> Tensor:
    return mask.any(dim=-1).sum()


per_token = Average(token_mean, count=torch.sum)
per_sequence = Average(sequence_mean, count=_sequences)


def per_fixed_length(length: int) -> Average:
    """Return the average of `fixed_length_mean` with this length, at least 1."""
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}: pass the length cap of a completion.")
    return Average(partial(fixed_length_mean, length=length), count=_sequences)

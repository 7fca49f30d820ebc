"""Means, variances and standardisation over the entries that count; a mask is bool and True means "counts"."""

from __future__ import annotations

import torch
from torch import Tensor


def check_same_shape(**tensors: Tensor) -> None:
    """Raise ValueError if shapes differ: [4] minus [4, 1] is a [4, 4], and its mean looks like a loss.

    >>> check_same_shape(values=torch.zeros(4, 1), returns=torch.zeros(4))
    Traceback (most recent call last):
    ValueError: expected one shape, got values [4, 1], returns [4]: PyTorch would broadcast them. Squeeze or expand ...
    """
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(
            f"expected one shape, got {shapes}: PyTorch would broadcast them. "
            "Squeeze or expand the odd one out before the call."
        )


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Average the entries that count; an empty mask gives 0, which still has a gradient (of zeros).

    Args:
        x: any values. [...]
        mask: bool. [...]

    Returns:
        A scalar.

    Raises:
        ValueError: if the shapes differ.

    >>> masked_mean(torch.tensor([1.0, 3.0, torch.nan]), torch.tensor([True, True, False]))
    tensor(2.)
    """
    check_same_shape(x=x, mask=mask)
    # where, not a product: what does not count may be NaN, and 0 * NaN is NaN.
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Estimate the unbiased variance (n - 1 below the line) of the entries that count; 0 if fewer than two do.

    Args, Returns and Raises are those of `masked_mean`.

    >>> masked_var(torch.tensor([1.0, 3.0, 100.0]), torch.tensor([True, True, False]))
    tensor(2.)
    """
    return _centred(x, mask).square().sum() / (mask.sum() - 1).clamp(min=1)


def standardize(
    x: Tensor,
    mask: Tensor | None = None,
    *,
    mean: Tensor | float | None = None,
    std: Tensor | float | None = None,
    eps: float = 1e-8,
) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1: (x - mean) / (std + eps).

    Args:
        x: data such as advantages, not meant to be differentiated. [...]
        mask: bool, which entries count; None counts all. [...]
        mean, std: those of all processes, in a run of several; None takes the mean and the unbiased standard
            deviation of the entries that count here.
        eps: what is divided by where all values are equal.

    Returns:
        The standardised values, 0 where the mask is False. [...]

    Raises:
        ValueError: if the shapes of `x` and `mask` differ.

    >>> standardize(torch.tensor([1.0, 2.0, 3.0]))
    tensor([-1.,  0.,  1.])
    """
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    centred = _centred(x, mask) if mean is None else torch.where(mask, x - mean, 0.0)
    return centred / ((masked_var(x, mask).sqrt() if std is None else std) + eps)


def _centred(x: Tensor, mask: Tensor) -> Tensor:
    once = torch.where(mask, x - masked_mean(x, mask), 0.0)
    # Twice, or equal values keep a rounding error, which a standard deviation made of the same error blows up.
    return torch.where(mask, once - masked_mean(once, mask), 0.0)

"""top-k and top-p: leave out the unlikely words, and draw from what is left as if it were all.

With them the distribution that draws is no longer the policy's: `align.importance` weighs what is learned from it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def truncated(logits: Tensor, *, top_p: float = 1.0, top_k: int = 0) -> Tensor:
    """Set the logits of words that are left out to -inf, so that their softmax is the truncated distribution.

        q(a) = p(a) / p(kept) for a kept word, 0 for the others

    First the `top_k` likeliest words are kept, then of their renormalised probabilities the fewest, likeliest first,
    that come to at least `top_p`. The likeliest word is always kept, and of equal ones the lower id goes first.

    Source: top-k, Fan et al. 2018 (arXiv:1805.04833); top-p, Holtzman et al. 2020 (arXiv:1904.09751).

    Args:
        logits: divided by the temperature. [..., V]
        top_p: probability to keep, in (0, 1]; 1 keeps all.
        top_k: words to keep; 0 keeps all.

    Returns:
        float32 logits. [..., V]

    >>> truncated(torch.tensor([0.1, 0.5, 0.15, 0.25]).log(), top_p=0.7).softmax(-1)
    tensor([0.0000, 0.6667, 0.0000, 0.3333])
    """
    logits = logits.float()
    values, order = _likeliest(logits, top_k or logits.shape[-1])
    if top_p < 1:
        before = values.softmax(-1).cumsum(-1, dtype=torch.float64).roll(1, dims=-1)  # of the likelier words
        before[..., 0] = 0.0
        values = values.masked_fill(before >= top_p, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(-1, order, values)


def _likeliest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest logits, largest first and of equal ones the lower id first, and their ids. [..., k]"""
    if k < logits.shape[-1]:  # to sort a whole vocabulary takes 25 times as long
        values, order = logits.topk(k, dim=-1)
        last = values[..., -1:]
        # Of words that are as likely as the last one topk takes any, which is right only where it takes all.
        if torch.equal((logits == last).sum(dim=-1), (values == last).sum(dim=-1)):
            order = order.sort(dim=-1).values
            values, places = logits.gather(-1, order).sort(dim=-1, descending=True, stable=True)
            return values, order.gather(-1, places)
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    return values[..., :k], order[..., :k]

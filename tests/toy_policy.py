"""A policy small enough to write down every completion: expectations and their gradients are exact sums in float64.

Three tokens, the first one EOS; a completion ends with it, or at three tokens. That makes 15 completions (S), which
pass through 7 prefixes. The parameters are the logits of the next token after each prefix, [7, 3].
"""

from itertools import product

import torch
from torch import Tensor

EOS, VOCABULARY, LENGTH = 0, 3, 3

PREFIXES = [prefix for n in range(LENGTH) for prefix in product(range(1, VOCABULARY), repeat=n)]
COMPLETIONS = [
    (*prefix, token) for prefix in PREFIXES for token in range(VOCABULARY) if token == EOS or len(prefix) == LENGTH - 1
]


def _padded(rows: list[list[int]]) -> Tensor:
    return torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows])


TOKENS = _padded([list(completion) for completion in COMPLETIONS])
STATES = _padded([[PREFIXES.index(completion[:t]) for t in range(len(completion))] for completion in COMPLETIONS])
MASK = torch.arange(LENGTH) < torch.tensor([[len(completion)] for completion in COMPLETIONS])
LAST = torch.arange(LENGTH) == torch.tensor([[len(completion) - 1] for completion in COMPLETIONS])


def random_logits(seed: int) -> Tensor:
    """Draw the parameters of a policy."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(PREFIXES), VOCABULARY, dtype=torch.float64, generator=generator, requires_grad=True)


def token_logprobs(logits: Tensor) -> Tensor:
    """Return the log-probability of every token of every completion, 0 past the end. [S, T]"""
    return torch.where(MASK, logits.log_softmax(dim=-1)[STATES, TOKENS], 0.0)


def probabilities(logits: Tensor) -> Tensor:
    """Return the probability of every completion. [S]"""
    return token_logprobs(logits).sum(dim=-1).exp()


def rewards() -> Tensor:
    """Return a reward for every completion, all of them different but two pairs. [S]"""
    generator = torch.Generator().manual_seed(42)
    drawn = torch.randn(len(COMPLETIONS), dtype=torch.float64, generator=generator)
    drawn[3], drawn[7] = drawn[0], drawn[1]
    return drawn


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    """Return d value / d logits. [7, 3]"""
    (grad,) = torch.autograd.grad(value, logits, retain_graph=True)
    return grad


def kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Return KL(policy || reference) between distributions over whole completions."""
    log_ratio = token_logprobs(logits).sum(dim=-1) - token_logprobs(ref_logits).sum(dim=-1)
    return (probabilities(logits) * log_ratio).sum()

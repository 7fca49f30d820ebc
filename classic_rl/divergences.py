"""Three estimates of KL(policy || reference) from the log-probabilities of actions that the policy drew.

As values they differ in bias and variance. As losses, the drawn actions held fixed, they differ in what they minimise:

    name  as a value                     mean gradient through `logprobs`
    k1    unbiased, high variance        none (it vanishes): report it or put it in the reward, never penalise with it
    k2    biased, low variance           KL(policy || reference)
    k3    unbiased, low variance, >= 0   KL(reference || policy)

k3 times the ratio policy / sampler, differentiated as a whole, has k2's gradient and is unbiased off-policy too.

Source: Schulman 2020, "Approximating KL Divergence" (joschu.net/blog/kl-approx.html), for the values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from classic_rl.masked import check_same_shape


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate the KL per action as log(p / q), p the policy and q the reference.

    Args:
        logprobs: log p of each drawn action, nats. [...]
        ref_logprobs: log q of the same actions. [...]

    Returns:
        The estimate for each action, nats. [...]

    Raises:
        ValueError: if the shapes differ.

    >>> kl_k1(torch.tensor([-1.0]), torch.tensor([-2.0]))
    tensor([1.])
    """
    check_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate the KL per action as log(p / q)^2 / 2. Args, Returns and Raises are those of `kl_k1`.

    >>> kl_k2(torch.tensor([-1.0]), torch.tensor([-2.0]))
    tensor([0.5000])
    """
    return kl_k1(logprobs, ref_logprobs).square() / 2


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate the KL per action as q / p - 1 - log(q / p). Args, Returns and Raises are those of `kl_k1`.

    >>> kl_k3(torch.tensor([-1.0]), torch.tensor([-2.0]))
    tensor([0.3679])
    """
    log_ratio = kl_k1(ref_logprobs, logprobs)
    return torch.expm1(log_ratio) - log_ratio  # expm1, since near q = p the other form cancels to noise

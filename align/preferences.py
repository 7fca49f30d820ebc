"""Losses of preference pairs: pure functions of the log-probabilities of whole completions [B], one value a pair [B].

Which log-probability, and what is compared, differs:

    loss                              log-probs           compares
    dpo, logistic, robust, hinge      summed              the margin: chosen minus rejected log-ratio to a reference
    ipo                               length-averaged     the same
    apo_zero, apo_down                summed              both log-ratios, each with the reference too
    kto                               summed              each log-ratio with a reference point; needs no pairs
    simpo, orpo                       length-averaged     chosen and rejected, without a reference
    bradley_terry                     or any score        chosen and rejected

To leave out the reference, pass zeros for it. A mixture is a sum, so a term that imitates what was chosen is added:

    dpo_loss(chosen, rejected, ref_chosen, ref_rejected) - 0.1 * chosen / chosen_lengths
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from classic_rl.masked import check_same_shape


def bradley_terry_loss(
    chosen_scores: Tensor, rejected_scores: Tensor, *, margin: Tensor | float | None = None
) -> Tensor:
    """Fit scores whose difference is the log-odds of being preferred: L = -log sigmoid(chosen - rejected - margin).

    With scores beta * log(pi / ref) this is `dpo_loss`.

    Source: Bradley and Terry 1952; the margin: Touvron et al. 2023 (arXiv:2307.09288).

    Args:
        chosen_scores, rejected_scores: of whole completions, from a reward model. [B]
        margin: by how much the scores of a pair should differ; more, for instance, where annotators were sure. [B]

    Raises:
        ValueError: if the shapes differ.
    """
    given = {"margin": margin} if isinstance(margin, Tensor) else {}
    check_same_shape(chosen_scores=chosen_scores, rejected_scores=rejected_scores, **given)
    return -F.logsigmoid(chosen_scores - rejected_scores - (0.0 if margin is None else margin))


def dpo_margins(
    chosen_logprobs: Tensor, rejected_logprobs: Tensor, ref_chosen_logprobs: Tensor, ref_rejected_logprobs: Tensor
) -> Tensor:
    """Return log(pi / ref)(chosen) - log(pi / ref)(rejected).

    Source: Rafailov et al. 2023 (arXiv:2305.18290); beta * margin is the difference of its implicit rewards.

    Args:
        chosen_logprobs, rejected_logprobs: the policy's, summed over the tokens of a completion, nats. [B]
        ref_chosen_logprobs, ref_rejected_logprobs: the reference's, of the same completions. [B]

    Returns:
        The margins, nats: above 0 where the policy prefers the chosen one more than the reference does. [B]

    Raises:
        ValueError: if the shapes differ.

    >>> dpo_margins(*(torch.tensor([x]) for x in (-3.0, -5.0, -4.0, -4.5)))
    tensor([1.5000])
    """
    check_same_shape(
        chosen_logprobs=chosen_logprobs,
        rejected_logprobs=rejected_logprobs,
        ref_chosen_logprobs=ref_chosen_logprobs,
        ref_rejected_logprobs=ref_rejected_logprobs,
    )
    return (chosen_logprobs - ref_chosen_logprobs) - (rejected_logprobs - ref_rejected_logprobs)


def dpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the `logistic_loss` of the `dpo_margins`; their docstrings say the rest.

    >>> dpo_loss(*(torch.tensor([x]) for x in (-3.0, -5.0, -4.0, -4.5)), beta=1.0)
    tensor([0.2014])
    """
    margins = dpo_margins(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs)
    return logistic_loss(margins, beta=beta, label_smoothing=label_smoothing)


def logistic_loss(margins: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Fit the Bradley-Terry model with rewards beta * log(pi / ref): DPO's loss, as a function of the margin.

        L = -(1 - s) * log sigmoid(beta * margin) - s * log sigmoid(-beta * margin)

    With s above 0 (conservative DPO) it is least at a finite margin, where sigmoid(beta * margin) = 1 - s.

    Source: Rafailov et al. 2023 (arXiv:2305.18290); s: Mitchell 2023, "A note on DPO with noisy preferences".

    Args:
        margins: as `dpo_margins` gives them. [B]
        beta: weight of the KL to the reference, above 0: the smaller, the further the policy may go.
        label_smoothing: s, how likely a pair is thought to be labelled the wrong way round.
    """
    return -(1 - label_smoothing) * F.logsigmoid(beta * margins) - label_smoothing * F.logsigmoid(-beta * margins)


def robust_loss(margins: Tensor, *, beta: float = 0.1, label_smoothing: float) -> Tensor:
    """Undo labels flipped with probability s, which smoothing does not: the mean over flips is the true labels' loss.

        L = ((1 - s) * l(margin) - s * l(-margin)) / (1 - 2 * s),   l the logistic loss

    Source: Chowdhury et al. 2024 (arXiv:2403.00409), robust DPO. Otherwise as `logistic_loss`.

    Raises:
        ValueError: if s is outside [0, 0.5).
    """
    s = label_smoothing
    if not 0 <= s < 0.5:
        raise ValueError(
            f"label_smoothing must be at least 0 and below 0.5, got {s}: it is the share of labels that are flipped, "
            "and at a half they say nothing. If most are wrong, swap chosen and rejected."
        )
    return ((1 - s) * logistic_loss(margins, beta=beta) - s * logistic_loss(-margins, beta=beta)) / (1 - 2 * s)


def hinge_loss(margins: Tensor, *, beta: float = 0.1) -> Tensor:
    """Ask for a margin of 1 / beta, and no more: L = max(0, 1 - beta * margin).

    Source: Liu et al. 2023 (arXiv:2309.06657), the hinge of RSO. SLiC's calibration loss (Zhao et al. 2023,
    arXiv:2305.10425) is delta times this, without reference and with beta = 1 / delta. Otherwise as `logistic_loss`.
    """
    return F.relu(1 - beta * margins)


def ipo_loss(margins: Tensor, *, beta: float = 0.1) -> Tensor:
    """Pull the margin to 1 / (2 * beta), and back if it is beyond: L = (margin - 1 / (2 * beta))^2.

    The margins are of **length-averaged** log-probabilities: divide all four by their completion's number of tokens
    before `dpo_margins`. The paper writes sums; with them one target would ask less of each token in long completions.

    Source: Azar et al. 2023 (arXiv:2310.12036), where beta is tau. Otherwise as `logistic_loss`.
    """
    return (margins - 1 / (2 * beta)).square()


def apo_zero_loss(chosen_log_ratios: Tensor, rejected_log_ratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """Raise the chosen completion and lower the rejected one: for chosen ones better than the policy's own.

        L = 1 - sigmoid(beta * chosen) + sigmoid(beta * rejected)

    The arguments are log(pi / ref), summed over tokens; the 1, which the paper has not, keeps L above 0.

    Source: D'Oosterlinck et al. 2024 (arXiv:2408.06266). Otherwise as `dpo_loss`.
    """
    check_same_shape(chosen_log_ratios=chosen_log_ratios, rejected_log_ratios=rejected_log_ratios)
    return torch.sigmoid(-beta * chosen_log_ratios) + torch.sigmoid(beta * rejected_log_ratios)


def apo_down_loss(chosen_log_ratios: Tensor, rejected_log_ratios: Tensor, *, beta: float = 0.1) -> Tensor:
    """Lower the chosen completion, and the rejected one more: for chosen ones worse than the policy's own.

        L = sigmoid(beta * chosen) + 1 - sigmoid(beta * (chosen - rejected))

    Otherwise as `apo_zero_loss`.
    """
    check_same_shape(chosen_log_ratios=chosen_log_ratios, rejected_log_ratios=rejected_log_ratios)
    return torch.sigmoid(beta * chosen_log_ratios) + torch.sigmoid(beta * (rejected_log_ratios - chosen_log_ratios))


def simpo_loss(chosen_logprobs: Tensor, rejected_logprobs: Tensor, *, beta: float = 2.0, margin: float = 1.0) -> Tensor:
    """Prefer the chosen completion token for token, without a reference.

        L = -log sigmoid(beta * (chosen - rejected) - margin)

    The arguments are **length-averaged** log-probabilities, hence a beta far above DPO's.

    Source: Meng et al. 2024 (arXiv:2405.14734); margin is its gamma, not multiplied by beta. Otherwise as `dpo_loss`.
    """
    return bradley_terry_loss(beta * chosen_logprobs, beta * rejected_logprobs, margin=margin)


def orpo_loss(chosen_logprobs: Tensor, rejected_logprobs: Tensor) -> Tensor:
    """Raise the odds of the chosen completion over the rejected one's, odds = p / (1 - p).

        L = -log sigmoid(log(odds(chosen) / odds(rejected)))

    The arguments, log p, are **length-averaged**. ORPO trains on `-chosen_logprobs + weight * orpo_loss(...)`.

    Source: Hong et al. 2024 (arXiv:2403.07691), where the weight is lambda. Otherwise as `dpo_loss`.
    """
    return bradley_terry_loss(_log_odds(chosen_logprobs), _log_odds(rejected_logprobs))


def kto_loss(
    log_ratios: Tensor,
    desirable: Tensor,
    reference_point: Tensor | float,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Judge single completions by gain or loss against a reference point z = max(0, reference_point).

        L = desirable_weight   * (1 - sigmoid(beta * (log_ratio - z)))   if desirable
            undesirable_weight * (1 - sigmoid(beta * (z - log_ratio)))   if not

    Source: Ethayarajh et al. 2024 (arXiv:2402.01306).

    Args:
        log_ratios: log(pi / ref), summed over tokens. [B]
        desirable: bool, the label of each completion. [B]
        reference_point: an estimate of KL(policy || reference), such as the mean log-ratio of completions under other
            rows' prompts. One for all rows of the optimizer step, hence given; it passes no gradient on.
        desirable_weight, undesirable_weight: make up for unequal numbers of the two labels.

    Raises:
        ValueError: if the shapes differ, or reference_point is not a scalar.
    """
    check_same_shape(log_ratios=log_ratios, desirable=desirable)
    z = torch.as_tensor(reference_point, dtype=log_ratios.dtype, device=log_ratios.device).detach().clamp(min=0)
    if z.ndim != 0:
        raise ValueError(f"expected a scalar reference_point, got {list(z.shape)}: average it over the optimizer step.")
    losses = torch.sigmoid(beta * torch.where(desirable, z - log_ratios, log_ratios - z))
    return torch.where(desirable, desirable_weight * losses, undesirable_weight * losses)


def _log_odds(logprobs: Tensor) -> Tensor:
    # A probability that rounds to 1 has infinite odds, and their gradient is NaN; log-softmax has gradient 0 there.
    logprobs = torch.where(logprobs == 0, -torch.finfo(logprobs.dtype).tiny, logprobs)
    return logprobs - torch.log(-torch.expm1(logprobs))  # expm1, since 1 - p cancels near p = 1

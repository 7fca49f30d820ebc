"""Post-training of Hugging Face causal language models.

The names below are imported when first asked for: `import align` costs nothing, and a loss does not load transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align.aggregate import Average as Average
    from align.aggregate import fixed_length_mean as fixed_length_mean
    from align.aggregate import per_fixed_length as per_fixed_length
    from align.aggregate import per_sequence as per_sequence
    from align.aggregate import per_token as per_token
    from align.aggregate import sequence_mean as sequence_mean
    from align.aggregate import token_mean as token_mean
    from align.grpo import centre_by_group as centre_by_group
    from align.grpo import grpo_loss as grpo_loss
    from align.grpo import ratio_weighted_k3 as ratio_weighted_k3
    from align.grpo import standardize_by_group as standardize_by_group
    from align.logprobs import token_logprobs as token_logprobs
    from align.ppo import completion_advantages as completion_advantages
    from align.ppo import kl_penalised_rewards as kl_penalised_rewards
    from align.preferences import apo_down_loss as apo_down_loss
    from align.preferences import apo_zero_loss as apo_zero_loss
    from align.preferences import bradley_terry_loss as bradley_terry_loss
    from align.preferences import dpo_loss as dpo_loss
    from align.preferences import dpo_margins as dpo_margins
    from align.preferences import hinge_loss as hinge_loss
    from align.preferences import ipo_loss as ipo_loss
    from align.preferences import kto_loss as kto_loss
    from align.preferences import logistic_loss as logistic_loss
    from align.preferences import orpo_loss as orpo_loss
    from align.preferences import robust_loss as robust_loss
    from align.preferences import simpo_loss as simpo_loss
    from align.surrogates import cispo_loss as cispo_loss
    from align.surrogates import leave_one_out as leave_one_out
    from align.surrogates import sequence_ratio_loss as sequence_ratio_loss

__distribution__ = "align-rl"

_MODULE_OF = {
    "Average": "aggregate",
    "apo_down_loss": "preferences",
    "apo_zero_loss": "preferences",
    "bradley_terry_loss": "preferences",
    "centre_by_group": "grpo",
    "cispo_loss": "surrogates",
    "completion_advantages": "ppo",
    "dpo_loss": "preferences",
    "dpo_margins": "preferences",
    "fixed_length_mean": "aggregate",
    "grpo_loss": "grpo",
    "hinge_loss": "preferences",
    "ipo_loss": "preferences",
    "kl_penalised_rewards": "ppo",
    "kto_loss": "preferences",
    "leave_one_out": "surrogates",
    "logistic_loss": "preferences",
    "orpo_loss": "preferences",
    "per_fixed_length": "aggregate",
    "per_sequence": "aggregate",
    "per_token": "aggregate",
    "ratio_weighted_k3": "grpo",
    "robust_loss": "preferences",
    "sequence_mean": "aggregate",
    "sequence_ratio_loss": "surrogates",
    "simpo_loss": "preferences",
    "standardize_by_group": "grpo",
    "token_logprobs": "logprobs",
    "token_mean": "aggregate",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})

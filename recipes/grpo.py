"""GRPO on any model, prompts and rewards: `align grpo --model FOLDER --data prompts.jsonl --reward exact_answer`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from align.aggregate import per_fixed_length, per_sequence, per_token
from align.batch import Prompts
from align.config import GRPOConfig
from align.data import eos_token_ids
from align.grpo import GRPO, centre_by_group, grpo_loss, standardize_by_group
from align.logprobs import Policy
from align.models import reference_of
from align.rewards import Reward
from align.sampler import Sampler
from align.surrogates import cispo_loss, sequence_ratio_loss
from recipes import inputs
from recipes.common import recipe
from recipes.options import GRPOOptions, Loss, grpo_defaults
from recipes.prompted import train_on_prompts

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase


def train(options: GRPOOptions, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    return train_on_prompts("grpo", options, command, build)


def build(
    options: GRPOOptions,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    held_out: Prompts | None,
    rewards: Sequence[Reward],
    accelerator: Accelerator,
) -> GRPO:
    """Load the model and put the algorithm together."""
    config = options.grpo
    model = inputs.make_model(options.model, seed=config.seed)
    inputs.check_fit(model, [*prompts.ids, *(held_out.ids if held_out else [])], config.sampling.max_new_tokens)
    policy = Policy(model, temperature=config.sampling.temperature)
    sampler = Sampler(model, tokenizer, config.sampling, eos_token_ids=eos_token_ids(model, tokenizer))
    return GRPO(
        policy,
        sampler,
        prompts,
        rewards,
        config,
        accelerator,
        reference=reference_of(policy) if config.kl_coef else None,
        on_error=options.reward.on_reward_error,
        **objective(options.objective.loss, config),
    )


def objective(loss: Loss, config: GRPOConfig) -> dict[str, Any]:
    """Return the surrogate, the advantages and the average that a word of the command line stands for."""
    bounds = {"clip_low": config.clip_low, "clip_high": config.clip_high}
    if loss == "cispo" and config.clip_low != 1:
        raise ValueError(f"--loss cispo bounds the ratio above only: leave out --clip-low {config.clip_low}")
    clipped = partial(grpo_loss, **bounds)
    surrogate, advantages, average = {
        "grpo": (clipped, standardize_by_group, per_sequence),
        "dapo": (clipped, standardize_by_group, per_token),
        "dr-grpo": (clipped, centre_by_group, per_fixed_length(config.sampling.max_new_tokens)),
        "gspo": (partial(sequence_ratio_loss, **bounds), standardize_by_group, per_sequence),
        "cispo": (partial(cispo_loss, max_ratio=1 + config.clip_high), standardize_by_group, per_token),
    }[loss]
    return {"surrogate": surrogate, "advantages": advantages, "average": average}


main = recipe("align grpo", GRPOOptions, train, grpo_defaults)

if __name__ == "__main__":
    main()

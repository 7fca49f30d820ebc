"""GRPO on any model, prompts and rewards: `align grpo --model FOLDER --data prompts.jsonl --reward exact_answer`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.aggregate import per_fixed_length, per_sequence, per_token
from align.batch import Prompts
from align.config import GRPOConfig
from align.data import eos_token_ids
from align.evaluate import evaluate
from align.grpo import GRPO, centre_by_group, grpo_loss, standardize_by_group
from align.logprobs import Policy
from align.models import reference_of
from align.rewards import Reward
from align.sampler import Sampler
from align.surrogates import cispo_loss, sequence_ratio_loss
from recipes import inputs
from recipes.common import claim_directory, execute, make_accelerator, recipe, save_result, tell
from recipes.options import GRPOOptions, Loss, PromptOptions, grpo_defaults

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase


def train(options: GRPOOptions, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    rewards = inputs.read_rewards(options.reward.rewards)
    rows = inputs.read_rows(options.data, rewards)
    held_out_options = held_out_of(options)
    held_out_rows = inputs.read_rows(held_out_options, rewards) if held_out_options else None
    read = {"data": rows} | ({"eval_data": held_out_rows} if held_out_rows else {})
    config = inputs.record(options, read)
    accelerator = make_accelerator()
    directory = claim_directory(options.run, "grpo", config, accelerator)
    say = partial(tell, options=options.run, accelerator=accelerator)

    tokenizer = inputs.make_tokenizer(options.model.model, trust_remote_code=options.model.trust_remote_code)
    prompts = inputs.make_prompts(rows, options.data, tokenizer)
    lengths = [len(ids) for ids in prompts.ids]
    say(inputs.describe(f"learning from {options.data.data}", lengths, prompts.dropped, "prompts"))
    held_out = None
    if held_out_options and held_out_rows:
        held_out = inputs.make_prompts(held_out_rows, held_out_options, tokenizer)
        lengths = [len(ids) for ids in held_out.ids]
        say(inputs.describe(f"measuring on {held_out_options.data}", lengths, held_out.dropped, "prompts"))
    if tokenizer.chat_template and isinstance(prompts.texts[0], str) and not (options.data.chat or options.data.system):
        say("note: the prompts are plain text, though the model knows chats; --chat makes each a user's message")

    algorithm = build(options, tokenizer, prompts, held_out, rewards, accelerator)
    model = algorithm.sampler.model
    say(f"{options.model.model}: {inputs.count_parameters(model)}, on {accelerator.device}")
    if habits := inputs.sampling_habits(model):
        told = ", ".join(f"{name} {value}" for name, value in habits.items())
        say(f"note: not followed from the model's generation config: {told}; see --temperature")
    say(f"run: {directory}")
    result = execute(
        algorithm,
        directory,
        options.run,
        config=config,
        command=command,
        accelerator=accelerator,
        evaluate=(lambda: measure(algorithm, held_out)) if held_out else None,
    )
    if result.finished:
        save_result(model, tokenizer, result, options, accelerator)
        say(f"Model: {result.directory.final}")
        say(f"Measure it: {measuring(options, result.directory.final)}")
    return result.exit_code


def measuring(options: GRPOOptions, model: Path) -> str:
    """Return the command that measures a model as it was trained."""
    data = held_out_of(options) or options.data
    words = ["align", "eval", "--model", str(model), "--data", data.data]
    words += ["--reward", *(name for names in options.reward.rewards for name in names)]
    words += ["--max-new-tokens", str(options.grpo.sampling.max_new_tokens)]
    words += ["--chat"] if data.chat else []
    return shlex.join(words + (["--system", data.system] if data.system else []))


def held_out_of(options: GRPOOptions) -> PromptOptions | None:
    """Return how held-out prompts are read: as the others are, from their own place."""
    if options.held_out.eval_data is None:
        return None
    return replace(options.data, data=options.held_out.eval_data, split=options.held_out.eval_split)


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


def measure(algorithm: GRPO, held_out: Prompts) -> dict[str, float]:
    """Return the mean rewards on held-out prompts."""
    return evaluate(
        algorithm.sampler,
        held_out,
        algorithm.rewards,
        seed=algorithm.config.seed,
        on_error=algorithm.on_error,
        accelerator=algorithm.accelerator,
    ).metrics


main = recipe("align grpo", GRPOOptions, train, grpo_defaults)

if __name__ == "__main__":
    main()

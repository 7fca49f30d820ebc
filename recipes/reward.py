"""A reward model of pairs of answers: `align reward --model FOLDER --data pairs.jsonl --eval-data held_out.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from align.pairs import read_pairs, tokenize_pairs
from align.reward_head import RewardModel, save_reward_model, separate_padding
from align.reward_model import RewardTraining
from recipes import inputs
from recipes.answered import ids_of, tell_rows
from recipes.common import claim_directory, execute, make_accelerator, model_card, recipe, tell
from recipes.options import RewardModelOptions

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from align.runs.run import RunResult


def train(options: RewardModelOptions, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    data, seed = options.data, options.reward.seed
    rows = inputs.read_both(options, partial(read_pairs, degenerate=data.degenerate, margin=data.margin))
    config = inputs.record(options, rows)
    accelerator = make_accelerator()
    directory = claim_directory(options.run, "reward", config, accelerator)
    say = partial(tell, options=options.run, accelerator=accelerator)

    tokenizer = inputs.make_tokenizer(options.model.model, trust_remote_code=options.model.trust_remote_code)
    model = inputs.make_reward_model(options.model, seed=seed)
    separate_padding(model, tokenizer)
    limits: dict[str, Any] = {"max_tokens": data.max_tokens, "too_long": data.too_long, "degenerate": data.degenerate}
    pairs = {name: tokenize_pairs(each, tokenizer, **limits) for name, each in rows.items()}
    settings = inputs.with_steps(options.reward, data.epochs, len(pairs["data"]), command)
    tell_rows(pairs, settings, options, accelerator)
    inputs.check_fit(model, [ids for each in pairs.values() for ids in ids_of(each)])

    module = RewardModel(inputs.with_adapters(model, options.model, seed=seed))
    say(f"{options.model.model}: {inputs.count_parameters(module)}, on {accelerator.device}")
    say(f"run: {directory}")
    algorithm = RewardTraining(module, pairs["data"], settings, accelerator)
    held_out = pairs.get("eval_data")
    result = execute(
        algorithm,
        directory,
        options.run,
        config=config,
        command=command,
        accelerator=accelerator,
        evaluate=(lambda: algorithm.evaluate(held_out)) if held_out else None,
    )
    if result.finished:
        save(module.model, tokenizer, result, accelerator)
        say(f"Reward model: {result.directory.final}")
        say(f"Go on with: align grpo --model POLICY --data prompts.jsonl --reward model:{result.directory.final}")
    return result.exit_code


def save(model: nn.Module, tokenizer: Any, result: RunResult, accelerator: Accelerator) -> None:
    """Save a trained reward model to the `final` folder of its run."""
    if accelerator.is_main_process:
        save_reward_model(model, tokenizer, result.directory.final, card=model_card(result, "text-classification"))
    accelerator.wait_for_everyone()


main = recipe("align reward", RewardModelOptions, train)

if __name__ == "__main__":
    main()

"""Measure a model: `align eval --model FOLDER --data prompts.jsonl --reward exact_answer`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from align.data import eos_token_ids
from align.evaluate import Evaluation, evaluate
from align.runs.names import label
from align.sampler import Sampler
from recipes import inputs
from recipes.common import make_accelerator, recipe
from recipes.options import EvalOptions, ModelOptions


def train(options: EvalOptions, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code. Nothing is trained here."""
    if options.samples < 1:
        raise ValueError(f"--samples must be at least 1, got {options.samples}")
    if options.output and (options.output.is_dir() or not os.access(options.output.parent, os.W_OK)):
        raise ValueError(f"--output {options.output}: cannot be written: name a file in a folder that is there")
    rewards = inputs.read_rewards(options.reward.rewards)
    rows = inputs.read_rows(options.data, rewards)
    accelerator = make_accelerator()
    tokenizer = inputs.make_tokenizer(options.model, trust_remote_code=options.trust_remote_code)
    prompts = inputs.make_prompts(rows, options.data, tokenizer)
    model = inputs.make_model(ModelOptions(options.model, trust_remote_code=options.trust_remote_code), seed=0)
    inputs.check_fit(model, prompts.ids, options.sampling.max_new_tokens)
    model = model.to(accelerator.device)
    if accelerator.is_main_process:
        lengths = [len(ids) for ids in prompts.ids]
        print(inputs.describe(f"measuring on {options.data.data}", lengths, prompts.dropped, "prompts"))
        print(
            f"{options.model}: {sum(p.numel() for p in model.parameters()):,} parameters, on {accelerator.device}",
            flush=True,
        )
    evaluation = evaluate(
        Sampler(model, tokenizer, options.sampling, eos_token_ids=eos_token_ids(model, tokenizer)),
        prompts,
        rewards,
        seed=options.seed,
        samples=options.samples,
        on_error=options.reward.on_reward_error,
        accelerator=accelerator,
    )
    examples = gathered(evaluation.examples, accelerator.num_processes)
    if accelerator.is_main_process:
        show(evaluation, len(prompts), options.samples)
        if options.output:
            write(options, examples)
    return 0


def gathered(examples: list[dict[str, Any]], processes: int) -> list[dict[str, Any]]:
    """Join the completions of all processes, in the order of the prompts."""
    if processes > 1:
        from accelerate.utils import gather_object

        examples = gather_object(examples)
    return sorted(examples, key=lambda example: example["group"])


def show(evaluation: Evaluation, prompts: int, samples: int) -> None:
    """Print the means and their standard errors."""
    table = Table(caption=f"over {prompts:,} prompts, {samples} completion{'s' * (samples > 1)} each")
    for title in ("", "mean", "standard error"):
        table.add_column(title, justify="left" if not title else "right")
    for name, mean in evaluation.metrics.items():
        error = evaluation.errors[name]
        told = ["-" if math.isnan(value) else f"{value:.4g}" for value in (mean, error)]
        table.add_row(label(name).words, *told)
    Console().print(table)


def write(options: EvalOptions, examples: list[dict[str, Any]]) -> None:
    """Write completions with their rewards, one JSON object a line; a reward that does not apply is null."""

    def plain(value: float) -> float | None:
        return None if math.isnan(value) else value

    assert options.output is not None
    with options.output.open("w", encoding="utf-8") as file:
        for example in examples:
            parts = {name: plain(value) for name, value in example["parts"].items()}
            line = {**example, "reward": plain(example["reward"]), "parts": parts}
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
    print(f"completions: {options.output}")


main = recipe("align eval", EvalOptions, train)

if __name__ == "__main__":
    main()

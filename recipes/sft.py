"""Supervised fine-tuning on any model and demonstrations: `align sft --model FOLDER --data demonstrations.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from align.config import SFTConfig
from align.data import Examples, read_examples, tokenize_examples
from align.logprobs import Policy
from align.sft import SFT
from recipes.answered import learn_from_rows
from recipes.common import recipe
from recipes.options import SFTOptions

if TYPE_CHECKING:
    from accelerate import Accelerator


def train(options: SFTOptions, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    data = options.data
    return learn_from_rows(
        "sft",
        options,
        command,
        read=read_examples,
        tokenize=partial(tokenize_examples, max_tokens=data.max_tokens, too_long=data.too_long),
        build=build,
        go_on="align grpo --model {model} --data prompts.jsonl --reward exact_answer",
    )


def build(
    config: SFTConfig, policy: Policy, examples: Examples, held_out: Examples | None, accelerator: Accelerator
) -> SFT:
    """Build SFT; what is held out is only measured on."""
    return SFT(policy, examples, config, accelerator)


main = recipe("align sft", SFTOptions, train)

if __name__ == "__main__":
    main()

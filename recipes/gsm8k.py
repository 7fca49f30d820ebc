"""GRPO on word problems, for an instruct model of one's own: right numbers earn 1, the asked-for last line 0.1.

    python -m recipes.gsm8k --model FOLDER_OR_HUB_ID --data openai/gsm8k:main

Rows have a `question`, and an `answer` that ends in `#### 42`. A folder or hub id is measured on its split `test`;
beside a file name another with --eval-data. Nothing is fetched but what is named here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from recipes import word_problems
from recipes.common import recipe
from recipes.grpo import build
from recipes.options import GRPOOptions, own_defaults
from recipes.prompted import train_on_prompts

REWARDS = ("numeric_answer", "recipes.word_problems:marked=0.1")


def train(options: GRPOOptions, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    data = options.data.data
    held_out = options.held_out.eval_data or (None if Path(data).expanduser().is_file() else data)
    named = held_out and word_problems.SCHEME + held_out
    options = replace(
        options,
        data=replace(options.data, data=word_problems.SCHEME + data),
        held_out=replace(options.held_out, eval_data=named),
    )
    return train_on_prompts("gsm8k", options, command, build)


def defaults(arguments: Sequence[str]) -> GRPOOptions:
    """Return what holds where nothing else is said: LoRA, and up to 512 tokens an answer."""
    return own_defaults(arguments, rewards=REWARDS, system=word_problems.SYSTEM)


main = recipe("python -m recipes.gsm8k", GRPOOptions, train, defaults)

if __name__ == "__main__":
    main()

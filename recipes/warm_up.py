"""The start that all runs on the walk task share: a new model, taught the form of an answer by a few demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config import OptimizerConfig, SFTConfig
from align.data import read_examples, tokenize_examples
from align.logprobs import Policy
from align.sft import SFT
from recipes import walk
from recipes.common import RunOptions, execute, save_result, tell

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

OPTIMIZER = OptimizerConfig(learning_rate=3e-3, warmup_steps=30)


def warm_up(
    run: RunOptions,
    directory: Path,
    command: Sequence[str],
    accelerator: Accelerator,
    *,
    config: Any,
    steps: int,
    seed: int,
) -> int:
    """Teach a new model the form of an answer by demonstrations, and save it; return an exit code."""
    model, tokenizer = walk.walk_model(seed=seed), walk.walk_tokenizer()
    tell(f"Warm-up: {steps} supervised steps; 40 % of the walks shown think.", run, accelerator)
    sft = supervised(Policy(model), tokenizer, accelerator, steps=steps, seed=seed)
    # Too short to be worth measuring or resuming half-way: what counts is its model.
    run = replace(run, directory=directory, evaluate_every=0, save_every=max(1, steps), profile=False, report_to=())
    result = execute(sft, directory, run, config=config, command=command, accelerator=accelerator)
    if result.finished:
        save_result(model, tokenizer, result, run, accelerator)
    return result.exit_code


def supervised(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator, *, steps: int, seed: int
) -> SFT:
    """Build supervised fine-tuning on the demonstrations, of which 40 % think."""
    rows = walk.demonstrations(walk.splits(seed, 0)[1], thinking=0.4, seed=seed)
    examples = tokenize_examples(read_examples(rows), tokenizer)
    return SFT(policy, examples, SFTConfig(steps=steps, seed=seed, optimizer=OPTIMIZER), accelerator)

"""DPO teaches a tiny model to think, from pairs of its own answers: the walk task from the start that GRPO has.

    python -m recipes.dpo_walk --seed 1

The warmed-up model answers each walk several times, and each right answer is preferred to a wrong one of the same walk.
Nothing is sampled while DPO learns from these pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from align.config import DPOConfig, OptimizerConfig
from align.dpo import DPO
from align.pairs import read_pairs, tokenize_pairs
from recipes.answers_walk import Answer, AnswerOptions, Start, learn_from_answers
from recipes.common import RunOptions, recipe

DPO_DEFAULTS = DPOConfig(
    steps=115,  # about one epoch
    pairs_per_step=32,
    sft_weight=1.0,  # without it the right answers grow unlikely too, as long as the wrong ones fall faster
    optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=5, final_fraction=0.1),
)


@dataclass(frozen=True)
class Options:
    """Warm a tiny model up on demonstrations, most of them guesses, and let DPO prefer its right answers."""

    sft_steps: int = 250
    """Supervised steps on the demonstrations."""
    answers: AnswerOptions = field(default_factory=AnswerOptions)
    dpo: DPOConfig = field(default_factory=lambda: DPO_DEFAULTS)
    run: RunOptions = field(default_factory=lambda: RunOptions(evaluate_every=25))


def pairs_of(answers: list[list[Answer]]) -> list[dict[str, Any]]:
    """Prefer each right answer to a wrong one of the same walk, as far as there are both."""
    pairs = []
    for told in answers:
        right = [answer for answer in told if answer.right]
        wrong = [answer for answer in told if not answer.right and answer.text.strip()]
        pairs += zip(right, wrong, strict=False)
    return [
        {"prompt": chosen.prompt, "chosen": chosen.completion, "rejected": rejected.completion}
        for chosen, rejected in pairs
    ]


def build(config: DPOConfig, start: Start) -> DPO:
    """Build DPO on the rows of a run."""
    pairs = tokenize_pairs(read_pairs(start.rows), start.tokenizer)
    return DPO(start.policy, pairs, config, start.accelerator, reference=start.reference)


def train(options: Options, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    seed, begin = options.dpo.seed, partial(build, options.dpo)
    return learn_from_answers("dpo_walk", options, command, seed=seed, rows_of=pairs_of, build=begin)


main = recipe("python -m recipes.dpo_walk", Options, train)

if __name__ == "__main__":
    main()

"""KTO teaches a tiny model to think, from single answers of its own that are liked or not: the start that GRPO has.

    python -m recipes.kto_walk --seed 1

The warmed-up model answers each walk several times; the right square is liked, any other is not, and no two answers are
compared. Nothing is sampled while KTO learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from align.config import KTOConfig, OptimizerConfig
from align.kto import KTO
from align.pairs import read_feedback, tokenize_feedback
from recipes.answers_walk import Answer, AnswerOptions, Start, learn_from_answers
from recipes.common import RunOptions, recipe

KTO_DEFAULTS = KTOConfig(
    steps=150,
    examples_per_step=64,
    optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=5, final_fraction=0.1),
)


@dataclass(frozen=True)
class Options:
    """Warm a tiny model up on demonstrations, most of them guesses, and let KTO tell its right answers from others."""

    sft_steps: int = 250
    """Supervised steps on the demonstrations."""
    answers: AnswerOptions = field(default_factory=AnswerOptions)
    kto: KTOConfig = field(default_factory=lambda: KTO_DEFAULTS)
    run: RunOptions = field(default_factory=lambda: RunOptions(evaluate_every=25))


def feedback_of(answers: list[list[Answer]]) -> list[dict[str, Any]]:
    """Like the right answers, and no others."""
    return [
        {"prompt": answer.prompt, "completion": answer.completion, "label": answer.right}
        for told in answers
        for answer in told
        if answer.text.strip()
    ]


def build(config: KTOConfig, start: Start) -> KTO:
    """Build KTO on the rows of a run."""
    feedback = tokenize_feedback(read_feedback(start.rows), start.tokenizer)
    return KTO(start.policy, feedback, config, start.accelerator, reference=start.reference)


def train(options: Options, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    seed, begin = options.kto.seed, partial(build, options.kto)
    return learn_from_answers("kto_walk", options, command, seed=seed, rows_of=feedback_of, build=begin)


main = recipe("python -m recipes.kto_walk", Options, train)

if __name__ == "__main__":
    main()

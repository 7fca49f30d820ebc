"""KTO on any model and answers that were liked or not: `align kto --model FOLDER --data feedback.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from align.config import KTOConfig
from align.kto import KTO, asked_of_reference
from align.logprobs import Policy
from align.pairs import Feedback, read_feedback, tokenize_feedback
from recipes.answered import learn_from_rows, make_reference
from recipes.common import recipe
from recipes.options import KTOOptions

if TYPE_CHECKING:
    from accelerate import Accelerator


def train(options: KTOOptions, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    data = options.data

    def build(
        config: KTOConfig, policy: Policy, feedback: Feedback, held_out: Feedback | None, accelerator: Accelerator
    ) -> KTO:
        asked, budget = asked_of_reference(feedback, config, held_out), config.optimizer.tokens_per_micro_batch
        reference = make_reference(policy, asked, options, accelerator, tokens_per_batch=budget)
        return KTO(policy, feedback, config, accelerator, reference=reference)

    return learn_from_rows(
        "kto",
        options,
        command,
        read=read_feedback,
        tokenize=partial(tokenize_feedback, max_tokens=data.max_tokens, too_long=data.too_long),
        build=build,
    )


main = recipe("align kto", KTOOptions, train)

if __name__ == "__main__":
    main()

"""DPO and its family on any model and pairs: `align dpo --model FOLDER --data pairs.jsonl`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from align import preferences
from align.config import DPOConfig
from align.dpo import DPO
from align.logprobs import Policy
from align.pairs import Pairs, read_pairs, tokenize_pairs
from align.preferences import averaged, dpo_margins, summed
from recipes.answered import learn_from_rows, make_reference
from recipes.common import recipe
from recipes.options import DPOOptions, PreferenceLoss, dpo_defaults

if TYPE_CHECKING:
    from accelerate import Accelerator

WITHOUT_REFERENCE = ("simpo", "orpo")


def train(options: DPOOptions, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    data, name = options.data, options.objective.loss
    chosen = objective(name, options.dpo)

    if name in WITHOUT_REFERENCE and options.reference.reference_cache:
        raise ValueError(f"--reference-cache means nothing to --loss {name}, which has no reference: leave it out")

    def build(config: DPOConfig, policy: Policy, pairs: Pairs, held_out: Pairs | None, accelerator: Accelerator) -> DPO:
        asked = [side for each in (pairs, held_out) if each for side in (each.chosen, each.rejected)]
        budget = config.optimizer.tokens_per_micro_batch
        reference = None
        if name not in WITHOUT_REFERENCE:
            reference = make_reference(policy, asked, options, accelerator, tokens_per_batch=budget)
        return DPO(policy, pairs, config, accelerator, reference=reference, **chosen)

    limits = {"max_tokens": data.max_tokens, "too_long": data.too_long, "degenerate": data.degenerate}
    return learn_from_rows(
        "dpo",
        options,
        command,
        read=partial(read_pairs, degenerate=data.degenerate),
        tokenize=partial(tokenize_pairs, **limits),
        build=build,
    )


def objective(name: PreferenceLoss, config: DPOConfig) -> dict[str, Any]:
    """Return the loss of a pair and the score of an answer that a word of the command line stands for."""
    beta, smoothing = config.beta, config.label_smoothing
    if smoothing and name not in ("dpo", "robust"):
        raise ValueError(f"--label-smoothing {smoothing} means nothing to --loss {name}: leave it out, or take robust")
    losses: dict[PreferenceLoss, tuple[Callable[..., Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
        "dpo": (partial(preferences.dpo_loss, beta=beta, label_smoothing=smoothing), summed),
        "robust": (of_margins(partial(preferences.robust_loss, beta=beta, label_smoothing=smoothing)), summed),
        "hinge": (of_margins(partial(preferences.hinge_loss, beta=beta)), summed),
        "ipo": (of_margins(partial(preferences.ipo_loss, beta=beta)), averaged),
        "apo-zero": (of_log_ratios(partial(preferences.apo_zero_loss, beta=beta)), summed),
        "apo-down": (of_log_ratios(partial(preferences.apo_down_loss, beta=beta)), summed),
        "simpo": (partial(preferences.simpo_loss, beta=beta), averaged),
        "orpo": (lambda chosen, rejected: beta * preferences.orpo_loss(chosen, rejected), averaged),
    }
    loss, score = losses[name]
    return {"loss": loss, "score": score}


def of_margins(loss: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Make a loss of the four log-probabilities of one of their margin."""
    return lambda *logprobs: loss(dpo_margins(*logprobs))


def of_log_ratios(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Make a loss of the four log-probabilities of one of the two log-ratios."""
    return lambda chosen, rejected, ref_chosen, ref_rejected: loss(chosen - ref_chosen, rejected - ref_rejected)


main = recipe("align dpo", DPOOptions, train, dpo_defaults)

if __name__ == "__main__":
    main()

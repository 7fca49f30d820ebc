"""Held-out performance: sample completions of every prompt and score them, leaving the training run untouched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align.batch import Prompts, Rollouts
from align.config import OnError
from align.models import check_lengths
from align.rewards import Reward, score_rollouts
from align.sampler import Sampler

if TYPE_CHECKING:
    from accelerate import Accelerator

HELD_OUT = -1
"""Takes the step's place among the keys of the random draws, so that evaluations never share draws with training."""


@dataclass(frozen=True)
class Evaluation:
    """What a policy does on held-out prompts.

    metrics: named as in training: reward/mean, reward/<name>, completion/length, completion/truncated, the measures.
    errors: standard error of each mean: how far it may be off because other prompts might have been held out.
    examples: the completions of this process as plain values.
    """

    metrics: dict[str, float]
    errors: dict[str, float]
    examples: list[dict[str, Any]]


def evaluate(
    sampler: Sampler,
    prompts: Prompts,
    rewards: Sequence[Reward],
    *,
    seed: int,
    samples: int = 1,
    on_error: OnError = "error",
    measures: Mapping[str, Callable[[Rollouts], Tensor]] | None = None,
    accelerator: Accelerator | None = None,
) -> Evaluation:
    """Sample completions of every prompt at the sampler's temperature and average their rewards.

    The same seed draws the same random numbers at every call, so two evaluations differ by their weights alone.
    With several processes each takes a share of the prompts, and all return the same metrics.

    Args:
        sampler: of the policy that is measured.
        prompts: N of them.
        rewards: what judges the completions; `on_error` is as in `align.rewards.score`.
        seed: keys every random draw.
        samples: completions of each prompt. A mean is over prompts, of each prompt's mean over its completions,
            because completions of one prompt are no independent evidence.
        measures: what else is averaged, by name: a number a completion, [B] of rollouts, such as
            `align.surrogates.kl_penalty` with a kl_coef of 1, which gives "kl/completion".
        accelerator: of a run of several processes.
    """
    check_lengths(sampler.model, prompts.ids, sampler.config.max_new_tokens)
    rank, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    numbers = list(range(len(prompts)))[rank::processes]
    if len(prompts) < processes:
        raise ValueError(f"{len(prompts)} prompts to measure on are fewer than the {processes} processes: give more")
    asked = prompts.select(numbers)
    with accelerator.autocast() if accelerator else nullcontext():
        rollouts = sampler.sample(asked, group_size=samples, seed=seed, step=HELD_OUT, numbers=numbers)
    rollouts = score_rollouts(rollouts, rewards, on_error=on_error)
    columns = {
        "reward/mean": rollouts.rewards,
        **{f"reward/{name}": part for name, part in rollouts.parts.items()},
        "completion/length": rollouts.sequences.action_mask.sum(dim=1),
        "completion/truncated": ~rollouts.terminated,
        **{name: measure(rollouts) for name, measure in (measures or {}).items()},
    }
    completions = torch.stack([column.double() for column in columns.values()])
    values = completions.unflatten(1, (-1, samples)).nanmean(dim=2)  # of each prompt, NaN where none applies
    sums = torch.stack([values.nansum(dim=1), values.square().nansum(dim=1), (~values.isnan()).sum(dim=1)])
    if accelerator:
        reduced: Any = accelerator.reduce(sums.to(accelerator.device), "sum")
        sums = reduced.cpu()
    total, squares, count = sums
    means = total / count  # NaN where a reward applied to nothing
    variances = ((squares - count * means**2) / (count - 1)).clamp(min=0)  # NaN where there is only one prompt
    return Evaluation(
        dict(zip(columns, means.tolist(), strict=True)),
        dict(zip(columns, (variances / count).sqrt().tolist(), strict=True)),
        rollouts.examples(),
    )

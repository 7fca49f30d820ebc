"""Held-out performance: sample one completion a prompt and score it, leaving the training run untouched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from align.batch import Prompts
from align.rewards import Reward, score_rollouts
from align.sampler import Sampler

if TYPE_CHECKING:
    from accelerate import Accelerator

HELD_OUT = -1
"""Takes the step's place among the keys of the random draws, so that evaluations never share draws with training."""


@dataclass(frozen=True)
class Evaluation:
    """What a policy does on held-out prompts.

    metrics: mean of each reward by name, of the total as "reward", of the length in tokens, share "truncated".
    examples: the completions of this process as plain values.
    """

    metrics: dict[str, float]
    examples: list[dict[str, Any]]


def evaluate(
    sampler: Sampler, prompts: Prompts, rewards: Sequence[Reward], *, seed: int, accelerator: Accelerator | None = None
) -> Evaluation:
    """Sample a completion of every prompt at the sampler's temperature and average its rewards.

    The same seed draws the same random numbers at every call, so two evaluations differ by their weights alone.
    With several processes each takes a share of the prompts, and all return the same metrics.
    """
    rank, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    numbers = list(range(len(prompts)))[rank::processes]
    rollouts = sampler.sample(prompts.select(numbers), group_size=1, seed=seed, step=HELD_OUT, numbers=numbers)
    rollouts = score_rollouts(rollouts, rewards)
    columns = {
        **rollouts.parts,
        "reward": rollouts.rewards,
        "length": rollouts.sequences.action_mask.sum(dim=1),
        "truncated": ~rollouts.terminated,
    }
    values = torch.stack([column.double() for column in columns.values()])
    sums = torch.stack([values.nansum(dim=1), (~values.isnan()).sum(dim=1)])
    if accelerator:
        reduced: Any = accelerator.reduce(sums.to(accelerator.device), "sum")
        sums = reduced.cpu()
    means = (sums[0] / sums[1]).tolist()  # NaN where a reward applied to nothing
    return Evaluation(dict(zip(columns, means, strict=True)), rollouts.examples())

"""The records that travel through the house: prompts, token sequences, rollouts.

B sequences, T tokens, G completions of one prompt. Every sequence is right-padded, and every mask is made from
lengths, so the padding id is never looked at and may equal EOS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

Message = dict[str, str]
"""One turn of a conversation: {"role": ..., "content": ...}."""
Completion = str | list[Message]
"""A text, or the messages of an answer: what rewards are given."""


def text_of(completion: Completion) -> str:
    """Return the text of a completion: itself, or the content of its last message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


@dataclass(frozen=True)
class Prompts:
    """N prompts, tokenised once from their text; ids are never re-made from generated text.

    ids: token ids of each prompt, the chat template applied.
    texts: each prompt as the data has it, a string or a list of messages; what rewards are given.
    columns: the other columns of the data, one value a prompt; passed to rewards by name.
    dropped: number of prompts of the data that were too long and left out.
    """

    ids: list[list[int]]
    texts: list[str | list[Message]]
    columns: dict[str, list[Any]]
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Sequence[int]) -> Prompts:
        """Return the prompts of the given rows, in that order; a row may be named more than once."""
        return Prompts(
            ids=[self.ids[row] for row in rows],
            texts=[self.texts[row] for row in rows],
            columns={name: [values[row] for row in rows] for name, values in self.columns.items()},
        )


@dataclass(frozen=True)
class Sequences:
    """B token sequences and which of their tokens are actions.

    input_ids: int64, right-padded with 0. [B, T]
    lengths: number of real tokens of each row. [B]
    action_mask: bool, True at the tokens that the policy chose, or in SFT is to imitate. [B, T]
    """

    input_ids: Tensor
    lengths: Tensor
    action_mask: Tensor

    @classmethod
    def from_lists(cls, ids: Sequence[Sequence[int]], action_masks: Sequence[Sequence[bool]]) -> Sequences:
        """Right-pad rows of token ids and their action masks to one tensor each."""
        width = max((len(row) for row in ids), default=0)
        padded_ids = [[*row, *([0] * (width - len(row)))] for row in ids]
        padded_masks = [[*row, *([False] * (width - len(row)))] for row in action_masks]
        return cls(
            input_ids=torch.tensor(padded_ids, dtype=torch.int64).view(len(ids), width),
            lengths=torch.tensor([len(row) for row in ids], dtype=torch.int64),
            action_mask=torch.tensor(padded_masks, dtype=torch.bool).view(len(ids), width),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def attention_mask(self) -> Tensor:
        """Bool, True at real tokens. [B, T]"""
        return torch.arange(self.input_ids.shape[1], device=self.lengths.device) < self.lengths[:, None]

    def select(self, rows: Tensor) -> Sequences:
        """Return the given rows, no wider than the longest of them."""
        width = int(self.lengths[rows].max()) if len(rows) else 0
        return Sequences(self.input_ids[rows, :width], self.lengths[rows], self.action_mask[rows, :width])

    def to(self, device: torch.device | str) -> Sequences:
        """Return the sequences on a device."""
        return Sequences(self.input_ids.to(device), self.lengths.to(device), self.action_mask.to(device))


@dataclass(frozen=True)
class Rollouts:
    """B = N * G completions; rows n*G .. n*G + G-1 are the group of prompt n.

    prompts: the prompts that were asked. N of them
    numbers: their numbers within the step, over all processes. N of them
    group_size: G, completions of each prompt.
    sequences: prompt and completion; its actions are the completion's tokens, the closing EOS among them. [B, T]
    logprobs: of the distribution that drew the tokens, temperature and truncation included, 0 elsewhere. [B, T]
    entropy: entropy of the distribution that each action was drawn from, nats, 0 elsewhere. [B, T]
    terminated: True where an EOS ended the completion, False where the length cap cut it. [B]
    texts: the completions decoded, without special tokens unless the sampler was told to keep them. B of them
    weight_version: number of optimizer steps that the sampling weights had seen.
    rewards: NaN where there is none (yet). [B]
    parts: what each reward function gave, unweighted, NaN where it does not apply. name -> [B]
    notes: what an algorithm keeps of every token while it learns from it. name -> [B, T]
    """

    prompts: Prompts
    numbers: list[int]
    group_size: int
    sequences: Sequences
    logprobs: Tensor
    entropy: Tensor
    terminated: Tensor
    texts: list[str]
    weight_version: int
    rewards: Tensor
    parts: dict[str, Tensor]
    notes: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sequences)

    def examples(self) -> list[dict[str, Any]]:
        """Return each completion as plain values, to be shown."""
        tokens = self.sequences.action_mask.sum(dim=1).tolist()
        return [
            {
                "group": self.numbers[row // self.group_size],
                "prompt": self.prompts.texts[row // self.group_size],
                "completion": text,
                "reward": float(self.rewards[row]),
                "parts": {name: float(part[row]) for name, part in self.parts.items()},
                "tokens": tokens[row],
                "terminated": bool(self.terminated[row]),
            }
            for row, text in enumerate(self.texts)
        ]

    def sums(self) -> dict[str, Tensor]:
        """Return what `means_of` needs, to be added up over processes."""
        valid = self.rewards[~self.rewards.isnan()].double()
        sums = {
            "completions": torch.tensor(len(self)),
            "tokens": self.sequences.action_mask.sum(),
            "entropy": self.entropy.sum(),
            "truncated": (~self.terminated).sum(),
            "valid": torch.tensor(len(valid)),
            "reward": valid.sum(),
            "square": valid.square().sum(),
        }
        for name, part in self.parts.items():
            sums[f"part {name}"], sums[f"valid {name}"] = part.nansum(), (~part.isnan()).sum()
        return sums


def means_of(sums: dict[str, float]) -> dict[str, float]:
    """Return the metrics that all algorithms report of their rollouts, from their `sums` over all processes."""
    mean = sums["reward"] / sums["valid"] if sums["valid"] else math.nan
    variance = (sums["square"] - sums["valid"] * mean**2) / max(sums["valid"] - 1, 1)
    parts = [name.removeprefix("valid ") for name in sums if name.startswith("valid ") and sums[name]]  # no empty mean
    return {
        "reward/mean": mean,
        "reward/std": max(variance, 0.0) ** 0.5,
        **{f"reward/{name}": sums[f"part {name}"] / sums[f"valid {name}"] for name in parts},
        "completion/length": sums["tokens"] / sums["completions"],
        "completion/truncated": sums["truncated"] / sums["completions"],
        "policy/entropy": sums["entropy"] / max(sums["tokens"], 1),
        "tokens/generated": sums["tokens"],
    }


@lru_cache(maxsize=2)  # a step asks for a few rows of one epoch, or of two
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which an epoch visits `size` rows: a permutation, a pure function of (seed, epoch)."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def rows_at(position: int, count: int, size: int, seed: int) -> list[int]:
    """Return the `count` rows from a position on, where the epochs are laid end to end: a resume needs no more.

    >>> rows_at(3, 4, size=5, seed=0) == [*epoch_order(5, 0, 0), *epoch_order(5, 0, 1)][3:7]
    True
    """
    if size < 1:
        raise ValueError("there are no rows to draw from: every row of the data was left out, or none was read")
    rows: list[int] = []
    while len(rows) < count:
        epoch, start = divmod(position + len(rows), size)
        rows += epoch_order(size, seed, epoch)[start : start + count - len(rows)].tolist()
    return rows

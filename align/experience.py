"""What PPO keeps of a rollout while it learns from it: the completions, and what was true of every token then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from align.batch import Rollouts, Sequences


class Seen(NamedTuple):
    """What policy, value head and reference said of the actions, without gradient; 0 elsewhere. [B, T]

    final_values: the value of the state after the last action, where it was asked for. [B]
    """

    logprobs: Tensor
    values: Tensor
    ref_logprobs: Tensor
    final_values: Tensor | None


class Targets(NamedTuple):
    """What an update needs of every token; 0 where the mask is False. [B, T]

    action_mask: bool, the actions that are learned from.
    old_logprobs, values: of policy and value head with the weights that sampled.
    advantages: whitened over the actions of the step.
    returns: what the value head is to predict.
    """

    action_mask: Tensor
    old_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def select(self, rows: Tensor, width: int, device: torch.device | str = "cpu") -> Targets:
        """Return some rows, the first `width` tokens of them, on a device."""
        return Targets(*(each[rows, :width].to(device) for each in self))


@dataclass(frozen=True)
class Experience:
    """Rollouts and the targets of their tokens."""

    rollouts: Rollouts
    targets: Targets

    @property
    def sequences(self) -> Sequences:
        """The token sequences, with the actions that are learned from."""
        return replace(self.rollouts.sequences, action_mask=self.targets.action_mask)

    def groups(self, groups: Sequence[int]) -> Experience:
        """Return whole groups of completions, in the order given."""
        size, width = self.rollouts.group_size, self.targets.action_mask.shape[1]
        rows = torch.tensor([group * size + sample for group in groups for sample in range(size)])
        return Experience(self.rollouts.select(groups), self.targets.select(rows, width))

    @staticmethod
    def joined(pieces: Sequence[Experience]) -> Experience:
        """Join the pieces of all processes, in the order of the prompts' numbers."""
        rollouts = Rollouts.concatenate([piece.rollouts for piece in pieces])
        width = rollouts.sequences.input_ids.shape[1]
        widened = [[F.pad(each, (0, width - each.shape[1])) for each in piece.targets] for piece in pieces]
        targets = Targets(*(torch.cat(same) for same in zip(*widened, strict=True)))
        order = sorted(range(len(rollouts.numbers)), key=rollouts.numbers.__getitem__)
        return Experience(rollouts, targets).groups(order)

    def state(self) -> dict[str, Any]:
        """Return everything but the prompts, as tensors and plain values."""
        return {"rollouts": self.rollouts.state(), "targets": self.targets._asdict()}

"""Decode without a cache: the slow way that is right for every architecture whose state cannot be expanded."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from align.logprobs import base_model, forward


class PlainDecoder:
    """Next-token logits of R rows that grow together: right-padded, so that nothing looks at the padding."""

    def __init__(
        self, model: nn.Module, ids: list[list[int]], group_size: int, room: int, device: torch.device
    ) -> None:
        warnings.warn(
            f"{type(base_model(model)).__name__}: its cache cannot be expanded to a group, so every token forwards its "
            "whole completion again. Correct, but slow.",
            stacklevel=4,
        )
        self.model = model
        width = max(len(row) for row in ids) + room
        padded = torch.tensor([row + [0] * (width - len(row)) for row in ids], device=device)
        self.ids = padded.repeat_interleave(group_size, dim=0)
        self.lengths = torch.tensor([len(row) for row in ids], device=device).repeat_interleave(group_size)
        self._forward()

    def _forward(self) -> None:
        ids = self.ids[:, : int(self.lengths.max())]
        logits = forward(self.model, ids, None, use_cache=False).logits
        self.logits = logits[torch.arange(len(ids)), self.lengths - 1]

    def keep(self, rows: Tensor) -> None:
        """Let the other rows leave the batch."""
        self.ids, self.lengths = self.ids[rows], self.lengths[rows]

    def append(self, tokens: Tensor) -> None:
        """Take in one token a row and forward everything again. [R]"""
        self.ids[torch.arange(len(tokens)), self.lengths] = tokens
        self.lengths = self.lengths + 1
        self._forward()

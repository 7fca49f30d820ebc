"""A cache that grows in place: transformers' own copies all keys and values at every token, to append one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

BLOCK = 64
"""Tokens of room that a layer is given at a time: what is kept of it is then copied once in so many tokens."""


def growing(layers: Sequence[Any]) -> list[Any]:
    """Return the layers of a filled cache with those that keep every token as ones that grow in place.

    Others, of a window or a state, are returned as they are. What is written in place can carry no gradient.
    """
    from transformers.cache_utils import DynamicLayer

    return [_growing_layer().of(layer) if type(layer) is DynamicLayer else layer for layer in layers]


@cache
def _growing_layer() -> type[Any]:
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):
        """Keys and values are views of the filled part of tensors with room after it. [B, heads, filled (+ room), D]"""

        keys: Any
        values: Any
        rooms: tuple[Tensor, ...] = ()

        @classmethod
        def of(cls, layer: Any) -> Any:
            new = cls()
            vars(new).update(vars(layer))
            return new

        def reorder_cache(self, beam_idx: Tensor) -> None:
            """Take rows, any number of times each, and give them room."""
            held = self.keys, self.values
            filled, rows = held[0].shape[2], beam_idx.to(held[0].device)
            self.rooms = tuple(x.new_empty(len(rows), x.shape[1], filled + BLOCK, x.shape[3]) for x in held)
            self._view(filled)
            for old, new in zip(held, (self.keys, self.values), strict=True):
                torch.index_select(old, 0, rows, out=new)

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            """Append tokens, at most a block of them. [B, heads, T, D]"""
            filled, new = self.keys.shape[2], key_states.shape[2]
            if not self.rooms or filled + new > self.rooms[0].shape[2]:
                self.reorder_cache(torch.arange(len(key_states)))
            self._view(filled + new)
            self.keys.narrow(2, filled, new).copy_(key_states)
            self.values.narrow(2, filled, new).copy_(value_states)
            return self.keys, self.values

        def _view(self, filled: int) -> None:
            self.keys, self.values = (room.narrow(2, 0, filled) for room in self.rooms)

    return GrowingLayer

"""Decode without a cache, the slow way that is right for every architecture, and find out which ones need it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from align.logprobs import base_model, forward

STATES = {
    "LinearAttentionLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
}
"""Layers of a cache that keep a state in which all tokens so far, padding too, may have left their trace."""
KEYS = {"DynamicLayer", "DynamicSlidingWindowLayer"}
"""Layers that keep the keys and values of each token."""

_CONTINUES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def continues(model: nn.Module, cache: Any, decoder: Callable[..., Any]) -> bool:
    """Tell whether a cache with states, expanded and compacted, gives what whole rows give; tried once a model.

    Args:
        model: the causal LM, or a PEFT model around one.
        cache: that it made, of any kind.
        decoder: (model, prompts, group_size, room, device) -> what decodes with the cache.
    """
    kinds = {type(layer).__name__ for layer in getattr(cache, "layers", [None])}
    if not kinds & STATES or not kinds <= STATES | KEYS:
        return False
    if model not in _CONTINUES:
        _CONTINUES[model], exact = True, False  # True for the decoder that is tried
        try:
            exact = _is_exact(model, decoder)
        except (RuntimeError, ValueError, IndexError) as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.warn(f"{type(base_model(model)).__name__}: its cache is not continued ({why})", stacklevel=2)
        finally:
            _CONTINUES[model] = exact
    return _CONTINUES[model]


@torch.no_grad()
def _is_exact(model: nn.Module, decoder: Callable[..., Any]) -> bool:
    """Continue prompts of two lengths by the cache and by whole rows, and compare what comes next."""
    device = next(model.parameters()).device
    ids = (torch.arange(1, 13, device=device) % base_model(model).config.get_text_config().vocab_size).tolist()
    prompts, words = [ids[:1], ids[1:9]], ids[9:]
    with torch.autocast(device.type, enabled=False):
        cached = decoder(model, prompts, 2, len(words), device)
        rows = torch.tensor([3, 0], device=device)
        cached.keep(rows)
        for word in words:
            cached.append(torch.tensor([word, word], device=device))
        whole = [
            model(input_ids=torch.tensor([prompts[row // 2] + words], device=device)).logits[0, -1]
            for row in rows.tolist()
        ]
    expected = torch.stack(whole).float()
    return bool((cached.logits.float() - expected).abs().max() <= 1e-3 * expected.abs().max())


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

"""What a model allows, tried out against its own forward, so that no unknown kind of head or cache is guessed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Shortcuts(NamedTuple):
    """Ways to the same logits with less work.

    head: hidden states of the trunk alone, and the head at those that predict an action.
    cache: a prompt that rows have in common is forwarded once, and each goes on from its cache.
    """

    head: bool = False
    cache: bool = False


Logits = Callable[[Shortcuts, Tensor, Tensor], Tensor | None]
"""(shortcuts, ids [B, T], action mask [B, T]) -> logits of the N actions [N, V]; None without a cache to expand."""


@torch.no_grad()
def tried_out(model: PreTrainedModel, logits_of: Logits, *, checkpoints: bool) -> Shortcuts:
    """Return the shortcuts that give the model's own logits, and warn of each that does not.

    checkpoints: whether gradient checkpointing is on, which leaves no cache.
    """
    device = next(model.parameters()).device
    words = model.config.get_text_config().vocab_size
    ids = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 5, 6], [7, 8, 9, 10, 11]], device=device) % words
    mask = torch.arange(5, device=device) >= torch.tensor([[3], [3], [1]], device=device)

    def logits(shortcuts: Shortcuts) -> Tensor | None:
        with torch.random.fork_rng([device] if ids.is_cuda else []), torch.autocast(device.type, enabled=False):
            torch.manual_seed(0)  # dropout is the same where shapes are; where it is not, a shortcut is not exact
            return logits_of(shortcuts, ids, mask)

    own = cast(Tensor, logits(Shortcuts()))
    rounding = max(1e-3, 10 * torch.finfo(own.dtype).eps)

    def wrong_with(shortcuts: Shortcuts) -> str | None:
        try:
            got = logits(shortcuts)
        except (RuntimeError, ValueError, IndexError) as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        if got is not None and bool((got - own).abs().max() <= rounding * own.abs().max()):
            return None
        return "another kind of cache, or dropout" if shortcuts.cache else "another kind of head"

    apart = model.get_output_embeddings() is not None and model.base_model is not model
    head = wrong_with(Shortcuts(head=True)) if apart else "another kind of head"
    cache = None if checkpoints else wrong_with(Shortcuts(head is None, cache=True))
    faults = {
        f"its head cannot be run alone ({head}), so the logits of a whole micro-batch are held in memory": head,
        "gradient checkpointing is on, so every row forwards its prompt": checkpoints,
        f"what follows a cached prompt is not exact ({cache}), so every row forwards its prompt": cache,
    }
    for fault in (fault for fault, there in faults.items() if there):
        advice = "lower tokens_per_micro_batch if that is too much"
        warnings.warn(f"{type(model).__name__}: {fault}; {advice}", stacklevel=2)
    return Shortcuts(head is None, cache is None and not checkpoints)

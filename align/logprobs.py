"""What a policy says of tokens: log-probabilities and entropy, without ever holding the logits of a whole batch.

Everything is laid out as the input is, [B, T]: the entry at t is of token t, predicted from the hidden state at
t - 1. Entries that are not actions are 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from align.shortcuts import Shortcuts, tried_out

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD_BYTES = 256 * 2**20
"""Memory that the logits of one chunk and what is made of them may take."""
SHARE_BELOW, SECOND_FORWARD = 0.9, 64
"""Prompts are forwarded once where at most this share of the tokens is left, a second forward counted as so many."""
CACHED = 8
"""So many tokens in the cache of a row count as one that is forwarded: by memory, measured, from 7 to 25."""


class TokenLogprobs(NamedTuple):
    """log pi(token_t | the tokens before it) and, where asked for, that distribution's entropy; nats, [B, T].

    values: where there is a value head, what it says of the tokens before t: of the state acted in. [B, T]
    """

    logprobs: Tensor
    entropy: Tensor | None
    values: Tensor | None = None


class Policy(nn.Module):
    """A causal LM whose forward gives log-probabilities: the one module that Accelerate is handed.

    Gradients flow through this forward alone. Reaching through a wrapper to a submodule would leave each process of a
    data-parallel run with a gradient of its own.
    """

    def __init__(self, model: nn.Module, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, input_ids: Tensor, action_mask: Tensor) -> TokenLogprobs:
        """Score the actions of right-padded rows. [B, T], [B, T] -> TokenLogprobs without entropy."""
        return token_logprobs(self.model, input_ids, None, action_mask, temperature=self.temperature)

    def shortcuts(self) -> Shortcuts:
        """Return what the model allows, tried out when first asked for."""
        return _shortcuts_of(base_model(self.model))


@dataclass(frozen=True)
class FrozenPolicy:
    """A policy that is not trained, or one whose adapters are trained and left out here: a reference."""

    policy: Policy
    without_adapters: bool = False

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, action_mask: Tensor) -> Tensor:
        """Score the actions of right-padded rows. [B, T], [B, T] -> [B, T]"""
        self.policy.to(input_ids.device)
        with cast(Any, self.policy.model).disable_adapter() if self.without_adapters else nullcontext():
            return self.policy(input_ids, action_mask).logprobs


def token_logprobs(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    action_mask: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    value_head: nn.Module | None = None,
) -> TokenLogprobs:
    """Compute the log-probability of each action under a causal LM.

        logprobs[b, t] = log softmax(logits[b, t-1] / temperature)[input_ids[b, t]]

    A prompt that several rows begin with is forwarded once where that is less work and the model's cache allows it,
    and rows are forwarded apart from much longer ones. Only hidden states that predict an action go through the head,
    in chunks whose logits are recomputed in the backward pass where `HEAD_BYTES` hold not all. The gradient is exact.

    Args:
        model: any Hugging Face causal LM, or a PEFT model around one.
        input_ids: token ids. [B, T]
        attention_mask: True (or 1) at real tokens, padding on either side. [B, T]. None says that every row is
            padded on the right alone: causal attention then never sees the padding, and no mask is built.
        action_mask: bool, True at the tokens to score. [B, T]. The first real token of a row has nothing before it
            that could predict it and counts as False.
        temperature: divides the logits.
        entropy: also return the entropy of each action's distribution.
        value_head: also return what it makes of the hidden states that the actions are predicted from. [N, H] -> [N]

    Returns:
        float32 tensors, 0 where the mask is False.

    Raises:
        ValueError: if the masks differ in shape from the ids, the temperature is not above 0, or there is a value head
            and the model gives no hidden states.
    """
    for name, mask in (("attention_mask", attention_mask), ("action_mask", action_mask)):
        if mask is not None and mask.shape != input_ids.shape:
            raise ValueError(
                f"{name} must have the shape of input_ids {tuple(input_ids.shape)}, got {tuple(mask.shape)}"
            )
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")

    if attention_mask is not None:  # real tokens first: not every architecture is deaf to padding before them
        order = attention_mask.int().argsort(dim=1, descending=True, stable=True)
        actions = action_mask.bool() & attention_mask.bool() & attention_mask.roll(1, dims=1).bool()
        options: Any = {"temperature": temperature, "entropy": entropy, "value_head": value_head}
        said = token_logprobs(model, input_ids.gather(1, order), None, actions.gather(1, order), **options)
        return TokenLogprobs._make(x if x is None else torch.zeros_like(x).scatter(1, order, x) for x in said)

    causal_lm = base_model(model)
    head, cache = _shortcuts_of(causal_lm)
    prompts = SharedPrompts.of(input_ids, action_mask) if cache and bool(action_mask[:, 1:].any()) else None
    if prompts and not pays(prompts.tokens(prompts.numbers.argsort())[-1], (prompts.lengths + prompts.rest).sum()):
        prompts = None
    trunk = causal_lm.base_model if head else causal_lm
    hidden, *places = _hidden_states(trunk, input_ids, action_mask, prompts)  # [N, H]
    logprobs, *entropies = _head_logprobs(causal_lm, head, hidden, input_ids[*places], temperature, entropy)
    if value_head is not None and not head:
        raise ValueError(f"{type(causal_lm).__name__}: gives no hidden states for a value head; use GRPO, or RLOO")

    def laid_out(flat: Tensor) -> Tensor:
        return flat.new_zeros(input_ids.shape).index_put(tuple(places), flat)

    values = None if value_head is None else laid_out(value_head(hidden))
    return TokenLogprobs(laid_out(logprobs), laid_out(*entropies) if entropy else None, values)


def forward(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None, **more: Any) -> Any:
    """Run a model, leaving out what its forward does not name: not every architecture has positions or a cache.

    attention_mask: True at real tokens, those in a cache among them; positions are counted along it. [B, S], S >= T
    """
    if attention_mask is not None and "position_ids" not in more:
        more["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
    arguments = dict(input_ids=input_ids, attention_mask=attention_mask, **more)
    names = _forward_names(type(base_model(model)))
    return model(**{name: value for name, value in arguments.items() if name in names})


@cache
def _forward_names(kind: type[nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)


def base_model(model: nn.Module) -> PreTrainedModel:
    """Return the Hugging Face model inside a PEFT wrapper (its adapters stay in place), or the model itself."""
    adapter = getattr(model, "active_peft_config", None)
    if adapter is not None and adapter.is_prompt_learning:
        raise ValueError(f"adapters that add virtual tokens ({adapter.peft_type}) are not supported: use LoRA")
    return cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else cast(Any, model)


def _head_logprobs(
    model: PreTrainedModel, head: bool, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool
) -> list[Tensor]:
    """Return log-probabilities, and entropies if asked, at N hidden states. [N, H], [N] -> [N], or two of them"""

    def score(hidden: Tensor, targets: Tensor) -> Any:
        logits = _logits(model, hidden) if head else hidden
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return _Chosen.apply(logits if temperature == 1 else logits / temperature, targets, entropy)

    copies = 3 if entropy else 2  # the logits, and what is made of them
    chunk = max(1, HEAD_BYTES // (4 * copies * model.config.get_text_config().vocab_size))
    run: Any = score if len(hidden) <= chunk else partial(checkpoint, score, use_reentrant=False)
    parts = [run(*rows) for rows in zip(hidden.split(chunk), targets.split(chunk), strict=True)]
    return [torch.cat(each) for each in zip(*parts, strict=True)]


class _Chosen(torch.autograd.Function):
    """Log-probabilities of N targets, and entropies if asked, from logits. [N, V], [N] -> [N], or two of them

        d logprob / d logit_v = [v is the target] - p_v        d entropy / d logit_v = -p_v * (log p_v + entropy)

    Autograd would go over more copies of the logits, and back over them for entropies that nobody learns from.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, entropy: bool) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        logp, targets = logits.log_softmax(-1), targets[:, None]
        ctx.save_for_backward(logp, targets)
        ctx.set_materialize_grads(False)
        logprobs = logp.gather(-1, targets)[:, 0]
        # 0 * log 0 is 0, where a model rules a word out with -inf
        return (logprobs, -logp.exp().mul_(logp).nansum(-1)) if entropy else (logprobs,)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_logprob: Tensor | None, by_entropy: Tensor | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        logp, targets = ctx.saved_tensors
        p = logp.exp()
        up = torch.zeros_like(p[:, :1]) if by_logprob is None else by_logprob[:, None]
        if by_entropy is None:
            p.mul_(-up)
        else:
            parts, spread = torch.special.entr(p), by_entropy[:, None]  # -p log p
            p.mul_(-up - spread * parts.sum(-1, keepdim=True)).addcmul_(parts, spread)
        return p.scatter_add_(1, targets, up), None, None


def _logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Apply the head to hidden states, with the scale and the soft cap that the config names. [N, H] -> [N, V]"""
    config = model.config.get_text_config()
    logits = cast(nn.Module, model.get_output_embeddings())(hidden)
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    if scale != 1 or divisor != 1:  # a product with 1 would go over all logits for nothing
        logits = logits * scale / divisor
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    return torch.tanh(logits / cap) * cap if cap else logits


class SharedPrompts(NamedTuple):
    """The U different prompts of B rows. A prompt is what stands before a row's first action, at least one token.

    ids: left-padded without holes, since a sliding window counts the slots of a cache and not positions. [U, P]
    mask: True at real tokens. [U, P]
    numbers: which of the prompts a row begins with. [B]
    lengths: of each row's prompt. [B]
    rest: tokens from a row's first action to the one before its last. [B]
    """

    ids: Tensor
    mask: Tensor
    numbers: Tensor
    lengths: Tensor
    rest: Tensor

    @classmethod
    def of(cls, input_ids: Tensor, action_mask: Tensor) -> SharedPrompts:
        """Find which rows begin alike; a row without actions is a prompt of one token. [B, T], [B, T]"""
        slots, scored = torch.arange(input_ids.shape[1], device=input_ids.device), action_mask[:, 1:]
        first, last = scored.int().argmax(dim=1), (scored * slots[:-1]).amax(dim=1)
        alike, numbers = torch.where(slots <= first[:, None], input_ids, -1).unique(dim=0, return_inverse=True)
        ids, mask = left_padded(alike, (alike >= 0).sum(dim=1))
        return cls(ids, mask, numbers, first + 1, last - first)

    def tokens(self, rows: Tensor) -> Tensor:
        """Tokens that the first of some rows takes, the first two, ..., with padded prompts; alike rows in turn. [b]"""
        prompt, counts = self.lengths[rows].cummax(0).values, torch.arange(1, len(rows) + 1, device=rows.device)
        new = self.numbers[rows].diff(prepend=self.numbers.new_tensor([-1])) != 0
        return new.cumsum(0) * prompt + counts * (prompt // CACHED) + self.rest[rows].cumsum(0)


def pays(shared: Any, plain: Any) -> Any:
    """Return whether forwarding prompts once is less work, from the tokens that either way forwards."""
    return shared + SECOND_FORWARD <= SHARE_BELOW * plain


def left_padded(ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Turn right-padded rows into left-padded ones, without holes, and their attention mask. [B, T], [B]"""
    width = int(lengths.max())
    source = torch.arange(width, device=ids.device) - (width - lengths[:, None])
    return ids.gather(1, source.clamp(min=0)), source >= 0


def by_length(lengths: Tensor) -> Iterator[Tensor]:
    """Cut rows apart wherever that saves more padding than a further forward costs. [B] -> numbers of rows, each [b]"""
    least = SECOND_FORWARD if lengths.device.type == "cpu" else 1024  # as many take no longer than few elsewhere
    waiting = [lengths.argsort(descending=True, stable=True)]
    while waiting:
        rows = waiting.pop()
        shorter = lengths[rows[0]] - lengths[rows]
        saved = shorter * torch.arange(len(rows), 0, -1, device=rows.device)  # by the rows from here on, if apart
        at = int(saved.argmax())
        if saved[at] > least:
            waiting += [rows[at:], rows[:at]]
        else:
            yield rows


def _hidden_states(
    trunk: nn.Module, input_ids: Tensor, action_mask: Tensor, prompts: SharedPrompts | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Run whole rows, or each prompt once and the rest of the rows against its cache, through which gradients flow.

    Returns the hidden states that the N actions are predicted from, or the logits if the trunk is a whole model, and
    the rows and columns of the actions. [N, H], [N], [N]
    """
    slots = torch.arange(input_ids.shape[1], device=input_ids.device)
    actions, found, before = action_mask.bool() & (slots > 0), [], None
    starts, rest = torch.ones_like(input_ids[:, 0]), (actions * slots).amax(dim=1)
    if prompts is not None:
        before, starts, rest = forward(trunk, prompts.ids, prompts.mask, use_cache=True), prompts.lengths, prompts.rest
    for group in by_length(rest):
        new = slots[: max(1, int(rest[group[0]]))]
        if before is None or prompts is None:
            states = forward(trunk, input_ids[group, : len(new)], None, use_cache=False)[0]
        else:
            numbers, cached = prompts.numbers[group], copy(before.past_key_values)
            cached.layers = [copy(layer) for layer in cached.layers]
            cached.reorder_cache(numbers)  # a prompt may be taken any number of times
            ids = input_ids[group].gather(1, (starts[group, None] + new).clamp(max=len(slots) - 1))
            # what a row has no more of is padding, or its positions would go on where the model has none
            mask = torch.cat([prompts.mask[numbers], new < rest[group, None]], dim=1)
            after = forward(trunk, ids, mask, use_cache=True, past_key_values=cached)
            states = torch.cat([before[0][numbers, -1:], after[0]], dim=1)
        rows, columns = actions[group].nonzero(as_tuple=True)
        found.append((states[rows, columns - starts[group][rows]], group[rows], columns))
    return cast(Any, tuple(torch.cat(each) for each in zip(*found, strict=True)))


SHORTCUTS: WeakKeyDictionary[PreTrainedModel, dict[tuple[bool, bool], Shortcuts]] = WeakKeyDictionary()
"""What was found out: (in train mode, with gradient checkpointing) -> shortcuts; a copy of a model may share it."""


def _shortcuts_of(model: PreTrainedModel) -> Shortcuts:
    checkpoints = any(getattr(part, "gradient_checkpointing", False) and part.training for part in model.modules())
    mode, known = (model.training, checkpoints), SHORTCUTS.setdefault(model, {})

    def logits_of(shortcuts: Shortcuts, ids: Tensor, action_mask: Tensor) -> Tensor | None:
        if shortcuts.cache and not expandable(forward(model, ids, None, use_cache=True)):
            return None
        trunk = model.base_model if shortcuts.head else model
        prompts = SharedPrompts.of(ids, action_mask) if shortcuts.cache else None
        hidden, *places = _hidden_states(trunk, ids, action_mask, prompts)
        logits = _logits(model, hidden) if shortcuts.head else hidden
        return logits.new_zeros(*ids.shape, logits.shape[-1]).index_put(tuple(places), logits)

    if mode not in known:
        known[mode] = tried_out(model, logits_of, checkpoints=checkpoints)
        if known[mode].cache:  # exact with the chances of training, so without them too
            known[False, False] = known[mode]
    return known[mode]


def expandable(out: Any) -> bool:
    """Return whether a model's output has a cache whose rows can be repeated, in layers known to be continued."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers = getattr(getattr(out, "past_key_values", None), "layers", [None])
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)

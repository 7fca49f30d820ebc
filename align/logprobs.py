"""What a policy says of tokens: log-probabilities and entropy, without ever holding the logits of a whole batch.

Everything is laid out as the input is, [B, T]: the entry at t is of token t, predicted from the hidden state at
t - 1. Entries that are not actions are 0.
"""

from __future__ import annotations

import inspect
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD_BYTES = 256 * 2**20
"""Memory that the logits of one chunk may take, their copies in the float32 softmax included."""


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

    The backbone runs once; only hidden states that predict an action go through the head, in chunks whose logits are
    recomputed in the backward pass when they would not fit into `HEAD_BYTES` together. The gradient is exact.

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

    rows, columns = action_mask[:, 1:].bool().nonzero(as_tuple=True)
    causal_lm = base_model(model)
    hidden = _hidden_states(causal_lm, input_ids)[rows, columns]  # [N, H]
    said = _head_logprobs(causal_lm, hidden, input_ids[rows, columns + 1], temperature, entropy)  # [N, 1 or 2]
    if value_head is not None and not _HEAD_STANDS_ALONE[causal_lm]:
        raise ValueError(f"{type(causal_lm).__name__}: gives no hidden states for a value head; use GRPO, or RLOO")

    def laid_out(flat: Tensor) -> Tensor:
        return flat.new_zeros(input_ids.shape).index_put((rows, columns + 1), flat)

    values = None if value_head is None else laid_out(value_head(hidden))
    return TokenLogprobs(laid_out(said[:, 0]), laid_out(said[:, 1]) if entropy else None, values)


def position_ids_of(attention_mask: Tensor) -> Tensor:
    """Return 0, 1, 2, ... along the real tokens of each row, and 0 at the padding before them. [B, T]"""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def forward_arguments(module: nn.Module, **arguments: Any) -> dict[str, Any]:
    """Keep the arguments that a module's forward names: not every architecture has positions or a cache."""
    return {name: value for name, value in arguments.items() if name in _forward_names(type(module))}


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
    model: PreTrainedModel, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool
) -> Tensor:
    """Return log-probabilities, and entropies beside them, at N hidden states. [N, H], [N] -> [N, 1 or 2]"""

    def score(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = _logits(model, hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        log_normaliser = logits.logsumexp(-1, keepdim=True)
        logprobs = logits.gather(-1, targets[:, None]) - log_normaliser
        if not entropy:
            return logprobs
        # entr(p) is 0 at p = 0; p * log p would be NaN where a model rules a word out with -inf
        probs = (logits - log_normaliser).exp()
        return torch.cat([logprobs, torch.special.entr(probs).sum(-1, keepdim=True)], dim=-1)

    copies = 5 if entropy else 3  # logits as they come, in float32, and the softmax of the backward pass
    chunk = max(1, HEAD_BYTES // (4 * copies * _vocabulary(model)))
    if len(hidden) <= chunk:
        return score(hidden, targets)
    chunks = list(zip(hidden.split(chunk), targets.split(chunk), strict=True))
    if not torch.is_grad_enabled():
        return torch.cat([score(*rows) for rows in chunks])
    return torch.cat([cast(Tensor, checkpoint(score, *rows, use_reentrant=False)) for rows in chunks])


_HEAD_STANDS_ALONE: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def _hidden_states(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Run the backbone; for a model whose head cannot be run alone, run all of it and return its logits."""
    if model not in _HEAD_STANDS_ALONE:
        _HEAD_STANDS_ALONE[model] = _head_stands_alone(model)
    module = model.base_model if _HEAD_STANDS_ALONE[model] else model
    return module(**forward_arguments(module, input_ids=input_ids, use_cache=False))[0]


def _logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Apply the head to hidden states, with the scale and the soft cap that the config names. [N, H] -> [N, V]"""
    if not _HEAD_STANDS_ALONE[model]:
        return hidden
    config = model.config.get_text_config()
    logits = cast(nn.Module, model.get_output_embeddings())(hidden)
    logits = logits * (getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0)
    logits = logits / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    return torch.tanh(logits / cap) * cap if cap else logits


@torch.no_grad()
def _head_stands_alone(model: PreTrainedModel) -> bool:
    """Try the two halves of a model against its own forward, once, so that an unknown kind of head is never guessed."""
    ids = torch.arange(4, device=next(model.parameters()).device)[None] % _vocabulary(model)
    devices = [ids.device] if ids.is_cuda else []
    halves = None
    with torch.random.fork_rng(devices):  # the same dropout in both
        torch.manual_seed(0)
        whole = model(**forward_arguments(model, input_ids=ids, use_cache=False))[0]
        torch.manual_seed(0)
        if model.get_output_embeddings() is not None and model.base_model is not model:
            _HEAD_STANDS_ALONE[model] = True
            hidden = model.base_model(**forward_arguments(model.base_model, input_ids=ids, use_cache=False))[0]
            halves = _logits(model, hidden) if hidden.shape[:2] == ids.shape else None
    if halves is not None and torch.allclose(halves.float(), whole.float(), rtol=1e-3, atol=1e-4):
        return True
    warnings.warn(
        f"{type(model).__name__}: its head cannot be run apart from the model, so the logits of a whole "
        "micro-batch are held in memory; lower tokens_per_micro_batch if that is too much.",
        stacklevel=2,
    )
    return False


def _vocabulary(model: PreTrainedModel) -> int:
    return model.config.get_text_config().vocab_size

"""A policy that also says what a state is worth: one trunk under two heads, one module for Accelerate.

V(s_t) is read from the hidden state that predicts token t, the state acted in, and laid out at t as log-probabilities
are. With adapters one copy of the trunk serves policy, value head and, the adapters switched off, the reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align.logprobs import Policy, TokenLogprobs, base_model, token_logprobs

VALUE_HEAD_FILE = "value_head.safetensors"


class ValueHead(nn.Module):
    """A linear map from hidden states to a value, in float32 under autocast too. It begins with 0 for every state."""

    def __init__(self, hidden_size: int, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros((), dtype=dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the value of each state. [N, H] -> [N]"""
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden.to(self.weight.dtype) @ self.weight + self.bias


class ActorCritic(Policy):
    """A causal LM with a value head on its trunk: its forward gives log-probabilities, values and, if asked, entropy.

    entropy: also return the entropy of each action's distribution, with its gradient, at the cost of more memory.
    """

    def __init__(self, model: nn.Module, *, temperature: float = 1.0, entropy: bool = False) -> None:
        super().__init__(model, temperature=temperature)
        parameter = next(model.parameters())
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        causal_lm: Any = base_model(model)
        # what the other head takes: some models project their hidden states to another width before it
        width = getattr(
            causal_lm.get_output_embeddings(), "in_features", causal_lm.config.get_text_config().hidden_size
        )
        self.value_head = ValueHead(width, dtype=dtype).to(parameter.device)
        self.entropy = entropy

    def forward(self, input_ids: Tensor, action_mask: Tensor) -> TokenLogprobs:
        """Score the actions of right-padded rows. [B, T], [B, T] -> TokenLogprobs with values."""
        return token_logprobs(
            self.model,
            input_ids,
            None,
            action_mask,
            temperature=self.temperature,
            entropy=self.entropy,
            value_head=self.value_head,
        )


def save_value_head(policy: ActorCritic, directory: str | Path) -> None:
    """Write the value head beside the model or the adapters that `align.models.save_model` wrote."""
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu() for name, value in policy.value_head.state_dict().items()}
    save_file(tensors, str(Path(directory) / VALUE_HEAD_FILE))


def load_value_head(policy: ActorCritic, directory: str | Path) -> bool:
    """Take over the value head that lies in a model's folder; return whether there is one.

    Raises:
        ValueError: if it belongs to a model of another width.
    """
    from safetensors.torch import load_file

    file = Path(directory) / VALUE_HEAD_FILE
    if not file.is_file():
        return False
    tensors = load_file(str(file))
    expected = {name: list(value.shape) for name, value in policy.value_head.state_dict().items()}
    got = {name: list(value.shape) for name, value in tensors.items()}
    if got != expected:
        raise ValueError(f"{file}: expected {expected}, got {got}: it is of another model; remove it to begin with 0")
    policy.value_head.load_state_dict(tensors)
    return True

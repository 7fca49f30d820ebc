"""What training has made of a module, for a checkpoint: trained parameters and the optimizer's state, by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def trained_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return copies of the trained parameters and of the optimizer's state, by parameter name."""
    trained = _trained(module)
    return {
        "parameters": {name: _copy(p) for name, p in trained.items()},
        "optimizer": {
            name: {key: _copy(value) for key, value in optimizer.state[p].items()}
            for name, p in trained.items()
            if p in optimizer.state
        },
    }


def load_trained_state(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore what `trained_state` returned; training goes on bit for bit.

    Raises:
        ValueError: if the parameters are others than those of the state.
    """
    trained = _trained(module)
    expected, got = set(trained), set(state["parameters"])
    if expected != got:
        raise ValueError(
            f"the checkpoint is of another model: it lacks {sorted(expected - got)[:3]} and has "
            f"{sorted(got - expected)[:3]}. Resume with the model and LoRA options that the run began with."
        )
    optimizer.state.clear()  # a state of before the first step has no moments
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(state["parameters"][name])
            if name in state["optimizer"]:
                # copies, because the optimizer goes on in place
                optimizer.state[p] = {k: v.to(p.device, copy=True) for k, v in state["optimizer"][name].items()}


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)

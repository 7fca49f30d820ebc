"""What every comparison with TRL shares: options that leave it the plain step of the other side, and its optimizer.

transformers and TRL would train in bfloat16, and compute activations twice to save memory, unless both are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.config import OptimizerConfig


def plain_options(folder: Path) -> dict[str, Any]:
    """Return options of any of its trainers: float32 on the processor, one pass, and nothing written or told."""
    return {
        "output_dir": str(folder / "trl"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def optimizers(model: Any, config: OptimizerConfig, steps: int) -> tuple[Any, Any]:
    """Return the optimizer and the schedule of the other side, as a trainer takes them."""
    import torch

    from align.training import learning_rate

    peak = config.learning_rate
    adam = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=config.weight_decay, fused=True)
    return adam, torch.optim.lr_scheduler.LambdaLR(adam, lambda step: learning_rate(config, step, steps) / peak)

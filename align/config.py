"""The settings that the command line shows: dataclasses without a torch import, so that --help answers at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its learning-rate schedule and the cut into micro-batches."""

    learning_rate: float = 1e-6
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises linearly from near 0."""
    final_fraction: float = 0.0
    """Fraction of the peak learning rate that is left at the last step."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """The global gradient norm is clipped to this once per optimizer step."""
    tokens_per_micro_batch: int = 16_384
    """Tokens of one forward and backward pass, padding included: bounds memory, never changes the gradient."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.max_grad_norm <= 0:
            raise ValueError(
                f"max_grad_norm must be above 0, got {self.max_grad_norm}: use a large value to switch clipping off"
            )
        if self.tokens_per_micro_batch < 1:
            raise ValueError(f"tokens_per_micro_batch must be at least 1, got {self.tokens_per_micro_batch}")
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"final_fraction must lie in [0, 1], got {self.final_fraction}")


@dataclass(frozen=True)
class SamplingConfig:
    """How completions are sampled: from the full softmax, so that what is trained is what was sampled."""

    max_new_tokens: int = 256
    """Length cap of a completion, its EOS included."""
    temperature: float = 1.0
    """Divides the logits, in sampling and in every log-probability of the run."""
    tokens_per_batch: int = 65_536
    """Prompt and completion tokens held in the cache at once: bounds memory, never changes a completion."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature <= 0:
            raise ValueError(
                f"temperature must be above 0, got {self.temperature}: for greedy answers use a small one, such as 0.01"
            )
        if self.tokens_per_batch < 1:
            raise ValueError(f"tokens_per_batch must be at least 1, got {self.tokens_per_batch}")


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning: next-token cross-entropy on the tokens to imitate."""

    steps: int = 500
    """Optimizer steps."""
    examples_per_step: int = 32
    """Examples of one optimizer step, over all processes."""
    seed: int = 0
    """Seed of the order of the data."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=2e-5))

    def __post_init__(self) -> None:
        if self.steps < 1 or self.examples_per_step < 1:
            raise ValueError(
                f"steps and examples_per_step must be at least 1, got {self.steps} and {self.examples_per_step}"
            )


@dataclass(frozen=True)
class RewardModelConfig:
    """Bradley-Terry training of a reward model on pairs of answers."""

    steps: int = 500
    """Optimizer steps."""
    pairs_per_step: int = 32
    """Pairs of one optimizer step, over all processes."""
    centring: float = 0.0
    """Weight of the mean of (chosen + rejected score)^2, which keeps scores around 0; 0.01 is usual."""
    seed: int = 0
    """Seed of the new head and of the order of the data."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-5))

    def __post_init__(self) -> None:
        if self.steps < 1 or self.pairs_per_step < 1:
            raise ValueError(f"steps and pairs_per_step must be at least 1, got {self.steps} and {self.pairs_per_step}")
        if self.centring < 0:
            raise ValueError(
                f"centring must not be negative, got {self.centring}: it would drive the scores away from 0"
            )


@dataclass(frozen=True)
class GRPOConfig:
    """Group-relative policy optimisation."""

    steps: int = 500
    """Optimizer steps."""
    prompts_per_step: int = 16
    """Prompts of one rollout, over all processes."""
    group_size: int = 8
    """Completions sampled per prompt; their mean reward is the baseline."""
    updates_per_rollout: int = 1
    """Optimizer steps on each rollout; from the second on the ratio to the sampling policy is clipped."""
    clip_low: float = 0.2
    """The ratio is clipped below 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio is clipped above 1 + clip_high; DAPO raises it to 0.28."""
    kl_coef: float = 0.0
    """Weight of the KL to the starting policy in the loss; 0 never computes a reference."""
    mask_truncated: bool = False
    """Leave completions that hit max_new_tokens out of the loss and of its denominator."""
    max_redraws: int = 0
    """Times a step may replace prompts whose completions all got one reward by fresh ones (DAPO's dynamic sampling)."""
    seed: int = 0
    """Seed of the order of the prompts and of every sampled token."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(
                f"group_size must be at least 2, got {self.group_size}: one completion is its own mean, "
                "so every advantage would be 0. Raise group_size."
            )
        for name in ("steps", "prompts_per_step", "updates_per_rollout"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("clip_low", "clip_high", "kl_coef", "max_redraws"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

"""The settings that the command line shows: dataclasses without a torch import, so that --help answers at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from align.rows import nearest


class Checked:
    """Settings that refuse, when they are made, a choice that is not there and a seed below 0."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            check_choice(name, getattr(self, name), hint)
        if hasattr(self, "seed"):
            _must(self, "not be negative", "seed")


def check_choice(name: str, value: Any, hint: Any) -> None:
    """Refuse a value that is none of those that a type names, a Literal or one in a union; of other types take any."""
    literals = [part for part in (hint, *get_args(hint)) if get_origin(part) is Literal]
    choices = [choice for literal in literals for choice in get_args(literal)]
    if choices and value not in choices and not (value is None and type(None) in get_args(hint)):
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}{nearest(str(value), choices)}")


@dataclass(frozen=True)
class OptimizerConfig(Checked):
    """AdamW, its learning-rate schedule and the cut into micro-batches."""

    learning_rate: float = 1e-6
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises linearly from near 0."""
    final_fraction: float = 0.0
    """Fraction of the peak that the schedule has come down to when the last step is over."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """The global gradient norm is clipped to this once per optimizer step."""
    tokens_per_micro_batch: int = 16_384
    """Tokens of one forward and backward pass, padding included: bounds memory, never changes the gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _must(self, "be above 0", "learning_rate")
        _must(self, "be above 0, or inf", "max_grad_norm", why="at inf nothing is clipped")
        _must(self, "be at least 1", "tokens_per_micro_batch")
        _must(self, "not be negative", "warmup_steps", "weight_decay")
        _must(self, "lie in [0, 1]", "final_fraction")


@dataclass(frozen=True)
class SamplingConfig(Checked):
    """How completions are sampled: by default from the full softmax, so that what is trained is what was sampled.

    With top_p or top_k another distribution is sampled than is trained, and training weighs its tokens for that.
    """

    max_new_tokens: int = 256
    """Length cap of a completion, its EOS included."""
    temperature: float = 1.0
    """Divides the logits, in sampling and in every log-probability of the run."""
    top_p: float = 1.0
    """Draw among the fewest words, likeliest first, that come to this probability; 1 for all."""
    top_k: int = 0
    """Draw among so many words, the likeliest, top_p then being a share of theirs; 0 for all."""
    tokens_per_batch: int = 65_536
    """Tokens in the cache at once, though a group stays whole: bounds memory, never changes a completion."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _must(self, "be at least 1", "max_new_tokens", "tokens_per_batch")
        _must(self, "be above 0", "temperature", why="for greedy answers use top_k 1")
        _must(self, "lie in (0, 1]", "top_p")
        _must(self, "not be negative", "top_k")


OnError = Literal["error", "skip", "zero"]
"""What a reward that fails on a sample does: it stops the run, leaves the sample out, or gives it 0."""
ImportanceMode = Literal["token-truncate", "token-mask", "sequence-truncate", "sequence-mask"]


@dataclass(frozen=True)
class ImportanceConfig(Checked):
    """Weights policy / sampler for tokens that another distribution drew than the policy: see align.importance."""

    importance: ImportanceMode | None = None
    """Weigh each token, or each whole completion, by policy / sampler, and bound the ratio or leave out what is outside
    the bounds. None: token-truncate under top_p or top_k, otherwise nothing, since what samples is what learns."""
    importance_low: float = 0.0
    """Lower bound of the ratio."""
    importance_high: float = 2.0
    """Upper bound of the ratio."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _must(self, "lie in [0, 1]", "importance_low")
        _must(self, "be at least 1", "importance_high", why="a token that both would draw alike has a ratio of 1")


@dataclass(frozen=True)
class SFTConfig(Checked):
    """Supervised fine-tuning: next-token cross-entropy on the tokens to imitate."""

    steps: int = 500
    """Optimizer steps."""
    examples_per_step: int = 32
    """Examples of one optimizer step, over all processes."""
    seed: int = 0
    """Seed of the order of the data."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=2e-5))

    def __post_init__(self) -> None:
        super().__post_init__()
        _must(self, "be at least 1", "steps", "examples_per_step")


@dataclass(frozen=True)
class DPOConfig(Checked):
    """Direct preference optimisation, and its family."""

    steps: int = 500
    """Optimizer steps."""
    pairs_per_step: int = 32
    """Pairs of one optimizer step, over all processes."""
    beta: float = 0.1
    """Weight of the KL to the starting policy: the smaller, the further the policy may go."""
    label_smoothing: float = 0.0
    """How likely a pair is thought to be labelled the wrong way round."""
    sft_weight: float = 0.0
    """Weight of the cross-entropy of the chosen answers, per token, added to the loss."""
    seed: int = 0
    """Seed of the order of the data."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-6))

    def __post_init__(self) -> None:
        super().__post_init__()
        _must(self, "be at least 1", "steps", "pairs_per_step")
        _must(self, "be above 0", "beta", why="at 0 no pair would have a gradient")
        why = "it is how many labels are wrong, and a half says nothing. If most are wrong, swap chosen and rejected."
        _must(self, "be at least 0 and below 0.5", "label_smoothing", why=why)
        _must(self, "not be negative", "sft_weight")


@dataclass(frozen=True)
class KTOConfig(Checked):
    """Kahneman-Tversky optimisation, of answers that were liked or not."""

    steps: int = 500
    """Optimizer steps."""
    examples_per_step: int = 32
    """Answers of one optimizer step, over all processes; at least 2, since each also meets another's prompt."""
    beta: float = 0.1
    """Weight of the KL to the starting policy: the smaller, the further the policy may go."""
    desirable_weight: float = 1.0
    """Weight of an answer that was liked."""
    undesirable_weight: float = 1.0
    """Weight of an answer that was not; the paper has weight times number of both kinds within 4 to 3 of each other."""
    seed: int = 0
    """Seed of the order of the data."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-6))

    def __post_init__(self) -> None:
        super().__post_init__()
        _must(self, "be at least 1", "steps")
        why = "the reference point of a step is taken from answers under others' prompts"
        _must(self, "be at least 2", "examples_per_step", why=why)
        _must(self, "be above 0", "beta", why="at 0 no answer would have a gradient")
        _must(self, "not be negative", "desirable_weight", "undesirable_weight")


@dataclass(frozen=True)
class RewardModelConfig(Checked):
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
        super().__post_init__()
        _must(self, "be at least 1", "steps", "pairs_per_step")
        _must(self, "not be negative", "centring", why="it would drive the scores away from 0")


@dataclass(frozen=True)
class TokenRewardConfig(Checked):
    """What PPO is paid: the score on the last action, minus a KL penalty on every action."""

    kl_coef: float = 0.05
    """Weight of the KL to the starting policy in the reward, at first where kl_target is set; 0 needs no reference."""
    kl_target: float | None = None
    """KL per completion, nats, towards which kl_coef is adapted after every rollout; None keeps kl_coef."""
    missing_eos_penalty: float = 0.0
    """Taken off the score, once normalised, of a completion that max_new_tokens cut before an EOS."""
    truncated: Literal["ended", "bootstrapped", "left-out"] = "ended"
    """A completion cut by max_new_tokens is scored as if it had ended; or is not scored and bootstraps from the value
    of its last state; or is left out of the loss and its denominator."""
    normalise_scores: bool = False
    """Shift and scale scores by the mean and standard deviation of all scores so far."""
    score_clip: float | None = None
    """Scores, once normalised, are clipped to [-score_clip, score_clip]; None does not clip."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _must(self, "not be negative", "kl_coef", "missing_eos_penalty")
        _must(self, "be above 0, or None", "kl_target", "score_clip")
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target needs a kl_coef above 0 to begin with: a factor never moves a 0")
        if self.truncated != "ended" and self.missing_eos_penalty:
            raise ValueError(
                f"missing_eos_penalty belongs to completions that are scored, but truncated is {self.truncated!r}: "
                'set it to 0, or truncated to "ended"'
            )


@dataclass(frozen=True)
class CriticConfig(Checked):
    """The critic: what it is to predict, and its part in the loss."""

    gamma: float = 1.0
    """Discount per token; 1 makes the return of a completion its score minus its KL penalty."""
    lam: float = 0.95
    """Lambda of generalised advantages: 0 trusts the critic alone, 1 the sampled returns alone."""
    value_coef: float = 0.5
    """Weight of the value loss beside the policy loss."""
    value_clip: float | None = 0.2
    """Values that moved by more than this from those of the rollout earn nothing; None does not clip."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _must(self, "lie in [0, 1]", "gamma", "lam")
        _must(self, "not be negative", "value_coef")
        _must(self, "be above 0, or None", "value_clip")


@dataclass(frozen=True)
class PPOConfig(Checked):
    """Proximal policy optimisation of score - kl_coef * KL(policy || starting policy)."""

    steps: int = 500
    """Optimizer steps."""
    prompts_per_step: int = 64
    """Prompts of one rollout, over all processes."""
    group_size: int = 1
    """Completions sampled per prompt."""
    epochs: int = 2
    """Times that each rollout is gone through."""
    minibatches: int = 2
    """Optimizer steps of an epoch, each on its share of the rollout's completions."""
    clip_low: float = 0.2
    """The ratio is clipped below 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio is clipped above 1 + clip_high."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus; 0 never computes an entropy for it."""
    kl_limit: float | None = None
    """A rollout is used no further once an update showed a KL to the policy that sampled above this, nats per token."""
    seed: int = 0
    """Seed of the order of the prompts, of the minibatches and of every sampled token."""
    token_rewards: TokenRewardConfig = field(default_factory=TokenRewardConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    importance: ImportanceConfig = field(default_factory=ImportanceConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _must(self, "be at least 1", "steps", "prompts_per_step", "group_size", "epochs", "minibatches")
        _must(self, "not be negative", "clip_low", "clip_high", "entropy_coef")
        _must(self, "be above 0, or None", "kl_limit")
        completions = self.prompts_per_step * self.group_size
        if self.minibatches > completions:
            raise ValueError(
                f"minibatches is {self.minibatches}, more than the {completions} completions of a rollout: "
                "lower it, or raise prompts_per_step or group_size"
            )


@dataclass(frozen=True)
class GRPOConfig(Checked):
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
    importance: ImportanceConfig = field(default_factory=ImportanceConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        why = "one completion is its own mean, so every advantage would be 0. Raise group_size."
        _must(self, "be at least 2", "group_size", why=why)
        _must(self, "be at least 1", "steps", "prompts_per_step", "updates_per_rollout")
        _must(self, "not be negative", "clip_low", "clip_high", "kl_coef", "max_redraws")


_RANGES: dict[str, Callable[[float], bool]] = {
    "be above 0": lambda number: 0 < number < math.inf,
    "be above 0, or None": lambda number: number is None or 0 < number < math.inf,
    "be above 0, or inf": lambda number: number > 0,
    "not be negative": lambda number: 0 <= number < math.inf,
    "be at least 1": lambda number: 1 <= number < math.inf,
    "be at least 2": lambda number: 2 <= number < math.inf,
    "lie in [0, 1]": lambda number: 0 <= number <= 1,
    "lie in (0, 1]": lambda number: 0 < number <= 1,
    "be at least 0 and below 0.5": lambda number: 0 <= number < 0.5,
}
"""What a number may be asked to do. Each says what is right, not what is wrong: every comparison with NaN is False."""


def _must(config: object, do: str, *names: str, why: str = "") -> None:
    """Refuse settings that are not as asked, NaN among them."""
    for name in names:
        number = getattr(config, name)
        if not _RANGES[do](number):
            raise ValueError(f"{name} must {do}, got {number}{why and f': {why}'}")

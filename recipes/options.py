"""The options of the commands, as their --help shows them; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from align.config import GRPOConfig, RewardModelConfig, SamplingConfig, SFTConfig
from recipes.common import RunOptions

Names = Annotated[
    tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="reward", metavar="NAME[=WEIGHT] ...")
]
Loss = Literal["grpo", "dapo", "dr-grpo", "gspo", "cispo"]

CLIP_BOUNDS: dict[Loss, tuple[float, float]] = {
    "grpo": (0.2, 0.2),
    "dapo": (0.2, 0.28),
    "dr-grpo": (0.2, 0.2),
    "gspo": (3e-4, 4e-4),
    "cispo": (1.0, 4.0),
}
"""clip_low and clip_high of each loss where none are given, from its paper. CISPO bounds the ratio above only."""


@dataclass(frozen=True)
class ModelOptions:
    """What is trained: all weights, or adapters.

    Adapters want a higher --learning-rate: about 1e-5 to 1e-4 for GRPO, 1e-4 to 5e-4 for SFT.
    """

    model: str
    """Folder that save_pretrained wrote, with or without adapters, or a hub id."""
    lora_rank: int = 0
    """Rank of the LoRA adapters; 0 trains all weights."""
    lora_alpha: int = 32
    """The adapters' output is scaled by lora_alpha / lora_rank."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


@dataclass(frozen=True)
class PromptOptions:
    """What is asked. Each row has a prompt (a string or messages); its other columns reach the rewards by name."""

    data: str
    """A .jsonl, .json, .csv or .parquet file, a folder of them, or owner/name or owner/name:config of the hub."""
    split: str = "train"
    """Split to take where the data have several."""
    max_prompt_tokens: int | None = None
    """Most tokens of a prompt, those of the chat template included; None for no limit."""
    too_long: Literal["error", "drop"] = "error"
    """Whether a longer prompt is an error, or is left out."""
    chat: bool = False
    """Wrap prompts that are strings as the user's message of a chat; rewards still see strings."""
    system: str | None = None
    """System message for every chat that has none; makes chats of strings, as --chat does."""


@dataclass(frozen=True)
class ExampleOptions:
    """What is imitated: rows of prompt and completion, of messages, or of text."""

    data: str
    """A .jsonl, .json, .csv or .parquet file, a folder of them, or owner/name or owner/name:config of the hub."""
    split: str = "train"
    """Split to take where the data have several."""
    max_tokens: int | None = None
    """Most tokens of an example, those of the chat template included; None for no limit."""
    too_long: Literal["error", "drop"] = "error"
    """Whether a longer example is an error, or is left out."""


@dataclass(frozen=True)
class PairOptions:
    """What is preferred: rows of prompt, chosen and rejected, or of chosen and rejected that begin alike."""

    data: str
    """A .jsonl, .json, .csv or .parquet file, a folder of them, or owner/name or owner/name:config of the hub."""
    split: str = "train"
    """Split to take where the data have several."""
    max_tokens: int | None = None
    """Most tokens of a prompt with an answer, those of the chat template included; None for no limit."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """Whether a longer one is an error, or its pair is left out, or its answer is cut."""
    degenerate: Literal["error", "drop"] = "error"
    """Whether a pair with an empty answer, or the same one twice, is an error, or is left out."""
    margin: str | None = None
    """Column of numbers that say by how much the chosen answer was preferred."""


@dataclass(frozen=True)
class HeldOutOptions:
    """What is measured on."""

    eval_data: str | None = None
    """Held-out data of the same columns: a file, a folder or a hub id. Without it there are no evaluations."""
    eval_split: str = "test"
    """Split to take where the held-out data have several."""


@dataclass(frozen=True)
class RewardOptions:
    """What judges the answers: the sum of the rewards by weight, as in --reward exact_answer rules.py:brief=0.2.

    exact_answer and numeric_answer compare with the column `answer`. One's own is called as
    f(prompts, completions, **columns) and returns a number or None for each completion. A weight of 0 only measures.
    """

    rewards: Names
    """exact_answer, numeric_answer, module:function, path.py:function, or model:FOLDER of a reward model."""
    on_reward_error: Literal["error", "skip", "zero"] = "error"
    """Where a reward fails on a sample: stop, leave the sample out, or give 0; the last two say so."""


@dataclass(frozen=True)
class ObjectiveOptions:
    """What is optimised. Each loss brings the clip bounds of its paper as defaults.

    * dapo: every token weighs the same; --max-redraws 4 adds its dynamic sampling.
    * grpo: every completion weighs the same, whatever its length.
    * dr-grpo: neither the length of a completion nor the spread of its group changes a weight.
    * gspo: one ratio a completion in place of one a token.
    * cispo: bounds the weight of a token where the others silence it; has no --clip-low.
    """

    loss: Loss = "dapo"
    """Shape of the policy loss."""


@dataclass(frozen=True)
class SFTOptions:
    """Fine-tune a model on demonstrations.

    The trained model is saved to <directory>/final.
    """

    model: ModelOptions
    data: ExampleOptions
    held_out: HeldOutOptions = field(default_factory=HeldOutOptions)
    sft: SFTConfig = field(default_factory=SFTConfig)
    run: RunOptions = field(default_factory=RunOptions)


@dataclass(frozen=True)
class RewardModelOptions:
    """Train a reward model on pairs of answers: the model gets a head of one number, or goes on with the one it has.

    The trained model, adapters merged, is saved to <directory>/final, for --reward model:<directory>/final.
    """

    model: ModelOptions
    data: PairOptions
    held_out: HeldOutOptions = field(default_factory=HeldOutOptions)
    reward: RewardModelConfig = field(default_factory=RewardModelConfig)
    run: RunOptions = field(default_factory=RunOptions)


@dataclass(frozen=True)
class GRPOOptions:
    """Train a model with GRPO: sample a group of answers to each prompt, and prefer those that are rewarded.

    The trained model is saved to <directory>/final.
    """

    model: ModelOptions
    data: PromptOptions
    reward: RewardOptions
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)
    held_out: HeldOutOptions = field(default_factory=HeldOutOptions)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    run: RunOptions = field(default_factory=RunOptions)


@dataclass(frozen=True)
class EvalOptions:
    """Sample answers to every prompt and say what the rewards think of them: means with their standard errors."""

    model: Annotated[str, tyro.conf.arg(name="model")]
    """Folder that save_pretrained wrote, with or without adapters, or a hub id."""
    data: PromptOptions
    reward: RewardOptions
    samples: int = 1
    """Completions of each prompt."""
    output: Path | None = None
    """File to write every completion to, one JSON object a line."""
    seed: int = 0
    """Seed of every sampled token."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


def grpo_defaults(arguments: Sequence[str]) -> GRPOOptions:
    """Return the defaults of `align grpo`, which depend on the loss that the command line names."""
    words = [part for word in arguments for part in word.split("=", 1)]
    named: Any = next((after for word, after in pairwise(words) if word == "--loss"), "dapo")
    clip_low, clip_high = CLIP_BOUNDS.get(named, CLIP_BOUNDS["dapo"])
    config = GRPOConfig(clip_low=clip_low, clip_high=clip_high)
    model, data = ModelOptions(model=tyro.MISSING), PromptOptions(data=tyro.MISSING)
    return GRPOOptions(model, data, RewardOptions(rewards=()), grpo=config)

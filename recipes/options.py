"""The options of the commands, as their --help shows them; nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from align.config import (
    DPOConfig,
    GRPOConfig,
    KTOConfig,
    OnError,
    OptimizerConfig,
    PPOConfig,
    RewardModelConfig,
    SamplingConfig,
    SFTConfig,
)
from recipes.common import RunOptions, word_after

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

PreferenceLoss = Literal["dpo", "robust", "hinge", "ipo", "apo-zero", "apo-down", "simpo", "orpo"]

PREFERENCE_DEFAULTS: dict[PreferenceLoss, dict[str, float]] = {
    "robust": {"label_smoothing": 0.1},
    "simpo": {"beta": 2.0},
    "orpo": {"sft_weight": 1.0},
}
"""What a loss of pairs has otherwise than DPO where nothing is given. ORPO's beta is the weight of its odds ratio."""


@dataclass(frozen=True)
class ModelOptions:
    """What is trained: all weights, or adapters.

    Adapters want a higher --learning-rate: about 1e-5 to 1e-4 for GRPO, DPO and KTO, 1e-4 to 5e-4 for
    SFT.
    """

    model: str
    """Folder that save_pretrained wrote, with or without adapters, or a hub id."""
    lora_rank: int = 0
    """Rank of the LoRA adapters; 0 trains all weights."""
    lora_alpha: int = 32
    """The adapters' output is scaled by lora_alpha / lora_rank."""
    lora_targets: tuple[str, ...] = ()
    """Names of the layers that get adapters, such as q_proj v_proj; by default all linear ones."""
    gradient_checkpointing: bool = False
    """Keep less for the backward pass, which computes each layer again: less memory, more time."""
    quantize: Literal["4bit"] | None = None
    """Hold the frozen weights under the adapters as 4-bit numbers (QLoRA), an eighth of their memory in float32; needs
    'align-rl[qlora]'."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""

    def __post_init__(self) -> None:
        if self.lora_targets and not self.lora_rank:
            raise ValueError("lora_targets are the layers that get adapters, of which there are none: give a lora_rank")


@dataclass(frozen=True)
class PromptOptions:
    """What is asked. Each row has a prompt (a string or messages); its other columns reach the rewards by name."""

    data: str
    """A .jsonl, .json, .csv or .parquet file, a folder of them, owner/name or owner/name:config of the hub, or
    a task: "reasoning_gym:TASK?size=500&seed=0" with further options of the task, gsm8k:DATA for word problems, or
    countdown:numbers=3 for the numbers game; several by weight as mix:a.jsonl=0.7,b.jsonl=0.3."""
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
class RowOptions:
    """Where the rows are that are learned from."""

    data: str
    """A .jsonl, .json, .csv or .parquet file, a folder of them, or owner/name or owner/name:config of the hub; several
    by weight as mix:a.jsonl=0.7,b.jsonl=0.3, of which each may have a form of its own."""
    split: str = "train"
    """Split to take where the data have several."""
    epochs: float | None = None
    """Times that the data are gone through, in place of --steps."""

    def __post_init__(self) -> None:
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs must be above 0, got {self.epochs}")


@dataclass(frozen=True)
class ChatOptions:
    """Whether strings become chats."""

    chat: bool = False
    """Make a chat of rows that are strings: the prompt is the user's message, the answer the assistant's."""
    system: str | None = None
    """System message for every chat that has none; makes chats of strings, as --chat does."""


@dataclass(frozen=True)
class ExampleOptions(ChatOptions, RowOptions):
    """What is imitated: rows of prompt and completion, of messages, or of text."""

    max_tokens: int | None = None
    """Most tokens of an example, those of the chat template included; None for no limit."""
    too_long: Literal["error", "drop"] = "error"
    """Whether a longer example is an error, or is left out."""


@dataclass(frozen=True)
class PairOptions(RowOptions):
    """What was preferred to what: rows of prompt, chosen and rejected, or of chosen and rejected that begin alike."""

    max_tokens: int | None = None
    """Most tokens of a prompt with one answer, those of the chat template included; None for no limit."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """Whether a longer one is an error, or its pair is left out, or its answer is cut at the end."""
    degenerate: Literal["error", "drop"] = "error"
    """Whether a pair with an empty answer, or the same answer twice, is an error, or is left out."""


@dataclass(frozen=True)
class ChatPairOptions(ChatOptions, PairOptions):
    """What was preferred to what: rows of prompt, chosen and rejected, or of chosen and rejected that begin alike."""


@dataclass(frozen=True)
class RatedPairOptions(PairOptions):
    """What was preferred to what, and by how much: rows of prompt, chosen and rejected, or of both that begin alike."""

    margin: str | None = None
    """Column of numbers that say by how much the chosen answer was preferred."""


@dataclass(frozen=True)
class FeedbackOptions(ChatOptions, RowOptions):
    """What was liked and what was not: rows of prompt, completion and label, which is true or false, or 1 or 0."""

    max_tokens: int | None = None
    """Most tokens of a prompt with its answer, those of the chat template included; None for no limit."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """Whether a longer one is an error, or is left out, or its answer is cut at the end."""


@dataclass(frozen=True)
class HeldOutOptions:
    """What is measured on."""

    eval_data: str | None = None
    """Held-out data of the same columns, named as in --data. Without it there are no evaluations."""
    eval_split: str = "test"
    """Split to take where the held-out data have several."""


@dataclass(frozen=True)
class RewardOptions:
    """What judges the answers: the sum of the rewards by weight, as in --reward exact_answer rules.py:brief=0.2.

    exact_answer, numeric_answer and math_answer compare with the column `answer`; repetition_penalty and script_penalty
    take off for repeated n-grams and for letters that are neither Latin nor Greek; reasoning_gym judges its own tasks.
    One's own is called as f(prompts, completions, **columns) and returns a number or None for each completion. A
    weight of 0 only measures.
    isolated:rules.py:tests runs one's own in another process, which is killed after 10 seconds on one completion.
    """

    rewards: Names
    """exact_answer, numeric_answer, math_answer, repetition_penalty, script_penalty, reasoning_gym,
    module:function, path.py:function, isolated: before one of the two, or model:FOLDER of a reward model."""
    on_reward_error: OnError = "error"
    """Where a reward fails on a sample: stop, leave the sample out, or give 0; reward/faults counts the last two."""


@dataclass(frozen=True)
class CriticOptions:
    """What tells how good an unfinished answer is: a head on the policy's trunk, or a model of its own."""

    value_model: str | None = None
    """Reward model, a folder or a hub id, that the critic starts from; it takes as much memory as training another
    model of its size. By default the critic is a head on the policy's trunk that starts with 0."""


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
class PreferenceOptions:
    """What is optimised. Each loss brings what its paper has otherwise than DPO as defaults.

    * dpo: the odds of the chosen answer against a reference; --label-smoothing for labels that may be wrong.
    * robust: the same, with labels flipped at the rate --label-smoothing undone.
    * hinge: asks for a margin of 1 / beta, and no more.
    * ipo: pulls the margin per token to 1 / (2 * beta), and back if it is beyond.
    * apo-zero, apo-down: for chosen answers better, or worse, than the model's own.
    * simpo: compares log-probabilities per token, without a reference.
    * orpo: imitates the chosen answer and raises its odds by the weight --beta, without a reference.
    """

    loss: PreferenceLoss = "dpo"
    """Shape of the loss of a pair."""


@dataclass(frozen=True)
class ReferenceOptions:
    """What the model is compared with: itself, as the run finds it."""

    reference_cache: Path | None = None
    """File of the reference's log-probabilities: written where it is missing, else read, and refused if it is of other
    weights or data. The run then holds no second model, and further runs do not compute it again."""


@dataclass(frozen=True)
class DPOOptions:
    """Train a model with DPO or its family: learn from pairs of answers, of which one was preferred.

    The trained model is saved to <directory>/final.
    """

    model: ModelOptions
    data: ChatPairOptions
    objective: PreferenceOptions = field(default_factory=PreferenceOptions)
    reference: ReferenceOptions = field(default_factory=ReferenceOptions)
    held_out: HeldOutOptions = field(default_factory=HeldOutOptions)
    dpo: DPOConfig = field(default_factory=DPOConfig)
    run: RunOptions = field(default_factory=RunOptions)


@dataclass(frozen=True)
class KTOOptions:
    """Train a model with KTO: learn from single answers that were liked or not.

    The trained model is saved to <directory>/final.
    """

    model: ModelOptions
    data: FeedbackOptions
    reference: ReferenceOptions = field(default_factory=ReferenceOptions)
    held_out: HeldOutOptions = field(default_factory=HeldOutOptions)
    kto: KTOConfig = field(default_factory=KTOConfig)
    run: RunOptions = field(default_factory=RunOptions)


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
    data: RatedPairOptions
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
class PPOOptions:
    """Train a model with PPO: prefer what is rewarded above what the critic expected, near the starting policy.

    The trained model is saved to <directory>/final, and there a value head from which a further run goes on, or the
    folder value_model, for --value-model.
    """

    model: ModelOptions
    data: PromptOptions
    reward: RewardOptions
    critic: CriticOptions = field(default_factory=CriticOptions)
    held_out: HeldOutOptions = field(default_factory=HeldOutOptions)
    ppo: PPOConfig = field(default_factory=PPOConfig)
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


@dataclass(frozen=True)
class ExportOptions:
    """Save the model of a checkpoint: what a run that was stopped or killed had learned until then.

    Call it in the folder in which the run was started: its command is taken up, with its data, to build the same model.
    """

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Directory of the run."""
    step: int | None = None
    """Step of the checkpoint, by default the newest that is intact."""
    output: Path | None = None
    """Folder to save to; by default exported-STEP in the run's directory."""
    merge: bool = False
    """Add the adapters to the weights under them, and save a plain model."""


@dataclass(frozen=True)
class LadderOptions:
    """Check an agent rung by rung: one batch, trivial environments, the known return; exit with 1 where one fails."""

    agent: Annotated[Literal["reinforce", "a2c", "ppo", "dqn"], tyro.conf.Positional]
    """Which agent climbs."""
    env: str = "CartPole-v1"
    """Environment of the last rung, one that the agent has a preset for."""
    quick: bool = False
    """Leave out the last rung, which takes as long as training does."""
    seed: int = 0
    """Of weights, environments and actions."""


def grpo_defaults(arguments: Sequence[str]) -> GRPOOptions:
    """Return the defaults of `align grpo`, which depend on the loss that the command line names."""
    loss: Any = word_after(arguments, "--loss")
    clip_low, clip_high = CLIP_BOUNDS.get(loss, CLIP_BOUNDS["dapo"])
    config = GRPOConfig(clip_low=clip_low, clip_high=clip_high)
    model, data = ModelOptions(model=tyro.MISSING), PromptOptions(data=tyro.MISSING)
    return GRPOOptions(model, data, RewardOptions(rewards=()), grpo=config)


def own_defaults(
    arguments: Sequence[str], *, rewards: tuple[str, ...], system: str, data: Any = tyro.MISSING
) -> GRPOOptions:
    """Return the defaults of a recipe that teaches an instruct model one task by GRPO and LoRA."""
    options = grpo_defaults(arguments)
    sampling, optimizer = SamplingConfig(max_new_tokens=512), OptimizerConfig(learning_rate=2e-5)
    return replace(
        options,
        model=ModelOptions(model=tyro.MISSING, lora_rank=16),
        data=PromptOptions(data=data, system=system),
        reward=RewardOptions(rewards=(rewards,)),
        grpo=replace(options.grpo, steps=200, sampling=sampling, optimizer=optimizer),
    )


def dpo_defaults(arguments: Sequence[str]) -> DPOOptions:
    """Return the defaults of `align dpo`, which depend on the loss that the command line names."""
    loss: Any = word_after(arguments, "--loss")
    config: Any = PREFERENCE_DEFAULTS.get(loss, {})
    return DPOOptions(ModelOptions(model=tyro.MISSING), ChatPairOptions(data=tyro.MISSING), dpo=DPOConfig(**config))

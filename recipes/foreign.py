"""Options by the names that other libraries gave them, so that who knows those is told what they are here.

The names are those of TRL and transformers, for agents those of Stable-Baselines3 and CleanRL.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, get_args, get_origin, get_type_hints

PER_STEP = ("--examples-per-step", "--pairs-per-step", "--prompts-per-step", "--batch-size", "--num-envs")
ENV_STEPS = ("--env-steps", "--updates")

ELSEWHERE: dict[str, tuple[str, ...]] = {
    "model-name-or-path": ("--model",),
    "dataset-name": ("--data",),
    "dataset-config": ("--data OWNER/NAME:CONFIG",),
    "dataset-train-split": ("--split",),
    "dataset-test-split": ("--eval-split",),
    "output-dir": ("--directory",),
    "resume-from-checkpoint": ("--resume",),
    "logging-steps": ("--log-every",),
    "save-steps": ("--save-every",),
    "eval-steps": ("--evaluate-every",),
    "max-steps": ("--steps", *ENV_STEPS),
    "steps": ENV_STEPS,
    "total-steps": ENV_STEPS,
    "total-timesteps": ENV_STEPS,
    "num-steps": ("--rollout-steps",),
    "n-steps": ("--rollout-steps",),
    "n-envs": ("--num-envs",),
    "n-epochs": ("--epochs",),
    "ent-coef": ("--entropy-coef",),
    "gae-lambda": ("--lam",),
    "clip-range": ("--clip",),
    "buffer-size": ("--capacity",),
    "num-train-epochs": ("--epochs", "--steps"),
    "per-device-train-batch-size": PER_STEP,
    "train-batch-size": PER_STEP,
    "gradient-accumulation-steps": ("--tokens-per-micro-batch",),
    "lr": ("--learning-rate",),
    "lr-scheduler-type": ("--schedule",),
    "warmup-ratio": ("--warmup-steps",),
    "max-length": ("--max-tokens", "--max-prompt-tokens"),
    "max-seq-length": ("--max-tokens",),
    "max-prompt-length": ("--max-prompt-tokens", "--max-tokens"),
    "max-completion-length": ("--max-new-tokens",),
    "response-length": ("--max-new-tokens",),
    "num-generations": ("--group-size",),
    "num-iterations": ("--updates-per-rollout",),
    "reward-funcs": ("--reward",),
    "reward-weights": ("--reward NAME=WEIGHT",),
    "reward-model-path": ("--reward model:FOLDER",),
    "beta": ("--kl-coef",),
    "epsilon": ("--clip-low",),
    "epsilon-high": ("--clip-high",),
    "cliprange": ("--clip-low",),
    "cliprange-value": ("--value-clip",),
    "vf-coef": ("--value-coef",),
    "num-ppo-epochs": ("--epochs",),
    "num-mini-batches": ("--minibatches",),
    "loss-type": ("--loss",),
    "scale-rewards": ("--loss dr-grpo, for False",),
    "importance-sampling-level": ("--loss gspo, for sequence",),
    "mask-truncated-completions": ("--mask-truncated",),
    "rpo-alpha": ("--sft-weight",),
    "precompute-ref-log-probs": ("--reference-cache FILE",),
    "center-rewards-coefficient": ("--centring",),
    "use-peft": ("--lora-rank 16",),
    "lora-r": ("--lora-rank",),
    "lora-target-modules": ("--lora-targets",),
    "lora-dropout": ("nothing: all dropout is off",),
    "load-in-4bit": ("--quantize 4bit",),
    "bf16": ("nothing: arithmetic is bfloat16 where a GPU has it",),
    "use-vllm": ("nothing: completions are sampled by the model that learns",),
    "push-to-hub": ("nothing: upload DIR/final with `hf upload`",),
}
"""Name elsewhere -> what it may be here, of which the first that the command has holds; "nothing: why" for all."""


def hints(options: Any, arguments: Sequence[str]) -> list[str]:
    """Return one sentence for each word of a command line that is an option elsewhere, and none of these options.

    Args:
        options: the dataclass of the command's options.
        arguments: the words of the command line.
    """
    here, found = option_names(options), []
    for word in arguments:
        name = word.removeprefix("--").partition("=")[0].replace("_", "-")
        if word.startswith("--") and f"--{name}" not in here:
            known = [said for said in ELSEWHERE.get(name, ()) if said.split()[0] in here or said.startswith("nothing")]
            found += [f"unrecognized: --{name}; here: {said}" for said in known[:1]]
    return found


def option_names(options: Any) -> set[str]:
    """Return the options of a dataclass and of those in it, as a command line names them."""
    kind, (inside, *_) = get_origin(options) or options, (*get_args(options), None)
    names = set()
    for name, hint in get_type_hints(kind, include_extras=True).items():
        hint = inside if type(hint).__name__ == "TypeVar" else hint
        bare = getattr(hint, "__origin__", hint) if hasattr(hint, "__metadata__") else hint  # inside Annotated
        if dataclasses.is_dataclass(bare):
            names |= option_names(bare)
        else:
            named = [said.name for said in getattr(hint, "__metadata__", ()) if getattr(said, "name", None)]
            names.add(f"--{(named or [name])[0].replace('_', '-')}")
    return names

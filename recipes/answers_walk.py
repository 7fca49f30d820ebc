"""What preferences on the walk task share: the warmed-up model answers, its answers are judged, a run learns from them.

A judge knows the right square and nothing else, as GRPO's reward does: nothing is paid for thinking. The answers are
written into the run's directory once, as rows that `align dpo` and `align kto` read too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config import SamplingConfig
from align.data import eos_token_ids, read_prompts, tokenize_prompts
from align.evaluate import HELD_OUT
from align.logprobs import Policy
from align.models import Reference, load_model, load_tokenizer, reference_of
from align.rewards import Reward, score_rollouts
from align.sampler import Sampler
from recipes import walk
from recipes.common import RunOptions, claim_directory, make_accelerator, tell
from recipes.shown_run import learn_and_show
from recipes.warm_up import warm_up

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from align.runs.run import Algorithm

REWARDS = (Reward(walk.right_square), Reward(walk.thinks, weight=0.0))
ANSWERING = HELD_OUT - 1
"""Takes the step's place among the keys of the random draws, so that no evaluation shares draws with the answers."""


@dataclass(frozen=True)
class AnswerOptions:
    """What the warmed-up model is asked; its answers are what is learned from."""

    prompts: int = 2000
    """Walks, none of them held out or demonstrated."""
    samples: int = 8
    """Answers to each."""


@dataclass(frozen=True)
class Answer:
    """An answer of the warmed-up model, how many tokens it took, and whether it names the right square."""

    prompt: list[dict[str, str]]
    text: str
    tokens: int
    right: bool

    @property
    def completion(self) -> list[dict[str, str]]:
        """The turn of the assistant."""
        return [{"role": "assistant", "content": self.text}]


@dataclass(frozen=True)
class Start:
    """What an algorithm is built from: the rows of the run's data file, and the policy where it begins."""

    rows: Path
    policy: Policy
    reference: Reference
    tokenizer: PreTrainedTokenizerBase
    accelerator: Accelerator

    @classmethod
    def of(cls, model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Path, accelerator: Accelerator) -> Start:
        """Take a model as it is now for the start and for the reference."""
        policy = Policy(model)
        return cls(rows, policy, reference_of(policy), tokenizer, accelerator)


def learn_from_answers(
    name: str,
    options: Any,
    command: Sequence[str],
    *,
    seed: int,
    rows_of: Callable[[list[list[Answer]]], list[dict[str, Any]]],
    build: Callable[[Start], Algorithm],
) -> int:
    """Warm up, let the model answer, learn from its answers, and return an exit code.

    Args:
        name: of the recipe.
        options: with `sft_steps`, `answers` and `run`.
        command: the words that started the recipe.
        seed: of the walks, of every answer and of every evaluation.
        rows_of: makes the rows to learn from, of the judged answers, a list a prompt.
        build: makes the algorithm.
    """
    accelerator, plain = make_accelerator(), replace(options, run=RunOptions())
    directory = claim_directory(options.run, name, plain, accelerator)
    warm, run = directory / "warm-up" / "final", options.run
    settings = {"config": plain, "steps": options.sft_steps, "seed": seed}
    if not warm.exists() and (code := warm_up(run, warm.parent, command, accelerator, **settings)):
        return code
    model, tokenizer = load_model(warm), load_tokenizer(warm)
    sampler = sampler_of(model, tokenizer)
    held_out, _, practised = walk.splits(seed, options.answers.prompts)
    prompts = tokenize_prompts(read_prompts(walk.tasks(held_out)), tokenizer)

    rows = directory / "answers.jsonl"
    if accelerator.is_main_process and not rows.exists():
        write(rows, rows_of(answers(sampler, practised, options.answers.samples, seed)))
    accelerator.wait_for_everyone()
    with rows.open() as lines:
        tell(f"Learning from {sum(1 for _ in lines):,} rows of its own judged answers: {rows}", run, accelerator)
    algorithm = build(Start.of(model, tokenizer, rows, accelerator))

    told: dict[str, Any] = {"seed": seed, "config": plain, "command": command, "accelerator": accelerator}
    return learn_and_show(algorithm, sampler, prompts, REWARDS, directory, options, **told)


def sampler_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Sampler:
    """Return what samples answers to walks."""
    config = SamplingConfig(max_new_tokens=walk.LONGEST_COMPLETION)
    return Sampler(model, tokenizer, config, eos_token_ids=eos_token_ids(model, tokenizer))


def answers(sampler: Sampler, walks: list[str], samples: int, seed: int) -> list[list[Answer]]:
    """Let the model answer each walk several times, and judge its answers."""
    prompts = tokenize_prompts(read_prompts(walk.tasks(walks)), sampler.tokenizer)
    numbers = range(len(prompts))
    rollouts = sampler.sample(prompts, group_size=samples, seed=seed, step=ANSWERING, numbers=numbers)
    judged = [
        Answer(told["prompt"], told["completion"], told["tokens"], told["reward"] == 1)
        for told in score_rollouts(rollouts, REWARDS).examples()
    ]
    return [judged[start : start + samples] for start in range(0, len(judged), samples)]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows to a file that is whole as soon as it is there."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    unfinished.replace(path)

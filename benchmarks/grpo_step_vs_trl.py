"""A GRPO step on long prompts against TRL 1.16: seconds and peak memory, 4 prompts of 256 tokens x 8 completions.

    pip install -e '.[bench]' -c constraints.txt
    python -m benchmarks.grpo_step_vs_trl                  five rounds, ten minutes
    python -m benchmarks.grpo_step_vs_trl --size 96M       five rounds of the large model, half an hour
    python -m benchmarks.grpo_step_vs_trl --quick          a minute: does it still run?

A model of seven million parameters with random weights and a vocabulary of 8,192, or one of 96 million and 32,768.
Lengths of completions are lognormal, their median 64 and sigma 0.7, cut at 192: while either side samples, the logit of
the EOS at each place of a completion is set to the hazard of that distribution, the same for both. What is drawn
differs, so the mean length is told. Rewards are numbers without meaning that differ within each group: every row is
trained on, none is left out.

Each turn is a process of its own, so that its peak memory, imports included, is its own. The clock runs over some steps
after the first, and building the model stands outside; of the large one it runs over the first step, and the second or
two that either trainer takes to be made. TRL takes all rows of a step in one pass, which is its default; this library
cuts them by its default budget of tokens.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import wraps
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.alternate import machine, peak_megabytes, spread, table, use_one_thread
from benchmarks.pairs_vs_trl import PROMPT, WORDS, long_model, long_rows, long_tokenizer
from benchmarks.trl_side import optimizers, plain_options

MEDIAN, SIGMA, LONGEST, GROUP = 64, 0.7, 192, 8


@dataclass(frozen=True)
class Size:
    """A Llama with random weights, and the steps before the clock starts and on it."""

    words: int
    shape: dict[str, int]
    warm: int
    steps: int

    def model(self) -> Any:
        return long_model(seed=0, words=self.words, **self.shape)

    def tokenizer(self) -> Any:
        return long_tokenizer(self.words)


SIZES = {
    "7M": Size(WORDS, {}, warm=1, steps=2),
    "96M": Size(32_768, {"heads": 12, "inner": 2048, "layers": 10}, warm=0, steps=1),  # a step takes minutes
}


@dataclass(frozen=True)
class Task:
    """One measurement, as the processes of both sides are handed it."""

    size: str
    prompts: int
    warm: int
    steps: int

    @property
    def total_steps(self) -> int:
        return self.warm + self.steps

    def model(self) -> tuple[Any, Any]:
        """Return the model, whose completions have the lengths asked for, and its tokenizer."""
        import torch

        torch.set_num_threads(1)
        size = SIZES[self.size]
        return with_lengths(size.model(), prompt=PROMPT), size.tokenizer()

    @property
    def config(self) -> Any:
        from align.config import GRPOConfig, OptimizerConfig, SamplingConfig

        return GRPOConfig(
            steps=self.total_steps,
            prompts_per_step=self.prompts,
            group_size=GROUP,
            sampling=SamplingConfig(max_new_tokens=LONGEST),
            optimizer=OptimizerConfig(learning_rate=1e-5, schedule="constant"),
        )

    def rows(self) -> list[dict[str, Any]]:
        return [{"prompt": row["prompt"].strip()} for row in long_rows(self.total_steps * self.prompts)]


@dataclass(frozen=True)
class Turn:
    """What a process tells: seconds a step, by the clock and of the processor; memory; tokens of a completion."""

    seconds: float
    processor: float
    before: float
    peak: float
    length: float


def hazard(place: int) -> float:
    """Return the chance that a completion ends with its token number `place`, if it was not over before."""

    def longer(tokens: int) -> float:
        return 0.5 * math.erfc(math.log(tokens / MEDIAN) / (SIGMA * math.sqrt(2))) if tokens else 1.0

    return 1 - longer(place) / longer(place - 1)


def with_lengths(model: Any, *, prompt: int) -> Any:
    """Let the forward of a model with random weights set the logit of the EOS while completions are sampled.

    prompt: tokens of every prompt, after which the places of a completion are counted.
    """
    import torch

    forward, eos, words = model.forward, model.config.eos_token_id, model.config.vocab_size
    # with random weights the other words share the rest of the probability nearly evenly
    odds = [math.log(max(hazard(place), 1e-9) / (1 - hazard(place)) * (words - 1)) for place in range(1, LONGEST + 1)]

    @wraps(type(model).forward)
    def ending(*arguments: Any, **options: Any) -> Any:
        out = forward(*arguments, **options)
        if not torch.is_grad_enabled() and out.past_key_values is not None and out.logits.shape[1] == 1:
            out.logits[:, -1, eos] = odds[out.past_key_values.get_seq_length() - prompt]
        return out

    model.forward = ending
    return model


class Watch:
    """Times the steps after the first ones, and judges completions, of which it counts the tokens."""

    def __init__(self, task: Task) -> None:
        self.task, self.step, self.before, self.lengths = task, 0, peak_megabytes(), []
        self.started = time.perf_counter(), time.process_time()  # if no step warms up

    def reward(self, prompts: Sequence[Any], completions: Sequence[str], **_: Any) -> list[float]:
        self.lengths += [min(LONGEST, len(text.split()) + 1) for text in completions]
        return [zlib.crc32(text.encode()) % 1000 / 1000 for text in completions]

    def stepped(self) -> None:
        self.step += 1
        if self.step == self.task.warm:
            self.started = time.perf_counter(), time.process_time()
        if self.step == self.task.total_steps:
            self.ended = time.perf_counter(), time.process_time()

    def turn(self) -> Turn:
        seconds, processor = (
            (end - start) / self.task.steps for start, end in zip(self.started, self.ended, strict=True)
        )
        timed = self.lengths[self.task.warm * self.task.prompts * GROUP :]
        return Turn(seconds, processor, self.before, peak_megabytes(), statistics.mean(timed))


def train_align(task: Task) -> Turn:
    """Train with this library."""
    from accelerate import Accelerator

    from align.data import read_prompts, tokenize_prompts
    from align.grpo import GRPO
    from align.logprobs import Policy
    from align.rewards import Reward
    from align.sampler import Sampler

    model, tokenizer = task.model()
    watch = Watch(task)
    prompts = tokenize_prompts(read_prompts(task.rows()), tokenizer)
    sampler = Sampler(model, tokenizer, task.config.sampling, eos_token_ids=[tokenizer.eos_token_id])
    algorithm = GRPO(Policy(model), sampler, prompts, [Reward(watch.reward)], task.config, Accelerator(cpu=True))
    for _ in algorithm.steps():
        watch.stepped()
    return watch.turn()


def train_trl(task: Task) -> Turn:
    """Train with TRL's GRPOTrainer, each option set to what the other side does."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    (model, tokenizer), config = task.model(), task.config
    watch = Watch(task)

    class Tick(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watch.stepped()

    def reward(prompts: Sequence[Any], completions: Sequence[str], **_: Any) -> list[float]:
        return watch.reward(prompts, completions)

    with tempfile.TemporaryDirectory() as folder:
        options = GRPOConfig(
            **plain_options(Path(folder)),
            per_device_train_batch_size=task.prompts * GROUP,
            num_generations=GROUP,
            max_steps=task.total_steps,
            max_completion_length=LONGEST,
            loss_type="dapo",  # the mean over the tokens of the step
            scale_rewards="group",
            beta=0.0,
            epsilon=config.clip_low,
            max_grad_norm=config.optimizer.max_grad_norm,
            shuffle_dataset=False,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=[reward],
            args=options,
            train_dataset=Dataset.from_list(task.rows()),
            processing_class=tokenizer,
            callbacks=[Tick()],
            optimizers=optimizers(model, config.optimizer, task.total_steps),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return watch.turn()


SIDES: dict[str, Callable[[Task], Turn]] = {"align": train_align, "trl": train_trl}


def apart(train: Callable[[Task], Turn], task: Task) -> Turn:
    """Run one turn in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(train, task).result()


def rows_of_table(told: Sequence[dict[str, Turn]]) -> list[list[str]]:
    """Return name, ours, the peer's, and the peer's over ours: medians over the rounds, with their range."""
    rows = []
    for what, name, digits in (
        ("seconds a step", "seconds", 2),
        ("processor's seconds a step", "processor", 2),
        ("tokens of a completion", "length", 1),
        ("memory before the first step, MB", "before", 0),
        ("peak memory, MB", "peak", 0),
    ):
        ours, theirs = ([getattr(turn[side], name) for turn in told] for side in SIDES)
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        rows.append([what, spread(ours, digits), spread(theirs, digits), spread(ratios, 2)])
    return rows


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default 5)")
    parser.add_argument("--size", choices=SIZES, default="7M", help="parameters of the model (default 7M)")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that everything still runs")
    options = parser.parse_args()
    size = SIZES[options.size]
    rounds, task = options.rounds, Task(options.size, prompts=4, warm=size.warm, steps=size.steps)
    if options.quick:
        rounds, task = 1, Task(options.size, prompts=1, warm=0, steps=1)
    use_one_thread()
    print(machine(), flush=True)
    told = []
    for number in range(rounds):
        turns = {name: apart(train, task) for name, train in SIDES.items()}
        words = (f"{name} {t.processor:.2f} s, {t.peak:.0f} MB, {t.length:.0f} tokens" for name, t in turns.items())
        print(f"round {number + 1}: {'; '.join(words)}", flush=True)
        told.append(turns)
    print(f"\nmedian (range) of {rounds} rounds of a fresh process a side\n")
    print(table(["", "align", "TRL", "TRL / align"], rows_of_table(told)))


if __name__ == "__main__":
    main()

"""DPO and reward models against TRL 1.16's DPOTrainer and RewardTrainer: seconds a step and peak memory.

    pip install -e '.[bench]' -c constraints.txt
    python -m benchmarks.pairs_vs_trl                          five rounds, a quarter of an hour
    python -m benchmarks.pairs_vs_trl --only dpo --rounds 9    one of the two, longer
    python -m benchmarks.pairs_vs_trl --quick                  two minutes: does it still run?

Both sides learn from the same pairs in the same order, from the same weights, with the same loss, optimizer and
clipping, in float32. Each turn is a process of its own, so that its peak memory, imports included, is its own. The
clock runs over a block of steps after the first two; building stands outside. Where others use the machine too, only
the processor's seconds mean something.

That both do the same work is checked: the losses of the first step must be the same. For that, DPO's reference has
other weights than its policy; with the same ones that loss would be log 2 whatever was computed.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.alternate import machine, peak_megabytes, spread, table, use_one_thread
from benchmarks.trl_side import optimizers, plain_options
from recipes import walk

WARM = 2
"""Steps before the clock starts."""
SAME_LOSS = 1e-4
"""Most that the losses of the first step may differ by."""
WORDS, PROMPT, ANSWER = 8192, 256, 64
"""Of the long pairs: the vocabulary, and tokens of a prompt and of an answer, its EOS included."""
CENTRING = 0.01
"""Of the reward models."""


@dataclass(frozen=True)
class Task:
    """One measurement, as the processes of both sides are handed it."""

    algorithm: str
    size: str
    pairs_per_step: int
    steps: int

    @property
    def total_steps(self) -> int:
        return WARM + self.steps

    @property
    def optimizer(self) -> Any:
        from align.config import OptimizerConfig

        return OptimizerConfig(learning_rate=1e-4, schedule="constant")

    def rows(self) -> list[dict[str, Any]]:
        return SIZES[self.size].rows(self.total_steps * self.pairs_per_step)

    def model(self, seed: int = 0) -> tuple[Any, Any]:
        import torch

        torch.set_num_threads(1)
        size = SIZES[self.size]
        return size.model(seed=seed), size.tokenizer()


@dataclass(frozen=True)
class Turn:
    """What a process tells: seconds a step of its block, by the clock and of the processor; memory before the first
    step and at most; every loss."""

    seconds: float
    processor: float
    before: float
    peak: float
    losses: list[float]


@dataclass(frozen=True)
class Size:
    """A model with pairs to it."""

    about: str
    rows: Callable[[int], list[dict[str, Any]]]
    model: Callable[..., Any]
    tokenizer: Callable[[], Any]


def walk_rows(count: int) -> list[dict[str, Any]]:
    """Prefer right answers to wrong ones; half of each think before."""
    prompts = walk.walks(count, seed=0)
    right, wrong = (walk.demonstrations(prompts, thinking=0.5, seed=seed) for seed in range(2))
    for row in wrong:
        (turn,) = row["completion"]
        last = walk.BOARD.index(turn["content"][-1])
        turn["content"] = turn["content"][:-1] + walk.BOARD[last - 1]
    both = zip(right, wrong, strict=True)
    return [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": w["completion"]} for r, w in both]


def long_rows(count: int) -> list[dict[str, Any]]:
    """Make pairs of random words, all of one length."""
    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(f"w{draw.randrange(2, WORDS)}" for _ in range(words))

    return [
        {"prompt": text(PROMPT) + " ", "chosen": text(ANSWER - 1), "rejected": text(ANSWER - 1)} for _ in range(count)
    ]


def long_tokenizer(size: int = WORDS) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", *(f"w{number}" for number in range(2, size))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def long_model(*, seed: int, words: int = WORDS, heads: int = 4, inner: int = 704, layers: int = 6) -> Any:
    """Build a Llama with random weights: of seven million parameters, unless other sizes are given."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=64 * heads,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


SIZES = {
    "tiny": Size("0.3M parameters, prompts of 15 tokens", walk_rows, walk.walk_model, walk.walk_tokenizer),
    "long": Size(f"7M parameters, prompts of {PROMPT}, answers of {ANSWER}", long_rows, long_model, long_tokenizer),
}


class Clock:
    """Times the block of steps of one process."""

    def __init__(self, task: Task) -> None:
        self.task, self.step, self.before = task, 0, peak_megabytes()

    def stepped(self) -> None:
        self.step += 1
        if self.step == WARM:
            self.started = self._now()
        if self.step == self.task.total_steps:
            self.ended = self._now()

    def turn(self, losses: Sequence[Any]) -> Turn:
        seconds, processor = (
            (end - start) / self.task.steps for start, end in zip(self.started, self.ended, strict=True)
        )
        return Turn(seconds, processor, self.before, peak_megabytes(), [float(loss) for loss in losses])

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def train_align(task: Task) -> Turn:
    """Train with this library."""
    algorithm = {"dpo": align_dpo, "reward": align_reward}[task.algorithm](task)
    clock, losses = Clock(task), []
    for metrics in algorithm.steps():
        clock.stepped()
        losses.append(metrics["optim/loss"])
    return clock.turn(losses)


def align_dpo(task: Task) -> Any:
    from accelerate import Accelerator

    from align.config import DPOConfig
    from align.dpo import DPO
    from align.logprobs import Policy
    from align.models import reference_of
    from align.pairs import read_pairs, tokenize_pairs

    model, tokenizer = task.model()
    reference = reference_of(Policy(task.model(seed=1)[0]))
    pairs = tokenize_pairs(read_pairs(task.rows()), tokenizer)
    config = DPOConfig(steps=task.total_steps, pairs_per_step=task.pairs_per_step, optimizer=task.optimizer)
    return DPO(Policy(model), pairs, config, Accelerator(cpu=True), reference=reference)


def align_reward(task: Task) -> Any:
    from accelerate import Accelerator

    from align.config import RewardModelConfig
    from align.pairs import read_pairs, tokenize_pairs
    from align.reward_head import RewardModel
    from align.reward_model import RewardTraining

    model, tokenizer = reward_model(task)
    pairs = tokenize_pairs(read_pairs(task.rows()), tokenizer)
    config = RewardModelConfig(
        steps=task.total_steps, pairs_per_step=task.pairs_per_step, centring=CENTRING, optimizer=task.optimizer
    )
    return RewardTraining(RewardModel(model), pairs, config, Accelerator(cpu=True))


def reward_model(task: Task) -> tuple[Any, Any]:
    """Return the classifier that both sides train, and its tokenizer."""
    from align.reward_head import reward_model_of, separate_padding

    model, tokenizer = task.model()
    classifier = reward_model_of(model, seed=0)
    separate_padding(classifier, tokenizer)
    return classifier, tokenizer


def train_trl(task: Task) -> Turn:
    """Train with TRL's trainer, each option set to what the other side does."""
    from transformers import PrinterCallback, TrainerCallback

    warnings.simplefilter("ignore", FutureWarning)  # of names that TRL itself still uses
    with tempfile.TemporaryDirectory() as folder:
        trainer = {"dpo": trl_dpo, "reward": trl_reward}[task.algorithm](task, Path(folder))
        clock, losses, compute_loss = Clock(task), [], trainer.compute_loss

        class Tick(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                clock.stepped()

        def kept(*arguments: Any, **options: Any) -> Any:
            loss = compute_loss(*arguments, **options)
            losses.append(loss.detach())
            return loss

        trainer.compute_loss = kept
        trainer.add_callback(Tick())
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.turn(losses)


def trl_dpo(task: Task, folder: Path) -> Any:
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = task.model()
    return DPOTrainer(
        model=model,
        ref_model=task.model(seed=1)[0],
        args=DPOConfig(**trl_options(task, folder), beta=0.1),
        train_dataset=rows_in_order(task),
        processing_class=tokenizer,
        optimizers=optimizers(model, task.optimizer, task.total_steps),
    )


def trl_reward(task: Task, folder: Path) -> Any:
    from trl import RewardConfig, RewardTrainer

    model, tokenizer = reward_model(task)
    return RewardTrainer(
        model=model,
        args=RewardConfig(**trl_options(task, folder), center_rewards_coefficient=CENTRING),
        train_dataset=rows_in_order(task),
        processing_class=tokenizer,
        optimizers=optimizers(model, task.optimizer, task.total_steps),
    )


def trl_options(task: Task, folder: Path) -> dict[str, Any]:
    return {
        **plain_options(folder),
        "per_device_train_batch_size": task.pairs_per_step,
        "max_steps": task.total_steps,
        "max_grad_norm": task.optimizer.max_grad_norm,
        "train_sampling_strategy": "sequential",
    }


def rows_in_order(task: Task) -> Any:
    """Return the rows as the other side visits them."""
    from datasets import Dataset

    from align.batch import rows_at

    rows = task.rows()
    return Dataset.from_list([rows[row] for row in rows_at(0, len(rows), len(rows), seed=0)])


SIDES: dict[str, Callable[[Task], Turn]] = {"align": train_align, "trl": train_trl}


def apart(train: Callable[[Task], Turn], task: Task) -> Turn:
    """Run one turn in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(train, task).result()


def rounds_of(task: Task, rounds: int) -> Iterator[dict[str, Turn]]:
    """Let both sides train in turns, and check each time that both did the same work."""
    for number in range(rounds):
        told = {name: apart(train, task) for name, train in SIDES.items()}
        ours, theirs = told.values()
        if abs(ours.losses[0] - theirs.losses[0]) > SAME_LOSS:
            raise SystemExit(f"the losses of the first step differ: {ours.losses[0]} here, {theirs.losses[0]} in TRL")
        apart_by = max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True))
        ratios = [theirs.seconds / ours.seconds, theirs.processor / ours.processor]
        print(
            f"{task.algorithm} {task.size} round {number + 1}: {ours.seconds:.3f} s, TRL {theirs.seconds:.3f} s, "
            f"{ratios[0]:.2f} times, {ratios[1]:.2f} of the processor's; "
            f"first loss {ours.losses[0]:.5f} and {theirs.losses[0]:.5f}, all within {apart_by:.0e}",
            flush=True,
        )
        yield told


def rows_of_table(task: Task, told: Sequence[dict[str, Turn]]) -> list[list[str]]:
    """Return name, ours, the peer's, and the peer's over ours: medians over the rounds, with their range."""
    rows = []
    for what, name, digits in (
        ("seconds a step", "seconds", 3),
        ("processor seconds a step", "processor", 3),
        ("memory before the first step, MB", "before", 0),
        ("peak memory, MB", "peak", 0),
    ):
        ours, theirs = ([getattr(turn[side], name) for turn in told] for side in SIDES)
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        title = f"{task.algorithm}, {task.size}: {what}"
        rows.append([title, spread(ours, digits), spread(theirs, digits), spread(ratios, 2)])
    return rows


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default 5)")
    parser.add_argument("--only", choices=("dpo", "reward"), help="one of the two")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that everything still runs")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    use_one_thread()
    print(machine(), flush=True)
    lines = []
    for size, pairs, steps in (("tiny", 32, 3 if options.quick else 30), ("long", 8, 1 if options.quick else 3)):
        for algorithm in ("dpo", "reward"):
            if options.only in (None, algorithm):
                task = Task(algorithm, size, pairs, steps)
                lines += rows_of_table(task, list(rounds_of(task, rounds)))
    print(f"\nmedian (range) of {rounds} rounds of a fresh process a side\n")
    for name, size in SIZES.items():
        print(f"{name}: {size.about}")
    print()
    print(table(["", "align", "TRL", "TRL / align"], lines))


if __name__ == "__main__":
    main()

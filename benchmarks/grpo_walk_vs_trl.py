"""GRPO on the walk task against TRL 1.16: seconds a step, peak memory, seconds until 95 % of held-out walks are right.

    pip install -e '.[bench]' -c constraints.txt
    python -m benchmarks.grpo_walk_vs_trl                 three seeds, a quarter of an hour
    python -m benchmarks.grpo_walk_vs_trl --quick         under a minute: does it still run?

Each seed warms one model up and gives its weights to two processes, one a side. They take turns: ten steps of one while
the other waits, so that both meet the same noise and every round gives a ratio. Both train on the same prompts in the
same order with the same group size, length cap, temperature, loss, advantages, optimizer, learning rates and reward;
what they draw at random differs. The clock runs from the first instruction of a block to the end of its last step;
building, and measuring accuracy after each block, stand outside. Peak memory is of the whole process, imports included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.alternate import machine, peak_megabytes, spread, table, use_one_thread
from benchmarks.trl_side import optimizers, plain_options
from recipes import walk

if TYPE_CHECKING:  # this process imports no torch, because a child's peak memory may begin at its parent's
    from align.config import GRPOConfig

GOAL = 0.95
PARTS = ((0, 50), (50, 100), (100, 250), (0, 250))
"""Steps after which a part of the run begins and ends; later, fewer groups have something to teach."""


@dataclass(frozen=True)
class Task:
    """One seed of the comparison, as both processes are handed it."""

    seed: int
    steps: int
    steps_per_turn: int
    warm_up_steps: int
    weights: Path

    @property
    def config(self) -> GRPOConfig:
        from recipes.grpo_walk import GRPO_DEFAULTS

        return replace(GRPO_DEFAULTS, seed=self.seed, steps=self.steps)

    def splits(self) -> tuple[list[str], list[str], list[str]]:
        return walk.splits(self.seed, self.steps * self.config.prompts_per_step)


@dataclass(frozen=True)
class Turn:
    """What a process tells after its turn: seconds of the turn, then held-out accuracy and peak memory."""

    step: int
    seconds: float
    accuracy: float
    megabytes: float


def reward(prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """Judge as the recipe does, and overlook what else the peer passes."""
    from recipes.grpo_walk import right_square

    return right_square(prompts, completions, answer)


def load(task: Task) -> tuple[Any, Any]:
    """Return the model as the warm-up left it, and its tokenizer."""
    import torch

    torch.set_num_threads(1)
    model = walk.walk_model(seed=task.seed)
    if task.weights.exists():
        model.load_state_dict(torch.load(task.weights))
    return model, walk.walk_tokenizer()


def warm_up(task: Task) -> None:
    """Imitate demonstrations as the recipe does, and save the weights."""
    import torch
    from accelerate import Accelerator

    from align.logprobs import Policy
    from recipes.warm_up import supervised

    model, tokenizer = load(task)
    sft = supervised(Policy(model), tokenizer, Accelerator(cpu=True), steps=task.warm_up_steps, seed=task.seed)
    for _ in sft.steps():
        pass
    torch.save(model.state_dict(), task.weights)


def warm_up_apart(task: Task) -> None:
    """Warm up in a process of its own."""
    warming = get_context("spawn").Process(target=warm_up, args=(task,))
    warming.start()
    warming.join()
    if warming.exitcode:
        raise SystemExit("the warm-up failed; its error stands above")


class Turns:
    """The pace of one process: `begin` waits for its turn, `stepped` ends the turn and waits for the next."""

    def __init__(self, pipe: Connection, task: Task, model: Any, tokenizer: Any) -> None:
        from align.data import read_prompts, tokenize_prompts
        from align.sampler import Sampler

        self.pipe, self.task = pipe, task
        self.held_out = tokenize_prompts(read_prompts(walk.tasks(task.splits()[0])), tokenizer)
        # In batches smaller than those of training, so that measuring never sets the peak of memory.
        sampling = replace(task.config.sampling, tokens_per_batch=2048)
        self.sampler = Sampler(model, tokenizer, sampling, eos_token_ids=[tokenizer.eos_token_id])

    def begin(self) -> None:
        self._tell(step=0, seconds=0.0)
        self._wait()

    def stepped(self, step: int) -> None:
        if step % self.task.steps_per_turn == 0:
            self._tell(step, time.perf_counter() - self.started)
            if step < self.task.steps:
                self._wait()

    def _wait(self) -> None:
        self.pipe.recv()
        self.started = time.perf_counter()

    def _tell(self, step: int, seconds: float) -> None:
        peak = peak_megabytes()
        self.pipe.send(Turn(step, seconds, accuracy=self._accuracy(), megabytes=peak))

    def _accuracy(self) -> float:
        from align.evaluate import evaluate
        from align.rewards import Reward

        # The same sampler and random numbers for both sides; it leaves torch's own generator alone.
        return evaluate(self.sampler, self.held_out, [Reward(reward)], seed=self.task.seed).metrics["reward/mean"]


def train_align(pipe: Connection, task: Task) -> None:
    """Train with this library."""
    from accelerate import Accelerator

    from align.data import read_prompts, tokenize_prompts
    from align.grpo import GRPO
    from align.logprobs import Policy
    from align.rewards import Reward
    from align.sampler import Sampler

    model, tokenizer = load(task)
    turns = Turns(pipe, task, model, tokenizer)
    prompts = tokenize_prompts(read_prompts(walk.tasks(task.splits()[2])), tokenizer)
    sampler = Sampler(model, tokenizer, task.config.sampling, eos_token_ids=[tokenizer.eos_token_id])
    algorithm = GRPO(Policy(model), sampler, prompts, [Reward(reward)], task.config, Accelerator(cpu=True))
    turns.begin()
    for _ in algorithm.steps():
        turns.stepped(algorithm.step)


def train_trl(pipe: Connection, task: Task) -> None:
    """Train with TRL's GRPOTrainer, each option set to what the other side does."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOTrainer

    from align.batch import rows_at

    config = task.config
    model, tokenizer = load(task)
    turns = Turns(pipe, task, model, tokenizer)

    class TakeTurns(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turns.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turns.stepped(state.global_step)

    rows = walk.tasks(task.splits()[2])
    order = rows_at(0, len(rows), len(rows), config.seed)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[reward],
        args=trl_config(task),
        train_dataset=Dataset.from_list([rows[row] for row in order]),
        processing_class=tokenizer,
        callbacks=[TakeTurns()],
        optimizers=optimizers(model, config.optimizer, task.steps),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def trl_config(task: Task) -> Any:
    """Return the peer's options for the same algorithm. Its batch size counts completions, not prompts."""
    from trl import GRPOConfig as TRLConfig

    config = task.config
    return TRLConfig(
        **plain_options(task.weights.parent),
        per_device_train_batch_size=config.prompts_per_step * config.group_size,
        num_generations=config.group_size,
        max_steps=task.steps,
        num_iterations=1,
        max_completion_length=config.sampling.max_new_tokens,
        temperature=config.sampling.temperature,
        loss_type="dapo",  # the mean over the tokens of the step
        scale_rewards="group",
        beta=0.0,
        epsilon=config.clip_low,
        max_grad_norm=config.optimizer.max_grad_norm,
        shuffle_dataset=False,
        seed=task.seed,
    )


SIDES: dict[str, Callable[[Connection, Task], None]] = {"align": train_align, "trl": train_trl}


def run_pair(task: Task) -> dict[str, list[Turn]]:
    """Warm up, then let both sides train in turns; the first entry of each is from before the first step."""
    warm_up_apart(task)
    context = get_context("spawn")
    pipes, told = {}, {}
    for name, train in SIDES.items():
        pipes[name], theirs = context.Pipe()
        context.Process(target=train, args=(theirs, task), daemon=True).start()
        theirs.close()  # so that recv raises EOFError when the process has died
        told[name] = [pipes[name].recv()]
    for _ in range(task.steps // task.steps_per_turn):
        for name, pipe in pipes.items():
            pipe.send("your turn")
            told[name].append(pipe.recv())
    return told


def seconds_until(turns: Sequence[Turn], goal: float) -> float:
    """Return the training seconds before the first turn whose end reaches an accuracy; infinite if none does."""
    total = 0.0
    for turn in turns:
        total += turn.seconds
        if turn.accuracy >= goal:
            return total
    return float("inf")


def seconds_of(turns: Sequence[Turn], begin: int, end: int) -> float:
    """Return the seconds of the steps after `begin` up to `end`."""
    return sum(turn.seconds for turn in turns if begin < turn.step <= end)


def rows_of_table(pairs: Sequence[dict[str, list[Turn]]]) -> list[list[str]]:
    """Return name, ours, the peer's, and the peer's over ours: medians over the seeds, with their range."""
    steps = pairs[0]["align"][-1].step
    rows = []

    def row(name: str, value: Callable[[Sequence[Turn]], float], digits: int, *, cost: bool = True) -> None:
        sides = [[value(pair[side]) for pair in pairs] for side in SIDES]
        ratios = [theirs / ours for ours, theirs in zip(*sides, strict=True)] if cost else []
        rows.append([name, *(spread(side, digits) for side in sides), spread(ratios, 2) if cost else ""])

    for begin, end in PARTS:
        if end <= steps:
            name = f"seconds a step, {begin + 1} to {end}"
            row(name, lambda turns, b=begin, e=end: seconds_of(turns, b, e) / (e - b), 3)
    row(f"seconds, all {steps} steps", lambda turns: seconds_of(turns, 0, steps), 1)
    row(f"seconds until {GOAL:.0%} held-out", lambda turns: seconds_until(turns, GOAL), 1)
    row("held-out before, %", lambda turns: 100 * turns[0].accuracy, 1, cost=False)
    row("held-out after, %", lambda turns: 100 * turns[-1].accuracy, 1, cost=False)
    row("memory before the first step, MB", lambda turns: turns[0].megabytes, 0)
    row("peak memory, MB", lambda turns: turns[-1].megabytes, 0)
    return rows


def rounds_of_table(pairs: Sequence[dict[str, list[Turn]]]) -> list[list[str]]:
    """Return, for each part of the run, the ratio of every round: one turn of each side, one after the other."""
    rows = []
    for begin, end in PARTS:
        turns = [turn for pair in pairs for turn in zip(*(pair[side][1:] for side in SIDES), strict=True)]
        ratios = [theirs.seconds / ours.seconds for ours, theirs in turns if begin < ours.step <= end]
        if ratios:
            rows.append([f"{begin + 1} to {end}", len(ratios), spread(ratios, 2)])
    return rows


def main() -> None:
    """Run the seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="pairs of runs (default 3)")
    parser.add_argument("--steps", type=int, default=250, help="optimizer steps of a run (default 250)")
    parser.add_argument("--quick", action="store_true", help="one short pair, to see that everything still runs")
    options = parser.parse_args()
    seeds, steps, turn, warm = (1, 10, 5, 20) if options.quick else (options.seeds, options.steps, 10, 250)
    use_one_thread()
    print(machine(), flush=True)
    pairs = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            pair = run_pair(Task(seed, steps, turn, warm, Path(folder) / "warm.pt"))
        pairs.append(pair)
        for name, turns in pair.items():
            curve = " ".join(f"{100 * turn.accuracy:.0f}" for turn in turns)
            print(f"seed {seed} {name}: {sum(t.seconds for t in turns):.1f} s, held-out % {curve}", flush=True)
    print(f"\nmedian (range) of {seeds} seeds\n")
    print(table(["", "align", "TRL", "TRL / align"], rows_of_table(pairs)))
    print(f"\nseconds of TRL / seconds of align, median (range) of the rounds of {turn} steps\n")
    print(table(["steps", "rounds", "ratio"], rounds_of_table(pairs)))


if __name__ == "__main__":
    main()

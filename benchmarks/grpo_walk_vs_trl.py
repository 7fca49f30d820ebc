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
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from align.config import GRPOConfig, OptimizerConfig, SamplingConfig, SFTConfig
from benchmarks.alternate import machine, peak_megabytes, spread, table, use_one_thread
from recipes import walk

HELD_OUT = 256
GOAL = 0.95
START = 50
"""Steps counted as the start of training, when most groups have something to teach."""


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
        return GRPOConfig(
            steps=self.steps,
            prompts_per_step=16,
            group_size=8,
            seed=self.seed,
            sampling=SamplingConfig(max_new_tokens=walk.LONGEST_COMPLETION),
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=5, final_fraction=0.1),
        )

    def held_out(self) -> list[str]:
        return walk.walks(HELD_OUT, seed=1000 + self.seed)

    def demonstrated(self) -> list[str]:
        return walk.walks(500, seed=self.seed, avoid=frozenset(self.held_out()))

    def practised(self) -> list[str]:
        count = self.steps * self.config.prompts_per_step
        return walk.walks(count, seed=5000 + self.seed, avoid=frozenset(self.held_out()))


@dataclass(frozen=True)
class Turn:
    """What a process tells after its turn: seconds of the turn, then held-out accuracy and peak memory."""

    step: int
    seconds: float
    accuracy: float
    megabytes: float


def right_square(prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """Give 1 for the right square after the thoughts, if there are any, and 0 for everything else."""
    return [float(turns[0]["content"].split("</think>")[-1] == a) for turns, a in zip(completions, answer, strict=True)]


def load(task: Task) -> tuple[Any, Any]:
    """Return the model as the warm-up left it, and its tokenizer."""
    import torch

    torch.set_num_threads(1)
    model = walk.walk_model(seed=task.seed)
    if task.weights.exists():
        model.load_state_dict(torch.load(task.weights))
    return model, walk.walk_tokenizer()


def warm_up(task: Task) -> None:
    """Imitate demonstrations of which four in ten think, and save the weights."""
    import torch
    from accelerate import Accelerator

    from align.data import read_examples, tokenize_examples
    from align.logprobs import Policy
    from align.sft import SFT

    model, tokenizer = load(task)
    rows = walk.demonstrations(task.demonstrated(), thinking=0.4, seed=task.seed)
    config = SFTConfig(
        steps=task.warm_up_steps, seed=task.seed, optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=30)
    )
    examples = tokenize_examples(read_examples(rows), tokenizer)
    for _ in SFT(Policy(model), examples, config, Accelerator(cpu=True)).steps():
        pass
    torch.save(model.state_dict(), task.weights)


class Turns:
    """The pace of one process: `begin` waits for its turn, `stepped` ends the turn and waits for the next."""

    def __init__(self, pipe: Connection, task: Task, model: Any, tokenizer: Any) -> None:
        from align.data import read_prompts, tokenize_prompts
        from align.sampler import Sampler

        self.pipe, self.task = pipe, task
        self.held_out = tokenize_prompts(read_prompts(walk.tasks(task.held_out())), tokenizer)
        self.sampler = Sampler(model, tokenizer, task.config.sampling, eos_token_ids=[tokenizer.eos_token_id])

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
        # The same sampler and random numbers for both sides; it leaves torch's own generator alone.
        rollouts = self.sampler.sample(self.held_out, group_size=1, seed=99, step=0)
        completions = [[{"role": "assistant", "content": text}] for text in rollouts.texts]
        return statistics.mean(right_square([], completions, self.held_out.columns["answer"]))


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
    prompts = tokenize_prompts(read_prompts(walk.tasks(task.practised())), tokenizer)
    sampler = Sampler(model, tokenizer, task.config.sampling, eos_token_ids=[tokenizer.eos_token_id])
    algorithm = GRPO(Policy(model), sampler, prompts, [Reward(right_square)], task.config, Accelerator(cpu=True))
    turns.begin()
    for _ in algorithm.steps():
        turns.stepped(algorithm.step)


def train_trl(pipe: Connection, task: Task) -> None:
    """Train with TRL's GRPOTrainer, each option set to what the other side does."""
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOTrainer

    from align.batch import rows_at
    from align.training import learning_rate

    config, peak = task.config, task.config.optimizer.learning_rate
    model, tokenizer = load(task)
    turns = Turns(pipe, task, model, tokenizer)

    class TakeTurns(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turns.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turns.stepped(state.global_step)

    rows = walk.tasks(task.practised())
    order = rows_at(0, len(rows), len(rows), config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.0, fused=True)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[right_square],
        args=trl_config(task),
        train_dataset=Dataset.from_list([rows[row] for row in order]),
        processing_class=tokenizer,
        callbacks=[TakeTurns()],
        optimizers=(
            optimizer,
            torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: learning_rate(config.optimizer, step, task.steps) / peak
            ),
        ),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def trl_config(task: Task) -> Any:
    """Return the peer's options for the same algorithm. Its batch size counts completions, not prompts."""
    from trl import GRPOConfig as TRLConfig

    config = task.config
    return TRLConfig(
        output_dir=str(task.weights.parent / "trl"),
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
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


SIDES: dict[str, Callable[[Connection, Task], None]] = {"align": train_align, "trl": train_trl}


def run_pair(task: Task) -> dict[str, list[Turn]]:
    """Warm up, then let both sides train in turns; the first entry of each is from before the first step."""
    # Fresh processes from one that never imports torch: a child's peak memory would begin at its parent's.
    context = get_context("spawn")
    warming = context.Process(target=warm_up, args=(task,))
    warming.start()
    warming.join()
    if warming.exitcode:
        raise SystemExit("the warm-up failed; its error stands above")
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


def side_of_table(name: str, pairs: Sequence[dict[str, list[Turn]]]) -> list[str]:
    """Return one side's column: medians over the seeds, with their range."""
    sides = [pair[name] for pair in pairs]
    steps = sides[0][-1].step

    def per_step(last: int) -> list[float]:
        return [sum(turn.seconds for turn in side if turn.step <= last) / min(last, steps) for side in sides]

    return [
        spread(per_step(START)),
        spread(per_step(steps)),
        spread([value * steps for value in per_step(steps)], 1),
        spread([seconds_until(side, GOAL) for side in sides], 1),
        spread([100 * side[0].accuracy for side in sides], 1),
        spread([100 * side[-1].accuracy for side in sides], 1),
        spread([side[0].megabytes for side in sides], 0),
        spread([side[-1].megabytes for side in sides], 0),
    ]


def ratios(pairs: Sequence[dict[str, list[Turn]]]) -> list[str]:
    """Return the last column: the peer's cost over ours; for seconds a step the median of all rounds, each a pair."""
    rounds = [
        (ours.step, theirs.seconds / ours.seconds)
        for pair in pairs
        for ours, theirs in zip(pair["align"][1:], pair["trl"][1:], strict=True)
    ]

    def over(value: Callable[[list[Turn]], float]) -> str:
        return spread([value(pair["trl"]) / value(pair["align"]) for pair in pairs], 2)

    return [
        spread([ratio for step, ratio in rounds if step <= START], 2),
        spread([ratio for _, ratio in rounds], 2),
        over(lambda side: sum(turn.seconds for turn in side)),
        over(lambda side: seconds_until(side, GOAL)),
        "",
        "",
        "",
        over(lambda side: side[-1].megabytes),
    ]


NAMES = [
    f"seconds a step, first {START} steps",
    "seconds a step, all steps",
    "seconds, all steps",
    f"seconds until {GOAL:.0%} held-out",
    "held-out accuracy before, %",
    "held-out accuracy after, %",
    "memory before the first step, MB",
    "peak memory, MB",
]


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
    columns = zip(NAMES, side_of_table("align", pairs), side_of_table("trl", pairs), ratios(pairs), strict=True)
    print(f"\nmedian (range) of {seeds} seeds; of the rounds of {turn} steps for the first two ratios\n")
    print(table(["", "align", "TRL", "TRL / align"], columns))


if __name__ == "__main__":
    main()

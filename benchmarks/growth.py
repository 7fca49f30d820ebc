"""How the cost of a GRPO step grows: with prompts, groups, completions, the batch asked for and the token budget.

    python -m benchmarks.growth                   three minutes; writes a picture to runs/growth.png
    python -m benchmarks.growth --quick           under a minute: does it still run?

A Llama of width 128 with two layers and a vocabulary of 2,048. One size is varied at a time; the others are prompts of
256 tokens, 8 completions of 64 tokens each, one prompt a step, and micro-batches of at most 4,096 tokens. No completion
ends early, and rewards differ, so that every row is trained on. "sampling" and "learning" are the processor's seconds
of the two halves of a step, the median of some steps; memory is the most that learning holds beyond the
weights, the gradients and the optimizer's state. Learning is measured with prompts forwarded once, as the library does
where that is less work, and with whole rows.

The exponent is the slope over the whole series where both axes are logarithmic: 1 is linear growth.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.alternate import machine, table, use_one_thread

WORDS = 2048


@dataclass(frozen=True)
class Size:
    """Tokens of a prompt and of a completion, completions of a prompt, prompts a step, and tokens of a micro-batch."""

    prompt: int = 256
    completion: int = 64
    group: int = 8
    prompts: int = 1
    budget: int = 4096


@dataclass(frozen=True)
class Cost:
    """Processor's seconds of sampling and of learning, and MB that learning adds."""

    sampling: float
    learning: float
    memory: float


@dataclass(frozen=True)
class Series:
    """Sizes of which one field differs."""

    about: str
    field: str
    values: tuple[int, ...]
    start: Size = Size()

    def sizes(self) -> list[Size]:
        return [replace(self.start, **{self.field: value}) for value in self.values]


SERIES = (
    Series("tokens of a prompt", "prompt", (64, 128, 256, 512, 1024)),
    Series("tokens of a completion", "completion", (16, 32, 64, 128, 256)),
    Series("completions of a prompt of 256", "group", (4, 8, 16, 32)),
    Series("completions of a prompt of 1,024", "group", (4, 8, 16, 32), Size(prompt=1024)),
    Series("prompts a step", "prompts", (1, 2, 4, 8, 16), Size(prompt=64)),
    Series("tokens of a micro-batch", "budget", (1024, 2048, 4096, 8192), Size(prompt=64, prompts=16)),
)


def cost_of(size: Size, steps: int) -> dict[str, Cost]:
    """Measure a size with prompts forwarded once, and with whole rows, step by step in turns."""
    from align import logprobs
    from align.runs.profiling import Clock, measured

    share_below, times = logprobs.SHARE_BELOW, {"once": list[tuple[float, float]](), "whole": []}
    memory = dict.fromkeys(times, 0.0)
    algorithm = grpo_of(size, len(times) * (2 + steps))
    taking = algorithm.steps()
    try:
        for number in range(2 + steps):
            for way in times:
                logprobs.SHARE_BELOW = share_below if way == "once" else 0.0
                if number < 2:  # the first step makes the optimizer's state
                    memory[way] = memory_of_learning(algorithm, taking)
                    continue
                clock = Clock(now=time.process_time)
                with measured(algorithm, clock), clock.part("step"):
                    next(taking)
                sampling = sum(seconds for part, seconds in clock.seconds.items() if part.startswith("sampling"))
                times[way].append((sampling, sum(clock.seconds.values()) - sampling))
    finally:
        logprobs.SHARE_BELOW = share_below
    medians = {way: [statistics.median(each) for each in zip(*spent, strict=True)] for way, spent in times.items()}
    return {way: Cost(sampling, learning, memory[way]) for way, (sampling, learning) in medians.items()}


def memory_of_learning(algorithm: Any, taking: Iterator[Any]) -> float:
    """Take a step, and return the most MB that its gradient step holds beyond what was there before."""
    from align.runs.profiling import highest_memory, replaced

    step, added = algorithm.trainer.step, []

    def watched(*arguments: Any, **options: Any) -> Any:
        highest_memory(cuda=False)
        (before, *_) = highest_memory(cuda=False)  # what is free was given back by the first look
        result = step(*arguments, **options)
        added.append(highest_memory(cuda=False)[0] - before)
        return result

    with replaced(algorithm.trainer, "step", watched):
        next(taking)
    return added[0]


def grpo_of(size: Size, steps: int) -> Any:
    """Build GRPO on random weights, prompts of random words, and rewards that differ."""
    import torch
    from accelerate import Accelerator
    from transformers import LlamaConfig, LlamaForCausalLM

    from align.batch import Prompts
    from align.config import GRPOConfig, OptimizerConfig, SamplingConfig
    from align.grpo import GRPO
    from align.logprobs import Policy
    from align.rewards import Reward
    from align.sampler import Sampler

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    model, tokenizer = LlamaForCausalLM(config), words_of_numbers()
    ids = torch.randint(WORDS, (steps * size.prompts, size.prompt)).tolist()
    prompts = Prompts(ids=ids, texts=tokenizer.batch_decode(ids), columns={})
    settings = GRPOConfig(
        steps=steps,
        prompts_per_step=size.prompts,
        group_size=size.group,
        sampling=SamplingConfig(max_new_tokens=size.completion),
        optimizer=OptimizerConfig(tokens_per_micro_batch=size.budget),
    )
    # no word has the number of this EOS, so that nothing ends before the cap
    sampler = Sampler(model, tokenizer, settings.sampling, eos_token_ids=[WORDS])
    return GRPO(Policy(model), sampler, prompts, [Reward(rising)], settings, Accelerator(cpu=True))


def words_of_numbers() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(WORDS)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="0", eos_token="1")


def rising(prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
    """Give each completion more than the one before."""
    return [float(row) for row in range(len(completions))]


def exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of a line through both ends where both axes are logarithmic.

    >>> exponent([1, 2, 4], [3, 6, 12])
    1.0
    """
    return math.log(costs[-1] / costs[0]) / math.log(values[-1] / values[0])


def rows_of_table(series: Series, costs: Sequence[dict[str, Cost]]) -> list[list[str]]:
    """Return a row a size, and one of exponents."""

    def columns(cost: dict[str, Cost]) -> list[float]:
        once, whole = cost["once"], cost["whole"]
        return [once.sampling, once.learning, whole.learning, once.memory, whole.memory]

    numbers = [columns(cost) for cost in costs]
    rows = [
        [f"{series.about}: {value}", *(f"{x:.3f}" for x in line[:3]), *(f"{x:.0f}" for x in line[3:])]
        for value, line in zip(series.values, numbers, strict=True)
    ]
    slopes = [exponent(series.values, [max(x, 0.1**6) for x in column]) for column in zip(*numbers, strict=True)]
    return [*rows, ["exponent", *(f"**{slope:.2f}**" for slope in slopes)]]


def draw(path: Path, measured: Sequence[tuple[Series, list[dict[str, Cost]]]]) -> None:
    """Draw seconds above memory, a column a series, with a dotted line of linear growth."""
    from recipes.pictures import pyplot

    figure, axes = pyplot().subplots(2, len(measured), figsize=(4 * len(measured), 7), squeeze=False)
    for (series, costs), (above, below) in zip(measured, axes.T, strict=True):
        for way, dash in (("once", "-"), ("whole", "--")):
            name = "prompts once" if way == "once" else "whole rows"
            lines = [(above, "learning", "C0"), (below, "memory", "C2")]
            for axis, field, colour in [*lines, *([(above, "sampling", "C1")] if way == "once" else [])]:
                ys = [getattr(cost[way], field) for cost in costs]
                axis.plot(series.values, ys, dash, color=colour, marker="o", label=f"{field}, {name}")
        first = costs[0]["once"].learning
        above.plot(
            series.values, [first * x / series.values[0] for x in series.values], ":", color="grey", label="linear"
        )
        for axis, what in ((above, "processor's seconds a step"), (below, "MB added by learning")):
            axis.set(xscale="log", yscale="log", xlabel=series.about, ylabel=what)
            axis.set_xticks(series.values, [str(value) for value in series.values], minor=False)
            axis.minorticks_off()
            axis.legend(fontsize="small")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Measure, print the table and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="steps of each way, after the first (default 3)")
    parser.add_argument("--picture", type=Path, default=Path("runs/growth.png"), help="file (default runs/growth.png)")
    parser.add_argument(
        "--quick", action="store_true", help="the ends of two series, to see that everything still runs"
    )
    options = parser.parse_args()
    use_one_thread()
    print(machine(("torch", "transformers")), flush=True)
    series = SERIES
    if options.quick:
        few = Size(prompt=64, completion=8, group=4)
        fields = (("tokens of a completion", "completion", (8, 16)), ("completions of a prompt", "group", (4, 8)))
        series = tuple(Series(*field, few) for field in fields)
    told, lines = [], []
    for each in series:
        costs = [cost_of(size, 1 if options.quick else options.steps) for size in each.sizes()]
        told.append((each, costs))
        lines += rows_of_table(each, costs)
    head = ["", "sampling, s", "learning, s", "learning, whole rows", "memory, MB", "memory, whole rows"]
    print(f"\n{table(head, lines)}")
    draw(options.picture, told)
    print(f"\nthe picture: {options.picture}")


if __name__ == "__main__":
    main()

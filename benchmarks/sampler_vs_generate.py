"""Completion tokens a second: the built-in sampler against transformers' `generate`, 8 prompts x 8 completions.

    python -m benchmarks.sampler_vs_generate              four minutes, and half an hour for the large model
    python -m benchmarks.sampler_vs_generate --only tiny  without the large model
    python -m benchmarks.sampler_vs_generate --quick      a minute: does it still run?

Two spreads of lengths on the model of the walk task: the one that the task has after its warm-up, where completions
guess or think, and one of long completions, for which a model whose final norm is 0 draws every word with the same
probability, so that lengths are geometric with the mean of the vocabulary's size. Then a Llama of a hundred million
parameters with random weights, prompts of 64 tokens and the lengths of `benchmarks.grpo_step_vs_trl`.

The sampler also gives log-probabilities, entropies and texts; `generate` gives ids alone. Tokens count up to the EOS,
seconds are the processor's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.alternate import machine, spread, table, use_one_thread
from benchmarks.grpo_step_vs_trl import LONGEST, SIZES, with_lengths
from benchmarks.grpo_walk_vs_trl import Task, load, warm_up_apart
from recipes import walk

PROMPTS, GROUP = 8, 8
LARGE, LARGE_PROMPT = "96M", 64
"""The size of the large model, and tokens of its prompts."""


class Case(NamedTuple):
    """A model, whose prompts are all of one length, and the calls of either side in a round."""

    name: str
    model: Any
    tokenizer: Any
    prompts: Any
    cap: int
    calls: int
    rounds: int


class Round(NamedTuple):
    """Tokens a second of both sides in one round, and the mean length of a completion."""

    align: float
    generate: float
    length: float


def sampler_call(case: Case) -> Callable[[int], int]:
    """Return a function of a seed that samples and counts completion tokens."""
    from align.config import SamplingConfig
    from align.sampler import Sampler

    eos = [case.tokenizer.eos_token_id]
    sampler = Sampler(case.model, case.tokenizer, SamplingConfig(max_new_tokens=case.cap), eos_token_ids=eos)

    def call(seed: int) -> int:
        rollouts = sampler.sample(case.prompts, group_size=GROUP, seed=seed, step=0)
        return int(rollouts.sequences.action_mask.sum())

    return call


def generate_call(case: Case) -> Callable[[int], int]:
    """Return the same through `model.generate`."""
    import torch

    ids = torch.tensor(case.prompts.ids).repeat_interleave(GROUP, dim=0)
    options = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=case.cap)

    def call(seed: int) -> int:
        torch.manual_seed(seed)
        with torch.no_grad():
            rows = case.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        ended = (rows[:, ids.shape[1] :] == case.tokenizer.eos_token_id).int().cumsum(dim=1)
        return int((ended.cumsum(dim=1) <= 1).sum())  # tokens before the first EOS, and that EOS

    return call


def rounds_of(case: Case) -> list[Round]:
    """Let both sides sample in turns."""
    case.model.eval()
    sides = [sampler_call(case), generate_call(case)]
    if case.calls > 1:
        for call in sides:
            call(0)
    results = []
    for number in range(case.rounds):
        rates, tokens = [], 0
        for call in sides:
            started = time.process_time()
            made = sum(call(1 + number * case.calls + i) for i in range(case.calls))
            rates.append(made / (time.process_time() - started))
            tokens += made
        results.append(Round(*rates, length=tokens / (2 * case.calls * len(case.prompts) * GROUP)))
        print(f"{case.name}, round {number + 1}: {results[-1].align:.0f}, {results[-1].generate:.0f}", flush=True)
    return results


def tiny_cases(rounds: int, *, effort: int, warm: int) -> list[Case]:
    """Warm up on the walk task, and return both of its spreads of lengths."""
    import torch

    from align.data import read_prompts, tokenize_prompts

    with tempfile.TemporaryDirectory() as folder:
        task = Task(seed=0, steps=1, steps_per_turn=1, warm_up_steps=warm, weights=Path(folder) / "warm.pt")
        warm_up_apart(task)
        (model, tokenizer), (uniform, _) = load(task), load(task)
    torch.nn.init.zeros_(uniform.base_model.norm.weight)
    prompts = tokenize_prompts(read_prompts(walk.tasks(walk.walks(PROMPTS, seed=0))), tokenizer)
    short = walk.LONGEST_COMPLETION
    return [
        Case(f"walk, at most {short}", model, tokenizer, prompts, short, 3 * effort, rounds),
        Case("geometric, at most 192", uniform, tokenizer, prompts, 192, effort, rounds),
    ]


def large_case(rounds: int, *, cap: int) -> Case:
    """Build a Llama of 96 million parameters, a quarter of them words."""
    import torch

    from align.batch import Prompts

    torch.manual_seed(0)
    size = SIZES[LARGE]
    ids = torch.randint(2, size.words, (PROMPTS, LARGE_PROMPT)).tolist()
    prompts = Prompts(ids=ids, texts=[""] * PROMPTS, columns={})
    model = with_lengths(size.model(), prompt=LARGE_PROMPT)
    return Case(f"{LARGE}, lognormal, at most {cap}", model, size.tokenizer(), prompts, cap, 1, rounds)


def main() -> None:
    """Print a row for each spread of lengths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side (default 7; of the large model 5)")
    parser.add_argument("--only", choices=("tiny", "large"), help="one of the models")
    parser.add_argument("--quick", action="store_true", help="few short rounds, to see that everything still runs")
    options = parser.parse_args()
    use_one_thread()
    print(machine(("torch", "transformers")), flush=True)
    import torch

    torch.set_num_threads(1)
    rounds, effort, warm = (2, 1, 20) if options.quick else (options.rounds, 10, 250)
    cases = [] if options.only == "large" else tiny_cases(rounds, effort=effort, warm=warm)
    if options.only != "tiny":
        cases.append(large_case(1 if options.quick else min(5, rounds), cap=4 if options.quick else LONGEST))
    lines = []
    for case in cases:
        results = rounds_of(case)
        rates = [spread([getattr(r, side) for r in results], 0) for side in ("align", "generate")]
        ratio = spread([r.align / r.generate for r in results], 2)
        lines.append([case.name, f"{sum(r.length for r in results) / len(results):.1f}", *rates, ratio])
    print("\ncompletion tokens a second of the processor, median (range) over the rounds\n")
    print(table(["lengths", "mean", "align", "generate", "align / generate"], lines))


if __name__ == "__main__":
    main()

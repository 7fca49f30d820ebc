"""Completion tokens a second: the built-in sampler against transformers' `generate`, 8 prompts x 8 completions.

    python -m benchmarks.sampler_vs_generate              three minutes
    python -m benchmarks.sampler_vs_generate --quick      under a minute: does it still run?

Two spreads of lengths on the model of the walk task: the one that the task has after its warm-up, where completions
guess or think, and one of long completions, for which a model whose final norm is 0 draws every word with the same
probability, so that lengths are geometric with the mean of the vocabulary's size. The sampler also gives
log-probabilities, entropies and texts; `generate` gives ids alone. Tokens count up to the EOS.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.alternate import machine, spread, table, use_one_thread
from benchmarks.grpo_walk_vs_trl import Task, load, warm_up_apart
from recipes import walk

PROMPTS, GROUP = 8, 8


class Round(NamedTuple):
    """Tokens a second of both sides in one round, and the mean length of a completion."""

    align: float
    generate: float
    length: float


def sampler_call(model: Any, tokenizer: Any, cap: int) -> Callable[[int], int]:
    """Return a function of a seed that samples and counts completion tokens."""
    from align.config import SamplingConfig
    from align.data import read_prompts, tokenize_prompts
    from align.sampler import Sampler

    prompts = tokenize_prompts(read_prompts(walk.tasks(walk.walks(PROMPTS, seed=0))), tokenizer)
    sampler = Sampler(model, tokenizer, SamplingConfig(max_new_tokens=cap), eos_token_ids=[tokenizer.eos_token_id])

    def call(seed: int) -> int:
        rollouts = sampler.sample(prompts, group_size=GROUP, seed=seed, step=0)
        return int(rollouts.sequences.action_mask.sum())

    return call


def generate_call(model: Any, tokenizer: Any, cap: int) -> Callable[[int], int]:
    """Return the same through `model.generate`."""
    import torch

    turns = [row["prompt"] for row in walk.tasks(walk.walks(PROMPTS, seed=0))]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    inputs = {name: value.repeat_interleave(GROUP, dim=0) for name, value in ids.items() if name != "token_type_ids"}
    width = inputs["input_ids"].shape[1]

    def call(seed: int) -> int:
        torch.manual_seed(seed)
        with torch.no_grad():
            rows = model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=cap)
        ended = (rows[:, width:] == tokenizer.eos_token_id).int().cumsum(dim=1)
        return int((ended.cumsum(dim=1) <= 1).sum())  # tokens before the first EOS, and that EOS

    return call


def rounds_of(model: Any, tokenizer: Any, cap: int, *, rounds: int, calls: int) -> list[Round]:
    """Let both sides sample in turns."""
    sides = [build(model.eval(), tokenizer, cap) for build in (sampler_call, generate_call)]
    for call in sides:
        call(0)
    results = []
    for number in range(rounds):
        rates, tokens = [], 0
        for call in sides:
            started = time.perf_counter()
            made = sum(call(1 + number * calls + i) for i in range(calls))
            rates.append(made / (time.perf_counter() - started))
            tokens += made
        results.append(Round(*rates, length=tokens / (2 * calls * PROMPTS * GROUP)))
    return results


def uniform(model: Any) -> Any:
    """Make every word equally likely, wherever it stands."""
    import torch

    torch.nn.init.zeros_(model.base_model.norm.weight)
    return model


def main() -> None:
    """Print a row for each spread of lengths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side (default 7)")
    parser.add_argument("--quick", action="store_true", help="few short rounds, to see that everything still runs")
    options = parser.parse_args()
    rounds, effort, warm = (2, 1, 20) if options.quick else (options.rounds, 10, 250)
    use_one_thread()
    print(machine(("torch", "transformers")), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        task = Task(seed=0, steps=1, steps_per_turn=1, warm_up_steps=warm, weights=Path(folder) / "warm.pt")
        warm_up_apart(task)
        model, tokenizer = load(task)
    cases = [
        (f"walk, at most {walk.LONGEST_COMPLETION}", model, walk.LONGEST_COMPLETION, 3 * effort),
        ("geometric, at most 192", uniform(load(task)[0]), 192, effort),
    ]
    lines = []
    for name, policy, cap, calls in cases:
        results = rounds_of(policy, tokenizer, cap, rounds=rounds, calls=calls)
        rates = [spread([getattr(r, side) for r in results], 0) for side in ("align", "generate")]
        ratio = spread([r.align / r.generate for r in results], 2)
        lines.append([name, f"{results[0].length:.1f}", *rates, ratio])
    print(f"\ncompletion tokens a second, median (range) of {rounds} rounds\n")
    print(table(["lengths", "mean", "align", "generate", "align / generate"], lines))


if __name__ == "__main__":
    main()

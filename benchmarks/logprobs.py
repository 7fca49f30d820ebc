"""Log-probabilities and entropies of 8 x 256 tokens with their gradient: this library, TRL 1.16's fused head, plain.

    pip install -e '.[bench]' -c constraints.txt
    python -m benchmarks.logprobs                          ten minutes
    python -m benchmarks.logprobs --words 8192 --rounds 7  one vocabulary, longer
    python -m benchmarks.logprobs --quick                  under a minute: does it still run?

A Llama of width 256 with one layer, so that the head is nearly all of the work. "Plain" is log_softmax and gather over
the logits of the whole batch. Every turn is a process of its own that forwards and goes backward after a small
warm-up; its memory is the most that it holds meanwhile beyond what it held before, the weights' gradients among it,
and in brackets all of it (only Linux tells). All sides must agree on the sums of log-probabilities and of entropies,
and on the gradient's norm. "align" gives no entropies, as GRPO needs none in its gradient step; "align+entropy", TRL
and "plain" give them, and nobody learns from them.

"all actions" scores every token but the first of a row. "prompts" has rows with prompts of 128 tokens and completions
of 32 to 256, padded on the right; only completions are scored. Where TRL runs without Triton its head goes over every
position, prompts and padding too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from multiprocessing import get_context
from typing import Any

from benchmarks.alternate import machine, spread, table, use_one_thread

ROWS, TOKENS, WIDTH, PROMPT = 8, 256, 256, 128
CLOSE = 1e-4
"""Most that sums and the gradient's norm may differ by, relatively."""


@dataclass(frozen=True)
class Task:
    """One measurement, as the processes of all sides are handed it."""

    words: int
    prompts: bool
    times: int

    def model(self) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.set_num_threads(1)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.words,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )
        return LlamaForCausalLM(config)

    def batch(self) -> tuple[Any, Any, Any]:
        """Return ids, attention mask and action mask. [B, T]"""
        import torch

        draw = torch.Generator().manual_seed(1)
        before = PROMPT if self.prompts else 0
        ids = torch.randint(self.words, (ROWS, before + TOKENS), generator=draw)
        lengths = torch.linspace(32, TOKENS, ROWS).long() if self.prompts else torch.full((ROWS,), TOKENS)
        slots = torch.arange(before + TOKENS)
        attention = slots < before + lengths[:, None]
        return ids, attention, attention & (slots >= max(1, before))


@dataclass(frozen=True)
class Turn:
    """What a process tells: seconds a pass, by the clock and of the processor; memory; and what must agree."""

    seconds: float
    processor: float
    before: float
    peak: float
    sums: list[float]


def align(model: Any, ids: Any, attention: Any, actions: Any) -> tuple[Any, Any]:
    """Score as this library's GRPO does, whose entropies are the sampler's."""
    from align.logprobs import Policy

    return Policy(model)(ids, actions).logprobs, None


def align_entropy(model: Any, ids: Any, attention: Any, actions: Any) -> tuple[Any, Any]:
    """Score with entropies too: rows padded on the right need no mask of attention."""
    from align.logprobs import token_logprobs

    said = token_logprobs(model, ids, None, actions, entropy=True)
    return said.logprobs, said.entropy


def trl(model: Any, ids: Any, attention: Any, actions: Any) -> tuple[Any, Any]:
    """Score as TRL's GRPOTrainer does."""
    if not getattr(model, "fused", False):
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        model.fused = True
    labels = ids.masked_fill(~actions, -100)
    out = model(input_ids=ids, attention_mask=attention, labels=labels, fused_lm_head=True)
    return out.log_probs, out.entropy


def plain(model: Any, ids: Any, attention: Any, actions: Any) -> tuple[Any, Any]:
    """Score by the logits of the whole batch."""
    scored = actions[:, 1:]
    logp = model(input_ids=ids, attention_mask=attention).logits[:, :-1].float().log_softmax(-1)
    chosen = logp.gather(-1, ids[:, 1:, None])[..., 0]
    return chosen * scored, -(logp.exp() * logp).sum(-1) * scored


SIDES: dict[str, Callable[..., tuple[Any, Any]]] = {
    "align": align,
    "align+entropy": align_entropy,
    "trl": trl,
    "plain": plain,
}


def turn_of(side: str, task: Task) -> Turn:
    """Go forward and backward, with a loss that has a gradient through the log-probabilities."""
    from align.runs.profiling import highest_memory

    model, (ids, attention, actions) = task.model(), task.batch()

    def work(rows: int, tokens: int) -> list[float]:
        model.zero_grad()
        logprobs, entropies = SIDES[side](model, *(each[:rows, :tokens] for each in (ids, attention, actions)))
        (-logprobs.sum()).backward()
        return [float(each.detach().sum()) for each in (logprobs, entropies) if each is not None]

    work(2, 16 + (PROMPT if task.prompts else 0))
    model.zero_grad()
    highest_memory(cuda=False)
    (before, *_) = highest_memory(cuda=False)  # what is free was given back by the first look
    clock = time.perf_counter(), time.process_time()
    for _ in range(task.times):
        sums = work(ROWS, ids.shape[1])
    seconds = (time.perf_counter() - clock[0]) / task.times
    processor = (time.process_time() - clock[1]) / task.times
    peak, *_ = highest_memory(cuda=False)
    norm = sum(float(p.grad.square().sum()) for p in model.parameters()) ** 0.5
    return Turn(seconds, processor, before, peak, [sums[0], norm, *sums[1:]])


def apart(side: str, task: Task) -> Turn:
    """Run one turn in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(turn_of, side, task).result()


def rounds_of(task: Task, sides: Sequence[str], rounds: int) -> list[dict[str, Turn]]:
    """Let all sides work in turns, and check each time that they did the same work."""
    told = []
    for number in range(rounds):
        turns = {side: apart(side, task) for side in sides}
        for (one, ours), (other, theirs) in combinations(turns.items(), 2):
            # one of the two may have no entropies, the last of what is told
            if any(abs(a - b) > CLOSE * abs(a) for a, b in zip(ours.sums, theirs.sums, strict=False)):
                raise SystemExit(f"sums and gradient norms differ: {ours.sums} in {one}, {theirs.sums} in {other}")
        words = (f"{side} {t.processor:.2f} s, {t.peak - t.before:.0f} MB" for side, t in turns.items())
        print(
            f"{task.words} words, {'prompts' if task.prompts else 'all'}, {number + 1}: {'; '.join(words)}", flush=True
        )
        told.append(turns)
    return told


def rows_of_table(name: str, told: Sequence[dict[str, Turn]]) -> list[list[str]]:
    """Return a row a side: seconds, memory, and both over ours."""
    rows = []
    for side in told[0]:
        ours, theirs = [each["align"] for each in told], [each[side] for each in told]
        pairs = list(zip(ours, theirs, strict=True))
        rows.append(
            [
                f"{name}: {side}",
                spread([turn.processor for turn in theirs], 2),
                spread([b.processor / a.processor for a, b in pairs], 2),
                f"{spread([t.peak - t.before for t in theirs], 0)} [{max(t.peak for t in theirs):.0f}]",
                spread([(b.peak - b.before) / (a.peak - a.before) for a, b in pairs], 2),
            ]
        )
    return rows


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default 3)")
    parser.add_argument("--words", type=int, choices=(151_936, 8_192), help="one of the two vocabularies")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="which to compare with align")
    parser.add_argument(
        "--quick", action="store_true", help="one round of small ones, to see that everything still runs"
    )
    options = parser.parse_args()
    sides = ["align", *(side for side in options.sides if side != "align")]
    rounds = 1 if options.quick else options.rounds
    vocabularies = (2_048,) if options.quick else (151_936, 8_192)
    use_one_thread()
    print(machine(), flush=True)
    lines = []
    for words in vocabularies:
        if options.words in (None, words):
            for prompts in (False, True):
                task = Task(words, prompts, times=1 if words > 100_000 else 5)
                lines += rows_of_table(
                    f"{words}, {'prompts' if prompts else 'all actions'}", rounds_of(task, sides, rounds)
                )
    print(f"\nprocessor's seconds forward and backward, and memory, MB; median (range) of {rounds} rounds\n")
    print(table(["words, scored, side", "seconds", "to align", "added memory [all]", "to align"], lines))


if __name__ == "__main__":
    main()

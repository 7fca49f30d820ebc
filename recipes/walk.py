"""The walk task: a verifiable, readable, endless task on which a tiny model can discover that thinking pays.

On a 5 x 5 board of letters, a to y, that wraps at its edges, the prompt gives a start square and ten to twelve moves.
The answer is the square where the walk ends. A model may answer at once, or first write the squares on the way:

    prompt        kRDLUURRDLU.     dots fill the place of missing moves; there are 25 * 4^12 of the longest walks alone
    guessing      g
    thinking      <think>lqpkfghmlg</think>g
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BOARD = "abcdefghijklmnopqrstuvwxy"
MOVES = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}
SHORTEST, LONGEST = 10, 12
"""Moves of a walk."""
WORDS = ["<pad>", "<eos>", "<user>", "<assistant>", "<think>", "</think>", *BOARD, *MOVES, "."]
"""The vocabulary: four special tokens, the two marks of thinking, and single characters."""
LONGEST_COMPLETION = 18
"""Tokens: twelve squares, the two marks of thinking, the answer, EOS, and a little room to fail."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def squares_of(prompt: str) -> str:
    """Return the squares that a walk visits after its start; the last one is the answer.

    >>> squares_of("kRDLUU")
    'lqpkf'
    """
    row, column = divmod(BOARD.index(prompt[0]), 5)
    visited = ""
    for move in prompt[1:].rstrip("."):
        down, right = MOVES[move]
        row, column = (row + down) % 5, (column + right) % 5
        visited += BOARD[5 * row + column]
    return visited


def walks(count: int, *, seed: int, avoid: frozenset[str] = frozenset()) -> list[str]:
    """Draw different prompts, none of which is in `avoid`."""
    draw = random.Random(seed)
    prompts: dict[str, None] = {}
    while len(prompts) < count:
        moves = "".join(draw.choices("UDLR", k=draw.randint(SHORTEST, LONGEST)))
        # One width for all: with it, a square and the move that led to it stand a fixed number of tokens apart, which
        # a model of this size learns from a few hundred walks. Without it, that alone takes thousands.
        prompt = (draw.choice(BOARD) + moves).ljust(1 + LONGEST, ".")
        if prompt not in avoid:
            prompts[prompt] = None
    return list(prompts)


def splits(seed: int, practised: int) -> tuple[list[str], list[str], list[str]]:
    """Return prompts to measure on (512), to demonstrate (500) and to practise, none of which occurs in two of them."""
    held_out = walks(512, seed=3 * seed)
    demonstrated = walks(500, seed=3 * seed + 1, avoid=frozenset(held_out))
    return held_out, demonstrated, walks(practised, seed=3 * seed + 2, avoid=frozenset(held_out + demonstrated))


def tasks(prompts: list[str]) -> list[dict[str, Any]]:
    """Return rows of prompt and answer, as `align.data` reads them."""
    return [{"prompt": [_turn("user", prompt)], "answer": squares_of(prompt)[-1]} for prompt in prompts]


def demonstrations(prompts: list[str], *, thinking: float, seed: int) -> list[dict[str, Any]]:
    """Return rows of prompt and completion, of which a share thinks before it answers and the others answer at once."""
    draw = random.Random(seed)
    rows = []
    for prompt in prompts:
        squares = squares_of(prompt)
        thoughts = f"<think>{squares}</think>" if draw.random() < thinking else ""
        rows.append({"prompt": [_turn("user", prompt)], "completion": [_turn("assistant", thoughts + squares[-1])]})
    return rows


def right_square(prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[str]) -> list[float]:
    """Reward the right square after the thoughts, if there are any, with 1 and everything else with 0."""
    return [float(turns[0]["content"].split("</think>")[-1] == a) for turns, a in zip(completions, answer, strict=True)]


def thinks(prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
    """Tell which completions think; its weight is 0, so nothing is paid for it."""
    return [float("</think>" in turns[0]["content"]) for turns in completions]


def walk_tokenizer() -> PreTrainedTokenizerBase:
    """Build a tokenizer of single characters, the two marks of thinking and four special tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("</?think>|."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
    )


def walk_model(*, seed: int) -> PreTrainedModel:
    """Build a Llama of a third of a million parameters with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.04,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def show_end(before: list[dict[str, Any]] | None, after: list[dict[str, Any]], model: Path) -> None:
    """Print what was answered before and is answered now, where the model lies, and how to go on with one's own."""
    table = Table(title="held-out walks, before and after" if before else "held-out walks")
    for title in ("walk", "answer", *(["before"] if before else []), "after"):
        table.add_column(title, overflow="fold")
    for row, new in enumerate(after):
        walked = new["prompt"][0]["content"]
        old = [escape(before[row]["completion"])] if before else []
        table.add_row(walked, squares_of(walked)[-1], *old, escape(new["completion"]))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"Model: {model}", soft_wrap=True)
    console.print("Your own: align grpo --model FOLDER --data prompts.jsonl --reward exact_answer", soft_wrap=True)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}

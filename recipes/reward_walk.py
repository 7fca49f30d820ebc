"""A reward model of the walk task, learned from pairs of a right and a wrong answer.

    python -m recipes.reward_walk --seed 1

Right and wrong answers think or guess, each independently of the other (`recipes/walk.py`), so that nothing is won by
style: beside the accuracy on all held-out pairs stand those on pairs where both think, and where both guess.

Nothing is learned yet. Two runs of a prototype (seed 0; one mistaken move, 600 steps of 32 pairs at 1e-3; pairs as
below, 500 steps of 64 at 7e-4) ended at 51 and 52 % of 512 held-out pairs: 47 and 53 % where both think, 51 and 53 %
where both guess. One bit a pair has not taught this trunk to check a walk.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from align.config import OptimizerConfig, RewardModelConfig, SFTConfig
from align.data import read_examples, tokenize_examples
from align.logprobs import Policy
from align.models import load_model, load_tokenizer
from align.pairs import Pairs, read_pairs, tokenize_pairs
from align.reward_head import RewardModel, reward_model_of, save_reward_model, separate_padding
from align.reward_model import RewardTraining
from align.sft import SFT
from recipes import walk
from recipes.common import RunOptions, claim_directory, execute, make_accelerator, model_card, recipe, save_result, tell

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator

STYLES = {"think": (True, True), "guess": (False, False)}
"""Whether the chosen and the rejected answer think, of the pairs that are measured on their own."""


@dataclass(frozen=True)
class Options:
    """Warm a tiny model up on demonstrations, and train a reward model from it on right and wrong answers."""

    sft_steps: int = 250
    """Supervised steps on the demonstrations."""
    pairs: int = 12_800
    """Different walks to learn from, with a pair of answers each."""
    reward: RewardModelConfig = field(
        default_factory=lambda: RewardModelConfig(
            steps=800,
            centring=0.01,
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20, final_fraction=0.1),
        )
    )
    run: RunOptions = field(default_factory=lambda: RunOptions(evaluate_every=100))


def train(options: Options, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    accelerator = make_accelerator()
    config = replace(options, run=RunOptions())
    directory = claim_directory(options.run, "reward_walk", config, accelerator)
    warm = directory / "warm-up" / "final"
    if not warm.exists() and (code := warm_up(options, directory / "warm-up", command, accelerator)):
        return code
    model, tokenizer = reward_model_of(load_model(warm), seed=options.reward.seed), load_tokenizer(warm)
    separate_padding(model, tokenizer)
    held_out, _, practised = walk.splits(options.reward.seed, options.pairs)
    rows = preferences(held_out, seed=2 * options.reward.seed)
    measured = tokenize_pairs(read_pairs(rows), tokenizer)
    pairs = tokenize_pairs(read_pairs(preferences(practised, seed=2 * options.reward.seed + 1)), tokenizer)
    algorithm = RewardTraining(RewardModel(model), pairs, options.reward, accelerator)
    tell(
        "Reward model: right answers are preferred to wrong ones, in four pairings of style.", options.run, accelerator
    )
    result = execute(
        algorithm,
        directory,
        options.run,
        config=config,
        command=command,
        accelerator=accelerator,
        evaluate=lambda: measure(algorithm, measured, rows),
    )
    if result.finished:
        if accelerator.is_main_process:
            card = model_card(result, "text-classification")
            save_reward_model(model, tokenizer, result.directory.final, card=card)
        accelerator.wait_for_everyone()
        tell(f"Reward model: {result.directory.final}", options.run, accelerator)
    return result.exit_code


def warm_up(options: Options, directory: Path, command: Sequence[str], accelerator: Accelerator) -> int:
    """Teach a new model the form of an answer by demonstrations, 40 % of which think; return an exit code."""
    seed = options.reward.seed
    model, tokenizer = walk.walk_model(seed=seed), walk.walk_tokenizer()
    tell(f"Warm-up: {options.sft_steps} supervised steps.", options.run, accelerator)
    shown = walk.demonstrations(walk.splits(seed, 0)[1], thinking=0.4, seed=seed)
    config = SFTConfig(
        steps=options.sft_steps, seed=seed, optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=30)
    )
    sft = SFT(Policy(model), tokenize_examples(read_examples(shown), tokenizer), config, accelerator)
    run = replace(options.run, directory=directory, evaluate_every=0, save_every=max(1, options.sft_steps))
    result = execute(sft, directory, run, config=config, command=command, accelerator=accelerator)
    if result.finished:
        save_result(model, tokenizer, result, options, accelerator)
    return result.exit_code


def preferences(prompts: Sequence[str], *, seed: int) -> list[dict[str, Any]]:
    """Return rows of prompt, right and wrong answer, and whether each of the two thinks.

    A wrong answer is the right one to a walk of which some moves were mistaken.
    """
    draw = random.Random(seed)
    rows = []
    for prompt in prompts:
        thinks = draw.random() < 0.5, draw.random() < 0.5
        chosen, rejected = (answer(p, t) for p, t in zip((prompt, mistaken(prompt, draw)), thinks, strict=True))
        turns = {"chosen": chosen, "rejected": rejected}
        said = {name: [{"role": "assistant", "content": text}] for name, text in turns.items()}
        rows.append({"prompt": [{"role": "user", "content": prompt}], **said, "thinks": thinks})
    return rows


def answer(prompt: str, thinks: bool) -> str:
    """Return the right answer to a walk, after its squares or at once."""
    squares = walk.squares_of(prompt)
    return f"<think>{squares}</think>{squares[-1]}" if thinks else squares[-1]


def mistaken(prompt: str, draw: random.Random) -> str:
    """Return a walk as someone might misread it: some of its moves, one to all, are others, and so is its end."""
    moves = prompt[1:].rstrip(".")
    while True:
        new = list(moves)
        for place in draw.sample(range(len(moves)), draw.randint(1, len(moves))):
            new[place] = draw.choice([move for move in walk.MOVES if move != moves[place]])
        other = (prompt[0] + "".join(new)).ljust(len(prompt), ".")
        if walk.squares_of(other)[-1] != walk.squares_of(prompt)[-1]:
            return other


def measure(algorithm: RewardTraining, pairs: Pairs, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the evaluation on all pairs, and the accuracy on those of one style."""
    right = algorithm.margins(pairs) > 0
    same = {
        name: float(right[[row for row, each in enumerate(rows) if each["thinks"] == thinks]].double().mean())
        for name, thinks in STYLES.items()
    }
    return {**algorithm.evaluate(pairs), **{f"preference/both_{name}": share for name, share in same.items()}}


main = recipe("python -m recipes.reward_walk", Options, train)

if __name__ == "__main__":
    main()

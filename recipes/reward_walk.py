"""A reward model of the walk task, learned from the warmed-up policy's own answers, and measured by style too.

    python -m recipes.reward_walk --seed 1
    python -m recipes.ppo_walk --seed 1 --reward-model runs/reward_walk-.../final --kl-coef 0.2

The judge of a pair knows the right square and nothing else. Most answers that think are right, most guesses wrong, so
a model that only looks at the style would be right in most pairs: beside the accuracy on all held-out pairs stands that
of each pairing of style, and what is learned from has no pairing more often than that in which both answers think.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config import OptimizerConfig, RewardModelConfig, SamplingConfig
from align.data import eos_token_ids
from align.models import load_model, load_tokenizer
from align.pairs import Pairs, read_pairs, tokenize_pairs
from align.reward_head import RewardModel, reward_model_of, save_reward_model, separate_padding
from align.reward_model import RewardTraining, calibration_error
from align.sampler import Sampler
from recipes import walk
from recipes.answers_walk import Answer, AnswerOptions, answers, write
from recipes.common import RunOptions, claim_directory, execute, make_accelerator, model_card, recipe, tell
from recipes.warm_up import warm_up

if TYPE_CHECKING:
    from torch import Tensor

PAIRINGS = {
    (True, True): "both_think",
    (False, False): "both_guess",
    (True, False): "think_over_guess",
    (False, True): "guess_over_think",
}
"""Whether the right and the wrong answer think, and what their pairs are called."""


@dataclass(frozen=True)
class Options:
    """Warm a tiny model up on demonstrations, let it answer, and train a reward model to prefer its right answers."""

    sft_steps: int = 250
    """Supervised steps on the demonstrations."""
    answers: AnswerOptions = field(default_factory=lambda: AnswerOptions(prompts=8000, samples=12))
    held_out_samples: int = 16
    """Answers to each held-out walk."""
    reward: RewardModelConfig = field(
        default_factory=lambda: RewardModelConfig(
            steps=400,
            pairs_per_step=64,
            centring=0.01,
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20, final_fraction=0.1),
        )
    )
    run: RunOptions = field(default_factory=lambda: RunOptions(save_every=100, evaluate_every=100))


def train(options: Options, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    accelerator, seed, config = make_accelerator(), options.reward.seed, replace(options, run=RunOptions())
    directory = claim_directory(options.run, "reward_walk", config, accelerator)
    warm = directory / "warm-up" / "final"
    settings: dict[str, Any] = {"config": config, "steps": options.sft_steps, "seed": seed}
    if not warm.exists() and (code := warm_up(options.run, warm.parent, command, accelerator, **settings)):
        return code
    files = {name: directory / f"{name}.jsonl" for name in ("pairs", "held_out")}
    if accelerator.is_main_process and not all(file.exists() for file in files.values()):
        for name, rows in ask(options, warm).items():
            write(files[name], rows)
    accelerator.wait_for_everyone()

    model, tokenizer = reward_model_of(load_model(warm), seed=seed), load_tokenizer(warm)
    separate_padding(model, tokenizer)
    pairs, held_out = (tokenize_pairs(read_pairs(file), tokenizer) for file in files.values())
    pairings, held_out_pairings = (pairings_in(file) for file in files.values())
    told = ", ".join(f"{pairings.count(name):,} {words(name)}" for name in PAIRINGS.values())
    tell(
        f"Reward model: prefers right to wrong in {len(pairs):,} pairs of own answers: {told}.",
        options.run,
        accelerator,
    )
    algorithm = RewardTraining(RewardModel(model), pairs, options.reward, accelerator)
    result = execute(
        algorithm,
        directory,
        options.run,
        config=config,
        command=command,
        accelerator=accelerator,
        evaluate=lambda: measure(algorithm, held_out, held_out_pairings),
    )
    if result.finished:
        margins = algorithm.margins(held_out)
        if accelerator.is_main_process:
            save_reward_model(model, tokenizer, result.directory.final, card=model_card(result, "text-classification"))
            if not options.run.quiet:
                show(margins, held_out_pairings, result.directory.final, seed)
        accelerator.wait_for_everyone()
    return result.exit_code


def ask(options: Options, warm: Path) -> dict[str, list[dict[str, Any]]]:
    """Let the warmed-up model answer, and return pairs to learn from and, of other walks, pairs to measure on."""
    seed = options.reward.seed
    model, tokenizer = load_model(warm), load_tokenizer(warm)
    config = SamplingConfig(max_new_tokens=walk.LONGEST_COMPLETION)
    sampler = Sampler(model, tokenizer, config, eos_token_ids=eos_token_ids(model, tokenizer))
    held_out, _, practised = walk.splits(seed, options.answers.prompts)
    return {
        "pairs": evened(pairs_of(answers(sampler, practised, options.answers.samples, seed)), seed=seed),
        "held_out": pairs_of(answers(sampler, held_out, options.held_out_samples, seed)),
    }


def pairs_of(answers: list[list[Answer]]) -> list[dict[str, Any]]:
    """Prefer each right answer to each wrong one of the same walk; what was said twice counts once."""
    pairs = []
    for told in answers:
        said = list({answer.text: answer for answer in told if answer.text.strip()}.values())
        pairs += [(right, wrong) for right in said if right.right for wrong in said if not wrong.right]
    return [
        {
            "prompt": right.prompt,
            "chosen": right.completion,
            "rejected": wrong.completion,
            "pairing": PAIRINGS[_thinks(right), _thinks(wrong)],
        }
        for right, wrong in pairs
    ]


def evened(pairs: Sequence[dict[str, Any]], *, seed: int) -> list[dict[str, Any]]:
    """Keep of each pairing of style at most as many pairs, drawn at random, as there are where both answers think."""
    groups = [[row for row in pairs if row["pairing"] == name] for name in PAIRINGS.values()]
    most, draw = max(1, len(groups[0])), random.Random(seed)
    return [row for group in groups for row in draw.sample(group, min(most, len(group)))]


def measure(algorithm: RewardTraining, pairs: Pairs, pairings: Sequence[str]) -> dict[str, float]:
    """Return the evaluation on all pairs, and the accuracy on those of each pairing of style that there is."""
    right = algorithm.margins(pairs) > 0
    same = {f"preference/{name}": float(right[rows].double().mean()) for name, rows in rows_of(pairings).items()}
    return {**algorithm.evaluate(pairs), **same}


def rows_of(pairings: Sequence[str]) -> dict[str, list[int]]:
    """Return the numbers of the pairs of each pairing that there is."""
    rows = {name: [row for row, each in enumerate(pairings) if each == name] for name in PAIRINGS.values()}
    return {name: found for name, found in rows.items() if found}


def pairings_in(file: Path) -> list[str]:
    """Return the pairing of style of each row of a file."""
    return [json.loads(line)["pairing"] for line in file.read_text(encoding="utf-8").splitlines()]


def show(margins: Tensor, pairings: Sequence[str], model: Path, seed: int) -> None:
    """Print accuracy, standard error and calibration on held-out pairs, of all and of each pairing of style."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="held-out pairs of a right and a wrong answer")
    for title in ("right and wrong answer", "pairs", "accuracy", "calibration error"):
        table.add_column(title, justify="left" if title.startswith("right") else "right")
    for name, rows in {"all": list(range(len(pairings))), **rows_of(pairings)}.items():
        found = margins[rows]
        table.add_row(
            words(name),
            f"{len(rows):,}",
            f"{float((found > 0).double().mean()):.1%}",
            f"{float(calibration_error(found)):.3f}",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(f"Reward model: {model}", soft_wrap=True)
    go_on = f"python -m recipes.ppo_walk --seed {seed} --reward-model {model} --kl-coef 0.2"
    console.print(f"Go on with: {go_on}", soft_wrap=True)


def words(name: str) -> str:
    """Write the name of a pairing for people.

    >>> words("guess_over_think")
    'guess over think'
    """
    return name.replace("_", " ")


def _thinks(answer: Answer) -> bool:
    return "</think>" in answer.text


main = recipe("python -m recipes.reward_walk", Options, train)

if __name__ == "__main__":
    main()

"""How what learns the walk task runs: measured on held-out walks as it goes, and shown before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.batch import Prompts
from align.evaluate import Evaluation, evaluate
from recipes import walk
from recipes.common import execute, save_result

if TYPE_CHECKING:
    from accelerate import Accelerator

    from align.rewards import Reward
    from align.runs.run import Algorithm
    from align.sampler import Sampler


def learn_and_show(
    algorithm: Algorithm,
    sampler: Sampler,
    held_out: Prompts,
    rewards: Sequence[Reward],
    directory: Path,
    options: Any,
    *,
    seed: int,
    config: Any,
    command: Sequence[str],
    accelerator: Accelerator,
    save_more: Callable[[Path], None] | None = None,
) -> int:
    """Let an algorithm learn, save its model, show some answers from before and after, and return an exit code.

    Args:
        algorithm: what is run.
        sampler: of the model that learns, and of its tokenizer.
        held_out: walks that are not learned from; the first three of each process are shown.
        rewards: what judges the answers to them.
        directory: of the run.
        options: with `run`; written on the card of the model.
        seed: of every evaluation.
        config: the options without `run`, to be written down.
        command: the words that started the recipe.
        accelerator: of the run.
        save_more: (folder of the saved model): what else belongs there.
    """

    def measure(prompts: Prompts) -> Evaluation:
        return evaluate(sampler, prompts, rewards, seed=seed, accelerator=accelerator)

    few = held_out.select(range(3 * accelerator.num_processes))
    before = None if options.run.resume else measure(few).examples
    result = execute(
        algorithm,
        directory,
        options.run,
        config=config,
        command=command,
        accelerator=accelerator,
        evaluate=lambda: measure(held_out).metrics,
    )
    if result.finished:
        after, final = measure(few).examples, result.directory.final
        save_result(sampler.model, sampler.tokenizer, result, options.run, accelerator)
        if save_more and accelerator.is_main_process:
            save_more(final)
        if accelerator.is_main_process and not options.run.quiet:
            walk.show_end(before, after, final)
    return result.exit_code

"""What the commands that learn from prompts and rewards share: from options to a run, and the model it saves."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.batch import Prompts
from align.evaluate import evaluate
from recipes import inputs
from recipes.common import claim_directory, execute, make_accelerator, save_result, tell

if TYPE_CHECKING:
    from align.config import SamplingConfig
    from align.grpo import GRPO
    from align.ppo import PPO
    from recipes.options import GRPOOptions, PPOOptions, PromptOptions


def train_on_prompts(
    name: str,
    options: GRPOOptions | PPOOptions,
    command: Sequence[str],
    build: Callable[..., GRPO | PPO],
    save_more: Callable[[Any, Path], None] | None = None,
) -> int:
    """Run a recipe that learns from prompts and rewards, and return its exit code.

    Args:
        name: of the command; its settings are the field of `options` that has this name.
        options, command: what was asked for, and in which words.
        build: (options, tokenizer, prompts, held_out, rewards, accelerator) -> the algorithm.
        save_more: (algorithm, folder of the saved model): what else belongs there.
    """
    rewards = inputs.read_rewards(options.reward.rewards)
    rows = inputs.read_rows(options.data, rewards)
    held_out_options = held_out_of(options)
    held_out_rows = inputs.read_rows(held_out_options, rewards) if held_out_options else None
    read = {"data": rows} | ({"eval_data": held_out_rows} if held_out_rows else {})
    config = inputs.record(options, read)
    accelerator = make_accelerator()
    directory = claim_directory(options.run, name, config, accelerator)
    say = partial(tell, options=options.run, accelerator=accelerator)

    tokenizer = inputs.make_tokenizer(options.model.model, trust_remote_code=options.model.trust_remote_code)
    prompts = inputs.make_prompts(rows, options.data, tokenizer)
    lengths = [len(ids) for ids in prompts.ids]
    often = inputs.passes(getattr(options, "grpo", None) or getattr(options, "ppo", None), len(prompts))
    say(inputs.describe(f"learning from {options.data.data}", lengths, prompts.dropped, "prompts") + often)
    held_out = None
    if held_out_options and held_out_rows:
        held_out = inputs.make_prompts(held_out_rows, held_out_options, tokenizer)
        lengths = [len(ids) for ids in held_out.ids]
        say(inputs.describe(f"measuring on {held_out_options.data}", lengths, held_out.dropped, "prompts"))
    if tokenizer.chat_template and isinstance(prompts.texts[0], str) and not (options.data.chat or options.data.system):
        say("note: the prompts are plain text, though the model knows chats; --chat makes each a user's message")

    algorithm = build(options, tokenizer, prompts, held_out, rewards, accelerator)
    model = algorithm.sampler.model
    say(f"{options.model.model}: {inputs.count_parameters(model)}, on {accelerator.device}")
    if habits := inputs.sampling_habits(model):
        told = ", ".join(f"{name} {value}" for name, value in habits.items())
        say(f"note: not followed from the model's generation config: {told}; see --temperature")
    say(f"run: {directory}")
    result = execute(
        algorithm,
        directory,
        options.run,
        config=config,
        command=command,
        accelerator=accelerator,
        evaluate=(lambda: measure(algorithm, held_out)) if held_out else None,
    )
    if result.finished:
        save_result(model, tokenizer, result, options.run, accelerator)
        if save_more and accelerator.is_main_process:
            save_more(algorithm, result.directory.final)
        say(f"Model: {result.directory.final}")
        say(f"Measure it: {measuring(options, algorithm.config.sampling, result.directory.final)}")
    return result.exit_code


def measuring(options: GRPOOptions | PPOOptions, sampling: SamplingConfig, model: Path) -> str:
    """Return the command that measures a model as its run did, without held-out data on what it learned from."""
    data = held_out_of(options) or options.data
    words = ["align", "eval", "--model", str(model), "--data", data.data, *given(data)]
    words += ["--reward", *(name for names in options.reward.rewards for name in names), *given(options.reward)]
    words += ["--trust-remote-code"] if options.model.trust_remote_code else []
    return shlex.join(words + given(sampling))


def given(options: Any) -> list[str]:
    """Return the words of a command line for what is otherwise than by default, where there is a default."""
    words: list[str] = []
    for each in fields(options):
        value = getattr(options, each.name)
        if each.default is not MISSING and value != each.default:
            words += [f"--{each.name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def held_out_of(options: GRPOOptions | PPOOptions) -> PromptOptions | None:
    """Return how held-out prompts are read: as the others are, from their own place."""
    if options.held_out.eval_data is None:
        return None
    return replace(options.data, data=options.held_out.eval_data, split=options.held_out.eval_split)


def measure(algorithm: GRPO | PPO, held_out: Prompts) -> dict[str, float]:
    """Return the mean rewards on held-out prompts."""
    return evaluate(
        algorithm.sampler,
        held_out,
        algorithm.rewards,
        seed=algorithm.config.seed,
        on_error=algorithm.on_error,
        accelerator=algorithm.accelerator,
    ).metrics

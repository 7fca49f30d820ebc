"""What the commands that learn from judged answers share: rows are read and checked, and a run learns from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from align.data import Examples
from align.logprobs import Policy
from align.models import Reference, reference_of
from align.reference_cache import cached_reference
from recipes import inputs
from recipes.common import claim_directory, execute, make_accelerator, save_result, tell

if TYPE_CHECKING:
    from accelerate import Accelerator


def learn_from_rows(
    name: str,
    options: Any,
    command: Sequence[str],
    *,
    seed: int,
    read: Callable[..., Any],
    tokenize: Callable[..., Any],
    build: Callable[[Policy, Any, Any, Accelerator], Any],
    what: str,
) -> int:
    """Read rows, load a model, learn, and return an exit code.

    Args:
        name: of the command.
        options: with `model`, `data`, `held_out` and `run`.
        command: the words that started it.
        seed: of new adapters.
        read: from a source and its split to rows.
        tokenize: from rows and a tokenizer to what the algorithm learns from.
        build: (policy, what it learns from, what is held out or None, accelerator) -> the algorithm.
        what: the word for its rows.
    """
    places = {"data": (options.data.data, options.data.split)}
    if options.held_out.eval_data is not None:
        places["eval_data"] = (options.held_out.eval_data, options.held_out.eval_split)
    rows = {part: read(source, split=split) for part, (source, split) in places.items()}
    config = inputs.record(options, rows)
    accelerator = make_accelerator()
    directory = claim_directory(options.run, name, config, accelerator)
    say = partial(tell, options=options.run, accelerator=accelerator)

    tokenizer = inputs.make_tokenizer(options.model.model, trust_remote_code=options.model.trust_remote_code)
    data = {part: tokenize(each, tokenizer) for part, each in rows.items()}
    for does, (part, each) in zip(("learning from", "measuring on"), data.items(), strict=False):
        lengths = [len(ids) for ids in ids_of(each)]
        say(inputs.describe(f"{does} {places[part][0]}", lengths, 0, f"answers in {len(each):,} {what}") + lost(each))

    model = inputs.make_model(options.model, seed=seed)
    inputs.check_fit(model, [ids for each in data.values() for ids in ids_of(each)])
    say(f"{options.model.model}: {inputs.count_parameters(model)}, on {accelerator.device}")
    say(f"run: {directory}")
    held_out = data.get("eval_data")
    algorithm = build(Policy(model), data["data"], held_out, accelerator)
    result = execute(
        algorithm,
        directory,
        options.run,
        config=config,
        command=command,
        accelerator=accelerator,
        evaluate=(lambda: algorithm.evaluate(held_out)) if held_out else None,
    )
    if result.finished:
        save_result(model, tokenizer, result, options, accelerator)
        say(f"Model: {result.directory.final}")
    return result.exit_code


def make_reference(
    policy: Policy, asked: Iterable[Examples], options: Any, accelerator: Accelerator, *, tokens_per_batch: int
) -> Reference:
    """Freeze the policy, or keep what it says of all that will be asked in the file that `reference_cache` names."""
    path = options.reference.reference_cache
    if path is None:
        return reference_of(policy)
    does = "taken from" if path.exists() else "computed once, and written to"
    reference = cached_reference(path, policy, asked, accelerator, tokens_per_batch=tokens_per_batch)
    words = f"reference: {len(reference.places):,} answers of {len(reference.logprobs):,} tokens, {does} {path}"
    tell(words, options=options.run, accelerator=accelerator)
    return reference


def ids_of(data: Any) -> list[list[int]]:
    """Return the token ids of all answers of pairs, or of feedback."""
    return data.examples.ids if hasattr(data, "examples") else data.chosen.ids + data.rejected.ids


def lost(data: Any) -> str:
    """Say what was left out or cut, if anything was."""
    dropped = data.examples.dropped if hasattr(data, "examples") else data.dropped
    counts = {"left out as too long": dropped, "cut": data.truncated, "degenerate": getattr(data, "degenerate", 0)}
    told = [f"{count:,} {how}" for how, count in counts.items() if count]
    return f"; {', '.join(told)}" if told else ""

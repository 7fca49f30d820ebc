"""What the commands that learn from given answers share: rows are read and checked, and a run learns from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from align.checks import Text
from align.data import DataError, Examples, conversation
from align.logprobs import Policy
from align.models import Reference, reference_of
from align.pairs import Feedback, Pairs
from align.reference_cache import cached_reference
from recipes import inputs
from recipes.common import claim_directory, execute, make_accelerator, save_result, tell

if TYPE_CHECKING:
    from accelerate import Accelerator

    from recipes.options import ChatOptions


def learn_from_rows(
    name: str,
    options: Any,
    command: Sequence[str],
    *,
    read: Callable[..., Any],
    tokenize: Callable[..., Any],
    build: Callable[[Any, Policy, Any, Any, Accelerator], Any],
    go_on: str = "",
) -> int:
    """Read rows, load a model, learn, and return an exit code.

    Args:
        name: of the command; its settings are the field of `options` that has this name.
        options: with `model`, `data`, `held_out` and `run`.
        command: the words that started it.
        read: from a source and its split to rows.
        tokenize: from rows and a tokenizer to what the algorithm learns from.
        build: (settings, policy, what it learns from, what is held out or None, accelerator) -> the algorithm.
        go_on: a command to go on with, `{model}` in it for where the trained model is.
    """
    rows = inputs.read_both(options, read)
    config = inputs.record(options, rows)
    accelerator = make_accelerator()
    directory = claim_directory(options.run, name, config, accelerator)
    say = partial(tell, options=options.run, accelerator=accelerator)

    tokenizer = inputs.make_tokenizer(options.model.model, trust_remote_code=options.model.trust_remote_code)
    texts = {part: as_chats(each, options.data) for part, each in rows.items()}
    data = {part: tokenize(each, tokenizer) for part, each in texts.items()}
    settings = inputs.with_steps(getattr(options, name), options.data.epochs, len(data["data"]), command)
    tell_rows(data, settings, options, accelerator)
    if tokenizer.chat_template and any(isinstance(prompt, str) and prompt for prompt in texts["data"].prompts):
        say("note: the rows are plain text, though the model knows chats; --chat makes each a question and its answer")

    model = inputs.make_model(options.model, seed=settings.seed)
    inputs.check_fit(model, [ids for each in data.values() for ids in ids_of(each)])
    say(f"{options.model.model}: {inputs.count_parameters(model)}, on {accelerator.device}")
    say(f"run: {directory}")
    held_out = data.get("eval_data")
    algorithm = build(settings, Policy(model), data["data"], held_out, accelerator)
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
        save_result(model, tokenizer, result, options.run, accelerator)
        say(f"Model: {result.directory.final}")
        if go_on:
            say(f"Go on with: {go_on.format(model=result.directory.final)}")
    return result.exit_code


def as_chats(rows: Any, options: ChatOptions) -> Any:
    """Return rows with a system message, or with strings as chats, if that was asked for.

    Raises:
        DataError: if a row is text without a prompt, which has no turns.
    """
    if not options.chat and options.system is None:
        return rows
    answers = [name for name in ("completions", "chosen", "rejected") if hasattr(rows, name)]
    for prompt, origin in zip(rows.prompts, rows.origins, strict=True):
        if prompt == "":
            raise DataError(f"{origin}: has no prompt, so it is no chat: leave out --chat and --system")
    # conversations that are trained from their beginning have no prompt, and their system message where they begin
    prompts = [conversation(prompt, True, options.system) if prompt else prompt for prompt in rows.prompts]

    def turns(prompt: Text, answer: Text) -> Text:
        if isinstance(answer, str):
            return [{"role": "assistant", "content": answer}]
        return answer if prompt else conversation(answer, True, options.system)

    told = {name: list(map(turns, prompts, getattr(rows, name))) for name in answers}
    return replace(rows, prompts=prompts, **told)


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


def tell_rows(data: Mapping[str, Any], settings: Any, options: Any, accelerator: Accelerator) -> None:
    """Print what is learned from, `data`, and how often; and what is measured on, `eval_data` if that is there."""
    names = {"data": f"learning from {options.data.data}", "eval_data": f"measuring on {options.held_out.eval_data}"}
    for part, each in data.items():
        often = inputs.passes(settings, len(each)) if part == "data" else ""
        tell(described(names[part], each) + often, options=options.run, accelerator=accelerator)


def described(name: str, data: Examples | Pairs | Feedback) -> str:
    """Say in one line what there is to learn from, and what was left out or cut."""
    if isinstance(data, Pairs):
        what, dropped = f"answers in {len(data):,} pairs", data.dropped
        counts = {"cut": data.truncated, "degenerate": data.degenerate}
    elif isinstance(data, Feedback):
        what, dropped, counts = f"answers in {len(data):,} rows", data.examples.dropped, {"cut": data.truncated}
    else:
        what, dropped = "examples", data.dropped
        counts = {"with an example a turn, since the chat template rewrites old turns": data.split}
    told = [f"; {count:,} {how}" for how, count in counts.items() if count]
    return inputs.describe(name, [len(ids) for ids in ids_of(data)], dropped, what) + "".join(told)


def ids_of(data: Examples | Pairs | Feedback) -> list[list[int]]:
    """Return the token ids of all demonstrations, of all answers of pairs, or of all answers with feedback."""
    if isinstance(data, Pairs):
        return data.chosen.ids + data.rejected.ids
    return data.examples.ids if isinstance(data, Feedback) else data.ids

"""Turn rows of data into records: first every check, which needs no model, then the tokens.

A prompt or an example is made of strings, which are tokenised as they are, or of messages, which the chat template
renders; tokens are made once, from text, and masks are made from where a text begins and ends, never from ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from align.batch import Prompts, Sequences
from align.checks import (
    Text,
    check_columns,
    check_same_kind,
    example_of,
    form_of,
    prompt_of,
    template_of,
    usual_columns,
)
from align.rendering import Demonstrations, encode, end_of_turn, render
from align.rows import DataError, Fault, Faults, read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "DataError",
    "ExampleRows",
    "PromptRows",
    "conversation",
    "eos_token_ids",
    "read_examples",
    "read_prompts",
    "tokenize_examples",
    "tokenize_prompts",
]

PROMPT_FORMS = (("prompt",), ("messages",), ("conversations",))
EXAMPLE_FORMS = (("prompt", "completion"), ("messages",), ("conversations",), ("text",))


@dataclass(frozen=True)
class PromptRows:
    """N checked prompts, not yet tokenised.

    prompts: strings, or lists of messages; all of one kind.
    columns: the other columns of the data, one value a prompt.
    origins: where each prompt came from, `file:row`.
    """

    prompts: list[Text]
    columns: dict[str, list[Any]]
    origins: list[str]

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class ExampleRows:
    """N checked demonstrations, not yet tokenised.

    prompts: what comes before and is not trained: a string, or messages; empty where everything is trained.
    completions: what is to be imitated, of the same kind; of messages only the assistant's turns are trained.
        All rows of a source are of one kind, those of a mixture need not be.
    origins: where each example came from, `file:row`.
    templates: further arguments of the chat template, one dict an example: its tools, for instance.
    """

    prompts: list[Text]
    completions: list[Text]
    origins: list[str]
    templates: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.completions)


@dataclass(frozen=True)
class Examples:
    """N demonstrations for supervised fine-tuning, tokenised once from their text.

    ids: token ids of each example, the closing EOS or end of turn among them.
    action_masks: one bool a token, True where it is to be imitated; the first token, which nothing predicts, never is.
    dropped: number of examples of the data that were too long and left out.
    split: number of conversations that became one example a turn, since the template rewrites earlier turns.
    """

    ids: list[list[int]]
    action_masks: list[list[bool]]
    dropped: int = 0
    split: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Sequence[int]) -> Sequences:
        """Return the examples of the given rows as tensors, in that order; a row may be named more than once."""
        return Sequences.from_lists([self.ids[row] for row in rows], [self.action_masks[row] for row in rows])


def read_prompts(source: Any, *, split: str = "train") -> PromptRows:
    """Read and check prompts: a column `prompt`, or `messages`, or ShareGPT `conversations`.

    A prompt is a string or a list of messages whose last turn is not the assistant's. All other columns are kept,
    since rewards get them by name; so every row must have the same ones. Two reach the chat template too: `tools`,
    a list of descriptions, and `chat_template_kwargs`, an object.

    Args:
        source: what `align.rows.read_rows` takes: a file, a folder, a Dataset, a list of dicts, a hub id.
        split: the split to take where the source has several.

    Raises:
        DataError: naming every fault as `file:row: column: what is wrong, what to do`.
    """
    rows = read_rows(source, split=split)
    (column,) = form_of(rows, PROMPT_FORMS)
    expected = usual_columns(rows) | {column: None}
    faults, prompts, origins = Faults(), [], []
    for row in rows:
        with faults.at(row.origin):
            check_columns(row, list(expected), complete=True)
            prompt = prompt_of(row.values[column], column)
            template_of(row.values)  # refused now, not once the model is loaded
            check_same_kind(prompt, column, prompts, origins)
            prompts.append(prompt)
            origins.append(row.origin)
    faults.check()
    others = [name for name in expected if name != column]
    return PromptRows(prompts, {name: [row.values[name] for row in rows] for name in others}, origins)


def read_examples(source: Any, *, split: str = "train") -> ExampleRows:
    """Read and check demonstrations: `prompt` and `completion`, or `messages`, or `conversations`, or `text`.

    The first of these forms that the data has is taken, in that order. The columns `tools` and `chat_template_kwargs`
    are for the chat template; others are left alone.

    Args:
        source: what `align.rows.read_rows` takes: a file, a folder, a Dataset, a list of dicts, a hub id.
        split: the split to take where the source has several.

    Raises:
        DataError: naming every fault as `file:row: column: what is wrong, what to do`.
    """
    rows = read_rows(source, split=split)
    form = form_of(rows, EXAMPLE_FORMS)
    faults, prompts, completions, origins, templates = Faults(), [], [], [], []
    for row in rows:
        with faults.at(row.origin):
            check_columns(row, form, complete=False)
            prompt, completion = example_of(row.values, form)
            check_same_kind(completion, form[-1], completions, origins)
            prompts.append(prompt)
            templates.append(template_of(row.values))
            completions.append(completion)
            origins.append(row.origin)
    faults.check()
    return ExampleRows(prompts, completions, origins, templates)


def tokenize_prompts(
    rows: PromptRows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int | None = None,
    too_long: Literal["error", "drop"] = "error",
    chat: bool = False,
    system: str | None = None,
) -> Prompts:
    """Tokenise prompts: messages through the chat template with its generation prompt, strings as they are.

    Args:
        rows: checked prompts.
        tokenizer: of the policy.
        max_tokens: most tokens of a prompt, the template's among them.
        too_long: whether a longer prompt is an error, or is left out and counted in `dropped`.
        chat: wrap each string as one user message; rewards still see the string.
        system: a system message for every conversation that has none.

    Raises:
        DataError: if a prompt is too long, has no tokens, or is refused by the chat template.
        ValueError: if the tokenizer has no chat template and one is needed.
    """
    conversations = [conversation(prompt, chat, system) for prompt in rows.prompts]
    if system is not None and not all(isinstance(prompt, list) for prompt in conversations):
        raise ValueError("system needs conversations, but the prompts are strings: pass chat=True to wrap them")
    check_settings(max_tokens, too_long)
    check_template(tokenizer, conversations, rows.origins)
    faults, kept, ids = Faults(), [], []
    for row, (origin, prompt) in enumerate(zip(rows.origins, conversations, strict=True)):
        with faults.at(origin):
            prompt_ids = _prompt_ids(tokenizer, prompt, template_of(rows.columns, row))
            if fits(prompt_ids, "prompt", max_tokens, too_long):
                kept.append(row)
                ids.append(prompt_ids)
    faults.check()
    check_any_left(ids, f"every prompt has more than max_tokens = {max_tokens} tokens: raise it")
    texts = [rows.prompts[row] for row in kept]
    columns = {name: [values[row] for row in kept] for name, values in rows.columns.items()}
    return Prompts(ids, texts, columns, dropped=len(rows) - len(kept))


def tokenize_examples(
    rows: ExampleRows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int | None = None,
    too_long: Literal["error", "drop"] = "error",
) -> Examples:
    """Tokenise demonstrations and mark the tokens to imitate, the closing EOS or end of turn among them.

    Strings get one EOS after them. Of a conversation every assistant turn is trained, up to its end of turn; where
    the template has none, the last turn gets an EOS. A template that renders an earlier turn otherwise once later
    ones follow (reasoning models drop old thoughts) would train what is never sampled: such a conversation becomes
    one example a turn, each as the policy will meet it, and is counted in `split`.

    Args:
        rows: checked demonstrations.
        tokenizer: of the policy.
        max_tokens: most tokens of an example.
        too_long: whether a longer example is an error, or is left out and counted in `dropped`.

    Raises:
        DataError: if an example is too long or is refused by the chat template.
        ValueError: if the tokenizer lacks the chat template or the EOS that the data need.
    """
    check_settings(max_tokens, too_long)
    check_template(tokenizer, rows.completions, rows.origins)
    demonstrations = Demonstrations(tokenizer)
    faults, examples, dropped, split = Faults(), [], 0, 0
    templates = rows.templates or [{}] * len(rows)
    for origin, prompt, completion, template in zip(
        rows.origins, rows.prompts, rows.completions, templates, strict=True
    ):
        with faults.at(origin):
            made = demonstrations.make(prompt, completion, template)
            fitting = [example for example in made if fits(example[0], "completion", max_tokens, too_long)]
            examples += fitting
            dropped += len(made) - len(fitting)
            split += len(made) > 1
    faults.check()
    check_any_left(examples, f"every example has more than max_tokens = {max_tokens} tokens: raise it")
    return Examples([ids for ids, _ in examples], [mask for _, mask in examples], dropped=dropped, split=split)


def eos_token_ids(model_or_generation_config: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return every id that ends a completion: the generation config's, the model config's, the tokenizer's, and the
    one with which the chat template ends an assistant's turn.

    Chat models end a turn with one id and a document with another; a sampler that knows only one runs past the end.
    """
    generation = getattr(model_or_generation_config, "generation_config", model_or_generation_config)
    config = getattr(model_or_generation_config, "config", None)
    found: set[int] = set()
    for source in (generation, config, getattr(config, "text_config", None), tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found |= {ids} if isinstance(ids, int) else set(ids or ())
    found |= end_of_turn(tokenizer)
    if not found:
        raise ValueError("neither model nor tokenizer names an EOS id: set tokenizer.eos_token, or no completion ends")
    return sorted(found)


def conversation(prompt: Text, chat: bool, system: str | None) -> Text:
    """Wrap a string as one user message if asked to, and give a conversation without a system message the given one."""
    if isinstance(prompt, str):
        if not chat:
            return prompt
        prompt = [{"role": "user", "content": prompt}]
    if system is None or prompt[0]["role"] in ("system", "developer"):
        return prompt
    return [{"role": "system", "content": system}, *prompt]


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Text, template: dict[str, Any]) -> list[int]:
    if isinstance(prompt, str):
        ids = encode(tokenizer, prompt, special=True)
    else:
        # The template writes BOS itself where the model wants one: a second one is a silent loss of quality.
        ids = encode(tokenizer, render(tokenizer, prompt, generation=True, template=template), special=False)
    if not ids:
        raise Fault("prompt: has no tokens in this tokenizer: leave the row out")
    return ids


def check_settings(max_tokens: int | None, too_long: str, choices: Sequence[str] = ("error", "drop")) -> None:
    """Refuse a limit that nothing can keep, and a way to treat long rows that is not among the choices."""
    if too_long not in choices:
        named = " or ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"too_long must be {named}, got {too_long!r}")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}: use None for no limit")


def check_template(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], origins: Sequence[str]) -> None:
    """Refuse messages where the tokenizer has no chat template."""
    places = (place for text, place in zip(texts, origins, strict=True) if isinstance(text, list))
    place = None if tokenizer.chat_template else next(places, None)
    if place is not None:
        raise ValueError(
            f"{place}: messages need a chat template and this tokenizer has none: take the tokenizer of a chat "
            "model, set tokenizer.chat_template, or write strings"
        )


def fits(ids: list[int], what: str, max_tokens: int | None, too_long: str) -> bool:
    """Tell whether a text keeps to the limit; one that does not is a fault unless such are dropped."""
    if max_tokens is None or len(ids) <= max_tokens:
        return True
    if too_long == "drop":
        return False
    advice = 'raise max_tokens, shorten it, or pass too_long="drop"'
    raise Fault(f"{what}: {len(ids)} tokens, more than max_tokens = {max_tokens}: {advice}")


def check_any_left(kept: Sequence[object], why: str) -> None:
    """Refuse data of which nothing is left."""
    if not kept:
        raise DataError(why)

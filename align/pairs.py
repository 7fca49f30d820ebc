"""Preferences as data: pairs of a chosen and a rejected answer, and single answers with a thumb up or down.

A pair has its prompt in a column of its own, or `chosen` and `rejected` begin alike and part at an answer. Rows are
checked, and tokenised through the chat template, as those of `align.data` are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from align.batch import Sequences
from align.checks import Text, check_columns, check_same_kind, example_of, form_of, template_of
from align.data import Examples, check_any_left, check_settings, check_template, fits
from align.pair_checks import ANSWERS, LEAVE_OUT, Degenerate, check_first_turn, label_of, margin_of, pair_of
from align.rendering import Demonstrations
from align.rows import Fault, Faults, read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAIR_FORMS = (("prompt", "chosen", "rejected"), ("chosen", "rejected"))
FEEDBACK_FORMS = (("prompt", "completion", "label"),)
LIMITS = ("error", "drop", "truncate")

OrDrop = Literal["error", "drop"]
TooLong = Literal["error", "drop", "truncate"]
Example = tuple[list[int], list[bool]]
"""Token ids, and which of them are trained."""


@dataclass(frozen=True)
class PairRows:
    """N checked pairs, not yet tokenised.

    prompts: what both answers answer: strings, or lists of messages; of one kind but in mixtures.
    chosen, rejected: the answers, of the same kind as the prompts.
    origins: where each pair came from, `file:row`.
    degenerate: number of rows left out because an answer was empty or both were the same.
    margins: by how much each chosen answer was preferred, where a column says so.
    templates: further arguments of the chat template, one dict a pair: its tools, for instance.
    """

    prompts: list[Text]
    chosen: list[Text]
    rejected: list[Text]
    origins: list[str]
    degenerate: int = 0
    margins: list[float] | None = None
    templates: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Pairs:
    """N pairs, tokenised once from their text; row n of `chosen` and of `rejected` belong together.

    chosen, rejected: prompt and answer; the answer's tokens, its EOS or end of turn among them, are what is trained.
    dropped: number of pairs left out because an answer was too long.
    truncated: number of pairs of which an answer was cut.
    degenerate: number of pairs left out because nothing told their answers apart, or one was empty.
    margins: by how much each chosen answer was preferred, where a column says so.
    """

    chosen: Examples
    rejected: Examples
    dropped: int = 0
    truncated: int = 0
    degenerate: int = 0
    margins: list[float] | None = None

    def __len__(self) -> int:
        return len(self.chosen)

    def select(self, rows: Sequence[int]) -> Sequences:
        """Return the pairs of the given rows as tensors: chosen, rejected, chosen, rejected, ... [2 * rows, T]"""
        sides = [side for row in rows for side in ((self.chosen, row), (self.rejected, row))]
        return Sequences.from_lists([s.ids[row] for s, row in sides], [s.action_masks[row] for s, row in sides])


@dataclass(frozen=True)
class FeedbackRows:
    """N checked answers with a thumb up or down, not yet tokenised.

    prompts, completions: strings, or lists of messages; of one kind but in mixtures.
    labels: True where the answer was liked.
    origins: where each answer came from, `file:row`.
    templates: further arguments of the chat template, one dict an answer: its tools, for instance.
    """

    prompts: list[Text]
    completions: list[Text]
    labels: list[bool]
    origins: list[str]
    templates: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Feedback:
    """N answers with a thumb up or down, tokenised once from their text.

    examples: prompt and answer; the answer's tokens, its EOS or end of turn among them, are what is trained.
    labels: True where the answer was liked.
    truncated: number of answers that were cut; those left out are counted in `examples.dropped`.
    """

    examples: Examples
    labels: list[bool]
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.labels)


def read_pairs(
    source: Any, *, split: str = "train", degenerate: OrDrop = "error", margin: str | None = None
) -> PairRows:
    """Read and check pairs: `prompt`, `chosen` and `rejected`, or `chosen` and `rejected` that begin alike.

    Without a prompt of its own, what a pair's conversations share is its prompt; of strings, their common beginning
    up to white space. The columns `tools` and `chat_template_kwargs` are for the chat template; others are left alone.

    Args:
        source: what `align.rows.read_rows` takes: a file, a folder, a Dataset, a list of dicts, a hub id.
        split: the split to take where the source has several.
        degenerate: whether a pair with an empty answer, or with the same answer twice, is an error, or is left out
            and counted.
        margin: the column of numbers that say by how much the chosen answer was preferred; None reads none.

    Raises:
        DataError: naming every fault as `file:row: column: what is wrong, what to do`.
    """
    _check_degenerate(degenerate)
    rows = read_rows(source, split=split)
    form = form_of(rows, PAIR_FORMS)
    faults, pairs, origins, margins, templates, left_out = Faults(), [], [], [], [], 0
    for row in rows:
        with faults.at(row.origin):
            check_columns(row, form if margin is None else (*form, margin), complete=False)
            try:
                pair = pair_of(row.values, form)
            except Degenerate:
                if degenerate == "error":
                    raise
                left_out += 1
                continue
            check_same_kind(pair[1], "chosen", [chosen for _, chosen, _ in pairs[:1]], origins)
            margins.append(0.0 if margin is None else margin_of(row.values[margin], margin))
            templates.append(template_of(row.values))
            pairs.append(pair)
            origins.append(row.origin)
    faults.check()
    why = "every pair is degenerate, with an empty answer or the same one twice: use others"
    check_any_left(pairs, f"{rows[0].origin}: {why}")
    prompts, chosen, rejected = (list(part) for part in zip(*pairs, strict=True))
    return PairRows(prompts, chosen, rejected, origins, left_out, None if margin is None else margins, templates)


def tokenize_pairs(
    rows: PairRows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int | None = None,
    too_long: TooLong = "error",
    degenerate: OrDrop = "error",
) -> Pairs:
    """Tokenise pairs and mark the tokens of the answers, the closing EOS or end of turn among them.

    Args:
        rows: checked pairs.
        tokenizer: of the policy.
        max_tokens: most tokens of a prompt with one of its answers.
        too_long: whether a longer one is an error, or its pair is left out, or its answer is cut at the end; where
            nothing is left of an answer the pair is left out.
        degenerate: whether a pair whose answers are the same tokens is an error, or is left out and counted.

    Raises:
        DataError: if a pair is too long, degenerate, or refused by the chat template.
        ValueError: if the tokenizer lacks the chat template or the EOS that the data need.
    """
    _check_degenerate(degenerate)
    answers = _Answers(tokenizer, rows.chosen, rows.origins, max_tokens, too_long)
    faults, kept, margins, dropped, same, truncated = Faults(), [], [], 0, 0, 0
    templates = rows.templates or [{}] * len(rows)
    for row, origin in enumerate(rows.origins):
        prompt, chosen, rejected = rows.prompts[row], rows.chosen[row], rows.rejected[row]
        with faults.at(origin):
            sides = zip((chosen, rejected), ANSWERS, strict=True)
            whole = [answers.whole(prompt, answer, column, templates[row]) for answer, column in sides]
            cut = [answers.cut(example, column) for example, column in zip(whole, ANSWERS, strict=True)]
            if None in cut:
                dropped += 1
            elif cut[0] == cut[1]:
                same += 1
                if degenerate == "error":
                    raise Degenerate(f"rejected: the same tokens as chosen{_once_cut(whole, cut)}: {LEAVE_OUT}")
            else:
                kept.append(cut)
                margins += rows.margins[row : row + 1] if rows.margins else []
                truncated += cut != whole
    faults.check()
    check_any_left(
        kept, f"no pair is left: {dropped} too long for max_tokens = {max_tokens}, {same} degenerate: raise it"
    )
    chosen, rejected = (_examples(side) for side in zip(*kept, strict=True))
    return Pairs(chosen, rejected, dropped, truncated, rows.degenerate + same, margins if rows.margins else None)


def read_feedback(source: Any, *, split: str = "train") -> FeedbackRows:
    """Read and check single answers: `prompt`, `completion` and `label`, true where the answer was liked.

    Args:
        source: what `align.rows.read_rows` takes: a file, a folder, a Dataset, a list of dicts, a hub id.
        split: the split to take where the source has several.

    Raises:
        DataError: naming every fault as `file:row: column: what is wrong, what to do`.
    """
    rows = read_rows(source, split=split)
    form = form_of(rows, FEEDBACK_FORMS)
    faults, read, origins = Faults(), [], []
    for row in rows:
        with faults.at(row.origin):
            check_columns(row, form, complete=False)
            prompt, completion = example_of(row.values, ("prompt", "completion"))
            if not isinstance(prompt, str):
                check_first_turn(completion, "completion")
            check_same_kind(completion, "completion", [earlier for _, earlier, *_ in read[:1]], origins)
            read.append((prompt, completion, label_of(row.values["label"]), template_of(row.values)))
            origins.append(row.origin)
    faults.check()
    prompts, completions, labels, templates = (list(part) for part in zip(*read, strict=True))
    return FeedbackRows(prompts, completions, labels, origins, templates)


def tokenize_feedback(
    rows: FeedbackRows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int | None = None,
    too_long: TooLong = "error",
) -> Feedback:
    """Tokenise answers with their labels; otherwise as `tokenize_pairs`."""
    answers = _Answers(tokenizer, rows.completions, rows.origins, max_tokens, too_long)
    faults, kept, labels, truncated = Faults(), [], [], 0
    templates = rows.templates or [{}] * len(rows)
    for origin, prompt, completion, label, template in zip(
        rows.origins, rows.prompts, rows.completions, rows.labels, templates, strict=True
    ):
        with faults.at(origin):
            whole = answers.whole(prompt, completion, "completion", template)
            cut = answers.cut(whole, "completion")
            if cut is not None:
                kept.append(cut)
                labels.append(label)
                truncated += cut != whole
    faults.check()
    check_any_left(kept, f"every answer has more than max_tokens = {max_tokens} tokens: raise it")
    return Feedback(_examples(kept, dropped=len(rows) - len(kept)), labels, truncated)


class _Answers:
    """Makes (ids, mask) of a prompt with its answer, under one limit."""

    def __init__(
        self, tokenizer: Any, texts: Sequence[Text], origins: Sequence[str], max_tokens: int | None, too_long: str
    ) -> None:
        check_settings(max_tokens, too_long, LIMITS)
        check_template(tokenizer, texts, origins)
        self.demonstrations = Demonstrations(tokenizer)
        self.max_tokens, self.too_long = max_tokens, too_long

    def whole(self, prompt: Text, answer: Text, column: str, template: dict[str, Any]) -> Example:
        """Return the example, the answer closed."""
        made = self.demonstrations.make(prompt, answer, template)
        if len(made) > 1:
            what = "the chat template writes earlier turns anew once later ones follow"
            raise Fault(f"{column}: several answers, and {what}: keep one, and put the others into the prompt")
        return made[0]

    def cut(self, example: Example, column: str) -> Example | None:
        """Return what the limit leaves of an example, None if that is to be left out."""
        ids, mask = example
        if self.too_long == "truncate":
            ids, mask = ids[: self.max_tokens], mask[: self.max_tokens]
            return (ids, mask) if any(mask) else None
        return example if fits(ids, column, self.max_tokens, self.too_long) else None


def _examples(examples: Sequence[Example], dropped: int = 0) -> Examples:
    return Examples([ids for ids, _ in examples], [mask for _, mask in examples], dropped=dropped)


def _once_cut(whole: object, cut: object) -> str:
    return "" if whole == cut else " once cut to max_tokens"


def _check_degenerate(degenerate: str) -> None:
    if degenerate not in ("error", "drop"):
        raise ValueError(f'degenerate must be "error" or "drop", got {degenerate!r}')

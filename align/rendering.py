"""From text to token ids with one tokenizer: the chat template is rendered, and what is to be trained is marked.

Tokens are made once, from text, and masks are made from where a text begins and ends, never from ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from align.batch import Message
from align.rows import Fault

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.checks import Text


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    """Tokenise a text; `special` adds what the tokenizer puts before one, but no second BOS, and never an EOS after."""
    special = special and not (tokenizer.bos_token and text.startswith(str(tokenizer.bos_token)))
    ids = list(tokenizer(text, add_special_tokens=special).input_ids)
    eos = tokenizer.eos_token_id
    if special and ids and ids[-1] == eos and not text.endswith(str(tokenizer.eos_token)):
        ids.pop()
    return ids


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    *,
    generation: bool,
    template: Mapping[str, Any] | None = None,
) -> str:
    """Render messages by the chat template, with the generation prompt after them or without.

    Args:
        tokenizer: whose template it is.
        messages: the conversation.
        generation: whether the beginning of the assistant's turn follows.
        template: further arguments of the template, as `align.checks.template_of` gives them.

    Raises:
        Fault: if the template refuses the messages.
    """
    from jinja2 import TemplateError

    what = "messages: the chat template"
    more: dict[str, Any] = {"tokenize": False, "add_generation_prompt": generation, **(template or {})}
    try:
        return str(tokenizer.apply_chat_template(messages, **more))
    except TemplateError as error:
        raise Fault(f"{what} refuses them ({error}): change their roles or order") from error
    except (TypeError, ValueError) as error:  # of what the template computes, and of the tools it is given
        raise Fault(f"{what} cannot render them ({error}): change what it is given, tools among it") from error


class Demonstrations:
    """Makes (ids, mask) of a prompt and what is to be trained after it, with one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.closers = tuple({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()})

    def make(
        self, prompt: Text, completion: Text, template: Mapping[str, Any] | None = None
    ) -> list[tuple[list[int], list[bool]]]:
        """Return one example, or one a turn where the template, called with these arguments, rewrites earlier turns."""
        if isinstance(prompt, str) and isinstance(completion, str):
            spans = [(len(prompt), len(prompt) + len(completion))]
            return [self._close(*self._masked(prompt + completion, spans, special=True))]
        assert isinstance(prompt, list) and isinstance(completion, list), "the checks let no mixture through"
        return self._conversation(prompt + completion, len(prompt), template or {})

    def _conversation(
        self, messages: list[Message], first: int, template: Mapping[str, Any]
    ) -> list[tuple[list[int], list[bool]]]:
        """Mask every assistant turn from message `first` on; what follows the last of them is cut off."""
        turns = [
            self._turn(messages[:number], messages[: number + 1], template)
            for number in range(first, len(messages))
            if messages[number]["role"] == "assistant"
        ]
        whole, _, closed = turns[-1]
        if all(whole.startswith(text) for text, _, _ in turns):
            turns = [(whole, [span for _, spans, _ in turns for span in spans], closed)]
        made = []
        for text, spans, closed in turns:
            ids, mask = self._masked(text, spans, special=False)
            made.append((ids, mask) if closed else self._close(ids, mask))
        return made

    def _turn(
        self, before: list[Message], through: list[Message], template: Mapping[str, Any]
    ) -> tuple[str, list[tuple[int, int]], bool]:
        """Render a conversation through an assistant turn, whose span begins where the generation prompt ends.

        The last value tells whether the template closes the turn, so that no EOS is needed.
        """
        head = render(self.tokenizer, before, generation=True, template=template)
        text = render(self.tokenizer, through, generation=False, template=template)
        if not text.startswith(head):
            what = "the chat template does not begin the assistant's turn with its own generation prompt"
            advice = "use another, or write prompt and completion as strings"
            raise Fault(f"messages: turn {len(through)}: {what}, so nothing tells where the answer begins: {advice}")
        # A sampler stops at the end of turn; white space that the template puts after it is nobody's action.
        stripped, words = text.rstrip(), through[-1]["content"].strip()
        # A token that the answer itself ends in, such as an added </answer>, closes nothing.
        own = bool(words) and stripped.endswith(words) and not stripped.endswith(str(self.tokenizer.eos_token))
        closed = stripped.endswith(self.closers) and not own
        text = stripped if closed else text
        return text, [(len(head), len(text))], closed

    def _masked(self, text: str, spans: list[tuple[int, int]], *, special: bool) -> tuple[list[int], list[bool]]:
        """Tokenise a text and mark the tokens of its spans, the last of which ends with the text.

        The ids of what stands before a border must be a prefix of all ids, since they are what the policy is asked
        to continue. Where a token would straddle the border, the text is cut there and tokenised piece by piece.
        """
        borders = [border for span in spans for border in span]
        ids = encode(self.tokenizer, text, special=special)
        heads = [*(encode(self.tokenizer, text[:border], special=special) for border in borders[:-1]), ids]
        cuts = [len(head) for head in heads]
        if any(ids[: len(head)] != head for head in heads):
            ids, cuts = list(heads[0]), [len(heads[0])]
            for start, end in pairwise(borders):
                ids += encode(self.tokenizer, text[start:end], special=False)
                cuts.append(len(ids))
        mask = [False] * len(ids)
        for start, end in zip(cuts[::2], cuts[1::2], strict=True):
            mask[start:end] = [True] * (end - start)
        # Nothing predicts the first token.
        mask[:1] = [False] * len(mask[:1])
        return ids, mask

    def _close(self, ids: list[int], mask: list[bool]) -> tuple[list[int], list[bool]]:
        """End an example with one EOS that is trained, without which a policy never learns to stop."""
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise ValueError("the tokenizer has no EOS, so a policy could not learn to stop: set tokenizer.eos_token")
        return (ids, mask) if ids[-1:] == [eos] else ([*ids, eos], [*mask, True])


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the special token that follows an assistant's words in the chat template, if there is one."""
    if not tokenizer.chat_template:
        return set()
    words = "the words of an answer"
    turns = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": words}]
    try:
        rendered = render(tokenizer, turns, generation=False)
    except Fault:  # a template for conversations of another kind: it says nothing of this one's end
        return set()
    ids = encode(tokenizer, rendered.rpartition(words)[2].strip(), special=False)
    added: dict[str, int] = cast(Any, tokenizer).get_added_vocab()
    return set(ids[:1]) & {*tokenizer.all_special_ids, *added.values()}

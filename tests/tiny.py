"""Tokenizers built on the spot, so that no test needs a file or a network.

A token is one character, unless `merges` joins some; special tokens are cut out of the text first, as real ones are.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD, START, END = "<bos>", "<eos>", "<pad>", "<start>", "<end>"

CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "<start>{{ message['role'] }}\n{{ message['content'] }}<end>\n"
    "{% endfor %}{% if add_generation_prompt %}<start>assistant\n{% endif %}"
)
"""A template of the usual kind: BOS, turns between special tokens, a newline that nobody samples."""

FORGETFUL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set content = message['content'] %}"
    "{% if not loop.last %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "<start>{{ message['role'] }}\n{{ content }}<end>\n"
    "{% endfor %}{% if add_generation_prompt %}<start>assistant\n{% endif %}"
)
"""A template that drops the thoughts of earlier turns, as those of reasoning models do."""


def tiny_tokenizer(
    chat_template: str | None = CHAT,
    *,
    bos: str | None = BOS,
    eos: str | None = EOS,
    pad: str | None = PAD,
    add_bos: bool = True,
    add_eos: bool = False,
    merges: Iterable[tuple[str, str]] = (),
    alphabet: str = string.printable,
) -> Any:
    """Build a fast tokenizer of characters; `add_bos` and `add_eos` say what its plain call puts around a text.

    Returned as Any: by its own types, what a tokenizer gives may be a string, a list or nothing.
    """
    merges = list(merges)
    specials = list(dict.fromkeys(token for token in (PAD, BOS, EOS, START, END, bos, eos, pad) if token))
    tokens = [*specials, "<unk>", *alphabet, *("".join(pair) for pair in merges)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]+"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    before = [bos] if add_bos and bos else []
    after = [eos] if add_eos and eos else []
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after], special_tokens=[(token, vocabulary[token]) for token in before + after]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        unk_token="<unk>",
        additional_special_tokens=[START, END],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template
    return fast

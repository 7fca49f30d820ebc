"""Penalties on how a text is written, whatever it says: repetition, and letters of a script that nobody asked for.

Each function makes a reward between -1 and 0, as in `repetition_penalty(ngram=4)`; what is impeccable gets 0.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

from align.batch import Completion, text_of
from align.rewards import RewardFunction
from align.rows import nearest


def repetition_penalty(*, ngram: int = 3) -> RewardFunction:
    """Make a penalty of the share of n-grams that have come before in the completion.

        -(1 - distinct n-grams / n-grams),   0 for fewer than n tokens

    The tokens are those of the argument `completion_ids`, which the trainer passes, so that it is the same for
    languages with and without spaces.

    Source: Yeo et al. 2025 (arXiv:2502.03373) penalise repeated n-grams of tokens; theirs is paid token by token, this
    one is their share of a completion.

    Args:
        ngram: n, tokens of an n-gram.
    """
    if ngram < 1:
        raise ValueError(f"ngram must be at least 1 token, got {ngram}")

    def one(ids: Sequence[int]) -> float:
        ngrams = [tuple(ids[start : start + ngram]) for start in range(len(ids) - ngram + 1)]
        return len(set(ngrams)) / len(ngrams) - 1 if ngrams else 0.0

    def repetition_penalty(
        completions: Sequence[Completion], completion_ids: Sequence[Sequence[int]] | None = None, **columns: Any
    ) -> list[float | None]:
        if completion_ids is None:
            raise ValueError("repetition_penalty needs the argument completion_ids, which was not passed: pass the ids")
        return [one(ids) for ids in completion_ids]

    return repetition_penalty


def script_penalty(*, scripts: Sequence[str] = ("Latin", "Greek")) -> RewardFunction:
    """Make a penalty of the share of letters outside some scripts: -(letters outside / letters), 0 without letters.

    A script is the first word of its letters' names in Unicode: Latin, Greek, Cyrillic, Arabic, Devanagari, Hangul,
    Hiragana, Katakana, CJK (or Han), ... Digits, punctuation, accents and emojis are no letters, and letters in
    mathematical styles or of full width count as their plain ones. Greek is among the defaults for mathematics.

    Source: DeepSeek-AI 2025 (arXiv:2501.12948) reward the share of words in the target language, against answers
    that mix languages; of letters it needs no model of languages.

    Args:
        scripts: of which letters may be.

    Raises:
        ValueError: if there are none, or no letter of Unicode has a name that begins so.
    """
    if isinstance(scripts, str) or not scripts:
        raise ValueError(f'scripts must be a list of names, as in ["Latin"], got {scripts!r}')
    wanted = {_OTHER_NAMES.get(name.upper(), name.upper()) for name in scripts}
    for name in sorted(wanted - _scripts()):
        hint = nearest(name.title(), [script.title() for script in _scripts()])
        raise ValueError(f"no letter of Unicode is of the script {name.title()!r}{hint}")

    def one(text: str) -> float:
        found = [script for script in map(_script, unicodedata.normalize("NFKC", text)) if script is not None]
        return -sum(script not in wanted for script in found) / len(found) if found else 0.0

    def script_penalty(completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        return [one(text_of(completion)) for completion in completions]

    return script_penalty


_OTHER_NAMES = {"HAN": "CJK", "CHINESE": "CJK", "KOREAN": "HANGUL"}
_LETTERS = ("Lu", "Ll", "Lt", "Lo")


@cache
def _script(character: str) -> str | None:
    """Return the first word of a letter's name, None for what is no letter."""
    if unicodedata.category(character) not in _LETTERS:
        return None
    return unicodedata.name(character, "").replace("-", " ").partition(" ")[0]


@cache
def _scripts() -> frozenset[str]:
    """Return the first words of all letters' names."""
    return frozenset(script for script in (_script(chr(code)) for code in range(0x20000)) if script)

"""Show text that a model wrote: it may hold anything, and must neither move a cursor nor hide what it says."""

from __future__ import annotations

import unicodedata

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories of control, format (bidi overrides among them), surrogate, private, unassigned and separator."""


def visible(text: str, *, keep_newlines: bool = False, ascii_only: bool = False) -> str:
    r"""Write each character that has no glyph of its own as an escape.

    >>> print(visible("a\x1b[31mb\u202ec\n"))
    a\x1b[31mb\u202ec\n
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        _escape(char) if _unseen(char, keep_newlines) or (ascii_only and not char.isascii()) else char for char in text
    )


def shorten(text: str, length: int) -> str:
    """Cut a text to at most `length` characters and say how much was left out.

    >>> shorten("abcdefghij" * 10, 40)
    'abcdefghijabcdefghija [+ 79 characters]'
    """
    if len(text) <= length:
        return text
    kept = max(0, length - len(f" [+ {len(text)} characters]"))
    return f"{text[:kept]} [+ {len(text) - kept} characters]"


def _unseen(char: str, keep_newlines: bool) -> bool:
    return unicodedata.category(char) in _UNSEEN and not (keep_newlines and char == "\n")


def _escape(char: str) -> str:
    # Written out, since encode("unicode_escape") refuses the surrogates that a decoder may leave behind.
    code = ord(char)
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return named.get(char) or (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )

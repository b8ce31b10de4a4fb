"""What a terminal may be sent of text that others wrote: a model, a tool, a file.

Owns which characters are shown as signs instead of being obeyed. Invariant: what comes out holds
no control character but line break and tab, nothing that turns the direction of writing, and no
invisible letters, so that no text can move the cursor, set the clipboard, or look like another.
"""

from __future__ import annotations

_PICTURES = 0x2400  # of control characters, in their own order
_DELETE, _PICTURE_OF_DELETE = 0x7F, 0x2421

_CODES = (
    *range(0x80, 0xA0),  # C1: 0x9b begins an escape sequence by itself
    *range(0x2028, 0x202F),  # line and paragraph separators; embeddings and overrides
    *range(0x2066, 0x206A),  # isolates
    *range(0xD800, 0xE000),  # halves of characters: no encoding can write them
    0xFEFF,
    *range(0xE0000, 0xE0080),  # tags: whole sentences that nobody sees
)

_SIGNS = {
    **{code: chr(_PICTURES + code) for code in range(0x20) if chr(code) not in "\n\t"},
    _DELETE: chr(_PICTURE_OF_DELETE),
    **{code: f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}" for code in _CODES},
}


def visible(text: str) -> str:
    """The text as a terminal may have it: ``\\x1b`` becomes ``␛``, an override ``\\u202e``."""
    return text.replace("\r\n", "\n").translate(_SIGNS)


def one_line(text: str, width: int) -> str:
    """The same on one line of at most ``width`` characters, the rest of it as ``…``."""
    joined = visible(" ".join(text.split()))
    return joined if len(joined) <= width else joined[: max(width - 1, 0)] + "…"

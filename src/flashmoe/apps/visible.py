"""What a terminal may be sent of text that others wrote: a model, a tool, a file.

Owns which characters are shown as signs instead of being obeyed. Invariant: what comes out holds
no control character but line break and tab, nothing that turns the direction of writing, and no
invisible letters but the joiners that scripts and emoji need, so that no text can move the cursor,
set the clipboard, or look like another. What a person says yes to is shown without any of them.
"""

from __future__ import annotations

import unicodedata

_PICTURES = 0x2400  # of control characters, in their own order
_DELETE, _PICTURE_OF_DELETE = 0x7F, 0x2421

_CODES = (
    *range(0x80, 0xA0),  # C1: 0x9b begins an escape sequence by itself
    0xAD,  # a hyphen that is mostly not there
    0x61C,  # a mark of direction
    *(0x115F, 0x1160, 0x3164, 0xFFA0),  # letters that are blank
    0x180E,
    *(0x200B, 0x200E, 0x200F),  # a space of no width, marks of direction; not the joiners between
    *range(0x2028, 0x202F),  # line and paragraph separators; embeddings and overrides
    *range(0x2060, 0x2070),  # invisible operators, isolates, shapes
    *range(0xD800, 0xE000),  # halves of characters: no encoding can write them
    0xFEFF,
    *range(0xFFF9, 0xFFFC),  # annotations
    *range(0x1BCA0, 0x1BCA4),  # of shorthand
    *range(0x1D173, 0x1D17B),  # of music
    *range(0xE0000, 0xE0080),  # tags: whole sentences that nobody sees
)

_HIDING = {"Cf", "Cn", "Co", "Zs"}  # formats, unassigned, private, spaces that are none

_SELECTORS = {
    0x34F,
    *(0x17B4, 0x17B5),
    *range(0x180B, 0x1810),
    0x2800,  # a pattern of no dots
    *range(0xFE00, 0xFE10),
    *range(0xE0100, 0xE01F0),
}
"""Marks that are not seen, and have no category of their own."""


def _escaped(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


_SIGNS = {
    **{code: chr(_PICTURES + code) for code in range(0x20) if chr(code) not in "\n\t"},
    _DELETE: chr(_PICTURE_OF_DELETE),
    **{code: _escaped(code) for code in _CODES},
}


def visible(text: str) -> str:
    """The text as a terminal may have it: ``\\x1b`` becomes ``␛``, an override ``\\u202e``."""
    return text.replace("\r\n", "\n").translate(_SIGNS)


def exact(text: str) -> str:
    """The same for what is going to be done as it stands: every character that is not seen, or
    only looks like a space, is a sign, and no carriage return is left out."""
    return "".join(_escaped(ord(char)) if _hides(char) else char for char in text.translate(_SIGNS))


def _hides(char: str) -> bool:
    return char != " " and (unicodedata.category(char) in _HIDING or ord(char) in _SELECTORS)


def one_line(text: str, width: int) -> str:
    """The same on one line of at most ``width`` characters, the rest of it as ``…``."""
    joined = visible(" ".join(text.split()))
    return joined if len(joined) <= width else joined[: max(width - 1, 0)] + "…"

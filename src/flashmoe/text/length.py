"""Whether a text is too long, found without encoding it whole.

The tokenizers library takes some 150 bytes of memory for each byte of a text that it encodes at
once, and a text that was sent may be megabytes long. So a long one is counted piece by piece
first, and given up as soon as it is certain to be too long.

Invariant: what is said to be too long is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flashmoe.errors import ContextError
from flashmoe.text.template import Segment
from flashmoe.text.tokenizer import Tokenizer

WHOLE = 32 << 10
"""Texts of so many characters are not counted."""

_PIECE = 8 << 10

_CUTS = 32
"""The two cuts of a stretch make at most so many more tokens of it: they part a word, or a mark."""


def check_length(tokenizer: Tokenizer, segments: Sequence[Segment], most_tokens: int) -> None:
    """Refuse a prompt that is far too long before all of it is encoded.

    Raises:
        ContextError: it certainly has more tokens than that.
        InputError: it is not Unicode.
    """
    if exceeds(tokenizer, segments, most_tokens):
        raise ContextError(
            f"the prompt is far longer than the context, which has {most_tokens} tokens: shorten "
            "it, or plan a longer context with --context"
        )


def exceeds(tokenizer: Tokenizer, segments: Sequence[Segment], most_tokens: int) -> bool:
    """Whether the text certainly has more tokens than that; one that has but a few more may pass.

    Raises InputError for text that is not Unicode.
    """
    if sum(len(segment.text) for segment in segments) <= WHOLE:
        return False
    counted = 0
    for piece in _pieces(segments):
        counted += max(len(tokenizer.encode_segments(piece)) - _CUTS, 0)
        if counted > most_tokens:
            return True
    return False


def _pieces(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """The same text in stretches of some :data:`_PIECE` characters."""
    stretch: list[Segment] = []
    size = 0
    for segment in segments:
        for start in range(0, len(segment.text), _PIECE):
            part = Segment(segment.text[start : start + _PIECE], segment.markup)
            stretch.append(part)
            size += len(part.text)
            if size >= _PIECE:
                yield stretch
                stretch, size = [], 0
    yield stretch

"""How a text that is longer than a context is cut into windows.

Pure: numbers alone. Invariant: every token of the text but the first is predicted exactly once,
each by the ``context - stride + 1`` tokens before it at the least, or by all there are; of the
first ``most`` windows the same holds as far as they reach.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashmoe.errors import InputError


@dataclass(frozen=True)
class Window:
    """Tokens ``begin`` to ``end`` of a text pass together; the last ``scored`` of them have a
    prediction after them that counts, of the tokens up to ``end`` itself."""

    begin: int
    end: int
    scored: int

    @property
    def tokens(self) -> int:
        """How many pass."""
        return self.end - self.begin


def windows(tokens: int, context: int, stride: int, most: int | None = None) -> list[Window]:
    """The windows of a text of so many tokens.

    Each passes up to ``context`` tokens and begins ``stride`` tokens behind the one before it; it
    predicts what those before it have not. ``stride == context`` cuts the text into pieces that
    know nothing of one another, as llama.cpp's perplexity does; a smaller one is the sliding
    window of transformers' documentation, with a ``max_length`` of ``context + 1``, whose last
    token is only predicted.

    Raises:
        InputError: a stride beyond the context, or fewer than two tokens.
    """
    if not 1 <= stride <= context:
        raise InputError(f"--stride is {stride}; it must be from 1 to --context, {context}")
    if tokens < 2:
        raise InputError(f"the text has {tokens} tokens; a prediction takes two at the least")
    found, last, done = list[Window](), tokens - 1, 0
    begin = 0
    while done < last and (most is None or len(found) < most):
        end = min(begin + context, last)
        found.append(Window(begin, end, end - done))
        done, begin = end, begin + stride
    return found

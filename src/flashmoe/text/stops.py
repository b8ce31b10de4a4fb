"""Stop strings: where text that comes in pieces ends.

Owns the search for them and the text held back because it may become one. Invariant: what ``push``
and ``flush`` return holds no stop string, and ``push`` returns no part of what may still become
one. Time is in proportion to the text, times the number of stop strings.
"""

from __future__ import annotations

from collections.abc import Iterable

from flashmoe.errors import InputError


class Stops:
    """The stop strings of one text. ``met`` is the one that ended it, or None."""

    def __init__(self, stop: Iterable[str] = ()) -> None:
        """Raises InputError for an empty stop string."""
        stops = tuple(dict.fromkeys(stop))
        if not all(stops):
            raise InputError("a stop string is empty; leave it out")
        self.met: str | None = None
        self._matchers = [_Matcher(text) for text in stops]
        self._held = ""  # may be the beginning of a stop string

    def push(self, text: str) -> str:
        """What of the text is free to go; "" after a stop string was met.

        Of several that end with the same character the longest counts.
        """
        if self.met is not None:
            return ""
        if not self._matchers:
            return text
        buffer, start = self._held + text, len(self._held)
        for end, character in enumerate(text, start + 1):
            met = [matcher.stop for matcher in self._matchers if matcher.feed(character)]
            if met:
                self.met, self._held = max(met, key=len), ""
                return buffer[: end - len(self.met)]
        cut = len(buffer) - max(matcher.matched for matcher in self._matchers)
        self._held = buffer[cut:]
        return buffer[:cut]

    def flush(self) -> str:
        """What was held back: the text ends or is interrupted here, and the search begins anew."""
        held, self._held = self._held, ""
        for matcher in self._matchers:
            matcher.matched = 0
        return held


class _Matcher:
    """Finds one stop string in text that comes in pieces (Knuth, Morris, Pratt 1977).

    ``matched`` is the length of the longest beginning of ``stop`` that the text so far ends in.
    """

    def __init__(self, stop: str) -> None:
        self.stop, self.matched = stop, 0
        self._fallback = [0]  # for each length: the next shorter beginning that is also an end
        length = 0
        for character in stop[1:]:
            length = self._next(length, character)
            self._fallback.append(length)

    def _next(self, length: int, character: str) -> int:
        while length and self.stop[length] != character:
            length = self._fallback[length - 1]
        return length + (self.stop[length] == character)

    def feed(self, character: str) -> bool:
        self.matched = self._next(self.matched, character)
        return self.matched == len(self.stop)

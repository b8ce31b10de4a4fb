"""Token ids to text and marks: where the markup of a reply begins and ends.

Owns the finding of marks, by id or by text, and the text held back because it may become one;
not what a mark means where it stands. Invariant: however ids cut a text, the same marks and,
joined, the same text come out; every character of the ids' text is in one of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

from flashmoe.text.detokenizer import Detokenizer, Vocabulary
from flashmoe.text.syntax import Mark

Atom: TypeAlias = str | Mark


class Scanner:
    """Finds ``marks`` in one reply. A mark with an id is met by that id alone, one without by its
    text in ordinary tokens. Other tokens that the tokenizer calls special add nothing."""

    def __init__(self, tokenizer: Vocabulary, marks: Sequence[Mark]) -> None:
        self._tokenizer = tokenizer
        self._words = Detokenizer(tokenizer)
        self._by_id = {mark.id: mark for mark in marks if mark.id is not None}
        spelled = {mark.text: mark for mark in marks if mark.id is None}
        self._spelled = spelled
        self._pattern = re.compile(f"({'|'.join(map(re.escape, spelled)) or '(?!)'})")
        self._starts = {text[:end] for text in spelled for end in range(1, len(text))}
        self._longest = max(map(len, self._starts), default=0)
        self._held = ""  # the beginning of a mark, perhaps

    def push(self, id: int) -> list[Atom]:
        """The text and marks that this id makes certain, in order; no text is empty."""
        mark = self._by_id.get(id)
        if mark is not None:
            before = self._words.push(id).removesuffix(mark.text)
            return [*self._read(before, last=True), mark]
        if self._tokenizer.is_special(id):
            return []
        return self._read(self._words.push(id), last=False)

    def finish(self, *, cut: bool = False) -> list[Atom]:
        """What was held back; half a character at the end of a ``cut`` reply is left out."""
        return self._read(self._words.finish(cut=cut), last=True)

    def _read(self, text: str, *, last: bool) -> list[Atom]:
        """The atoms of what was held and ``text``; ``last``: no spelled mark goes on after it."""
        parts = self._pattern.split(self._held + text)
        tail = parts[-1]
        self._held = "" if last else self._beginning(tail)
        parts[-1] = tail[: len(tail) - len(self._held)]
        return [self._spelled.get(part, part) for part in parts if part]

    def _beginning(self, text: str) -> str:
        """The longest end of ``text`` that is the beginning of a mark."""
        for length in range(min(self._longest, len(text)), 0, -1):
            if text[-length:] in self._starts:
                return text[-length:]
        return ""

"""A session's side of the prefix cache: where it began, where it ends passes, what it has kept.

Owns what one timeline knows of its kept pieces, and when it keeps its state: where ``places``
says, when a prompt has passed, when a reply ends, and what a broken-off prompt had come to.
Without a cache all of it does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flashmoe.model.state import State
from flashmoe.prefix import places
from flashmoe.prefix.cache import Prefixes


class Trail:
    """One timeline's way through the cache; ``state`` is the session's own."""

    def __init__(self, prefixes: Prefixes | None, state: State) -> None:
        self._prefixes = prefixes
        self._state = state
        self.cached = 0
        """Tokens that the passes begun last did not have to pass."""
        self.handed_bytes = 0
        """Bytes given to be written, so far."""
        self.forget()

    def forget(self) -> None:
        """The state has been replaced: nothing is known of its pieces."""
        self._blocks: list[str] = []
        self._kept = 0
        self._prompt = False  # has passed, and its end is not kept yet
        self._marks: set[int] = set()
        self._cuts: set[int] = set()
        self._due: set[int] = set()
        self._before = self._total = 0

    def mark(self, positions: Iterable[int]) -> None:
        """Positions at which other timelines may leave this one's path."""
        self._marks.update(positions)

    def begin(self, ids: Sequence[int], most: int) -> None:
        """Passes of all tokens that wait are about to begin.

        An empty state becomes that of the longest kept prefix of at most ``most`` tokens.
        """
        self.cached = 0
        if self._prefixes is None:
            return
        state = self._state
        if not state.position and ids:
            self.cached, self._blocks = self._prefixes.resume(ids, most, state)
            self._kept = self.cached
        self._before, self._total = start, total = state.position, len(ids)
        self._prompt = self._prompt or total - start > 1
        self._cuts, self._due = set(), set()
        if total - start > places.APART_TOKENS:
            self._cuts = places.cuts(start, total, self._marks, self._prefixes.branch(ids))
            self._due = places.along(start, total, self._prefixes.spacing_tokens)
        self._marks = {mark for mark in self._marks if mark > total}

    def cut(self, end: int) -> int:
        """Where the pass that would end at ``end`` ends instead, or ``end``."""
        start = self._state.position
        return min((cut for cut in self._cuts if start < cut < end), default=end)

    def passed(self, ids: Sequence[int]) -> None:
        """A pass has ended."""
        before, self._before = self._before, self._state.position
        if places.is_kept(before, self._before, self._total, self._due, self._cuts):
            self._keep(ids)

    def ended(self, ids: Sequence[int]) -> None:
        """A prompt has passed, or a reply has ended: its state is kept.

        That of a reply only where the last one is not near: what lies between passes with the next
        prompt anyway, but the same prompt again should find all of itself.
        """
        position = self._state.position
        apart = 1 if self._prompt else places.APART_TOKENS
        if position >= places.APART_TOKENS and position - self._kept >= apart:
            self._keep(ids)
        self._prompt = False

    def broke_off(self, ids: Sequence[int]) -> None:
        """A pass failed or was cancelled, and what had passed before it is to stay."""
        if self._state.position % places.CUT_TOKENS == 0:
            self.ended(ids)

    def _keep(self, ids: Sequence[int]) -> None:
        if self._prefixes is None:
            return
        self._blocks, handed = self._prefixes.keep(ids, self._state, self._blocks)
        self._kept = self._state.position
        self.handed_bytes += handed

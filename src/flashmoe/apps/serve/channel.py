"""From the worker's thread to the event loop: what has come of a reply since it was last asked.

Owns the handing over. The worker never waits for a reader: what a slow one leaves is joined, so
that it takes no more memory than the reply has text, which the worker takes room for
(``Job.hold``). Who is slow for too long is cut off by ``outlet``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from flashmoe.apps.serve.ask import Outcome, Refusal, Spoken, joined
from flashmoe.progress import Progress

APART = 64
"""So many steps are kept apart for a reader; more are joined."""


@dataclass(frozen=True)
class Began:
    """The prompt's size is known, and how much of it does not have to pass."""

    prompt_tokens: int
    cached_tokens: int


Item: TypeAlias = Began | Spoken | Outcome | Refusal


class Channel:
    """One reply on its way. ``wake`` is called, in the worker's thread, when there is news for a
    reader that has seen all so far. The last item is an Outcome or a Refusal."""

    def __init__(self, wake: Callable[[], None], *, streams: bool) -> None:
        self.progress: Progress | None = None
        """How far the prompt is, while it passes."""
        self.withholding = False
        """Whether a call is being written, of which nothing can be told yet."""
        self._wake = wake
        self._streams = streams
        self._lock = threading.Lock()
        self._items: list[Item] = []
        self._ended = False

    def put(self, item: Item) -> None:
        """Add an item. After the last one, further ones are dropped."""
        with self._lock:
            if self._ended:
                return
            ends = isinstance(item, Outcome | Refusal)
            if not ends and not self._streams:
                return
            self._ended = ends
            news = not self._items
            self._items.append(item)
            if len(self._items) > APART:
                self._items = _joined(self._items)
        if news:
            self._wake()

    def take(self) -> list[Item]:
        """All items since the last call, in order."""
        with self._lock:
            items, self._items = self._items, []
            return items


def _joined(items: list[Item]) -> list[Item]:
    """The same items with all that was spoken as one."""
    spoken = [item for item in items if isinstance(item, Spoken)]
    one = Spoken(
        joined([piece for item in spoken for piece in item.pieces]),
        tuple(token for item in spoken for token in item.tokens),
    )
    before = [item for item in items if isinstance(item, Began)]
    after = [item for item in items if isinstance(item, Outcome | Refusal)]
    return [*before, one, *after]

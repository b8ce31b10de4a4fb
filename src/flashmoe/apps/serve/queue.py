"""Who waits for the model, and whose turn it is.

Owns the order: sources (clients) take turns, and each is served in the order in which it asked.
Not what is waited with. Safe for several threads; taking blocks, everything else does not.

Invariant: at most ``most`` wait, at most half of them from one source where there is more than one
place; each that was put in is taken, removed or given back by :meth:`Fair.close`, once.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Full(Exception):
    """There is no place; the message says whose."""


class Fair(Generic[T]):
    """A queue of things of several sources, which take turns."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._share = max(most // 2, 1)
        self._waiting: dict[str, deque[T]] = {}  # none is empty; in the order of their turns
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        with self._changed:
            return self._count()

    def _count(self) -> int:
        return sum(len(line) for line in self._waiting.values())

    def put(self, source: str, thing: T) -> None:
        """Wait for a turn.

        Raises:
            Full: too many wait, of this source or of all.
        """
        with self._changed:
            if self._closed:
                raise Full("the server is stopping")
            if self._count() >= self.most:
                raise Full(f"{_requests(self.most)} waiting already, which is as many as may")
            line = self._waiting.setdefault(source, deque())
            if len(line) >= self._share:
                raise Full(f"{_requests(self._share, ' of this client')} waiting already")
            line.append(thing)
            self._changed.notify()

    def take(self) -> T | None:
        """The next, once there is one; None when the queue has been closed."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if not self._waiting:
                return None
            source = next(iter(self._waiting))
            line = self._waiting.pop(source)
            thing = line.popleft()
            if line:
                self._waiting[source] = line  # behind the others
            return thing

    def remove(self, thing: T) -> bool:
        """Take something out; False where it does not wait."""
        with self._changed:
            for source, line in self._waiting.items():
                if thing in line:
                    line.remove(thing)
                    if not line:
                        del self._waiting[source]
                    return True
            return False

    def place(self, thing: T) -> int | None:
        """How many come before it, as things stand; None where it does not wait."""
        with self._changed:
            before = 0  # of sources whose turn comes sooner
            lines = list(self._waiting.values())
            for own, line in enumerate(lines):
                if thing in line:
                    rounds = line.index(thing)
                    others = lines[:own] + lines[own + 1 :]
                    before = sum(
                        min(len(other), rounds + (turn < own)) for turn, other in enumerate(others)
                    )
                    return before + rounds
            return None

    def close(self) -> list[T]:
        """Take nothing more in, and give back everything that waits."""
        with self._changed:
            self._closed = True
            left = [thing for line in self._waiting.values() for thing in line]
            self._waiting.clear()
            self._changed.notify_all()
            return left


def _requests(count: int, whose: str = "") -> str:
    return f"1 request{whose} is" if count == 1 else f"{count} requests{whose} are"

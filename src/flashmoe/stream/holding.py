"""The experts of an open hold, by where they are.

Owns the record alone; the ``streamer`` moves them along.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from flashmoe.stream.cache import Key


@dataclass(eq=False)
class Hold:
    """A hold of ``wanted``; the reads that it has waited for, and how long."""

    layer: int
    wanted: frozenset[Key]
    here: deque[Key] = field(default_factory=deque)  # pinned, HELD, not yielded yet
    coming: dict[int, Key] = field(default_factory=dict)  # by the ticket of the read
    absent: deque[Key] = field(default_factory=deque)  # without a slot
    yielded: deque[Key] = field(default_factory=deque)  # pinned, HELD
    reads: int = 0
    waited_ms: float = 0.0

    @property
    def pending(self) -> bool:
        """Whether there is something left to yield."""
        return bool(self.here or self.coming or self.absent)

    @property
    def reading(self) -> bool:
        """Whether it needs the disk."""
        return bool(self.coming or self.absent)

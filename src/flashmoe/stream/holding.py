"""The experts of an open hold, by where they are.

Owns the record alone; the ``streamer`` moves them along.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from flashmoe.errors import ReadError


@dataclass(eq=False)
class Hold:
    """A hold of ``wanted`` experts of a layer; the reads that it has waited for, and how long."""

    layer: int
    wanted: frozenset[int]
    hits: set[int]  # that were counted as such
    here: list[int] = field(default_factory=list)  # pinned, HELD, not yielded yet
    coming: dict[int, int] = field(default_factory=dict)  # by the ticket of the read
    absent: list[int] = field(default_factory=list)  # without a slot
    yielded: list[int] = field(default_factory=list)  # pinned, HELD
    places: dict[int, int] = field(default_factory=dict)  # slots of those that are HELD
    reads: int = 0
    waited_ms: float = 0.0
    failed: ReadError | None = None
    # Of one that yields in file order:
    order: list[int] | None = None  # not yielded yet
    begun: set[int] = field(default_factory=set)  # reads of this hold, until they are given back

    @property
    def pending(self) -> bool:
        """Whether there is something left to yield."""
        if self.order is not None:
            return bool(self.order)
        return bool(self.here or self.coming or self.absent)

    @property
    def reading(self) -> bool:
        """Whether it needs the disk."""
        return bool(self.coming or self.absent)

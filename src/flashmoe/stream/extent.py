"""How many of the slots a cache has, for the moment.

Owns which slots have been given back to the system, and the ceiling: how many there may be beside
what else has grown (``ledger``). Fewer than that there are where the machine has become short
(``pressure``). Does not own who leaves (``cache``) or the slots' bytes (``slots``).

Invariant: a slot that is given back holds nothing, takes no memory, and the cache does not have it.
"""

from __future__ import annotations

from flashmoe.stream.cache import Cache
from flashmoe.stream.reads import Reads
from flashmoe.stream.slots import Slots, State
from flashmoe.stream.warmup import Warmup


class Extent:
    """Of a cache that begins with all ``slots`` and never has fewer than ``least``."""

    def __init__(self, slots: Slots, least: int) -> None:
        self.ceiling = slots.count
        self.least = least
        self._slots = slots
        self._absent: list[int] = []

    def begin(self, cache: Cache) -> None:
        """Another cache, with every slot: those given back are none of its."""
        self._cache = cache
        self._absent = self._leave(0, self._slots.count - len(self._absent))

    @property
    def withheld(self) -> int:
        """How many slots fewer there are than may be."""
        return self.ceiling - self._cache.slots

    def shrink(self, count: int) -> int:
        """Give back the slots of ``count`` experts and all that are free; how many that is."""
        taken = self._leave(count, self.least)
        self._absent += taken
        return len(taken)

    def grow(self, count: int) -> int:
        """Take up to ``count`` slots again, as far as the ceiling; how many."""
        count = min(count, self.withheld, len(self._absent))
        again = [self._absent.pop() for _ in range(count)]
        self._cache.restore(again)
        return len(again)

    def resize(self, ceiling: int, reads: Reads, warmup: Warmup) -> None:
        """Another ceiling; what is withheld stays so, as far as ``least`` slots remain.

        Free slots go first. No hold is open; reads that nobody waits for end.
        """
        change, self.ceiling = ceiling - self.ceiling, ceiling
        if change > 0:
            self.grow(change)
        excess = min(-change, self._cache.slots - self.least)
        if excess <= 0:
            return
        reads.let_go()  # what was read ahead
        reads.settle(reads.tickets)  # whose experts are pinned
        warmup.give_way(excess)
        while (excess := excess - self._take(excess)) and warmup.end_one():
            pass

    def _take(self, count: int) -> int:
        """Give back ``count`` slots, free ones first; how many could be had."""
        cache = self._cache
        taken = self._leave(max(count - cache.free, 0), cache.slots - count)
        self._absent += taken
        return len(taken)

    def _leave(self, experts: int, least: int) -> list[int]:
        """Slots that the cache gives up, their memory the system's again."""
        taken = self._cache.retire(experts, least)
        for slot in taken:
            if self._slots.state(slot) != State.FREE:
                self._slots.move(slot, State.FREE)
            self._slots.discard(slot)
        return taken

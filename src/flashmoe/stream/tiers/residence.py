"""Who is in VRAM: the slots' policy and the resident table, kept in step.

Owns the rule that joins them: whoever loses a slot is withdrawn from the table at once, before
anything is copied there; whoever has a slot but no bytes loses it when nobody holds it any more.
Does not own when an expert may lose its slot (``vram``), nor sweeps.

Invariant: every expert in the table has its slot in the cache; every other one that has a slot is
pinned by a sweep.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from flashmoe.stream.cache import Cache, Key
from flashmoe.stream.tiers.descent import Descent
from flashmoe.stream.tiers.table import ABSENT, Table


class Residence:
    """``slots`` slots for the experts of ``table``, of which a token chooses ``top_k`` a layer.

    Whoever leaves goes by ``descent``, if there is one.
    """

    def __init__(
        self,
        slots: int,
        top_k: int,
        table: Table,
        descent: Descent | None,
    ) -> None:
        self.cache = Cache(slots, len(table.rows()), top_k)
        self.table = table
        self._owners: list[Key | None] = [None] * slots
        self._descent = descent

    def admit(self, layer: int, experts: Sequence[int]) -> dict[int, int]:
        """Give absent experts a slot each and pin them, from the front, until none is to be had.

        Returns the slots by expert.
        """
        return self._settle(layer, experts, self.cache.admit_all(layer, experts))

    def expect(self, layer: int, experts: Sequence[int]) -> dict[int, int]:
        """The same for experts that nobody has asked for yet, and that are almost sure to be: whom
        they may displace, see ``Cache.admit``."""
        admitted = self.cache.admit_all(layer, experts, [1.0] * len(experts))
        return self._settle(layer, experts, admitted)

    def land(self, key: Key, slot: int) -> None:
        """An absent expert is in a slot that was reserved."""
        self.cache.place(key, slot)
        self._owners[slot] = key
        self.table.put(key, slot)

    def vacant(self, slot: int, *, wait: bool) -> bool:
        """Whether nobody needs what is in a slot that its owner has left; or wait for that."""
        return self._descent is None or self._descent.over(slot, wait=wait)

    def exchange(
        self,
        layer: int,
        leaving: Sequence[int],
        gains: Sequence[int],
        wanted: Sequence[int],
        room: int,
    ) -> dict[int, int]:
        """As ``Cache.exchange``; the slots of those of ``wanted`` that have come, by expert."""
        admitted = self.cache.exchange(layer, leaving, gains, wanted, room)
        return self._settle(layer, wanted, admitted)

    def replace(self, layer: int, leaving: Sequence[int], wanted: Sequence[int]) -> dict[int, int]:
        """Unpin experts, all of them, and only then :meth:`admit` others: the quicker way, where
        as many of these leave together every time."""
        self.cache.unpin_all(layer, leaving)
        return self.admit(layer, wanted)

    def _settle(
        self, layer: int, experts: Sequence[int], admitted: Sequence[tuple[int, int, int]]
    ) -> dict[int, int]:
        """The table follows the cache."""
        left = [found for found in admitted if found[1] >= 0]
        if self._descent is not None:
            for slot, *out in left:
                self._descent.start((out[0], out[1]), slot)
        if left:
            self.table.withdraw_all([out[1] for out in left], [out[2] for out in left])
        places = {}
        for expert, (slot, _, _) in zip(experts, admitted, strict=False):
            self._owners[slot] = (layer, expert)
            places[expert] = slot
        return places

    def vacate(self, count: int) -> None:
        """Evict who is least likely to be used until ``count`` slots are free, pins permitting."""
        excess = count - self.cache.free
        if excess <= 0:
            return
        slots = self.cache.retire(excess, 0)
        for slot in slots:
            owner, self._owners[slot] = self._owners[slot], None
            if owner is not None:
                self._leave(owner, slot)
        self.cache.restore(slots)

    def _leave(self, key: Key, slot: int) -> None:
        """An expert has lost its slot to another; nobody has copied there yet."""
        if self._descent is not None:
            self._descent.start(key, slot)
        self.table.withdraw(key)

    def give_back(self, layer: int, experts: Sequence[int], lacking: Collection[int]) -> None:
        """Unpin experts; whoever of those that were ``lacking`` has no bytes loses its slot."""
        self.cache.unpin_all(layer, experts)
        for expert in lacking:
            self.dismiss((layer, expert))

    def dismiss(self, key: Key) -> None:
        """An expert leaves its slot if it has no bytes there."""
        if self.table.slot(key) == ABSENT:
            self._drop(key)

    def drop(self, layer: int, expert: int) -> None:
        """An expert that is not pinned leaves its slot."""
        self.table.withdraw((layer, expert))
        self._drop((layer, expert))

    def _drop(self, key: Key) -> None:
        self._owners[self.cache.drop(key)] = None

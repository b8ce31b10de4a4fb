"""Records in RAM, lent to whoever copies them somewhere quicker.

Owns how their bytes are had, and which of them stay in their slots for that beyond the end of a
hold. Does not own where they are copied to (``tiers``), nor who leaves (``cache``).

Invariant: an expert that is lent is pinned in the cache; as many slots are left to others as a
hold of one token needs. ``sound`` is False while steps that belong together are under way: whoever
finds it so believes nothing (``streamer``).
"""

from __future__ import annotations

from collections.abc import Iterable

from flashmoe.quant import Array
from flashmoe.stream.cache import Cache, Key
from flashmoe.stream.records import Records
from flashmoe.stream.slots import Slots, State


class Lending:
    """The records of one streamer's slots; a hold of one token needs ``least`` of these."""

    def __init__(self, cache: Cache, slots: Slots, records: Records, least: int) -> None:
        self.sound = True
        self._cache = cache
        self._slots = slots
        self._records = records
        self._least = least
        self._lent: set[Key] = set()

    def record(self, layer: int, expert: int) -> Array:
        """The bytes of an expert that a hold has yielded, or that is lent: uint8 (record_bytes,),
        read-only. As valid as the arrays that it was yielded with, or until it is taken back."""
        slot = self._cache.slot((layer, expert))
        return self._slots.frozen(slot, self._records.layout(layer).record_bytes)

    def lend(self, layer: int, experts: Iterable[int]) -> list[int]:
        """Keep those of a layer's experts that are in memory where they are, as far as slots allow,
        until :meth:`take_back`; which these are. No use of any."""
        found = []
        self.sound = False
        for expert in experts:
            key = (layer, expert)
            if self.room <= 0:
                break
            if key not in self._lent and self._is_whole(key):
                self._lent.add(key)
                self._cache.pin(key)
                found.append(expert)
        self.sound = True
        return found

    @property
    def room(self) -> int:
        """How many more may be lent; below 0, some must be taken back before the next hold."""
        return self._cache.slots - self._cache.pinned - self._least

    def _is_whole(self, key: Key) -> bool:
        """Whether an expert is in memory, and its read is over."""
        slots = self._cache.slots_of(key[0], [key[1]])
        return slots[0] >= 0 and self._slots.state(slots[0]) is not State.LOADING

    def take_back(self, key: Key) -> None:
        """An expert is lent no longer."""
        self.sound = False
        self._lent.remove(key)
        self._cache.unpin(key)
        self.sound = True

    def take_all_back(self) -> None:
        """None is."""
        for key in list(self._lent):
            self.take_back(key)

"""Records in RAM, lent to whoever copies them somewhere quicker; and free slots for what returns.

Owns how their bytes are had, which of them stay in their slots for that beyond the end of a hold,
and the slots that are reserved. Does not own where they are copied to (``tiers``), nor who leaves
(``cache``).

Invariant: an expert that is lent is pinned in the cache; as many slots are left to others as a
hold of one token needs. A slot that is reserved is LOADING. ``sound`` is False while steps that
belong together are under way: whoever finds it so believes nothing (``streamer``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flashmoe.quant import Array
from flashmoe.stream.cache import Cache, Key
from flashmoe.stream.reads import Reads
from flashmoe.stream.records import Records
from flashmoe.stream.slots import Slots, State
from flashmoe.stream.warmup import Warmup

SPARE, SHARE = 16, 64
"""Slots that are free for guesses while nobody may leave, several layers' reads; and one in so many
at most."""


class Lending:
    """The records of one streamer's slots; a hold of one token needs ``least`` of these."""

    def __init__(
        self,
        cache: Cache,
        slots: Slots,
        records: Records,
        warmup: Warmup,
        reads: Reads,
        least: int,
    ) -> None:
        self.sound = True
        self._cache = cache
        self._slots = slots
        self._records = records
        self._warmup = warmup
        self._reads = reads
        self._least = least
        self._experts = sum(records.count(layer) for layer in range(len(records)))
        self._spare = min(SPARE, cache.slots // SHARE)
        self._lent: set[Key] = set()
        self._reserved: dict[Key, int] = {}
        self._found: tuple[int, Sequence[int]] = 0, ()

    def keep(self) -> Array:
        """All slots, one after the other, uint8; their memory stays where it is."""
        return self._slots.keep()

    def spans(self, layer: int, experts: Sequence[int]) -> tuple[Array, list[int], int]:
        """The bytes of experts that a hold has yielded, or that are lent, as spans of the memory of
        all slots, uint8 and read-only: that memory, where each begins, and how long it is. As valid
        as the arrays that they were yielded with, or until they are taken back.

        Raises:
            KeyError: one is not in memory.
        """
        slots, slot_bytes = self._cache.slots_of(layer, experts), self._slots.slot_bytes
        if min(slots, default=0) < 0:
            raise KeyError((layer, experts[slots.index(-1)]))
        nbytes = self._records.layout(layer).record_bytes
        return self._slots.frozen_arena, [slot * slot_bytes for slot in slots], nbytes

    def lend(self, layer: int, experts: Iterable[int]) -> list[int]:
        """Keep those of a layer's experts that are in memory where they are, as far as slots allow,
        until :meth:`take_back_all`; which these are. No use of any."""
        wanted = [expert for expert in experts if (layer, expert) not in self._lent]
        found = self.there(layer, wanted)[: max(self.room, 0)]
        self.sound = False
        self._lent.update((layer, expert) for expert in found)
        self._cache.pin_all(layer, found)
        self.sound = True
        return found

    @property
    def room(self) -> int:
        """How many more may be lent or reserved; below 0, some must end before the next hold."""
        return self._cache.slots - self._cache.pinned - len(self._reserved) - self._least

    def slot(self, layer: int, expert: int) -> int:
        """The number of the slot of an expert that a hold has yielded; as valid as ``spans``."""
        return self._cache.slot((layer, expert))

    def tell(self, places: Array) -> None:
        """Keep in ``places``, int32 (layers, experts), the slot of each expert that is in memory
        whole, else -1, for a device that reads it at any time.

        What is in nobody's slot any more has left it before. But the device may still read an
        expert that it has found there: so as long as it computes nobody leaves (:attr:`sealed`),
        but while it waits for an answer, or what is pinned.
        """
        for layer, row in enumerate(places):
            row[:] = self.places(layer, len(row))
        self._cache.tell(places)

    def places(self, layer: int, experts: int) -> list[int]:
        """The slot of each of a layer's experts, or -1 where it is not in memory whole."""
        states = self._slots.state
        slots = self._cache.slots_of(layer, range(experts))
        return [s if s >= 0 and states(s) is not State.LOADING else -1 for s in slots]

    @property
    def sealed(self) -> bool:
        """While it is, no expert leaves for another: reads and what returns have the slots that
        are free."""
        return self._cache.sealed

    @sealed.setter
    def sealed(self, sealed: bool) -> None:
        self._cache.sealed = sealed

    def save(self) -> None:
        """Unless it is sealed, have slots free for what is guessed while it is. Where there is one
        for every expert, nobody leaves for that: it would be read again, and a device that counts
        on finding everybody there may be reading."""
        if self._cache.slots >= self._experts:
            return
        free = self._cache.free
        if free < self._spare and not self.sealed and not self._warmup:
            self.sound = False
            self._reads.vacate(2 * self._spare - free)
            self.sound = True

    @property
    def expecting(self) -> bool:
        """Whether something is being read, or has come and was not taken yet."""
        return bool(self._reads.tickets)

    def take_in(self) -> None:
        """Take what was read for nobody that waits, and has come."""
        if self._reads.tickets:
            self.sound = False
            self._reads.put_away(self._reads.tickets, block=False)
            self.sound = True

    def keep_found(self, layer: int, experts: Sequence[int]) -> None:
        """The device reads these, which it has found here: nobody takes their slots, until it is
        a layer further, and calls this again."""
        self.sound = False
        before, found = self._found
        if found:
            self._cache.unpin_all(before, found)
        self._found = layer, experts
        if experts:
            self._cache.pin_all(layer, experts)
        self.sound = True

    def there(self, layer: int, experts: Sequence[int]) -> list[int]:
        """Those of a layer's experts that are in memory whole."""
        states, slots = self._slots, self._cache.slots_of(layer, experts)
        return [
            expert
            for expert, slot in zip(experts, slots, strict=True)
            if slot >= 0 and states.state(slot) is not State.LOADING
        ]

    def all_there(self, layer: int, experts: Sequence[int]) -> bool:
        """Whether all of these are in memory, and their reads are over."""
        slots = self._cache.slots_of(layer, experts)
        return min(slots, default=0) >= 0 and not self._slots.loading(slots)

    def take_back_all(self, layer: int, experts: Sequence[int]) -> None:
        """Experts of a layer are lent no longer."""
        self.sound = False
        self._lent.difference_update((layer, expert) for expert in experts)
        self._cache.unpin_all(layer, experts)
        self.sound = True

    def heed(self, layer: int, experts: Sequence[int]) -> None:
        """A token uses these beside what is asked of its layer: they are quicker to be had, or it
        has found them here."""
        self._cache.lookup_all(layer, experts)

    def forget(self, layer: int, experts: Sequence[int]) -> None:
        """Experts are somewhere quicker, and need not be here; those that are pinned stay."""
        self.sound = False
        for expert in self.there(layer, experts):
            if not self._cache.is_pinned((layer, expert)):
                self._slots.move(self._cache.drop((layer, expert)), State.FREE)
        self.sound = True

    def reserve(self, key: Key) -> Array | None:
        """Memory for an expert that is to come here, uint8 (record_bytes,), until :meth:`place` or
        :meth:`unreserve`; None where no slot is free, or it is here, or being read, already."""
        if key in self._cache or key in self._reserved or not self._cache.free:
            return None
        if self._warmup or self.room <= 0:  # which has a use for them
            return None
        if self.sealed and self._cache.free <= self._spare:
            return None
        self.sound = False
        slot = self._reserved[key] = self._cache.reserve()
        self._slots.move(slot, State.LOADING)
        self.sound = True
        return self._slots.view(slot, self._records.layout(key[0]).record_bytes)

    def place(self, key: Key) -> None:
        """The bytes of an expert have come. No use of it."""
        if key in self._cache:  # read in the meantime
            self.unreserve(key)
            return
        self.sound = False
        slot = self._reserved.pop(key)
        self._slots.move(slot, State.READY)
        self._cache.place(key, slot)
        self._cache.reveal_all(key[0], [key[1]])
        self.sound = True

    def unreserve(self, key: Key) -> None:
        """They never will."""
        self.sound = False
        slot = self._reserved.pop(key)
        self._slots.move(slot, State.FREE)
        self._cache.unreserve(slot)
        self.sound = True

    def take_all_back(self) -> None:
        """Nothing is lent, and nothing reserved; the device stands still."""
        self.sealed = False
        self.keep_found(0, ())
        for layer, expert in list(self._lent):
            self.take_back_all(layer, [expert])
        for key in list(self._reserved):
            self.unreserve(key)

"""A chunk's experts on their way through VRAM: in file order, each copied once, in batches.

Owns the order in which they are claimed, copied, yielded and given back. Does not own whether the
hold is open and sound (``vram``), nor who loses a slot (``residence``).

They go as through RAM (``stream.passage``): in ascending id; what is in VRAM is kept for its turn,
slots are given in the same order ahead of it, as many as the window lets, and a batch makes room
when the next is asked for. Then the copies of the one after that begin behind what the device was
given to compute (``Mover.fence``), beside the arithmetic of the batch that is yielded. Only where
what is in VRAM would leave no slots for that, the last of it goes at once, and is copied again.

Invariant: every expert in ``_places`` is pinned in its slot; the streamer is asked for more only
once no copy reads what it has yielded before.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

from flashmoe.errors import DeviceError, ReadError
from flashmoe.quant import Array
from flashmoe.stream.arrivals import Arrivals
from flashmoe.stream.arrivals import Batch as Arrived
from flashmoe.stream.cache import Key
from flashmoe.stream.counters import Counters
from flashmoe.stream.passage import window
from flashmoe.stream.records import is_wide
from flashmoe.stream.sizes import BATCH_EXPERTS
from flashmoe.stream.streamer import Streamer
from flashmoe.stream.tiers.descent import Descent
from flashmoe.stream.tiers.held import Batch
from flashmoe.stream.tiers.mover import Mover
from flashmoe.stream.tiers.residence import Residence
from flashmoe.stream.tiers.table import ABSENT

ASIDE = 2
"""Slots that what is in VRAM always leaves, of more than so many: one computes, one is copied."""


class ChunkHold:
    """Of the experts of a layer that any number of tokens choose."""

    def __init__(
        self,
        residence: Residence,
        streamer: Streamer,
        mover: Mover,
        layer: int,
        top_k: int,
    ) -> None:
        self.layer = layer
        self.failed: ReadError | DeviceError | None = None
        self._residence = residence
        self._streamer = streamer
        self._mover = mover
        self._window = window(residence.cache.slots, top_k)
        self._most = min(BATCH_EXPERTS, max(1, residence.cache.slots // 2))
        self._order: list[int] = []  # not yielded yet
        self._yielded: list[int] = []
        self._places: dict[int, int] = {}
        self._begun: set[int] = set()  # given a slot by this hold, until they are given back
        self._absent: list[int] = []  # without a slot
        self._arrived: list[int] = []  # yielded by the streamer, not copied yet
        self._arrivals: Arrivals | None = None
        self._batches: Iterator[Arrived] = iter(())

    def claim(
        self, experts: list[int], ids: Array, descent: Descent | None, counters: Counters
    ) -> None:
        """Pin what is in VRAM, and ask the streamer for the rest."""
        layer, residence, cache = self.layer, self._residence, self._residence.cache
        self._mover.fence()  # the device may still compute with the batch of another layer
        wide = is_wide(ids)
        slots = cache.sweep(layer, experts, ids) if wide else cache.lookup_all(layer, experts)
        there = {expert: slot for expert, slot in zip(experts, slots, strict=True) if slot >= 0}
        if len(there) < len(experts):
            spare = ASIDE if cache.slots > ASIDE else 1
            for expert in list(there)[max(cache.slots - spare, 0) :]:
                residence.drop(layer, expert)
                del there[expert]
        counters.vram_hits += len(there)
        counters.vram_misses += len(experts) - len(there)
        cache.pin_all(layer, list(there))
        self._order, self._places = list(experts), dict(there)
        self._absent = [expert for expert in experts if expert not in there]
        if descent:
            descent.finish((layer, expert) for expert in self._absent)
        if not self._absent:
            self._streamer.usage.note(layer, ids)
            return
        self._came(residence.admit(layer, self._absent[: self._window]))
        self._arrivals = self._streamer.hold(layer, ids, frozenset(there))
        self._batches = self._arrivals.batches()

    def take(self) -> Batch:
        """The batch that begins with the first not yielded, in place of the one before; none at
        the end.

        Raises:
            ReadError, DeviceError: what was waited for could not be read, or copied.
        """
        self._exchange()
        if not self._order:
            return []
        row = self._residence.table.rows()[self.layer]
        while row[self._order[0]] == ABSENT:
            self._bring(self._order[0])
        self._land()
        there = list(takewhile(lambda expert: row[expert] != ABSENT, self._order[: self._most]))
        del self._order[: len(there)]
        self._yielded = there
        if not self._flying():
            self._copy()
        return [(expert, self._places[expert]) for expert in there]

    def end(self) -> None:
        """Give everything back, whatever has come of it."""
        self._residence.give_back(self.layer, list(self._places), list(self._begun))
        arrivals, self._arrivals = self._arrivals, None
        if arrivals is not None:
            arrivals.__exit__(None, None, None)

    def _came(self, places: dict[int, int]) -> None:
        """The first of the absent experts have slots."""
        self._places.update(places)
        self._begun.update(places)
        del self._absent[: len(places)]

    def _exchange(self) -> None:
        """Give the batch before back, and slots to as many more."""
        leaving, self._yielded = self._yielded, []
        if not leaving:
            return
        if self._absent or self._arrived:
            self._mover.fence()
        gains = [int(expert in self._begun) for expert in leaving]
        room = self._window - len(self._begun)
        wanted = self._absent[: max(room + sum(gains), 0)]
        for expert in leaving:
            del self._places[expert]
        self._begun.difference_update(leaving)
        self._came(self._residence.exchange(self.layer, leaving, gains, wanted, room))

    def _bring(self, expert: int) -> None:
        """A step towards having the first expert in VRAM."""
        key, copies = (self.layer, expert), self._residence.copies
        if key in copies.flying:
            copies.finish(key)
        elif expert not in self._places:
            room = self._window - len(self._begun)
            self._came(self._residence.admit(self.layer, self._absent[:room]))
        else:
            self._copy(expert)

    def _flying(self) -> list[Key]:
        """The copies that are under way, the oldest first."""
        return list(self._residence.copies.flying)

    def _land(self) -> None:
        """Take the copies that have ended, in file order."""
        copies = self._residence.copies
        for key in self._flying():
            if not copies.done(key):
                return
            copies.finish(key)

    def _copy(self, wanted: int | None = None) -> None:
        """Start copies of what the streamer has yielded, or yields next; at least until ``wanted``
        is among that."""
        layer, residence = self.layer, self._residence
        # Of few experts of a single token those that are still to come may be the first.
        if not self._arrived or (wanted is not None and wanted not in self._arrived):
            residence.copies.finish_all(self._flying())
            self._arrived += [expert for expert, _ in next(self._batches, ())]
        for expert in [expert for expert in self._arrived if expert in self._places]:
            self._arrived.remove(expert)
            record = self._streamer.lending.record(layer, expert)
            residence.copies.start((layer, expert), self._places[expert], record)

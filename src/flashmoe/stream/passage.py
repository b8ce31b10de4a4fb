"""The way of a hold's experts: claimed, read, waited for, yielded, and given back.

Owns the order in which they move along. Does not own which hold is open, or whether it is sound
(``streamer``), nor the reads under way (``reads``).

Invariant: every expert in a hold's ``places`` is pinned in the cache, and its slot is HELD.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from flashmoe.stream.arrivals import Batch
from flashmoe.stream.cache import Cache
from flashmoe.stream.direct import DirectReader, Urgency
from flashmoe.stream.guesses import Guesses
from flashmoe.stream.holding import Hold
from flashmoe.stream.reads import Reads
from flashmoe.stream.records import Records
from flashmoe.stream.slots import Slots, State


class Passage:
    """Moves the experts of holds along; ``note`` is told how memory grows, as in ``Reads``."""

    def __init__(
        self,
        cache: Cache,
        slots: Slots,
        records: Records,
        reader: DirectReader,
        reads: Reads,
        guesses: Guesses,
    ) -> None:
        self._cache = cache
        self._slots = slots
        self._records = records
        self._reader = reader
        self._reads = reads
        self._guesses = guesses

    def claim(self, layer: int, experts: list[int], *, lasts: bool) -> Hold:
        """A hold of these experts, sorted by where they are; those in memory are pinned."""
        hold = Hold(layer, frozenset(experts), lasts)
        tickets = self._reads.tickets
        for expert, slot in zip(experts, self._cache.slots_of(layer, experts), strict=True):
            if tickets and (layer, expert) in tickets:
                hold.coming[tickets[layer, expert]] = expert
            elif slot >= 0:
                hold.here.append(expert)
                hold.places[expert] = slot
            else:
                hold.absent.append(expert)
        self._cache.pin_all(layer, hold.here)
        self._slots.move_all(hold.places.values(), State.HELD)
        if hold.coming:
            self._reader.promote_all(list(hold.coming))
        return hold

    def start(self, hold: Hold, note: Callable[[int], None]) -> None:
        """Start reads for an open hold; its consumed experts give way if it has too many."""
        self._guesses.busy()
        start = partial(self._reads.start, hold.layer, hold.absent, note, Urgency.DEMANDED)
        hold.coming.update(start())
        while hold.absent and hold.yielded and not hold.lasts:
            self._release(hold, [hold.yielded.pop(0)])
            hold.coming.update(start())

    def take(self, hold: Hold, most: int, note: Callable[[int], None]) -> Batch:
        """Up to ``most`` experts that are there, at least one.

        Raises:
            ReadError: one that was waited for could not be read; its read is put away.
        """
        self._await(hold, note)
        count = most if hold.lasts else 1
        experts, hold.here = hold.here[:count], hold.here[count:]
        hold.yielded += experts
        layout, slots = self._records.layout(hold.layer), self._slots
        return [(expert, slots.expert(hold.places[expert], layout)) for expert in experts]

    def end(self, hold: Hold) -> None:
        """Give everything back, and end its reads."""
        self._release(hold, hold.here + hold.yielded)
        if hold.coming:
            self._reads.settle([(hold.layer, expert) for expert in hold.coming.values()])

    def _await(self, hold: Hold, note: Callable[[int], None]) -> None:
        """Where nothing is there, wait for something, and take all that has come by then."""
        while True:
            if hold.absent:
                self.start(hold, note)
            if hold.here:
                return
            if hold.coming:
                self._reads.collect(hold)
            else:
                self._reads.make_room()

    def _release(self, hold: Hold, experts: list[int]) -> None:
        """Whoever asked for these experts has done with them."""
        self._slots.move_all([hold.places.pop(expert) for expert in experts], State.READY)
        self._cache.unpin_all(hold.layer, experts)

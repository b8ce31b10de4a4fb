"""The way of a hold's experts: claimed, read, waited for, yielded, and given back.

Owns the order in which they move along. Does not own which hold is open, or whether it is sound
(``streamer``), nor the reads under way (``reads``).

A hold that lasts yields what is there, then the others as they arrive, and keeps all to its end.
One *in file order*, as a chunk's, yields its experts in ascending id, each once, in batches of
consecutive ones; the batch before is given back when the next is asked for, and reads go on in
the same order ahead of it, as many as the window lets. What was in memory is kept for its turn.
Only where such experts fill every slot while an earlier one is still to be read, the last of them
has to go, is read again, and counts as missed.

Invariant: every expert in a hold's ``places`` is pinned in the cache, and its slot is HELD.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from itertools import takewhile

from flashmoe.stream.arrivals import Batch
from flashmoe.stream.cache import Cache
from flashmoe.stream.counters import Counters
from flashmoe.stream.direct import DirectReader, Urgency
from flashmoe.stream.guesses import Guesses
from flashmoe.stream.holding import Hold
from flashmoe.stream.reads import Reads
from flashmoe.stream.records import Records
from flashmoe.stream.sizes import BATCH_EXPERTS
from flashmoe.stream.slots import Slots, State

WINDOW, SHARE = 64, 8
"""Reads in file order ahead of the arithmetic at most, enough for any disk while a batch is
computed; and one in so many slots, since what is read ahead displaces what may be wanted again."""


def window(slots: int, top_k: int) -> int:
    """Reads ahead in a cache of so many slots: at least what two tokens want."""
    return max(2 * top_k, min(WINDOW, slots // SHARE))


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
        counters: Counters,
        top_k: int,
    ) -> None:
        self._cache = cache
        self._top_k = top_k
        self._slots = slots
        self._records = records
        self._reader = reader
        self._reads = reads
        self._guesses = guesses
        self._counters = counters
        self.latest: dict[int, Hold] = {}  # by layer, the last that was claimed

    @property
    def window(self) -> int:
        """Reads in file order that may be ahead of the arithmetic."""
        return window(self._cache.slots, self._top_k)

    def claim(self, layer: int, experts: list[int], hits: set[int], *, lasts: bool) -> Hold:
        """A hold of these experts, ascending, by where they are; those in memory are pinned.

        It lasts, or else it is in file order. ``hits`` have been counted as such.
        """
        hold = self.latest[layer] = Hold(layer, frozenset(experts), hits)
        tickets, here = self._reads.tickets, []
        for expert, slot in zip(experts, self._cache.slots_of(layer, experts), strict=True):
            if tickets and (layer, expert) in tickets:
                hold.coming[tickets[layer, expert]] = expert
            elif slot >= 0:
                here.append(expert)
                hold.places[expert] = slot
            else:
                hold.absent.append(expert)
        self._cache.pin_all(layer, here)
        self._slots.move_all(hold.places.values(), State.HELD)
        if lasts:
            hold.here = here
        else:
            hold.order = list(experts)
        if hold.coming:
            self._reader.promote_all(list(hold.coming))
        return hold

    def start(self, hold: Hold, note: Callable[[int], None]) -> None:
        """Start reads for an open hold, as far as slots, or its window, allow."""
        most = None if hold.order is None else self._room(hold)
        if most is not None and most <= 0:
            return
        self._guesses.busy()
        begun = self._reads.start(hold.layer, hold.absent, note, Urgency.DEMANDED, most=most)
        hold.coming.update(begun)
        hold.begun.update(begun.values())

    def take(
        self, hold: Hold, most: int, note: Callable[[int], None], *, block: bool = True
    ) -> Batch:
        """Up to ``most`` experts that are there; at least one, if it may ``block``, or in order.

        Raises:
            ReadError: one that was waited for could not be read; its read is put away.
        """
        if hold.order is not None:
            experts = self._next_in_order(hold, hold.order, most, note)
        else:
            if block:
                self._await(hold, note)
            elif hold.coming:
                hold.here += self._reads.collect(hold, block=False)
            experts, hold.here = hold.here[:most], hold.here[most:]
            hold.yielded += experts
        layout, slots = self._records.layout(hold.layer), self._slots
        return [(expert, slots.expert(hold.places[expert], layout)) for expert in experts]

    def end(self, hold: Hold) -> None:
        """Give everything back, and end its reads."""
        self._release(hold, list(hold.places))
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
                hold.here += self._reads.collect(hold)
            else:
                self._reads.make_room()

    def _next_in_order(
        self, hold: Hold, order: list[int], most: int, note: Callable[[int], None]
    ) -> list[int]:
        """The batch that begins with the first not yielded, in place of the one before."""
        self._exchange(hold, note)
        if hold.coming and order[0] in hold.places:  # else it is waited for
            self._reads.collect(hold, block=False)
        while order[0] not in hold.places:
            if hold.coming:
                self._reads.collect(hold)
            elif not self._reads.make_room():
                self._give_up_last(hold, order)
            if hold.absent:
                self.start(hold, note)
        if hold.absent:  # half of the window computes, half of it reads
            most = min(most, max(1, len(hold.begun) // 2))
        there = takewhile(hold.places.__contains__, order[: min(most, BATCH_EXPERTS)])
        hold.yielded = list(there)
        del order[: len(hold.yielded)]
        return hold.yielded

    def _exchange(self, hold: Hold, note: Callable[[int], None]) -> None:
        """Give the batch before back, and read on in its place."""
        leaving, hold.yielded = hold.yielded, []
        self._slots.move_all([hold.places.pop(expert) for expert in leaving], State.READY)
        begun = self._reads.exchange(hold, leaving, note, self._room(hold))
        hold.begun.difference_update(leaving)
        hold.begun.update(begun.values())
        hold.coming.update(begun)
        if hold.reading:
            self._guesses.busy()

    def _room(self, hold: Hold) -> int:
        """How many more reads the window of a hold lets start; what came before it is no part."""
        return self.window - len(hold.begun)

    def _give_up_last(self, hold: Hold, order: list[int]) -> None:
        """Every slot has an expert that is to come: the last of them makes room."""
        last = next(expert for expert in reversed(order) if expert in hold.places)
        self._release(hold, [last])
        self._slots.move(self._cache.drop((hold.layer, last)), State.FREE)
        insort(hold.absent, last)
        if last in hold.begun:
            hold.begun.remove(last)
        elif last in hold.hits:
            hold.hits.remove(last)
            self._counters.hits -= 1
            self._counters.misses += 1

    def _release(self, hold: Hold, experts: list[int]) -> None:
        """Whoever asked for these experts has done with them."""
        self._slots.move_all([hold.places.pop(expert) for expert in experts], State.READY)
        self._cache.unpin_all(hold.layer, experts)

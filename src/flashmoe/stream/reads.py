"""The reads of experts that are under way, and the slots that they go into.

Owns which reads there are, from the slot given to an expert to its bytes in it, or to the slot
that is free again because the read was dropped or failed. Decides neither what is read nor when
(``streamer``); a warm-up's reads are its own until a routing asks for them (``warmup``).

Invariant: between two calls, the slot of every expert in ``tickets`` is LOADING, and the expert is
pinned in the cache. One that is kept is in memory or on its way, and pinned for that besides.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat

from flashmoe.stream.cache import Cache, Key
from flashmoe.stream.counters import Counters
from flashmoe.stream.direct import DirectReader, Urgency
from flashmoe.stream.guesses import Guesses
from flashmoe.stream.holding import Hold
from flashmoe.stream.records import Records
from flashmoe.stream.slots import Slots, State
from flashmoe.stream.warmup import Warmup

_log = logging.getLogger(__name__)

NEXT = 32
"""Of hundreds of reads that a chunk may have under way, those looked at when one is waited for."""


class Reads:
    """The reads of one streamer; ``tickets`` of those under way, by expert, the oldest first."""

    def __init__(
        self,
        cache: Cache,
        slots: Slots,
        records: Records,
        reader: DirectReader,
        warmup: Warmup,
        guesses: Guesses,
        counters: Counters,
    ) -> None:
        self.tickets: dict[Key, int] = {}
        self._kept: set[Key] = set()  # until they are let go
        self._cache = cache
        self._slots = slots
        self._records = records
        self._reader = reader
        self._warmup = warmup
        self._guesses = guesses
        self._counters = counters

    def start(
        self,
        layer: int,
        absent: list[int],
        note: Callable[[int], None],
        urgency: Urgency,
        chances: Sequence[float] | None = None,
        most: int | None = None,
    ) -> dict[int, int]:
        """Start reads of a layer's experts, from the front, until no slot can be had.

        Returns the experts by ticket, and takes them from ``absent``; ``most`` of them where
        given. ``chances`` are those of guesses. ``note`` is told before by how many bytes they
        make resident memory grow at most, and may shrink the cache.
        """
        wanted = absent if most is None else absent[:most]
        self._prepare(len(wanted), note)
        admitted = self._cache.admit_all(layer, wanted, chances)
        return self._submit(layer, absent, admitted, urgency) if admitted else {}

    def exchange(
        self,
        hold: Hold,
        leaving: Sequence[int],
        note: Callable[[int], None],
        room: int,
    ) -> dict[int, int]:
        """Unpin experts that a hold in file order has done with, and start as many more of its
        reads as there is room for; it grows by each that leaves and was read for it.

        Returns the experts by ticket, and takes them from ``hold.absent``.
        """
        gains = [int(expert in hold.begun) for expert in leaving]
        wanted = hold.absent[: max(room + sum(gains), 0)]
        if wanted:
            self._prepare(len(wanted), note)
        admitted = self._cache.exchange(hold.layer, leaving, gains, wanted, room)
        if not admitted:
            return {}
        return self._submit(hold.layer, hold.absent, admitted, Urgency.DEMANDED)

    def _prepare(self, count: int, note: Callable[[int], None]) -> None:
        """So many slots are about to be asked for."""
        self._warmup.give_way(count)
        if not self._slots.kept:  # else it is all there, and none of it can be given back
            note(min(count, self._cache.free) * self._slots.slot_bytes)

    def _submit(
        self,
        layer: int,
        absent: list[int],
        admitted: Sequence[tuple[int, int, int]],
        urgency: Urgency,
    ) -> dict[int, int]:
        """Read the first of the absent experts into the slots that they were admitted to."""
        self._guesses.gone((out_layer, expert) for _, out_layer, expert in admitted)
        places = [slot for slot, _, _ in admitted]
        self._slots.load(places)
        started = absent[: len(places)]
        del absent[: len(places)]
        tickets = self._records.submit(layer, started, places, urgency)
        self.tickets.update(zip(zip(repeat(layer), started), tickets, strict=False))
        return dict(zip(tickets, started, strict=True))

    def vacate(self, count: int) -> None:
        """Free ``count`` slots of those who are least likely to be used, pins permitting."""
        slots = self._cache.retire(count, 0)  # and those that are free already
        self._slots.move_all(
            [slot for slot in slots if self._slots.state(slot) is State.READY], State.FREE
        )
        self._cache.restore(slots)
        self._guesses.recheck()

    def keep(self, layer: int, experts: list[int]) -> None:
        """Let nobody displace experts whose reads are under way, nor later, until :meth:`let_go`.

        A read that brings nothing ends that as well.
        """
        self._kept.update(zip(repeat(layer), experts))
        self._cache.pin_all(layer, experts)

    def let_go(self) -> bool:
        """Keep nothing any more; whether there was anything."""
        kept, self._kept = self._kept, set()
        for key in kept:
            self._cache.unpin(key)
        return bool(kept)

    def collect(self, hold: Hold, *, block: bool = True) -> list[int]:
        """Wait until a read of a hold has ended, and take the experts of all that have.

        Returns them, in that order: they are pinned, and HELD. Without ``block`` it does not wait.
        Of a hold in file order only the reads of its next NEXT experts count, if there are any.

        Raises:
            ReadError: the first of those that failed; all are put away, and good ones taken.
        """
        began = time.perf_counter()
        awaited = list(hold.coming)
        if hold.order is not None and len(awaited) > NEXT:
            coming = ((hold.layer, expert) for expert in hold.order[:NEXT])
            awaited = [self.tickets[key] for key in coming if key in self.tickets] or awaited
        landed, refused = self._reader.collect(awaited, block=block)
        waited_ms = (time.perf_counter() - began) * 1e3
        self._counters.wait_ms += waited_ms
        hold.waited_ms += waited_ms
        arrived = [hold.coming.pop(ticket) for ticket in landed]
        for expert in arrived:
            del self.tickets[hold.layer, expert]  # what was pinned for its read is for the hold
        hold.places.update(zip(arrived, self._cache.slots_of(hold.layer, arrived), strict=True))
        self._slots.move_all((hold.places[e] for e in arrived), State.READY, State.HELD)
        self._cache.reveal_all(hold.layer, arrived)
        for ticket, error in refused:
            self._abandon((hold.layer, hold.coming.pop(ticket)))
            hold.failed = hold.failed or error
        self._counters.bytes_read = self._reader.bytes_read
        if hold.failed is not None:
            raise hold.failed
        hold.reads += len(landed)
        if not hold.reading:
            self._guesses.read(hold.reads)
        return arrived

    def put_away(self, keys: Iterable[Key], *, block: bool) -> None:
        """Take reads that nobody waits for and that have ended; ``block`` until there is one."""
        others = {self.tickets[key]: key for key in keys}
        if not others:
            return
        landed, refused = self._reader.collect(list(others), block=block)
        for ticket in landed:
            key = others[ticket]
            del self.tickets[key]
            self._cache.unpin(key)
            self._slots.move(self._cache.slot(key), State.READY)
            self._cache.reveal_all(key[0], [key[1]])
        for ticket, error in refused:
            _log.debug("an expert read in advance is not used: %s", error)
            self._abandon(others[ticket])
        self._counters.bytes_read = self._reader.bytes_read

    def make_room(self) -> bool:
        """Every slot is taken: of the reads for others drop one, or wait for one to end.

        False where there are none, and nothing that was kept either.
        """
        if self._warmup.end_one():
            return True
        for key in reversed(self.tickets):
            if self.cancel(key):
                return True
        if not self.tickets:
            return self.let_go()
        began = time.perf_counter()
        self.put_away(self.tickets, block=True)
        self._counters.wait_ms += (time.perf_counter() - began) * 1e3
        return True

    def settle(self, keys: Iterable[Key]) -> None:
        """End reads that nobody waits for: those not started are dropped, the rest let finish."""
        for key in [key for key in list(keys) if not self.cancel(key)]:
            self.put_away([key], block=True)

    def cancel(self, key: Key) -> bool:
        """Drop a read unless it has started; whether it was dropped."""
        cancelled = self._reader.cancel(self.tickets[key])
        if cancelled:
            self._guesses.dropped(key)
            self._abandon(key)
        return cancelled

    def _abandon(self, key: Key) -> None:
        """Forget a read that brought nothing, and the expert with it."""
        del self.tickets[key]
        self._cache.unpin(key)
        if key in self._kept:
            self._kept.remove(key)
            self._cache.unpin(key)
        self._slots.move(self._cache.drop(key), State.FREE)
        self._guesses.gone((key,))

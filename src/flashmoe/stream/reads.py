"""The reads of experts that are under way, and the slots that they go into.

Owns which reads there are, from the slot given to an expert to its bytes in it, or to the slot
that is free again because the read was dropped or failed. Decides neither what is read nor when
(``streamer``); a warm-up's reads are its own until a routing asks for them (``warmup``).

Invariant: between two calls, the slot of every expert in ``tickets`` is LOADING, and the expert is
pinned in the cache.
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
    ) -> dict[int, int]:
        """Start reads of a layer's experts, from the front, until no slot can be had.

        Returns the experts by ticket, and takes them from ``absent``. ``chances`` are those of
        guesses. ``note`` is told before by how many bytes they make resident memory grow at most,
        and may shrink the cache.
        """
        cache, slots = self._cache, self._slots
        self._warmup.give_way(len(absent))
        note(min(len(absent), cache.free) * slots.slot_bytes)
        admitted = cache.admit_all(layer, absent, chances)
        if not admitted:
            return {}
        self._guesses.gone((out_layer, expert) for _, out_layer, expert in admitted)
        places = [slot for slot, _, _ in admitted]
        slots.load(places)
        started = absent[: len(places)]
        del absent[: len(places)]
        tickets = self._records.submit(layer, started, places, urgency)
        self.tickets.update(zip(zip(repeat(layer), started), tickets, strict=False))
        return dict(zip(tickets, started, strict=True))

    def collect(self, hold: Hold) -> None:
        """Wait until a read of a hold has ended, and take the experts of all that have.

        Raises:
            ReadError: the first of those that failed; all are put away, and good ones taken.
        """
        began = time.perf_counter()
        landed, refused = self._reader.collect(list(hold.coming), block=True)
        waited_ms = (time.perf_counter() - began) * 1e3
        self._counters.wait_ms += waited_ms
        hold.waited_ms += waited_ms
        for ticket in landed:
            expert = hold.coming.pop(ticket)
            del self.tickets[hold.layer, expert]  # what was pinned for its read is for the hold
            hold.here.append(expert)
        arrived = hold.here[-len(landed) :] if landed else []
        hold.places.update(zip(arrived, self._cache.slots_of(hold.layer, arrived), strict=True))
        self._slots.move_all((hold.places[e] for e in arrived), State.READY, State.HELD)
        for ticket, error in refused:
            self._abandon((hold.layer, hold.coming.pop(ticket)))
            hold.failed = hold.failed or error
        self._counters.bytes_read = self._reader.bytes_read
        if hold.failed is not None:
            raise hold.failed
        hold.reads += len(landed)
        if not hold.reading:
            self._guesses.read(hold.reads)

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
        for ticket, error in refused:
            _log.debug("an expert read in advance is not used: %s", error)
            self._abandon(others[ticket])
        self._counters.bytes_read = self._reader.bytes_read

    def make_room(self) -> None:
        """Every slot is taken by reads for others: drop one, or wait for one to end."""
        if self._warmup.end_one():
            return
        for key in reversed(self.tickets):
            if self.cancel(key):
                return
        began = time.perf_counter()
        self.put_away(self.tickets, block=True)
        self._counters.wait_ms += (time.perf_counter() - began) * 1e3

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
        self._slots.move(self._cache.drop(key), State.FREE)
        self._guesses.gone((key,))

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
from collections import deque
from collections.abc import Callable, Iterable

from flashmoe.errors import ReadError
from flashmoe.quant import Array
from flashmoe.stream.cache import Cache, Key
from flashmoe.stream.counters import Counters
from flashmoe.stream.direct import DirectReader
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
        self, absent: deque[Key], note: Callable[[int], None], *, demand: bool, guess: bool = False
    ) -> dict[int, Key]:
        """Start reads of one layer, from the front, until no slot can be had; their tickets.

        ``note`` is told before each by how many bytes it makes resident memory grow, and may
        shrink the cache.
        """
        keys, views = list[Key](), list[Array]()
        cache, slots = self._cache, self._slots
        while absent:
            self._warmup.give_way()
            note(slots.slot_bytes if cache.free else 0)
            key = absent[0]
            admission = cache.admit(key, self._guesses.chance(key) if guess else None)
            if admission is None:
                break
            slot = admission.slot
            if admission.evicted is not None:
                slots.move(slot, State.FREE)
                self._guesses.gone(admission.evicted)
            slots.move(slot, State.LOADING)
            cache.pin(key)
            views.append(slots.view(slot, self._records.record_bytes(key[0])))
            keys.append(absent.popleft())
        if not keys:
            return {}
        tickets = self._records.submit(keys, views, demand=demand)
        self.tickets.update(zip(keys, tickets, strict=True))
        return dict(zip(tickets, keys, strict=True))

    def collect(self, hold: Hold, *, block: bool) -> bool:
        """Take the experts of a hold whose reads have ended, waiting for one with ``block``.

        Returns whether the last that it needs has come, so that the disk is idle.

        Raises:
            ReadError: the first of those that failed; all are put away, and good ones taken.
        """
        began = time.perf_counter()
        landed = self._reader.collect(list(hold.coming), block=block)
        if block:
            waited_ms = (time.perf_counter() - began) * 1e3
            self._counters.wait_ms += waited_ms
            hold.waited_ms += waited_ms
        refusals = []
        for ticket, error in landed:
            key = hold.coming.pop(ticket)
            if error is not None:
                self._abandon(key)
                refusals.append(error)
                continue
            del self.tickets[key]  # what was pinned for its read is pinned for the hold
            slot = self._cache.slot(key)
            self._slots.move(slot, State.READY)
            self._slots.move(slot, State.HELD)
            hold.here.append(key)
        self._counters.bytes_read = self._reader.bytes_read
        if refusals:
            raise refusals[0]
        hold.reads += len(landed)
        if not landed or hold.reading:
            return False
        self._guesses.read(hold.reads)
        return True

    def put_away(self, keys: Iterable[Key], *, block: bool) -> None:
        """Take reads that nobody waits for and that have ended; ``block`` until there is one."""
        others = {self.tickets[key]: key for key in keys}
        if others:
            for ticket, error in self._reader.collect(list(others), block=block):
                self._landed(others[ticket], error)
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

    def _landed(self, key: Key, error: ReadError | None) -> None:
        """Open the slot of a read that nobody waits for, or free it where the read failed."""
        if error is not None:
            _log.debug("an expert read in advance is not used: %s", error)
            self._abandon(key)
            return
        del self.tickets[key]
        self._cache.unpin(key)
        self._slots.move(self._cache.slot(key), State.READY)

    def _abandon(self, key: Key) -> None:
        """Forget a read that brought nothing, and the expert with it."""
        del self.tickets[key]
        self._cache.unpin(key)
        self._slots.move(self._cache.drop(key), State.FREE)
        self._guesses.gone(key)

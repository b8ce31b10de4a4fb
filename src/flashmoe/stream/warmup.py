"""Experts read ahead of any use, at the lowest priority, into slots that would stay free.

Owns the reads under way for that, and the slots reserved for them. Neither is the cache's until
a read has landed: so those which wait are no candidates for eviction and cost no layer anything,
however many there are. Does not decide which experts are worth it (``usage``).

What a routing asks for goes first. An expert of it that waits here is taken out of the queue and
read as if it had never been in it (a miss); one that is being read, or was, is handed over (a
hit). Where no slot is free, what waits and is worth least gives one back.

Invariant: every slot reserved here is LOADING, belongs to one read, and is either placed in the
cache or given back.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np

from flashmoe.errors import ReadError
from flashmoe.quant import Array
from flashmoe.stream.cache import Cache, Key
from flashmoe.stream.direct import DirectReader
from flashmoe.stream.records import Records
from flashmoe.stream.slots import Slots, State

_log = logging.getLogger(__name__)

AT_ONCE = 64
"""Reads that one call lands at most: 0.2 ms, so that no layer waits for thousands."""


def worth_reading(shares: Array) -> list[Key]:
    """The experts that were chosen at all, (layers, experts) -> keys, the likeliest first.

    Among equals the first layers lead: they are asked first.
    """
    experts = shares.shape[1]
    order = np.argsort(-shares, axis=None, kind="stable")
    chosen = order[: np.count_nonzero(shares)]
    return [divmod(int(place), experts) for place in chosen]


class Warmup:
    """The reads of one warm-up; empty until :meth:`start` and once all have landed."""

    def __init__(self, cache: Cache, slots: Slots, records: Records, reader: DirectReader) -> None:
        self.landed = 0
        self._cache = cache
        self._slots = slots
        self._records = records
        self._reader = reader
        # Ticket and slot, in the order of the queue. (A plain dict finds its first entry in
        # O(entries removed before it).)
        self._waiting: OrderedDict[Key, tuple[int, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def arrived(self) -> list[Key]:
        """Experts whose bytes have come and which no routing has asked for yet, nearly all.

        Reads of one queue end about in its order: the first that has not stands for all behind it.
        From any thread; where this one takes something away meanwhile, there are none.
        """
        try:
            waiting = list(self._waiting.items())
            coming = bisect_left(waiting, True, key=lambda one: not self._reader.done(one[1][0]))
        except (RuntimeError, IndexError):
            return []
        return [key for key, _ in waiting[:coming]]

    def start(self, keys: Iterable[Key]) -> None:
        """Queue reads while slots are free."""
        for key in keys:
            if not self._cache.free:
                return
            if key in self._cache or key in self._waiting:
                continue
            slot = self._cache.reserve()
            self._slots.move(slot, State.LOADING)
            self._waiting[key] = (self._records.submit_idle(key, slot), slot)

    def precede(self, layer: int, experts: Iterable[int], reads: dict[Key, int]) -> None:
        """A routing asks for ``experts``: what of it waits is dropped, what has begun goes to
        ``reads``, as a read that somebody waits for, its expert pinned."""
        if not self._waiting:
            return
        self.land()
        for key in ((layer, expert) for expert in experts):
            if key in self._waiting and not self._cancelled(key):
                ticket, slot = self._waiting.pop(key)
                self._cache.place(key, slot)
                self._cache.pin(key)
                reads[key] = ticket

    def land(self) -> None:
        """Give the cache what has arrived, as far as one call does."""
        for _ in range(min(AT_ONCE, len(self._waiting))):
            key, (ticket, _) = next(iter(self._waiting.items()))
            if not self._reader.done(ticket):
                return
            self._finish(key)

    def give_way(self, count: int) -> None:
        """Where fewer than ``count`` slots are free, free those of reads which have not started;
        where there are none, let the cache have what has arrived."""
        while self._waiting and self._cache.free < count:
            if not self._cancelled(next(reversed(self._waiting))):
                self.land()
                return

    def end_one(self) -> bool:
        """Free a slot or wait for one read; False where there are none."""
        if not self._waiting:
            return False
        if not self._cancelled(next(reversed(self._waiting))):
            self._finish(next(iter(self._waiting)))
        return True

    def stop(self) -> None:
        """Drop all that has not started."""
        for key in reversed(list(self._waiting)):
            if not self._cancelled(key):
                return

    def _cancelled(self, key: Key) -> bool:
        ticket, slot = self._waiting[key]
        if not self._reader.cancel(ticket):
            return False
        del self._waiting[key]
        self._give_back(slot)
        return True

    def _finish(self, key: Key) -> None:
        """Wait for a read; its expert is the cache's then, if it is any good."""
        ticket, slot = self._waiting.pop(key)
        try:
            self._reader.wait(ticket)
        except ReadError as error:
            _log.debug("an expert read in advance is not used: %s", error)
            self._give_back(slot)
            return
        self._slots.move(slot, State.READY)
        self._cache.place(key, slot)
        self._cache.reveal_all(key[0], [key[1]])
        self.landed += 1

    def _give_back(self, slot: int) -> None:
        self._slots.move(slot, State.FREE)
        self._cache.unreserve(slot)

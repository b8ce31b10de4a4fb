"""Experts on their way from SSD to the arithmetic: hint, hold, release.

Joins ``cache`` (which slot), ``slots`` (whose bytes) and ``direct`` (the reads), and counts what
that cost. Decides no policy and does no arithmetic. One thread uses a streamer at a time.

A routing is what a layer asks for one token or one chunk. :meth:`Streamer.hint` starts its reads
early; :meth:`Streamer.hold` yields its experts, in memory first, then as they arrive. A routing
may want more experts than there are slots: they pass through in windows, one slot is enough.

Invariant: a slot is never given to another expert while it is being read into, waited for by the
open hold, or used by its consumer. When hold has been left, by whatever way, none of its reads
is under way and nothing is pinned but hinted reads.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from flashmoe.errors import ReadError
from flashmoe.options import Runtime
from flashmoe.quant import Array, Expert
from flashmoe.store.reader import Store
from flashmoe.stream.cache import Cache, Key
from flashmoe.stream.direct import DirectReader
from flashmoe.stream.slots import Slots, State

_log = logging.getLogger(__name__)


@dataclass
class Counters:
    """What streaming has cost since the start.

    Each distinct expert of a routing counts once, at the first of its hint and its hold: a *hit*
    had been asked for before this routing asked (it was in memory, or on its way), a *miss* had
    to be read because of it. So hits and misses do not depend on whether hints are on.
    ``bytes_read`` were delivered by the system, failed reads included; ``wait_ms`` is the time
    in which hold had nothing to yield.
    """

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    wait_ms: float = 0.0

    def snapshot(self) -> Counters:
        """A copy that stays as it is."""
        return replace(self)

    def since(self, earlier: Counters) -> Counters:
        """What was added after an earlier snapshot."""
        return Counters(
            self.hits - earlier.hits,
            self.misses - earlier.misses,
            self.bytes_read - earlier.bytes_read,
            self.wait_ms - earlier.wait_ms,
        )


@dataclass
class _Hold:
    """The experts of an open hold that were not yielded yet, by where they are."""

    here: deque[Key] = field(default_factory=deque)  # pinned, HELD
    coming: dict[int, Key] = field(default_factory=dict)  # by the ticket of the read
    absent: deque[Key] = field(default_factory=deque)  # without a slot

    def __bool__(self) -> bool:
        return bool(self.here or self.coming or self.absent)


class Streamer:
    """The experts of ``store`` through ``slots`` slots, each as large as the largest record.

    Raises:
        BudgetError: the system does not grant memory for the slots.
        ReadError: a file of the store cannot be opened.
    """

    def __init__(self, store: Store, slots: int, runtime: Runtime) -> None:
        layers = store.manifest.layers
        self.counters = Counters()
        self._store = store
        self._hints = runtime.hints
        self._cache = Cache(slots, len(layers), store.shape.experts.top_k)
        self._slots = Slots(slots, max(entry.layout.record_bytes for entry in layers))
        self._reads: dict[Key, int] = {}  # tickets of reads under way; their slots are pinned
        self._asked: set[Key] = set()  # counted by a hint, not held since
        self._wanted: frozenset[Key] = frozenset()  # by the open hold
        self._held: set[Key] = set()  # pinned by the open hold
        self._open = True
        self._holding = False
        self._reader = DirectReader(runtime.io_threads)
        try:
            self._files = [
                self._reader.open(store.path / entry.file, direct=runtime.direct_io)
                for entry in layers
            ]
        except ReadError:
            self._reader.close()
            raise

    def hint(self, layer: int, ids: Array) -> None:
        """Start reading what a routing will hold and is not in memory, as far as slots allow.

        Such reads wait for all that hold asks. They never displace an expert of the same
        routing, nor one that is held. Does nothing where ``Runtime.hints`` is off.
        """
        if not self._hints:
            return
        keys = [key for key in self._keys(layer, ids) if key not in self._wanted]
        others = (key for key in self._reads if key not in self._wanted)
        self._settle([key for key in others if self._reader.done(self._reads[key])])
        self._ask(keys)
        self._asked.update(keys)
        present = [key for key in keys if key in self._cache]
        for key in present:
            self._cache.pin(key)
        self._start(deque(key for key in keys if key not in self._cache), demand=False)
        for key in present:
            self._cache.unpin(key)

    @contextmanager
    def hold(self, layer: int, ids: Array) -> Iterator[Iterator[tuple[int, Expert]]]:
        """Yield (id, expert) for each distinct id of ``ids`` (any shape), once, in any order.

        An expert is valid until the next one is asked for; its arrays are views of a slot.
        Leaving early is allowed. Holds do not nest.

        Raises:
            ReadError: a record could not be read whole and right; names it. The streamer
                remains usable, and the next hold reads that record again.
        """
        if self._holding:
            raise RuntimeError("a hold is open already")
        keys = self._keys(layer, ids)
        self._ask(keys)
        self._asked.difference_update(keys)
        self._holding, self._wanted = True, frozenset(keys)
        hold = self._claim(keys)
        experts = self._arrivals(hold)
        try:
            yield experts
        finally:
            experts.close()
            for key in tuple(self._held):
                self._release(key)
            self._settle(hold.coming.values())
            self._holding, self._wanted = False, frozenset()

    def close(self) -> None:
        """End all reads; experts already yielded stay readable. Repeating it is fine."""
        if self._open:
            self._settle(self._reads)
            self._reader.close()
            self._open = False

    def _keys(self, layer: int, ids: Array) -> list[Key]:
        """The distinct experts of a routing, in file order."""
        if not self._open:
            raise RuntimeError("the streamer is closed")
        distinct = np.unique(ids).tolist()
        count = len(self._store.manifest.layers[layer].checksums)
        if distinct and not 0 <= distinct[0] <= distinct[-1] < count:
            raise ValueError(f"experts {distinct} of layer {layer} are not all below {count}")
        return [(layer, expert) for expert in distinct]

    def _ask(self, keys: list[Key]) -> None:
        """Count a routing and mark its experts as used, except what its hint did already."""
        for key in keys:
            if key in self._asked:
                continue
            if self._cache.lookup(key) is None:
                self.counters.misses += 1
            else:
                self.counters.hits += 1

    def _claim(self, keys: list[Key]) -> _Hold:
        """Sort a routing by where its experts are, and pin those that are in memory."""
        hold = _Hold()
        for key in keys:
            if key in self._reads:
                self._reader.promote(self._reads[key])
                hold.coming[self._reads[key]] = key
            elif key in self._cache:
                self._take(key)
                hold.here.append(key)
            else:
                hold.absent.append(key)
        return hold

    def _arrivals(self, hold: _Hold) -> Generator[tuple[int, Expert], None, None]:
        while hold:
            hold.coming.update(self._start(hold.absent, demand=True))
            if hold.here:
                key = hold.here.popleft()
            elif hold.coming:
                key = self._arrival(hold.coming)
            else:
                self._make_room()
                continue
            layer, expert = key
            layout = self._store.layout(layer)
            record = self._slots.view(self._cache.slot(key), layout.record_bytes)
            yield expert, layout.expert(record)
            self._release(key)

    def _start(self, absent: deque[Key], *, demand: bool) -> dict[int, Key]:
        """Start reads from the front of ``absent`` until no slot can be had; their tickets."""
        started: dict[int, Key] = {}
        while absent:
            admission = self._cache.admit(absent[0])
            if admission is None:
                break
            key, slot = absent.popleft(), admission.slot
            if admission.evicted is not None:
                self._slots.move(slot, State.FREE)
            self._slots.move(slot, State.LOADING)
            self._cache.pin(key)
            layer, expert = key
            record = self._store.record(layer, expert)
            ticket = self._reader.submit(
                self._files[layer],
                record.offset,
                self._slots.view(slot, record.nbytes),
                int(record.checksum, 16),
                label=record.label,
                demand=demand,
            )
            self._reads[key] = ticket
            started[ticket] = key
        return started

    def _arrival(self, coming: dict[int, Key]) -> Key:
        """Wait for the first of some reads, and take its expert."""
        began = time.perf_counter()
        try:
            ticket = self._reader.wait_any(list(coming))
            key = coming.pop(ticket)
            self._land(key)
        finally:
            self.counters.wait_ms += (time.perf_counter() - began) * 1e3
        self._take(key)
        return key

    def _make_room(self) -> None:
        """Every slot is taken by reads hinted for others: drop one, or wait for one to end."""
        for key in reversed(self._reads):
            if self._cancel(key):
                return
        began = time.perf_counter()
        first = self._reader.wait_any(list(self._reads.values()))
        self._settle(key for key, ticket in self._reads.items() if ticket == first)
        self.counters.wait_ms += (time.perf_counter() - began) * 1e3

    def _settle(self, keys: Iterable[Key]) -> None:
        """End reads that nobody waits for: those not started are dropped, the rest let finish."""
        for key in [key for key in list(keys) if not self._cancel(key)]:
            try:
                self._land(key)
            except ReadError as error:
                _log.warning("an expert read in advance is not used: %s", error)

    def _cancel(self, key: Key) -> bool:
        cancelled = self._reader.cancel(self._reads[key])
        if cancelled:
            self._abandon(key)
        return cancelled

    def _land(self, key: Key) -> None:
        """Wait for a read and open its slot for use, or free the slot where it failed."""
        try:
            self._reader.wait(self._reads[key])
        except ReadError:
            self._abandon(key)
            raise
        finally:
            self.counters.bytes_read = self._reader.bytes_read
        del self._reads[key]
        self._cache.unpin(key)
        self._slots.move(self._cache.slot(key), State.READY)

    def _abandon(self, key: Key) -> None:
        """Forget a read that brought nothing, and the expert with it."""
        del self._reads[key]
        self._cache.unpin(key)
        self._slots.move(self._cache.drop(key), State.FREE)

    def _take(self, key: Key) -> None:
        self._cache.pin(key)
        self._slots.move(self._cache.slot(key), State.HELD)
        self._held.add(key)

    def _release(self, key: Key) -> None:
        self._held.remove(key)
        self._slots.move(self._cache.slot(key), State.READY)
        self._cache.unpin(key)

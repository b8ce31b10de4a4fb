"""Experts on their way from SSD to the arithmetic: hint, hold, release.

Joins ``cache`` (which slot), ``slots`` (whose bytes) and ``direct`` (the reads), and counts what
that cost. Decides no policy and does no arithmetic. One thread uses a streamer at a time.

A routing is what a layer asks for one token or one chunk. :meth:`Streamer.hint` starts its reads
early; :meth:`Streamer.hold` yields its experts, in memory first, then as they arrive. A routing
may want more experts than there are slots: they pass through in windows, one slot is enough.

Invariant: a slot is never given to another expert while it is being read into, waited for by the
open hold, or used by its consumer. When hold has been left, by whatever way, none of its reads
is under way and nothing is pinned but hinted reads.

An interrupt may come between any two bytecodes, so between two steps that belong together.
``_sound`` is False while such steps are under way. Whoever comes next and finds it so, or finds
a hold that was never left, believes nothing: all reads are ended and all slots are free again.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from flashmoe.errors import ReadError
from flashmoe.options import Runtime
from flashmoe.quant import Array, Expert
from flashmoe.store.layout import RecordLayout
from flashmoe.store.reader import Store
from flashmoe.stream.cache import Cache, Key
from flashmoe.stream.direct import DirectReader
from flashmoe.stream.drives import Drives
from flashmoe.stream.slots import Slots, State

_log = logging.getLogger(__name__)


@dataclass
class Counters:
    """What streaming has cost since the start.

    Each hold counts each of its distinct experts once: a *hit* was in memory, or on its way, when
    this routing first asked, be it by its hint or its hold; a *miss* had to be read because of
    it. A hold takes the last hint for its layer for its own. So hits and misses do not depend on
    whether hints are on, and hints that no hold follows count nothing. ``bytes_read`` were
    delivered by the system, failed reads included; ``wait_ms`` is the time in which hold had
    nothing to yield.
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


class _Layer(NamedTuple):
    """What a read from a layer's file needs, looked up once."""

    file: int
    layout: RecordLayout  # the same object for equal layouts, as Slots.expert likes it
    record_bytes: int
    offset: int  # of the first record
    checksums: array[int]


@dataclass(eq=False)
class _Hold:
    """The experts of an open hold, by where they are."""

    wanted: frozenset[Key]
    here: deque[Key] = field(default_factory=deque)  # pinned, HELD, not yielded yet
    coming: dict[int, Key] = field(default_factory=dict)  # by the ticket of the read
    absent: deque[Key] = field(default_factory=deque)  # without a slot
    yielded: deque[Key] = field(default_factory=deque)  # pinned, HELD

    @property
    def pending(self) -> bool:
        """Whether there is something left to yield."""
        return bool(self.here or self.coming or self.absent)


class Streamer:
    """The experts of ``store`` through ``slots`` slots, each as large as the largest record.

    Raises:
        BudgetError: the system does not grant memory for the slots.
        ReadError: a file of the store cannot be opened.
    """

    def __init__(self, store: Store, slots: int, runtime: Runtime) -> None:
        entries = store.manifest.layers
        self.counters = Counters()
        self._store = store
        self._hints = runtime.hints
        self._slots = Slots(slots, max(entry.layout.record_bytes for entry in entries))
        # What the cache lets one routing displace at any time, so that all of it can stay.
        self._lasting = min(slots, 2 * store.shape.experts.top_k)
        self._open = True
        self._reader = DirectReader(runtime.io_threads)
        self._layers: list[_Layer] = []
        layouts: dict[RecordLayout, RecordLayout] = {}
        try:
            depth, direct = runtime.io_threads, runtime.direct_io
            self.drives = Drives(self._reader, store, depth, direct=direct)
            for entry, file in zip(entries, self.drives.files, strict=True):
                layout = layouts.setdefault(entry.layout, entry.layout)
                sums = array("Q", (int(checksum, 16) for checksum in entry.checksums))
                self._layers.append(
                    _Layer(file, layout, layout.record_bytes, entry.data_offset, sums)
                )
        except ReadError:
            self._reader.close()
            raise
        self._forget()

    def _forget(self) -> None:
        """Every slot is free, nothing is asked or read, no hold is open."""
        experts = self._store.shape.experts
        self._cache = Cache(self._slots.count, len(self._layers), experts.top_k)
        self._slots.clear()
        self._reads: dict[Key, int] = {}  # tickets of reads under way; their slots are pinned
        # By layer: the experts of its last hint, unless held since, and which had a slot then.
        self._asked: dict[int, dict[Key, bool]] = {}
        self._hold: _Hold | None = None  # the open one
        self._sound = True

    def hint(self, layer: int, ids: Array) -> None:
        """Start reading what a routing will hold and is not in memory, as far as slots allow.

        Such reads wait for all that hold asks. They never displace an expert of the same
        routing, nor one that is held. Asking makes an expert recent in the cache, as in hold.
        Does nothing where ``Runtime.hints`` is off.
        """
        if not self._hints:
            return
        keys = self._keys(layer, ids)
        wanted = frozenset() if self._hold is None else self._hold.wanted
        if wanted:
            keys = [key for key in keys if key not in wanted]
        self._sound = False
        if self._reads:
            others = (key for key in self._reads if key not in wanted)
            self._settle([key for key in others if self._reader.done(self._reads[key])])
        lookup = self._cache.lookup
        asked = {key: lookup(key) is not None for key in keys}
        self._asked[layer] = asked
        if not all(asked.values()):
            present = [key for key in keys if asked[key]]
            for key in present:
                self._cache.pin(key)
            self._start(deque(key for key in keys if not asked[key]), demand=False)
            for key in present:
                self._cache.unpin(key)
        self._sound = True

    @contextmanager
    def hold(self, layer: int, ids: Array) -> Iterator[Iterator[tuple[int, Expert]]]:
        """Yield (id, expert) for each distinct id of ``ids`` (any shape), once, in any order.

        The arrays of an expert are read-only views of a slot. How long their bytes stay is
        decided by the number of distinct ids: up to twice what one token chooses (and as many as
        there are slots), every expert is valid until the hold ends, so that all may be collected
        first and used together; beyond, each is valid only until the next one is asked for.
        After the hold none is.

        Leaving early is allowed. Holds do not nest: opening another ends this one, which then
        raises RuntimeError when it is asked for an expert or left.

        Raises:
            ReadError: a record could not be read whole and right; names it. The streamer
                remains usable, and the next hold reads that record again.
        """
        keys = self._keys(layer, ids)
        if self._hold is not None:  # nested, or an interrupt came before its block began
            self._reset()
        self._sound = False
        hold = self._hold = self._claim(layer, keys)
        self._start_absent(hold)
        self._sound = True
        try:
            yield self._arrivals(hold)
        except BaseException:
            self._end(hold)
            raise
        if not self._end(hold):
            raise RuntimeError("this hold was ended by another; holds do not nest")

    def close(self) -> None:
        """End all reads and give the memory back, repeatedly if need be.

        Where views of experts still live, the memory goes with the last of them.
        """
        self._open = False
        self._reader.close()
        self._slots.close()

    def _keys(self, layer: int, ids: Array) -> list[Key]:
        """The distinct experts of a routing, in file order, for a streamer in good order."""
        if not self._open:
            raise RuntimeError("the streamer is closed: open the store again")
        distinct = sorted(set(np.ravel(ids).tolist()))
        count = len(self._layers[layer].checksums)
        if distinct and not 0 <= distinct[0] <= distinct[-1] < count:
            raise ValueError(f"experts {distinct} of layer {layer} are not all below {count}")
        if not self._sound:
            self._reset()
        return [(layer, expert) for expert in distinct]

    def _reset(self) -> None:
        """Start anew with empty slots, whatever an interrupt has left."""
        self._sound = False
        self._reader.drain()
        self.counters.bytes_read = self._reader.bytes_read
        self._forget()

    def _claim(self, layer: int, keys: list[Key]) -> _Hold:
        """Count a routing, sort it by where its experts are, and pin those in memory."""
        hold = _Hold(frozenset(keys))
        asked = self._asked.pop(layer, {})
        cache, reads, hits = self._cache, self._reads, 0
        for key in keys:
            found = asked.get(key)
            hits += cache.lookup(key) is not None if found is None else found
            if key in reads:
                self._reader.promote(reads[key])
                hold.coming[reads[key]] = key
            elif key in cache:
                self._take(key)
                hold.here.append(key)
            else:
                hold.absent.append(key)
        self.counters.hits += hits
        self.counters.misses += len(keys) - hits
        return hold

    def _arrivals(self, hold: _Hold) -> Generator[tuple[int, Expert], None, None]:
        while hold.pending:
            if self._hold is not hold or not self._sound or not self._open:
                raise RuntimeError(
                    "this hold has ended: it was left, or ended by another hold, by an interrupt "
                    "or by close"
                )
            self._sound = False
            try:
                key = self._next(hold)
            except ReadError:
                self._sound = True  # the read that failed is put away
                raise
            hold.yielded.append(key)
            expert = self._slots.expert(self._cache.slot(key), self._layers[key[0]].layout)
            self._sound = True
            yield key[1], expert

    def _next(self, hold: _Hold) -> Key:
        """The next expert to yield, waiting for it if need be."""
        while True:
            if hold.absent:
                self._start_absent(hold)
            if hold.here:
                return hold.here.popleft()
            if hold.coming:
                return self._arrival(hold.coming)
            self._make_room()

    def _start_absent(self, hold: _Hold) -> None:
        """Start reads for an open hold; its consumed experts give way if it has too many."""
        hold.coming.update(self._start(hold.absent, demand=True))
        while hold.absent and hold.yielded and len(hold.wanted) > self._lasting:
            self._release(hold.yielded.popleft())
            hold.coming.update(self._start(hold.absent, demand=True))

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
            layer = self._layers[key[0]]
            ticket = self._reader.submit(
                layer.file,
                layer.offset + key[1] * layer.record_bytes,
                self._slots.view(slot, layer.record_bytes),
                layer.checksums[key[1]],
                label=partial(self._label, key),
                demand=demand,
            )
            self._reads[key] = ticket
            started[ticket] = key
        return started

    def _label(self, key: Key) -> str:
        return self._store.record(*key).label

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

    def _end(self, hold: _Hold) -> bool:
        """Leave a hold; False where another hold or an interrupt has ended it already."""
        if self._open and self._hold is not hold:
            return False
        if self._open and self._sound:
            self._sound = False
            for key in (*hold.here, *hold.yielded):
                self._release(key)
            self._settle(hold.coming.values())
            self._hold = None
            self._sound = True
        return True

    def _settle(self, keys: Iterable[Key]) -> None:
        """End reads that nobody waits for: those not started are dropped, the rest let finish."""
        for key in [key for key in list(keys) if not self._cancel(key)]:
            try:
                self._land(key)
            except ReadError as error:
                _log.debug("an expert read in advance is not used: %s", error)

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

    def _release(self, key: Key) -> None:
        self._slots.move(self._cache.slot(key), State.READY)
        self._cache.unpin(key)

"""How many reads are under way at once: as asked, as known of this disk, or measured.

Owns the choice. The measurement is ``rate``'s, what is kept of it ``device``'s. It reads into
the slots, so that it takes no memory that was not planned.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from flashmoe.errors import ReadError
from flashmoe.options import DEFAULT_IO_THREADS, Runtime
from flashmoe.quant import Array
from flashmoe.store.layout import ALIGNMENT
from flashmoe.store.reader import RecordAddress, Store
from flashmoe.stream import device
from flashmoe.stream.rate import QUEUED, Probe
from flashmoe.stream.slots import Slots, State

_log = logging.getLogger(__name__)

DEPTHS = (1, 2, 4, 8, 16)
TURNS = 2
TURN_SECONDS = 0.04
LIMIT_SECONDS = 0.5
"""No further depth is begun later than this: a slow disk is known by fewer of them."""

ENOUGH = 0.95
"""Of the best rate. Among depths that reach it the least is taken: the first of several reads
lands the sooner, and the arithmetic has something to do."""

SMALL_STORE_BYTES = 64 << 20
"""A store up to this size is read in less time than a measurement takes."""

SAMPLE_FILES = 4


def choose(store: Store, slots: Slots, runtime: Runtime) -> int:
    """The depth for a store, at most :data:`LIMIT_SECONDS` and one turn later.

    ``slots`` are all free, before and after. Through the page cache it would be memory that is
    measured, so there the depth is the default.
    """
    if runtime.io_threads is not None:
        return runtime.io_threads
    records = sample(store)
    experts_bytes = store.shape.experts.count * sum(
        entry.layout.record_bytes for entry in store.manifest.layers
    )
    if runtime.io != "direct" or experts_bytes <= SMALL_STORE_BYTES:
        return DEFAULT_IO_THREADS
    try:
        name = device.identity(records[0].path)
    except OSError:  # gone since the store was opened: whoever reads it says so
        return DEFAULT_IO_THREADS
    size_class = max(record.nbytes for record in records).bit_length()
    key = f"{name}, records below {1 << size_class} bytes"
    kept = device.Depths(runtime.device_cache)
    depth = kept.get(key)
    if depth is None:
        depth = _measured_in(slots, records)
        kept.put(key, depth)
    return depth


def sample(store: Store) -> list[RecordAddress]:
    """All experts of a few layers, the first of them included, that lie where its first does.

    Of a store on several drives one is measured; all of them are given its depth.
    """
    layers = range(0, store.shape.layers, -(-store.shape.layers // SAMPLE_FILES))
    count = store.shape.experts.count
    records = [store.record(layer, expert) for layer in layers for expert in range(count)]
    return [record for record in records if record.path.parent == records[0].path.parent]


def _measured_in(slots: Slots, records: Sequence[RecordAddress]) -> int:
    count = min(slots.count, max(DEPTHS) + QUEUED)
    for slot in range(count):
        slots.move(slot, State.LOADING)
    places = [slots.view(slot, slots.slot_bytes) for slot in range(count)]
    try:
        return measure(records, places)
    except ReadError as error:  # a damaged record is refused when it is asked for
        _log.info("the depth of the disk queue could not be measured: %s", error)
        return DEFAULT_IO_THREADS
    finally:
        for slot in range(count):
            slots.move(slot, State.FREE)


def measure(records: Sequence[RecordAddress], places: Sequence[Array]) -> int:
    """The least depth whose rate is near the best, of those that ``places`` have room for.

    Raises:
        ReadError: a file is missing, or a record damaged.
    """
    for place in places:
        place[::ALIGNMENT] = 0  # the first touch of a page is not the disk's time
    depths = [depth for depth in DEPTHS if depth <= len(places)]
    probe, rates = Probe(records, direct=True), dict[int, float]()
    began = time.perf_counter()
    for _ in range(TURNS):
        for depth in depths:
            if rates and time.perf_counter() - began > LIMIT_SECONDS:
                break
            rate = probe.rate(depth, places[: depth + QUEUED], TURN_SECONDS)
            rates[depth] = max(rates.get(depth, 0.0), rate)  # disturbances only make it slower
    best = max(rates.values())
    depth = min(depth for depth, rate in rates.items() if rate >= ENOUGH * best)
    _log.info(
        "this disk reads %s GB/s at %s reads at once: %d are enough",
        ", ".join(f"{rate / 1e9:.2f}" for rate in rates.values()),
        ", ".join(map(str, rates)),
        depth,
    )
    return depth

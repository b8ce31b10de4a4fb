"""What this machine allows: bytes a second from a store's own files, and from memory.

Owns the two measurements that a speed is compared with. They touch more memory than a budget
plans for, so :func:`measure` takes them in a process of its own, which is gone afterwards.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from flashmoe.errors import BudgetError, FlashMoeError, StoreError
from flashmoe.options import Runtime
from flashmoe.quant import Array
from flashmoe.store.reader import RecordAddress, Store
from flashmoe.stream.direct import DirectReader
from flashmoe.stream.drives import Drives
from flashmoe.stream.slots import Slots

DEPTHS = (1, 2, 4, 8, 16)
ROUNDS = 3
SAMPLE_BYTES = 384 << 20
"""Read at each depth and in each round, where the store has so much."""

ARRAY_BYTES = 256 << 20
"""Read to measure memory: several times any processor's cache."""

MEMORY_ROUNDS = 7


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second, each the median of a few rounds.

    ``disk_bytes_s`` is that of checked reads of whole records in random order at
    ``disk_depth``, the best depth; ``direct`` says whether they bypassed the page cache.
    """

    disk_bytes_s: float
    disk_depth: int
    direct: bool
    memory_bytes_s: float


def measure(path: Path, runtime: Runtime) -> Ceilings:
    """Both ceilings, measured in another process, which ends with this one's interrupt.

    The disk's is that of all drives together where the store lies on several.

    Raises:
        StoreError: the store does not open, or a record is damaged.
        BudgetError: the process was ended from outside.
    """
    threads = runtime.resolved_threads
    command = [sys.executable, "-m", __name__, str(path), str(threads), str(int(runtime.direct_io))]
    command += map(str, runtime.store_dirs)
    # In a session of its own Ctrl-C reaches this process alone, and run() then ends the other.
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    if done.returncode:
        raise BudgetError(
            f"measuring disk and memory ended with code {done.returncode}: free some memory "
            f"(it takes {ARRAY_BYTES >> 20} MiB) and try again"
        )
    found = json.loads(done.stdout)
    if "refusal" in found:
        raise StoreError(found["refusal"])
    return Ceilings(**found)


def main(path: str, threads: str, direct: str, *store_dirs: str) -> None:
    """Measure in this process and write the ceilings, or the refusal, as a JSON object."""
    try:
        rate, depth, bypassed = disk_rate(Store.open(path, store_dirs), direct=direct == "1")
        found = vars(Ceilings(rate, depth, bypassed, memory_rate(int(threads))))
    except FlashMoeError as error:
        found = {"refusal": str(error)}
    sys.stdout.write(json.dumps(found))


def disk_rate(store: Store, *, direct: bool) -> tuple[float, int, bool]:
    """The best rate, its depth, and whether the reads were direct.

    Depths take turns, so that a slow moment of the disk does not fall on one of them.
    """
    records = distinct_records(store)
    rng = np.random.default_rng(0)
    rates: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    bypassed = True
    for _ in range(ROUNDS):
        for depth in DEPTHS:
            sample = sampled(records, rng)
            drop_pages(store.weight_files())
            began = time.perf_counter()
            bypassed &= read_all(store, sample, depth, direct=direct)
            nbytes = sum(record.nbytes for record in sample)
            rates[depth].append(nbytes / (time.perf_counter() - began))
    medians = {depth: statistics.median(found) for depth, found in rates.items()}
    best = max(medians, key=lambda depth: medians[depth])
    return medians[best], best, bypassed


def distinct_records(store: Store) -> list[RecordAddress]:
    """Every record; of layer files that are links to one another only one's."""
    count = store.shape.experts.count
    return [
        store.record(layer, expert) for layer in distinct_layers(store) for expert in range(count)
    ]


def distinct_layers(store: Store) -> list[int]:
    """The layers whose files are not links to those of one before."""
    files: dict[tuple[int, int], int] = {}
    for layer, sources in enumerate(store.sources):
        status = sources[0].path.stat()
        files.setdefault((status.st_dev, status.st_ino), layer)
    return list(files.values())


def sampled(records: list[RecordAddress], rng: np.random.Generator) -> list[RecordAddress]:
    """Records in random order, none twice, about :data:`SAMPLE_BYTES` of them."""
    largest = max(record.nbytes for record in records)
    order = rng.permutation(len(records))[: max(SAMPLE_BYTES // largest, 1)]
    return [records[index] for index in order.tolist()]


def read_all(store: Store, records: list[RecordAddress], depth: int, *, direct: bool) -> bool:
    """Read and check records, ``depth`` at a time from each drive; whether all reads bypassed the
    page cache."""
    waiting = depth * len(store.directories)
    slots = Slots(waiting, max(record.nbytes for record in records))
    free, pending = list(range(waiting)), dict[int, int]()
    with DirectReader(depth) as reader:
        files = Drives(reader, store, depth, direct=direct).files
        for record in records:
            if not free:
                ticket = reader.wait_any(list(pending))
                reader.wait(ticket)
                free.append(pending.pop(ticket))
            slot = free.pop()
            ticket = reader.submit(
                files[record.layer],
                store.manifest.layers[record.layer].offset(record.expert),
                slots.view(slot, record.nbytes),
                int(record.checksum, 16),
                label=partial(str, record.label),
                demand=True,
            )
            pending[ticket] = slot
        for ticket in pending:
            reader.wait(ticket)
        return all(reader.is_direct(file) for file in files)


def drop_pages(paths: set[Path]) -> None:
    """Ask the system to forget what it keeps of some files, where it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def memory_rate(threads: int) -> float:
    """Bytes a second that ``threads`` threads read from an array larger than any cache."""
    data: Array = np.ones(ARRAY_BYTES // 8, np.int64)
    pieces, rates = np.array_split(data, threads), []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(MEMORY_ROUNDS):
            began = time.perf_counter()
            list(pool.map(np.max, pieces))
            rates.append(data.nbytes / (time.perf_counter() - began))
    return statistics.median(rates)


if __name__ == "__main__":
    main(*sys.argv[1:])

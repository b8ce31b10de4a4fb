"""What this machine allows: bytes a second from a store's own files, from memory, and of a GPU.

Owns the measurements that a speed is compared with; a GPU's are its own (``Device``). They touch
more memory than a budget plans for, so :func:`measure` takes them in a process of its own, which is
gone afterwards.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flashmoe.errors import BudgetError, FlashMoeError, StoreError
from flashmoe.kernels import choose
from flashmoe.kernels.cuda.device import Device
from flashmoe.options import Runtime
from flashmoe.quant import Array
from flashmoe.store.reader import RecordAddress, Store
from flashmoe.stream.rate import QUEUED, Probe
from flashmoe.stream.slots import Slots

DEPTHS = (1, 2, 4, 8, 16)
ROUNDS = 5
ROUND_SECONDS = 0.6
"""At each depth and in each round, or as long as it takes to read the whole store once."""

ARRAY_BYTES = 256 << 20
"""Read to measure memory: several times any processor's cache."""

MEMORY_ROUNDS = 7


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second, each the median of a few rounds.

    ``disk_bytes_s`` is that of checked reads of whole records in random order at
    ``disk_depth``, the best depth, from all drives together and from each at that depth where
    there are several; ``direct`` says whether they bypassed the page cache. Where a GPU computes,
    ``vram_bytes_s`` is that of its memory, and ``copy_bytes_s`` that of copies to it.
    """

    disk_bytes_s: float
    disk_depth: int
    direct: bool
    memory_bytes_s: float
    vram_bytes_s: float | None = None
    copy_bytes_s: float | None = None


def measure(path: Path, runtime: Runtime, kernels: str = "auto") -> Ceilings:
    """All ceilings, measured in another process, which ends with this one's interrupt.

    The disk's is that of all drives together where the store lies on several, and of direct
    reads whatever the engine is told to use: they are what disks are quickest at.

    Raises:
        StoreError: the store does not open, a record is damaged, or the GPU fails.
        BudgetError: the process was ended from outside.
    """
    threads = runtime.resolved_threads
    command = [sys.executable, "-m", __name__, str(path), str(threads), kernels]
    command += map(str, runtime.store_dirs)
    # In a session of its own Ctrl-C reaches this process alone, and run() then ends the other.
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    if done.returncode:
        raise BudgetError(
            f"measuring what there is ended with code {done.returncode}: free some memory "
            f"(it takes {ARRAY_BYTES >> 20} MiB) and try again"
        )
    found = json.loads(done.stdout)
    if "refusal" in found:
        raise StoreError(found["refusal"])
    return Ceilings(**found)


def main(path: str, threads: str, kernels: str, *store_dirs: str) -> None:
    """Measure in this process and write the ceilings, or the refusal, as a JSON object."""
    try:
        rate, depth, bypassed = disk_rate(Store.open(path, store_dirs))
        of_gpu = device_rates(choose(kernels, "float32").device)
        found = vars(Ceilings(rate, depth, bypassed, memory_rate(int(threads)), *of_gpu))
    except FlashMoeError as error:
        found = {"refusal": str(error)}
    sys.stdout.write(json.dumps(found))


def disk_rate(store: Store) -> tuple[float, int, bool]:
    """The best rate, its depth, and whether the reads were direct, as far as files allow.

    Raises:
        ReadError: a record is damaged, or its file gone.
    """
    records = distinct_records(store)
    probe = Probe(records, direct=True, store=store)
    rates = rates_by_depth(probe, max(record.nbytes for record in records))
    medians = {depth: statistics.median(found) for depth, found in rates.items()}
    best = max(medians, key=lambda depth: medians[depth])
    return medians[best], best, probe.bypassed


def rates_by_depth(probe: Probe, record_bytes: int) -> dict[int, list[float]]:
    """Bytes a second at each depth, a figure a round, for records of at most so many bytes.

    Depths take turns, so that a slow moment of the disk does not fall on one of them.
    """
    slots = Slots(probe.lanes * (max(DEPTHS) + QUEUED), record_bytes)
    places = [slots.view(slot, record_bytes) for slot in range(slots.count)]
    rates: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for _ in range(ROUNDS):
        for depth, found in rates.items():
            found.append(probe.rate(depth, places[: probe.lanes * (depth + QUEUED)], ROUND_SECONDS))
    return rates


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


def device_rates(device: Device | None) -> tuple[float | None, float | None]:
    """Bytes a second of a GPU's memory, and of copies to it; None where there is none."""
    return (None, None) if device is None else (device.memory_rate(), device.copy_rate())


if __name__ == "__main__":
    main(*sys.argv[1:])

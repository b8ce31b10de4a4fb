"""Speed of checked record reads, direct and through the page cache, by queue depth.

    .venv/bin/python bench/disk.py DIRECTORY [--gib 4] [--record-mib 6.75]
    .venv/bin/python bench/disk.py STORE

Reads the records of a store in random order; in a directory that is none, those of a file that
it writes and deletes. Every depth has its turn in each of several rounds, the same measurement
as the ceiling of `flashmoe bench`. Then as many records as fill up to 2 GiB are read into slots
whose memory has never been touched, into the same slots again, and into slots that got their
memory first: what the system's giving of memory costs a cold cache. Prints medians, and one JSON
line at the end.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import results
import xxhash
from command import above_zero, check_space, folder, run

from flashmoe.apps.ceilings import DEPTHS, ROUNDS, distinct_records, rates_by_depth
from flashmoe.store.layout import MANIFEST
from flashmoe.store.reader import RecordAddress, Store
from flashmoe.stream import memory
from flashmoe.stream.rate import Probe
from flashmoe.stream.slots import Slots

FILLED_BYTES = 2 << 30
FILLS = 3
DEPTH = 4


def write_records(path: Path, count: int, record_bytes: int) -> list[RecordAddress]:
    """A file of ``count`` random records."""
    rng = np.random.default_rng(0)
    records = []
    with path.open("wb") as file:
        for number in range(count):
            record = rng.integers(0, 1 << 63, record_bytes // 8, dtype=np.int64).tobytes()
            digest = xxhash.xxh3_64_hexdigest(record)
            records.append(
                RecordAddress(
                    0, number, path, file.tell(), record_bytes, digest, f"record {number}"
                )
            )
            file.write(record)
        file.flush()
        os.fsync(file.fileno())
    return records


def rates(records: Sequence[RecordAddress], direct: bool) -> dict[int, float]:
    """Median bytes a second at each depth."""
    found = rates_by_depth(Probe(records, direct=direct), max(record.nbytes for record in records))
    return {depth: statistics.median(values) for depth, values in found.items()}


def fills(records: Sequence[RecordAddress]) -> dict[str, float]:
    """Median bytes a second into every slot of an arena once, by what its memory has been."""
    size = max(record.nbytes for record in records)
    most = min(FILLED_BYTES, memory.available().available_bytes // 2) // size
    records = records[: max(most, DEPTH)]
    found: dict[str, list[float]] = {}
    for _ in range(FILLS):
        slots = Slots(len(records), size)
        found.setdefault("memory not touched before", []).append(filled(records, slots, size))
        found.setdefault("the same memory again", []).append(filled(records, slots, size))
        slots.close()
        ahead = Slots(len(records), size)
        began = time.perf_counter()
        ahead.arena[:: mmap.PAGESIZE] = 1
        given = ahead.arena.nbytes / (time.perf_counter() - began)
        found.setdefault("memory touched first", []).append(filled(records, ahead, size))
        found.setdefault("the touching itself", []).append(given)
        ahead.close()
    return {name: statistics.median(values) for name, values in found.items()}


def filled(records: Sequence[RecordAddress], slots: Slots, size: int) -> float:
    """Bytes a second of one direct read into each slot."""
    places = [slots.view(slot, size) for slot in range(slots.count)]
    return Probe(records, direct=True).rate(DEPTH, places, float("inf"))


def main() -> None:
    """Time every depth and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=folder)
    parser.add_argument("--gib", type=above_zero, default=4)
    parser.add_argument("--record-mib", type=above_zero, default=6.75)
    results.add_arguments(parser)
    given = parser.parse_args()
    path = given.directory / "flashmoe-disk-bench"
    try:
        if (given.directory / MANIFEST).exists():
            records = distinct_records(Store.open(given.directory))
        else:
            record_bytes = max(int(given.record_mib * 256), 1) * 4096
            count = int(given.gib * (1 << 30)) // record_bytes
            if count < max(DEPTHS):
                sys.exit(
                    f"error: {given.gib} GiB are {count} records of {given.record_mib} MiB, and "
                    f"{max(DEPTHS)} are read at once: give a larger --gib"
                )
            check_space({path: count * record_bytes}, "give a smaller --gib, or another disk")
            records = write_records(path, count, record_bytes)
        direct, cached, filling = rates(records, True), rates(records, False), fills(records)
    finally:
        path.unlink(missing_ok=True)
    print(f"{'depth':>5}  {'direct':>7}  {'page cache':>10}   GB/s, median of {ROUNDS}")
    for depth in DEPTHS:
        print(f"{depth:>5}  {direct[depth] / 1e9:7.2f}  {cached[depth] / 1e9:10.2f}")
    for name, rate in filling.items():
        print(f"{rate / 1e9:7.2f} GB/s into slots: {name}")
    kinds = {"direct": direct, "cached": cached}
    figures = {
        f"{kind}_{depth}": round(rate / 1e9, 3)
        for kind, found in kinds.items()
        for depth, rate in found.items()
    }
    into = {name: round(rate / 1e9, 3) for name, rate in filling.items()}
    line = {"record_bytes": records[0].nbytes, "gb_s": figures, "into_slots_gb_s": into}
    results.save_if_asked(given, "disk", line, {"gib": given.gib, "record_mib": given.record_mib})
    print(json.dumps(line))


if __name__ == "__main__":
    run(main)

"""Speed of checked record reads, direct and through the page cache, by queue depth.

    .venv/bin/python bench/disk.py DIRECTORY [--gib 4] [--record-mib 6.75]

Writes one file of random records into DIRECTORY, reads them in random order with every depth in
turn, several times over, and deletes the file. Prints medians, and one JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np
import results
import xxhash

from flashmoe.stream.direct import DirectReader
from flashmoe.stream.slots import Slots

DEPTHS = (1, 2, 4, 8)
REPEATS = 3
READS = 192


def write_records(path: Path, count: int, record_bytes: int) -> list[int]:
    """A file of ``count`` random records; returns their checksums."""
    rng = np.random.default_rng(0)
    checksums = []
    with path.open("wb") as file:
        for _ in range(count):
            record = rng.integers(0, 1 << 63, record_bytes // 8, dtype=np.int64).tobytes()
            checksums.append(xxhash.xxh3_64_intdigest(record))
            file.write(record)
        file.flush()
        os.fsync(file.fileno())
    return checksums


def rate(path: Path, checksums: list[int], record_bytes: int, depth: int, direct: bool) -> float:
    """Bytes a second over random records, each read once; the page cache is dropped first."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    order = np.random.default_rng(depth).permutation(len(checksums))[:READS].tolist()
    slots = Slots(depth, record_bytes)
    free = list(range(depth))
    pending: dict[int, int] = {}
    with DirectReader(depth) as reader:
        file = reader.open(path, direct=direct)
        began = time.perf_counter()
        for record in order:
            if not free:
                ticket = reader.wait_any(list(pending))
                reader.wait(ticket)
                free.append(pending.pop(ticket))
            slot = free.pop()
            target = slots.view(slot, record_bytes)
            ticket = reader.submit(
                file,
                record * record_bytes,
                target,
                checksums[record],
                label=lambda: "record",
                demand=True,
            )
            pending[ticket] = slot
        for ticket in pending:
            reader.wait(ticket)
        return len(order) * record_bytes / (time.perf_counter() - began)


def main() -> None:
    """Time every depth and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--gib", type=float, default=4)
    parser.add_argument("--record-mib", type=float, default=6.75)
    results.add_arguments(parser)
    given = parser.parse_args()
    record_bytes = int(given.record_mib * 256) * 4096
    count = int(given.gib * (1 << 30)) // record_bytes
    path = given.directory / "flashmoe-disk-bench"
    try:
        checksums = write_records(path, count, record_bytes)
        kinds = [(depth, direct) for direct in (True, False) for depth in DEPTHS]
        seen: dict[tuple[int, bool], list[float]] = {kind: [] for kind in kinds}
        for _ in range(REPEATS):
            for depth, direct in kinds:
                seen[depth, direct].append(rate(path, checksums, record_bytes, depth, direct))
    finally:
        path.unlink(missing_ok=True)
    medians = {kind: statistics.median(values) / 1e9 for kind, values in seen.items()}
    print(f"{'depth':>5}  {'direct':>7}  {'page cache':>10}   GB/s, median of {REPEATS}")
    for depth in DEPTHS:
        print(f"{depth:>5}  {medians[depth, True]:7.2f}  {medians[depth, False]:10.2f}")
    figures = {
        f"{'direct' if direct else 'cached'}_{depth}": round(value, 3)
        for (depth, direct), value in medians.items()
    }
    line = {"record_bytes": record_bytes, "gb_s": figures}
    results.save_if_asked(given, "disk", line, {"gib": given.gib, "record_mib": given.record_mib})
    print(json.dumps(line))


if __name__ == "__main__":
    main()

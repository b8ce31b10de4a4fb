"""Speed of checked record reads, direct and through the page cache, by queue depth.

    .venv/bin/python bench/disk.py DIRECTORY [--gib 4] [--record-mib 6.75]
    .venv/bin/python bench/disk.py STORE

Reads the records of a store in random order; in a directory that is none, those of a file that
it writes and deletes. Every depth has its turn in each of several rounds, the same measurement
as the ceiling of `flashmoe bench`. Prints medians, and one JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import results
import xxhash

from flashmoe.apps.ceilings import DEPTHS, ROUNDS, distinct_records, rates_by_depth
from flashmoe.store.layout import MANIFEST
from flashmoe.store.reader import RecordAddress, Store
from flashmoe.stream.rate import Probe


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


def main() -> None:
    """Time every depth and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--gib", type=float, default=4)
    parser.add_argument("--record-mib", type=float, default=6.75)
    results.add_arguments(parser)
    given = parser.parse_args()
    path = given.directory / "flashmoe-disk-bench"
    try:
        if (given.directory / MANIFEST).exists():
            records = distinct_records(Store.open(given.directory))
        else:
            record_bytes = int(given.record_mib * 256) * 4096
            records = write_records(path, int(given.gib * (1 << 30)) // record_bytes, record_bytes)
        direct, cached = rates(records, True), rates(records, False)
    finally:
        path.unlink(missing_ok=True)
    print(f"{'depth':>5}  {'direct':>7}  {'page cache':>10}   GB/s, median of {ROUNDS}")
    for depth in DEPTHS:
        print(f"{depth:>5}  {direct[depth] / 1e9:7.2f}  {cached[depth] / 1e9:10.2f}")
    kinds = {"direct": direct, "cached": cached}
    figures = {
        f"{kind}_{depth}": round(rate / 1e9, 3)
        for kind, found in kinds.items()
        for depth, rate in found.items()
    }
    line = {"record_bytes": records[0].nbytes, "gb_s": figures}
    results.save_if_asked(given, "disk", line, {"gib": given.gib, "record_mib": given.record_mib})
    print(json.dumps(line))


if __name__ == "__main__":
    main()

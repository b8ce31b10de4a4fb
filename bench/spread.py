"""Speed of checked record reads from several drives: each alone, equal shares, and copies.

    .venv/bin/python bench/spread.py DIRECTORY DIRECTORY [--gib 1] [--record-mib 1.6875]

Writes the same file of random records into each directory, reads them in random order in every
way in turn, several times over, and deletes the files. *Steady* keeps every drive's queue full, as
a prompt does; *bursts* asks for eight records and waits for all of them, as a layer of a decoded
token does. Prints medians, the share of reads that the first drive had, and a JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from command import above_zero, check_space, folder, run
from disk import write_records

from flashmoe.stream.direct import DirectReader
from flashmoe.stream.rate import drop_pages
from flashmoe.stream.slots import Slots

ROUNDS, DEPTH, BURST, SLOTS = 3, 4, 8, 64


class Setup:
    """One reader over all drives, and the files of each way to read."""

    def __init__(self, paths: list[Path], sums: list[int], record_bytes: int) -> None:
        self.sums, self.record_bytes = sums, record_bytes
        self.reader = DirectReader(DEPTH)
        lanes = [0, *(self.reader.add_lane(DEPTH) for _ in paths[1:])]
        self.files = [
            self.reader.open(path, direct=True, lane=lane)
            for path, lane in zip(paths, lanes, strict=True)
        ]
        places = [[(file, i * record_bytes) for file in self.files] for i in range(len(sums))]
        self.mirror = self.reader.combine(0, record_bytes, places)
        self.slots = Slots(SLOTS, record_bytes)

    def ways(self) -> dict[str, Callable[[int], int]]:
        """By name: the file that a record is asked of."""
        own = self.files
        alone = {f"drive {i} alone": (lambda _, file=file: file) for i, file in enumerate(own)}
        return {
            **alone,
            "equal shares": lambda record: own[record % len(own)],
            "copies": lambda record: self.mirror,
        }


def waves(order: list[int], steady: bool) -> Iterator[tuple[list[int], int]]:
    """Records to ask for, and how many may be left waiting before the next are."""
    if steady:
        for record in order:
            yield [record], 32
        return
    for start in range(0, len(order), BURST):
        yield order[start : start + BURST], 0


def rate(setup: Setup, file_of: Callable[[int], int], order: list[int], steady: bool) -> float:
    """Bytes a second."""
    free, pending = list(range(setup.slots.count)), dict[int, int]()
    reader, size = setup.reader, setup.record_bytes
    began = time.perf_counter()
    for records, left in waves(order, steady):
        for record in records:
            slot = free.pop()
            ticket = reader.submit(
                file_of(record),
                record * size,
                setup.slots.view(slot, size),
                setup.sums[record],
                label=lambda: "record",
                demand=True,
            )
            pending[ticket] = slot
        while len(pending) > left:
            ticket = reader.wait_any(list(pending))
            reader.wait(ticket)
            free.append(pending.pop(ticket))
    for ticket in pending:
        reader.wait(ticket)
    return len(order) * size / (time.perf_counter() - began)


def main() -> None:
    """Time every way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directories", nargs="+", type=folder)
    parser.add_argument("--gib", type=above_zero, default=1)
    parser.add_argument("--record-mib", type=above_zero, default=1.6875)
    given = parser.parse_args()
    record_bytes = max(int(given.record_mib * 256), 1) * 4096
    count = int(given.gib * (1 << 30)) // record_bytes
    if count < SLOTS:
        sys.exit(f"error: {given.gib} GiB are {count} records: give --gib for {SLOTS} at least")
    paths = [directory / "flashmoe-spread-bench" for directory in given.directories]
    if len({path.absolute() for path in paths}) < len(paths):
        sys.exit("error: a directory is given twice: give each once")
    mend = "give a smaller --gib, or another disk"
    check_space(dict.fromkeys(paths, count * record_bytes), mend)
    rng, rates, shares = np.random.default_rng(1), {}, {}
    with ExitStack() as stack:
        for path in paths:
            stack.callback(path.unlink, missing_ok=True)
            records = write_records(path, count, record_bytes)
        sums = [int(record.checksum, 16) for record in records]
        setup = Setup(paths, sums, record_bytes)
        stack.callback(setup.reader.close)
        for _ in range(ROUNDS):
            for steady in (True, False):
                for name, file_of in setup.ways().items():
                    drop_pages(set(paths))
                    before = setup.reader.lanes[0][0]
                    key = f"{name}, {'steady' if steady else 'bursts'}"
                    found = rate(setup, file_of, rng.permutation(count).tolist(), steady)
                    rates.setdefault(key, []).append(found / 1e9)
                    share = (setup.reader.lanes[0][0] - before) / count
                    shares.setdefault(key, []).append(share)
    for key, values in rates.items():
        low, high = min(values), max(values)
        share = statistics.median(shares[key])
        median = statistics.median(values)
        print(f"{key:26} {median:6.2f} GB/s ({low:.2f} to {high:.2f}), drive 0: {share:4.0%}")
    figures = {key: round(statistics.median(values), 3) for key, values in rates.items()}
    print(json.dumps({"record_bytes": record_bytes, "gb_s": figures}))


if __name__ == "__main__":
    run(main)

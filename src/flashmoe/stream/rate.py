"""How quickly records come from a disk: checked reads in random order, timed at a depth.

Owns the measurement. What a rate is compared with, or which depth is taken, others decide.

Invariant: while the clock runs the disk does not wait for this process: more reads are queued
than are under way, and the clock starts when the first has landed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np

from flashmoe.quant import Array
from flashmoe.store.reader import RecordAddress, Store
from flashmoe.stream.direct import DirectReader
from flashmoe.stream.drives import Drives, lane_count

QUEUED = 2
"""Reads in the queue beside those under way, so that a reading thread always finds one."""


_Where: TypeAlias = Callable[[RecordAddress], tuple[int, int]]


class Probe:
    """Records in random order, none again before all others have been read.

    ``direct`` bypasses the page cache where the file system allows it, and ``bypassed`` says
    whether it did so far. Otherwise pages are dropped before a record is read again, as far as
    the system does what it is asked. With ``store``, whose records they are, they come from all
    of its drives, as the engine reads them: ``lanes`` at once, each at the depth; otherwise from
    the files that the records name. Not for the threads of others.
    """

    def __init__(
        self,
        records: Sequence[RecordAddress],
        *,
        direct: bool,
        seed: int = 0,
        store: Store | None = None,
    ) -> None:
        self.bypassed = direct
        self.lanes = 1 if store is None else lane_count(store)
        self._records = records
        self._store = store
        self._paths = {record.path for record in records}
        if store is not None:
            self._paths = {source.path for files in store.sources for source in files}
        self._direct = direct
        self._order = self._shuffled(seed)

    def rate(self, depth: int, places: Sequence[Array], seconds: float) -> float:
        """Bytes a second at ``depth`` reads a lane, for about so long or once all records.

        ``places`` are destinations as :meth:`DirectReader.submit` takes them, each at least as
        large as every record; the reads under way are at most as many.

        Raises:
            ReadError: a file is missing, or a record damaged.
        """
        with DirectReader(depth) as reader:
            files, where = self._open(reader, depth)
            self.bypassed &= all(map(reader.is_direct, files))
            return _timed(reader, where, islice(self._order, len(self._records)), places, seconds)

    def _open(self, reader: DirectReader, depth: int) -> tuple[Collection[int], _Where]:
        """The open files, and how to find the file and offset that a record is asked at."""
        store = self._store
        if store is None:
            own = {path: reader.open(path, direct=self._direct) for path in self._paths}
            return own.values(), lambda record: (own[record.path], record.offset)
        entries = store.manifest.layers
        files = Drives(reader, store, depth, direct=self._direct).files
        return files, lambda record: (
            files[record.layer],
            entries[record.layer].offset(record.expert),
        )

    def _shuffled(self, seed: int) -> Iterator[RecordAddress]:
        rng = np.random.default_rng(seed)
        while True:
            if not self._direct:
                drop_pages(self._paths)
            for index in rng.permutation(len(self._records)).tolist():
                yield self._records[index]


def _timed(
    reader: DirectReader,
    where: _Where,
    records: Iterator[RecordAddress],
    places: Sequence[Array],
    seconds: float,
) -> float:
    """Bytes a second between the first landing and the last one in time."""
    pending: dict[int, tuple[RecordAddress, Array]] = {}

    def start(place: Array) -> None:
        for record in islice(records, 1):
            ticket = reader.submit(
                *where(record),
                place[: record.nbytes],
                int(record.checksum, 16),
                label=partial(str, record.label),
                demand=True,
            )
            pending[ticket] = (record, place)

    began = time.perf_counter()
    for place in places:
        start(place)
    first = ended = 0.0
    landed = total = 0
    while pending and (not first or ended - first < seconds):
        ticket = reader.wait_any(list(pending))
        reader.wait(ticket)
        ended = time.perf_counter()
        record, place = pending.pop(ticket)
        landed, total = record.nbytes, total + record.nbytes
        if not first:
            first, total = ended, 0
        start(place)
    return total / (ended - first) if total else landed / (ended - began)


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

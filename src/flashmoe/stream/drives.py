"""Where the records of a store lie among drives, and what each drive has delivered.

Owns the lanes: which directory is read by which of the reader's queues. Above this, a layer is
one file with its experts in order, wherever they are. Which of several copies is read is decided
by the reader, when a thread is free (``native/io.h``); which files there are, by ``store.sources``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flashmoe.errors import ReadError
from flashmoe.store.parts import Source
from flashmoe.store.reader import Store
from flashmoe.stream.direct import DirectReader, Mend

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drive:
    """What was read from a directory (or from two that share a drive) so far.

    ``failed`` reads are among ``reads``, and their bytes among ``bytes_read``.
    """

    directories: tuple[Path, ...]
    reads: int
    failed: int
    bytes_read: int


class Drives:
    """The layers of a store, opened in a reader: ``files[layer]`` is to be read at the offsets of
    the store's own layer file.

    Each directory other than the store's own has a lane of ``threads`` threads; so has the
    store's, unless it lies on the drive of one of these.

    Raises:
        ReadError: a file cannot be opened.
    """

    def __init__(self, reader: DirectReader, store: Store, threads: int, *, direct: bool) -> None:
        self._reader = reader
        self._store = store
        self._direct = direct
        self._lanes = _lanes(store)
        for _ in range(1, len(set(self._lanes.values()))):
            reader.add_lane(threads)
        self.files = [self._file(files) for files in store.sources]

    def use(self) -> tuple[Drive, ...]:
        """What each lane has read."""
        return tuple(
            Drive(
                tuple(place for place, number in self._lanes.items() if number == lane),
                reads,
                failed,
                nbytes,
            )
            for lane, (reads, failed, nbytes) in enumerate(self._reader.lanes)
        )

    def _file(self, files: Sequence[Source]) -> int:
        """One file for a layer: its own, or what stands for it."""
        if len(files) == 1 and files[0].directory == self._store.path and files[0].step == 1:
            return self._reader.open(files[0].path, direct=self._direct)
        opened = [
            self._reader.open(
                source.path,
                direct=self._direct,
                lane=self._lanes[source.directory],
                mend=self._mend(source),
            )
            for source in files
        ]
        entry = files[0].entry
        places = [
            [
                (index, source.offset(expert))
                for index, source in zip(opened, files, strict=True)
                if expert in source.experts
            ]
            for expert in range(len(entry.checksums))
        ]
        return self._reader.combine(entry.data_offset, entry.layout.record_bytes, places)

    def _mend(self, source: Source) -> Mend | None:
        if source.directory == self._store.path:
            return None
        path = self._store.path
        return Mend(
            f"run `flashmoe verify {path} --store-dir {source.directory}`",
            f"run the same `flashmoe spread` again, or copy {source.name} again",
        )


def lane_count(store: Store) -> int:
    """How many drives the records of a store lie on.

    Raises:
        ReadError: a directory is gone.
    """
    return len(set(_lanes(store).values()))


def _lanes(store: Store) -> dict[Path, int]:
    """The lane of each directory; the store's own shares that of another on its drive."""
    others = [place for place in store.directories if place != store.path]
    lanes = {place: lane for lane, place in enumerate(others)}
    if len(others) < len(store.directories):
        drive = _drive(store.path)
        shared = (lane for place, lane in lanes.items() if _drive(place) == drive)
        lanes[store.path] = next(shared, len(others))
    if len({_drive(place) for place in others}) < len(others):
        _log.info("some of the store's directories share a drive: together they are no quicker")
    return lanes


def _drive(place: Path) -> int:
    try:
        return place.stat().st_dev
    except OSError as error:
        raise ReadError(f"{place} is gone: {error.strerror}; mount its drive") from error

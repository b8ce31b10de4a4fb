"""The door to the native reader: checked reads of whole records, straight into slots.

Owns the checks of arguments and the words of a failed read. Does not own the destinations
(``slots``), which record goes where (``streamer``), where its copies lie (``drives``), or the
order of reads (``native/io.h``).

Invariant: ``wait`` returns only when every byte of the destination was read and matched its
checksum; anything else raises. That a copy failed and another was read instead is logged.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flashmoe._native import Reader, busy_seconds
from flashmoe.errors import ReadError
from flashmoe.quant import Array
from flashmoe.store.layout import ALIGNMENT

_OK, _OS_ERROR, _SHORT_READ, _CHECKSUM_MISMATCH, _OK_AFTER_FAILURE = range(5)

LOUD_FAILURES = 8
"""So many failed copies are warned of; a drive that went away would fail every record."""

_log = logging.getLogger(__name__)


class Urgency(IntEnum):
    """Which reads go first (``native/io.h``); guessed ones wait until the disk would be idle."""

    DEMANDED = 0
    HINTED = 1
    GUESSED = 2


class Mend(NamedTuple):
    """What to do about a damaged file: how to find out more, and how to put it right."""

    check: str
    restore: str


class _Failure(NamedTuple):
    """A read that failed: which file, where, and how."""

    file: int
    offset_bytes: int
    code: int
    detail: int


class _Request(NamedTuple):
    """What a message about a read must name."""

    file: int
    label: Callable[[], str]
    offset_bytes: int
    size_bytes: int
    checksum: int


class _Table(NamedTuple):
    """The records of a file, all of one size."""

    file: int
    label: Callable[[int], str]
    begin_bytes: int
    record_bytes: int
    checksums: Sequence[int]

    def request(self, record: int) -> _Request:
        offset = self.begin_bytes + record * self.record_bytes
        label, checksum = partial(self.label, record), self.checksums[record]
        return _Request(self.file, label, offset, self.record_bytes, checksum)


def busy_ms() -> float:
    """Time this thread has spent in native code so far: arithmetic, and waiting for reads."""
    return busy_seconds() * 1e3


class DirectReader:
    """Reads from a few files at once, ``threads`` requests deep.

    Files on other drives get lanes of their own, as deep as :meth:`add_lane` says. Safe to use
    from one thread at a time. As a context manager it closes itself. In a child forked later
    every call but ``close`` is a RuntimeError.
    """

    def __init__(self, threads: int) -> None:
        self._reader = Reader(threads)
        self._paths: list[Path] = []
        self._mends: list[Mend] = []
        self._tables: dict[int, _Table] = {}  # by file
        # By ticket: a request, or its file and the number of its record there.
        self._requests: dict[int, _Request | tuple[int, int]] = {}
        self._failures: dict[int, list[_Failure]] = {}  # by ticket
        self._warned = 0

    def __enter__(self) -> DirectReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_lane(self, threads: int) -> int:
        """Number of a new lane, for one more drive: a queue, and ``threads`` reads at a time.

        Lane 0 is there from the start.
        """
        return self._reader.add_lane(threads)

    def open(self, path: Path, *, direct: bool, lane: int = 0, mend: Mend | None = None) -> int:
        """Open a file of a store, to be read in a lane, and return its index.

        ``mend`` is what a message advises when a read of it fails.

        Raises:
            ReadError: the file cannot be opened.
        """
        mend = mend or Mend(f"run `flashmoe verify {path.parent}`", "convert the checkpoint again")
        try:
            index = self._reader.open(str(path), direct, lane)
        except OSError as error:
            raise ReadError(
                f"cannot open {path}: {error.strerror}; {mend.check}, and {mend.restore} "
                "if the file is gone"
            ) from error
        self._paths.append(path)
        self._mends.append(mend)
        return index

    def combine(
        self, begin_bytes: int, record_bytes: int, records: Sequence[Sequence[tuple[int, int]]]
    ) -> int:
        """Index of a file whose records lie in others, some perhaps in several.

        Record r, at ``begin_bytes + r * record_bytes``, is at each of ``records[r]``: (index of
        an open file, offset). Whichever drive is free first reads it; a copy that fails gives way
        to the next, and the read fails when all have.
        """
        index = self._reader.combine(begin_bytes, record_bytes, records)
        first = records[0][0][0]
        self._paths.append(self._paths[first])
        self._mends.append(self._mends[first])
        return index

    def is_direct(self, file: int) -> bool:
        """Whether all reads of a file bypass the page cache (some file systems refuse)."""
        return self._reader.is_direct(file)

    def submit(
        self,
        file: int,
        offset_bytes: int,
        destination: Array,
        checksum: int,
        *,
        label: Callable[[], str],
        demand: bool,
    ) -> int:
        """Start a read of exactly ``destination.nbytes`` bytes and return its ticket.

        ``destination`` is contiguous, writable uint8 whose address and size, like
        ``offset_bytes``, are multiples of 4,096; its bytes are undefined until ``wait`` returns.
        ``label`` is called to name the record in a message. Demanded reads go before hinted ones.

        Raises:
            ValueError: an argument that no correct caller passes.
        """
        try:
            ticket = self._reader.submit(file, offset_bytes, destination, checksum, demand)
        except (TypeError, ValueError):  # checked where it costs nothing; what follows says why
            _check_place(label, offset_bytes, destination)
            raise
        self._requests[ticket] = _Request(file, label, offset_bytes, destination.nbytes, checksum)
        return ticket

    def describe(
        self,
        file: int,
        begin_bytes: int,
        record_bytes: int,
        checksums: Sequence[int],
        label: Callable[[int], str],
    ) -> None:
        """Say what records a file has, so that their reads need only name them.

        Record r is ``record_bytes`` bytes at ``begin_bytes + r * record_bytes``.
        """
        self._tables[file] = _Table(file, label, begin_bytes, record_bytes, checksums)
        self._reader.describe(file, begin_bytes, record_bytes, checksums)

    def into(self, arena: Array, slot_bytes: int) -> None:
        """Let described records go into slots: slot s is at ``s * slot_bytes`` of ``arena``.

        The arena is as the destination of :meth:`submit`, and kept alive until :meth:`close`.
        """
        _check_destination(arena)
        self._reader.into(arena, slot_bytes)

    def submit_records(
        self, file: int, records: Sequence[int], slots: Sequence[int], urgency: Urgency
    ) -> range:
        """Start reading records of a described file, each into its slot; their tickets.

        Raises:
            ValueError: an argument that no correct caller passes; nothing is read then.
        """
        first = self._reader.submit_records(file, records, slots, urgency)
        tickets = range(first, first + len(records))
        self._requests.update(zip(tickets, zip(repeat(file), records), strict=False))
        return tickets

    def submit_idle(self, file: int, record: int, slot: int) -> int:
        """Start a read that waits until the disk has nothing else to do; the ticket.

        Thousands may wait; promoting or cancelling one of them costs no more for that.
        """
        ticket = self._reader.submit_idle_record(file, record, slot)
        self._requests[ticket] = file, record
        return ticket

    def promote_all(self, tickets: Sequence[int]) -> None:
        """Let reads that have not started go before every hinted one, in this order."""
        self._reader.promote_all(tickets)

    def cancel(self, ticket: int) -> bool:
        """Whether the read had not started: then it never will, and the ticket is forgotten.

        Otherwise the ticket is still to be waited for before its destination is used again.
        """
        cancelled = self._reader.cancel(ticket)
        if cancelled:
            del self._requests[ticket]
        return cancelled

    def done(self, ticket: int) -> bool:
        """Whether ``wait`` would return, or raise, at once."""
        return self._reader.done(ticket)

    def wait(self, ticket: int) -> None:
        """Wait for a read to finish, then forget its ticket, whatever came of it.

        Raises:
            ReadError: the read failed, was short, or brought bytes of another checksum.
        """
        error = self._landed(ticket, *self._reader.wait(ticket))
        if error is not None:
            raise error

    def collect(
        self, tickets: Sequence[int], *, block: bool
    ) -> tuple[list[int], list[tuple[int, ReadError]]]:
        """Those of some reads that have finished; forgets their tickets.

        The good ones in that order, those last that a failed copy preceded; and the others with
        what was wrong, which is not raised, so that one read that failed does not hide others.
        With ``block`` it waits until there is one.
        """
        good, others = self._reader.collect(tickets, block)
        for ticket in good:
            del self._requests[ticket]
        refused = []
        for ticket, code, detail in others:
            error = self._landed(ticket, code, detail)
            if error is None:
                good.append(ticket)
            else:
                refused.append((ticket, error))
        return good, refused

    def wait_any(self, tickets: Sequence[int]) -> int:
        """The ticket among ``tickets`` that finished first, waiting until one has.

        The ticket is still to be passed to ``wait``, which tells whether the read succeeded.
        """
        return self._reader.wait_any(tickets)

    def drain(self) -> None:
        """Drop the reads that have not started, wait for the others, and forget every ticket.

        Also those whose number its caller never got to know.
        """
        self._reader.drain()
        self._requests.clear()
        self._failures.clear()

    @property
    def bytes_read(self) -> int:
        """Bytes the system delivered so far, those of failed reads included."""
        return self._reader.bytes_read

    @property
    def lanes(self) -> list[tuple[int, int, int]]:
        """What each lane has done: (reads that ended, failed ones of them, bytes delivered)."""
        return self._reader.lanes

    def close(self) -> None:
        """Drop the reads that have not started and end the threads; repeating it is fine.

        A dropped read that is still waited for raises ReadError.
        """
        self._reader.close()

    def _landed(self, ticket: int, code: int, detail: int) -> ReadError | None:
        """What was wrong with a read; a copy that failed before another was read is logged."""
        found = self._requests.pop(ticket)
        if code == _OK:
            return None
        if isinstance(found, _Request):
            request = found
        else:
            file, record = found
            request = self._tables[file].request(record)
        for other, file, offset_bytes, *how in self._reader.failures():
            failure = _Failure(file, offset_bytes, *how)
            self._failures.setdefault(other, []).append(failure)
        failures = self._failures.pop(ticket, [])
        if code == _OK_AFTER_FAILURE:
            for failure in failures:
                self._warn(self._explain(request, failure))
            return None
        closed = code == _OS_ERROR and detail == errno.ECANCELED
        if not failures or closed:
            failures.append(_Failure(request.file, request.offset_bytes, code, detail))
        what = "; and ".join(self._explain(request, one) for one in failures)
        return ReadError(what)

    def _warn(self, what: str) -> None:
        self._warned += 1
        if self._warned <= LOUD_FAILURES:
            _log.warning("%s; another copy was read instead", what)
        if self._warned == LOUD_FAILURES:
            _log.warning("further copies that cannot be read are counted, but not told")

    def _explain(self, request: _Request, failure: _Failure) -> str:
        path, (check, restore) = self._paths[failure.file], self._mends[failure.file]
        where = f"{path}: {request.label()} at byte {failure.offset_bytes}"
        if failure.code == _OS_ERROR and failure.detail == errno.ECANCELED:
            return f"{where} was not read: its reader was closed first; open the store again"
        if failure.code == _OS_ERROR:
            return f"{where} could not be read: {os.strerror(failure.detail)}; {check}"
        if failure.code == _SHORT_READ:
            return (
                f"{where} is cut short: {failure.detail} of {request.size_bytes} bytes are there; "
                f"{check}, then {restore}"
            )
        return (
            f"{where} is damaged: its checksum is {failure.detail:016x}, the manifest says "
            f"{request.checksum:016x}; {check}, then {restore}"
        )


def _check_place(label: Callable[[], str], offset_bytes: int, destination: Array) -> None:
    _check_destination(destination)
    if offset_bytes < 0 or offset_bytes % ALIGNMENT:
        raise ValueError(f"{label()}: offset {offset_bytes} is not a multiple of {ALIGNMENT}")


def _check_destination(destination: Array) -> None:
    if destination.dtype != np.uint8 or not destination.flags.c_contiguous:
        raise ValueError(f"a read goes into contiguous uint8, not {destination.dtype}")
    if not destination.flags.writeable:
        raise ValueError("a read goes into writable memory")
    if destination.nbytes == 0 or destination.nbytes % ALIGNMENT:
        raise ValueError(f"{destination.nbytes} bytes is not a multiple of {ALIGNMENT}")
    if destination.ctypes.data % ALIGNMENT:
        raise ValueError(f"address {destination.ctypes.data:#x} is not a multiple of {ALIGNMENT}")

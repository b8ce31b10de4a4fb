"""The door to the native reader: checked reads of whole records, straight into slots.

Owns the checks of arguments and the words of a failed read. Does not own the destinations
(``slots``), which record goes where (``streamer``), or the order of reads (``native/io.h``).

Invariant: ``wait`` returns only when every byte of the destination was read and matched its
checksum; anything else raises.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flashmoe._native import Reader, busy_seconds
from flashmoe.errors import ReadError
from flashmoe.quant import Array
from flashmoe.store.layout import ALIGNMENT

_OK, _OS_ERROR, _SHORT_READ, _CHECKSUM_MISMATCH = range(4)


class Landed(NamedTuple):
    """A read that has finished, and what was wrong with it, if anything was."""

    ticket: int
    error: ReadError | None


class _Request(NamedTuple):
    """What a message about a read must name."""

    file: int
    label: Callable[[], str]
    offset_bytes: int
    size_bytes: int
    checksum: int


def busy_ms() -> float:
    """Time this thread has spent in native code so far: arithmetic, and waiting for reads."""
    return busy_seconds() * 1e3


class DirectReader:
    """Reads from a few files at once, ``threads`` requests deep.

    Safe to use from one thread at a time. As a context manager it closes itself. In a child forked
    later every call but ``close`` is a RuntimeError.
    """

    def __init__(self, threads: int) -> None:
        self._reader = Reader(threads)
        self._paths: list[Path] = []
        self._requests: dict[int, _Request] = {}

    def __enter__(self) -> DirectReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, path: Path, *, direct: bool) -> int:
        """Open a file of a store and return its index.

        Raises:
            ReadError: the file cannot be opened.
        """
        try:
            index = self._reader.open(str(path), direct)
        except OSError as error:
            raise ReadError(
                f"cannot open {path}: {error.strerror}; {_verify(path)}, and convert the "
                "checkpoint again if the file is gone"
            ) from error
        self._paths.append(path)
        return index

    def is_direct(self, file: int) -> bool:
        """Whether reads of a file bypass the page cache (some file systems refuse)."""
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

    def submit_all(
        self,
        file: int,
        offsets_bytes: Sequence[int],
        destinations: Sequence[Array],
        checksums: Sequence[int],
        *,
        labels: Sequence[Callable[[], str]],
        demand: bool,
    ) -> list[int]:
        """:meth:`submit` for several reads of one file, in this order; their tickets.

        Raises:
            ValueError: an argument that no correct caller passes; :meth:`drain` then ends the
                reads before it.
        """
        reads = (offsets_bytes, destinations, checksums)
        try:
            tickets = self._reader.submit_all(file, *reads, demand)
        except (TypeError, ValueError):
            for label, offset, destination in zip(labels, offsets_bytes, destinations, strict=True):
                _check_place(label, offset, destination)
            raise
        requests = self._requests
        for ticket, label, (offset, destination, checksum) in zip(
            tickets, labels, zip(*reads, strict=True), strict=True
        ):
            requests[ticket] = _Request(file, label, offset, destination.nbytes, checksum)
        return tickets

    def submit_idle(
        self,
        file: int,
        offset_bytes: int,
        destination: Array,
        checksum: int,
        *,
        label: Callable[[], str],
    ) -> int:
        """The same for a read that waits until the disk has nothing else to do.

        Thousands may wait; promoting or cancelling one of them costs no more for that.
        """
        ticket = self._reader.submit_idle(file, offset_bytes, destination, checksum)
        self._requests[ticket] = _Request(file, label, offset_bytes, destination.nbytes, checksum)
        return ticket

    def promote(self, ticket: int) -> None:
        """Let a hinted or idle read that has not started go before every hinted one."""
        self._reader.promote(ticket)

    def promote_all(self, tickets: Sequence[int]) -> None:
        """:meth:`promote` for each, in this order."""
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
        error = self._landed(ticket, *self._reader.wait(ticket)).error
        if error is not None:
            raise error

    def collect(self, tickets: Sequence[int], *, block: bool) -> list[Landed]:
        """Those of some reads that have finished, in that order; forgets their tickets.

        With ``block`` it waits until there is one. An error is not raised but told, so that
        one read that failed does not hide others.
        """
        return [self._landed(*landed) for landed in self._reader.collect(tickets, block)]

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

    @property
    def bytes_read(self) -> int:
        """Bytes the system delivered so far, those of failed reads included."""
        return self._reader.bytes_read

    def close(self) -> None:
        """Drop the reads that have not started and end the threads; repeating it is fine.

        A dropped read that is still waited for raises ReadError.
        """
        self._reader.close()

    def _landed(self, ticket: int, code: int, detail: int) -> Landed:
        request = self._requests.pop(ticket)
        error = None if code == _OK else ReadError(self._explain(request, code, detail))
        return Landed(ticket, error)

    def _explain(self, request: _Request, code: int, detail: int) -> str:
        path = self._paths[request.file]
        where = f"{path}: {request.label()} at byte {request.offset_bytes}"
        if code == _OS_ERROR and detail == errno.ECANCELED:
            return f"{where} was not read: its reader was closed first; open the store again"
        if code == _OS_ERROR:
            return f"{where} could not be read: {os.strerror(detail)}; {_verify(path)}"
        if code == _SHORT_READ:
            return (
                f"{where} is cut short: {detail} of {request.size_bytes} bytes are there; "
                f"{_verify(path)}, then convert the checkpoint again"
            )
        return (
            f"{where} is damaged: its checksum is {detail:016x}, the manifest says "
            f"{request.checksum:016x}; {_verify(path)}, then convert the checkpoint again"
        )


def _verify(path: Path) -> str:
    return f"run `flashmoe verify {path.parent}`"


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

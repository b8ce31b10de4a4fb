"""Copies between slots in RAM and slots on the GPU, beside its arithmetic.

Owns their stream and their tickets; which record goes where, and when, is ``stream.tiers``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from flashmoe.errors import DeviceError
from flashmoe.kernels.cuda.device import DeviceArray
from flashmoe.quant import Array

if TYPE_CHECKING:
    from flashmoe.kernels.cuda.gpu import Gpu


class Mover:
    """Copies of records into slots and back, in order on a stream of their own
    (``stream.tiers.mover``).

    It calls the driver by handles, since a token makes hundreds of copies: CuPy's own stream and
    device contexts take four times as long as a call.
    """

    def __init__(self, gpu: Gpu, cupy: Any, arena: DeviceArray, slot_bytes: int) -> None:
        self._gpu, self._cupy, self._arena, self._slot_bytes = gpu, cupy, arena, slot_bytes
        self._runtime, self._start = cupy.cuda.runtime, gpu.address(arena)
        self._errors = cupy.cuda.runtime.CUDARuntimeError
        with gpu.here():
            self._stream = cupy.cuda.Stream(non_blocking=True)
        self._calls = self._runtime.memcpyAsync, self._stream.ptr
        self._tickets = count()
        self._events: dict[int, Any] = {}
        self._spare: list[Any] = []

    def copy(self, slot: int, record: Array) -> int:
        """Start copying a record, uint8 (record_bytes,), to the beginning of a slot; the ticket."""
        return self.copy_all((slot,), (record,))

    def copy_all(self, slots: Sequence[int], records: Sequence[Array]) -> int:
        """The same of several, with one ticket."""
        start, kind = self._start, self._runtime.memcpyHostToDevice
        return self._moved(
            [
                (start + slot * self._slot_bytes, _address(record), record.nbytes, kind)
                for slot, record in zip(slots, records, strict=True)
            ]
        )

    def fetch(self, slot: int, record: Array) -> int:
        """Start copying the beginning of a slot into a record; the ticket."""
        source, kind = self._start + slot * self._slot_bytes, self._runtime.memcpyDeviceToHost
        return self._moved([(_address(record), source, record.nbytes, kind)])

    def _moved(self, copies: list[tuple[int, int, int, int]]) -> int:
        """Copies to, from, of so many bytes, of a kind; the ticket of all."""
        event, move, stream = self._spare.pop() if self._spare else self._event(), *self._calls
        try:
            for copy in copies:
                move(*copy, stream)
            self._runtime.eventRecord(event.ptr, stream)
        except self._errors as error:
            raise DeviceError(f"{self._gpu.name} reports: {error}") from error
        ticket = next(self._tickets)
        self._events[ticket] = event
        return ticket

    def _event(self) -> Any:
        with self._gpu.here():
            return self._cupy.cuda.Event(disable_timing=True)

    def done(self, ticket: int) -> bool:
        """Whether :meth:`wait` would return, or raise, at once."""
        with self._gpu.here():
            return bool(self._events[ticket].done)

    def wait(self, ticket: int) -> None:
        """Wait until a copy has ended; its ticket ends with that.

        Raises:
            DeviceError: the slot does not hold the record.
        """
        event = self._events.pop(ticket)
        try:
            self._runtime.eventSynchronize(event.ptr)
        except self._errors as error:
            raise DeviceError(f"{self._gpu.name} reports: {error}") from error
        self._spare.append(event)

    def fence(self) -> None:
        """Copies from now on begin after all that was launched by now."""
        with self._gpu.here():
            self._stream.wait_event(self._gpu.event())

    def gate(self, ticket: int) -> None:
        """What is launched from now on begins after this copy has ended."""
        self._gpu.follow(self._events[ticket])

    def drain(self) -> None:
        """Wait until no copy is under way, whatever came of them; every ticket has ended then."""
        self._events.clear()
        with self._gpu.here():
            self._stream.synchronize()


def _address(record: Array) -> int:
    address: int = record.__array_interface__["data"][0]
    return address

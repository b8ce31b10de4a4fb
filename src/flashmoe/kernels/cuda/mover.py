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
        self._handle = self._stream.ptr
        self._tickets = count()
        self._events: dict[int, Any] = {}
        self._spare: list[Any] = []

    def copy(self, slots: Sequence[int], memory: Array, starts: Sequence[int], nbytes: int) -> int:
        """Start copying records, spans of memory, to the beginnings of slots; the ticket of all."""
        arena, slot_bytes, kind = self._start, self._slot_bytes, self._runtime.memcpyHostToDevice
        here = _address(memory)
        places = zip(slots, starts, strict=True)
        return self._moved(
            [(arena + slot * slot_bytes, here + start, nbytes, kind) for slot, start in places]
        )

    def fetch(self, slot: int, record: Array) -> int:
        """Start copying the beginning of a slot into a record; the ticket."""
        source, kind = self._start + slot * self._slot_bytes, self._runtime.memcpyDeviceToHost
        return self._moved([(_address(record), source, record.nbytes, kind)])

    def _moved(self, copies: list[tuple[int, int, int, int]]) -> int:
        """Copies to, from, of so many bytes, of a kind; the ticket of all."""
        event = self._spare.pop() if self._spare else self._event()
        move, stream = self._runtime.memcpyAsync, self._handle
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


def _address(memory: Array) -> int:
    address: int = memory.__array_interface__["data"][0]
    return address

"""The way of records into the memory of a device: what a tier asks of whoever moves them.

Owns the interface alone. A *slot* is a place in the device's arena, named by its number: the
record in it begins at ``slot * slot_bytes``, and there is no view of it on this side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flashmoe.quant import Array


class Mover(Protocol):
    """Copies of records into slots of the device, in an order of their own beside its arithmetic.

    Every ticket is waited for once, unless :meth:`drain` ends it. Copies may end out of order.
    """

    def copy(self, slots: Sequence[int], memory: Array, starts: Sequence[int], nbytes: int) -> int:
        """Start copying records to the beginnings of slots; the ticket of all. Each is ``nbytes``
        of memory, uint8, from one of ``starts`` on, and goes to the slot in the same place.

        The caller keeps the records as they are, and gives nobody the slots, until the copy has
        ended. It does not wait for what the device computes, but see :meth:`fence`.

        Raises:
            DeviceError: one could not be started. Of those before it nobody need know.
        """

    def fetch(self, slot: int, record: Array) -> int:
        """Start copying the beginning of a slot into a record, uint8 (record_bytes,); the ticket.

        Copies to that slot that are asked for later begin only when it has ended, and the caller
        leaves the record alone until then.

        Raises:
            DeviceError: it could not be started.
        """

    def done(self, ticket: int) -> bool:
        """Whether :meth:`wait` would return, or raise, at once."""

    def wait(self, ticket: int) -> None:
        """Wait until a copy has ended; its ticket ends with that.

        Raises:
            DeviceError: the bytes are not where they should be.
        """

    def fence(self) -> None:
        """Copies from now on begin after all that the device has been given to compute by now.

        Not while the device waits for the host in the middle of that: both would wait for ever.
        """

    def gate(self, ticket: int) -> None:
        """What the device is given to compute from now on begins after this copy has ended, well or
        not: :meth:`wait` tells which, and must not have been called."""

    def drain(self) -> None:
        """Wait until no copy is under way, whatever came of them; every ticket has ended then."""

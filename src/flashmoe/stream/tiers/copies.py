"""Copies under way from RAM to the device, until the host knows that they have ended.

Owns which there are, and what they have cost. Does not own the slots that they go to (the tier's
``cache``) or the bytes that they come from (``streamer``).

Invariant: a key in ``flying`` has one copy under way and no entry in the table.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from flashmoe.errors import DeviceError
from flashmoe.quant import Array
from flashmoe.stream.cache import Key
from flashmoe.stream.counters import Counters
from flashmoe.stream.tiers.mover import Mover
from flashmoe.stream.tiers.table import Table


class Copies:
    """Through ``mover``; what has arrived is put into ``table``."""

    def __init__(self, mover: Mover, table: Table, counters: Counters) -> None:
        self.flying: dict[Key, tuple[int, int]] = {}  # ticket and slot, the oldest first
        self._mover = mover
        self._table = table
        self._counters = counters

    def start(self, key: Key, slot: int, record: Array) -> None:
        """Copy the record of an expert into the slot that it was given.

        Raises:
            DeviceError: the device refuses.
        """
        self.flying[key] = self._mover.copy(slot, record), slot
        self._counters.copied_bytes += record.nbytes

    def done(self, key: Key) -> bool:
        """Whether :meth:`finish` would not wait."""
        return self._mover.done(self.flying[key][0])

    def finish(self, key: Key) -> None:
        """Wait for a copy; its expert is in the table then.

        Raises:
            DeviceError: it failed, and the expert is not.
        """
        ticket, slot = self.flying.pop(key)
        began = time.perf_counter()
        self._mover.wait(ticket)
        self._counters.copy_wait_ms += (time.perf_counter() - began) * 1e3
        self._table.put(key, slot)

    def finish_all(self, keys: Iterable[Key]) -> None:
        """Wait for copies, for all of them even where some fail.

        Raises:
            DeviceError: the first of those that failed.
        """
        failed = None
        for key in list(keys):
            try:
                self.finish(key)
            except DeviceError as error:
                failed = failed or error
        if failed is not None:
            raise failed

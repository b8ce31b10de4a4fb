"""Experts that leave VRAM for a free slot in RAM, so that no expert need be in both.

Owns the copies under way from the device. Does not own who leaves, nor the slots in RAM
(``stream.lending``).

Invariant: an expert that descends is in neither cache: its slot in RAM is reserved until its bytes
are there. Where no slot is free it is simply gone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from flashmoe.errors import DeviceError
from flashmoe.stream.cache import Key
from flashmoe.stream.lending import Lending
from flashmoe.stream.tiers.mover import Mover

_log = logging.getLogger(__name__)


class Descent:
    """From the slots of ``mover``'s device to free ones of ``lending``."""

    def __init__(self, mover: Mover, lending: Lending) -> None:
        self._mover = mover
        self._lending = lending
        self._tickets: dict[Key, int] = {}  # the oldest first
        self._leaving: dict[int, Key] = {}  # by the slots that they leave

    def __len__(self) -> int:
        return len(self._tickets)

    def __contains__(self, key: Key) -> bool:
        return key in self._tickets

    def start(self, key: Key, slot: int) -> None:
        """An expert is about to lose its slot of the device: what comes there waits for this."""
        record = self._lending.reserve(key)
        if record is None:
            return
        try:
            self._tickets[key] = self._mover.fetch(slot, record)
        except DeviceError as error:
            self._abandon(key, error)
        else:
            self._leaving[slot] = key

    def over(self, slot: int, *, wait: bool) -> bool:
        """Whether nothing is copied from a slot any more; or wait until it is so."""
        key = self._leaving.get(slot)
        if key is not None and key in self._tickets:
            if not wait and not self._mover.done(self._tickets[key]):
                return False
            self._finish(key)
        self._leaving.pop(slot, None)
        return True

    def land(self, *, all_of_them: bool = False) -> None:
        """Take the copies that have ended, the oldest first, or wait for all of them."""
        while self._tickets:
            key = next(iter(self._tickets))
            if not all_of_them and not self._mover.done(self._tickets[key]):
                return
            self._finish(key)

    def finish(self, keys: Iterable[Key]) -> None:
        """Wait for these, if they descend."""
        for key in keys:
            if key in self._tickets:
                self._finish(key)

    def _finish(self, key: Key) -> None:
        try:
            self._mover.wait(self._tickets.pop(key))
        except DeviceError as error:
            self._abandon(key, error)
        else:
            self._lending.place(key)

    def _abandon(self, key: Key, error: DeviceError) -> None:
        _log.debug("an expert that left VRAM is lost to RAM: %s", error)
        self._lending.unreserve(key)

"""A device of numpy: copies come late and out of step, and what it computes it reads late too."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flashmoe.errors import DeviceError
from flashmoe.quant import Array


@dataclass
class _Copy:
    slot: int
    record: Array
    state: str
    up: bool = True  # to the slot


class ScriptedDevice:
    """In place of a graphics processor: copies start and end whenever ``dice`` says, or break.

    A slot is spoilt when a copy to it is asked for and again when it starts; the bytes are taken
    from the host at its very end. What the device is given to compute (:meth:`compute`) reads its
    slots at some time after that, at the latest when a fence or the caller (:meth:`finish`) says.
    So whoever gives a slot, or a record's memory, away too early is found out.
    """

    def __init__(
        self, slots: int, slot_bytes: int, dice: random.Random, failing: float = 0.0
    ) -> None:
        self.dice = dice
        self.failing = failing
        self.arena = np.full((slots, slot_bytes), 0xEE, np.uint8)
        self.copies: dict[int, _Copy] = {}
        self.copied: list[int] = []  # slots, in the order of asking
        self.fences = self.fetches = 0
        self.running: Any = None  # what goes on beside the copies, with a ``step``
        self._last = 0
        self._work: list[list[tuple[int, bytes]]] = []

    def copy(self, slot: int, record: Array) -> int:
        assert 0 <= slot < len(self.arena)
        assert record.dtype == np.uint8 and record.ndim == 1 and not record.flags.writeable
        for copy in self.copies.values():
            assert not copy.up or copy.slot != slot, "two copies to one slot"
            assert not np.shares_memory(copy.record, record) or copy.up, "it is not there yet"
        if self.dice.random() < self.failing / 2:
            raise DeviceError("the device refuses")
        if not self._fetched(slot):
            self.arena[slot] = 0xCC
        self._last += 1
        self.copies[self._last] = _Copy(slot, record, "queued")
        self.copied.append(slot)
        self._progress()
        return self._last

    def fetch(self, slot: int, record: Array) -> int:
        assert 0 <= slot < len(self.arena)
        assert record.dtype == np.uint8 and record.ndim == 1 and record.flags.writeable
        for copy in self.copies.values():
            assert not np.shares_memory(copy.record, record), "its bytes may still be in use"
            assert copy.slot != slot or copy.state in ("good", "bad"), "what is it that is in there"
        if self.dice.random() < self.failing / 2:
            raise DeviceError("the device refuses")
        record[:] = 0xAA
        self._last += 1
        self.copies[self._last] = _Copy(slot, record, "queued", up=False)
        self.fetches += 1
        self._progress()
        return self._last

    def _fetched(self, slot: int) -> bool:
        """Whether a slot is still being read."""
        reads = (copy for copy in self.copies.values() if copy.slot == slot and not copy.up)
        return any(copy.state not in ("good", "bad") for copy in reads)

    def done(self, ticket: int) -> bool:
        self._progress()
        return self.copies[ticket].state in ("good", "bad")

    def wait(self, ticket: int) -> None:
        self._progress()
        while self.copies[ticket].state not in ("good", "bad"):
            self._advance(self.copies[self.dice.choice(list(self.copies))])
        if self.copies.pop(ticket).state == "bad":
            raise DeviceError("the device has lost a copy")

    def fence(self) -> None:
        self.fences += 1
        self.finish()

    def drain(self) -> None:
        self.finish()
        while any(copy.state not in ("good", "bad") for copy in self.copies.values()):
            for copy in self.copies.values():
                self._advance(copy)
        self.copies.clear()

    def compute(self, uses: Sequence[tuple[int, bytes]]) -> None:
        """Use slots later, each of which must hold these bytes then."""
        self._work.append(list(uses))
        self._progress()

    def finish(self) -> None:
        """All that was given to compute is over."""
        while self._work:
            self._use()

    def _use(self) -> None:
        for slot, record in self._work.pop(0):
            assert self.arena[slot, : len(record)].tobytes() == record, "a slot is not what it was"

    def pass_time(self) -> None:
        """Some of it."""
        for _ in range(self.dice.choice((0, 0, 1, 5, 30))):
            self._progress()

    def _progress(self) -> None:
        """Time passes."""
        if self.running is not None and self.dice.random() < 0.5:
            self.running.step()
        for copy in list(self.copies.values()):
            if self.dice.random() < 0.4:
                self._advance(copy)
        if self._work and self.dice.random() < 0.2:
            self._use()

    def _advance(self, copy: _Copy) -> None:
        if copy.up and self._fetched(copy.slot):
            return
        if copy.state == "queued":
            copy.state = "started"
            (self.arena[copy.slot] if copy.up else copy.record)[:] = 0xDD
        elif copy.state == "started":
            copy.state = "bad" if self.dice.random() < self.failing else "good"
            place = self.arena[copy.slot, : copy.record.size]
            if copy.state == "good" and copy.up:
                place[:] = copy.record
            elif copy.state == "good":
                copy.record[:] = place

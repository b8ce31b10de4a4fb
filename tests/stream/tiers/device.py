"""A device of numpy: copies come late and out of step, and what it computes it reads late too."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flashmoe.errors import DeviceError
from flashmoe.quant import Array

Use = tuple[int, bytes]


@dataclass
class _Copy:
    parts: list[tuple[int, Array]]  # slots and records
    after: int  # so much of the work comes first
    state: str = "queued"
    up: bool = True  # to the slots
    gate: int | None = None  # where in the work it is waited for
    doomed: bool = False

    @property
    def over(self) -> bool:
        return self.state in ("good", "bad")


class ScriptedDevice:
    """In place of a graphics processor: copies start and end whenever ``dice`` says, or break.

    What it is given to compute (:meth:`compute`) reads its slots at some time after that, in
    order; work behind a gate when that copy has ended, and copies behind a fence when the work
    before it is over: nothing else keeps it from anything. A slot is spoilt as soon as a copy to
    it may start, and the bytes are taken from the host at its very end. So whoever gives a slot, or
    a record's memory, away too early is found out, and so is who computes too early.
    """

    def __init__(
        self, slots: int, slot_bytes: int, dice: random.Random, failing: float = 0.0
    ) -> None:
        self.dice = dice
        self.failing = failing
        self.arena = np.full((slots, slot_bytes), 0xEE, np.uint8)
        self.copies: dict[int, _Copy] = {}
        self.copied: list[int] = []  # slots, in the order of asking
        self.fences = self.fetches = self.waits = 0
        self.lost = 0  # copies that went wrong, as the host was told
        self.running: Any = None  # what goes on beside the copies, with a ``step``
        self._last = 0
        self._work: list[list[Use] | _Copy] = []
        self._done = self._fence = 0  # of the work
        self._spoilt: set[int] = set()  # by copies that went wrong

    def copy(self, slots: Sequence[int], memory: Array, starts: Sequence[int], nbytes: int) -> int:
        assert slots and len(set(slots)) == len(slots)
        records = [memory[start : start + nbytes] for start in starts]
        for slot, record in zip(slots, records, strict=True):
            assert 0 <= slot < len(self.arena)
            assert record.dtype == np.uint8 and record.shape == (nbytes,)
            assert not record.flags.writeable
            for copy in self.copies.values():
                self._check_order(copy, slot)
                shared = any(np.shares_memory(other, record) for _, other in copy.parts)
                assert not shared or copy.up, "it is not there yet"
        if self.dice.random() < self.failing / 2:
            raise DeviceError("the device refuses")
        self.copied += slots
        return self._asked(_Copy(list(zip(slots, records, strict=True)), self._fence))

    def fetch(self, slot: int, record: Array) -> int:
        assert 0 <= slot < len(self.arena)
        assert record.dtype == np.uint8 and record.ndim == 1 and record.flags.writeable
        for copy in self.copies.values():
            shared = any(np.shares_memory(other, record) for _, other in copy.parts)
            assert not shared, "its bytes may still be in use"
            assert slot not in dict(copy.parts) or copy.over, "what is it that is in there"
        if self.dice.random() < self.failing / 2:
            raise DeviceError("the device refuses")
        record[:] = 0xAA
        self.fetches += 1
        return self._asked(_Copy([(slot, record)], self._fence, up=False))

    def _check_order(self, copy: _Copy, slot: int) -> None:
        """A slot is copied to again behind what was computed with it before."""
        if copy.up and slot in dict(copy.parts) and not copy.over:
            assert copy.gate is not None and copy.gate < self._fence, "two copies to one slot"

    def _asked(self, copy: _Copy) -> int:
        self._last += 1
        self.copies[self._last] = copy
        self._progress()
        return self._last

    def _fetched(self, slot: int, by: _Copy) -> bool:
        """Whether a slot is still being read by a copy that was asked for before."""
        for copy in self.copies.values():
            if copy is by:
                break
            if not copy.up and not copy.over and slot in dict(copy.parts):
                return True
        return False

    def done(self, ticket: int) -> bool:
        self._progress()
        return self.copies[ticket].over

    def wait(self, ticket: int) -> None:
        self.waits += not self.copies[ticket].over
        self._progress()
        while not self.copies[ticket].over:
            self._advance(self.dice.choice(list(self.copies.values())))
            self._use()
        if self.copies.pop(ticket).state == "bad":
            self.lost += 1
            raise DeviceError("the device has lost a copy")

    def fence(self) -> None:
        self.fences += 1
        self._fence = self._done + len(self._work)

    def gate(self, ticket: int) -> None:
        copy = self.copies[ticket]
        copy.gate = self._done + len(self._work)
        self._work.append(copy)

    def drain(self) -> None:
        while not all(copy.over for copy in self.copies.values()):
            for copy in self.copies.values():
                self._advance(copy)
            self._use()
        self.copies.clear()

    def compute(self, uses: Sequence[Use]) -> None:
        """Use slots later, each of which must hold these bytes then."""
        self._work.append(list(uses))
        self._progress()

    def finish(self) -> None:
        """All that was given to compute is over."""
        while self._work:
            for copy in list(self.copies.values()):
                self._advance(copy)
            self._use()

    def _use(self) -> None:
        """Go on with the work, where nothing holds it up."""
        if not self._work:
            return
        now = self._work[0]
        if isinstance(now, _Copy):
            if not now.over:
                return
        else:
            for slot, record in now:
                found = self.arena[slot, : len(record)].tobytes()
                assert found == record or slot in self._spoilt, "a slot is not what it was"
        del self._work[0]
        self._done += 1

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
        if self.dice.random() < 0.2:
            self._use()

    def _advance(self, copy: _Copy) -> None:
        if copy.after > self._done or (
            copy.up and any(self._fetched(slot, copy) for slot, _ in copy.parts)
        ):
            return
        if copy.state == "queued":
            copy.state = "started"
            for slot, record in copy.parts:
                (self.arena[slot] if copy.up else record)[:] = 0xDD
        elif copy.state == "started":
            bad = copy.doomed or self.dice.random() < self.failing
            copy.state = "bad" if bad else "good"
            slots = dict(copy.parts)
            if copy.up:
                self._spoilt.difference_update(slots)
            if copy.state == "bad":
                self._spoilt.update(slots if copy.up else ())
                return
            for slot, record in copy.parts:
                place = self.arena[slot, : record.size]
                if copy.up:
                    place[:] = record
                else:
                    record[:] = place

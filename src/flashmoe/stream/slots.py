"""The slots: fixed, page-aligned places in memory, one record each, and what is in them.

Owns one arena and the state of every slot. Does not own which expert is where (``cache``) or the
reads (``streamer``). A page of the arena, 2 MiB where the system has such pages, takes memory
once it is written, or ahead of that (``backing``), and never beyond the size planned. It goes back
to the system with the last view of it once the slots are closed.

            load               land              hold
    FREE ----------> LOADING ----------> READY ----------> HELD
      ^                 |                |   ^               |
      |      fail       |     evict      |   |    release    |
      +-----------------+----------------+   +---------------+

Invariant: the bytes of a slot change only while it is LOADING, and only by the one read that it
is loading for; whoever computes with them holds it. Any other transition is a bug.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from enum import StrEnum

import numpy as np

from flashmoe.arena import arena, back, discard
from flashmoe.errors import BudgetError
from flashmoe.quant import Array, Expert
from flashmoe.store.layout import ALIGNMENT, RecordLayout


class State(StrEnum):
    """What a slot is doing."""

    FREE = "free"
    LOADING = "loading"
    READY = "ready"
    HELD = "held"


_LEGAL = {
    (State.FREE, State.LOADING),
    (State.LOADING, State.READY),
    (State.LOADING, State.FREE),
    (State.READY, State.HELD),
    (State.READY, State.FREE),
    (State.HELD, State.READY),
}


class Slots:
    """``count`` slots of ``slot_bytes`` bytes, a multiple of 4,096.

    Raises:
        BudgetError: the system does not grant the address space.
    """

    def __init__(self, count: int, slot_bytes: int) -> None:
        if count < 1 or slot_bytes < 1 or slot_bytes % ALIGNMENT:
            raise ValueError(f"{count} slots of {slot_bytes} bytes cannot take aligned reads")
        self.count = count
        self.slot_bytes = slot_bytes
        memory = _memory(count * slot_bytes)
        self._memory: memoryview | None = memory
        self._arena: Array | None = np.frombuffer(memory, np.uint8)
        self._frozen: Array | None = np.frombuffer(memory.toreadonly(), np.uint8)
        self._states = [State.FREE] * count
        self._experts: list[tuple[RecordLayout, Expert] | None] = [None] * count
        self._discarded = set[int]()
        self.kept = False
        """Whether memory goes back to the system all at once or not at all (:meth:`keep`)."""
        self._backed = threading.Lock()  # so that what is discarded is not backed again

    @property
    def arena(self) -> Array:
        """All slots, one after the other: writable, uint8, page-aligned, shared memory."""
        if self._arena is None:
            raise RuntimeError("the slots are closed")
        return self._arena

    @property
    def frozen_arena(self) -> Array:
        """The same memory, but nobody can write through it."""
        if self._frozen is None:
            raise RuntimeError("the slots are closed")
        return self._frozen

    def keep(self) -> Array:
        """The arena, none of whose memory goes back to the system from now on before all of it
        does: a device copies from it."""
        self.kept = True
        return self.arena

    def view(self, slot: int, nbytes: int) -> Array:
        """The first ``nbytes`` bytes of a slot: writable, uint8, page-aligned, shared memory."""
        return self._part(self._arena, slot, nbytes)

    def frozen(self, slot: int, nbytes: int) -> Array:
        """The same memory as :meth:`view`, but nobody can write through it."""
        return self._part(self._frozen, slot, nbytes)

    def expert(self, slot: int, layout: RecordLayout) -> Expert:
        """The expert in a slot, as frozen views of its bytes.

        They are kept for the next expert in this slot, if that has the same layout object.
        """
        made = self._experts[slot]
        if made is None or made[0] is not layout:
            made = (layout, layout.expert(self.frozen(slot, layout.record_bytes)))
            self._experts[slot] = made
        return made[1]

    def _part(self, arena: Array | None, slot: int, nbytes: int) -> Array:
        if arena is None:
            raise RuntimeError("the slots are closed")
        if not 0 <= slot < self.count or not 0 < nbytes <= self.slot_bytes:
            raise RuntimeError(f"slot {slot} has no {nbytes} bytes")
        start = slot * self.slot_bytes
        return arena[start : start + nbytes]

    def state(self, slot: int) -> State:
        """What a slot is doing."""
        return self._states[slot]

    def loading(self, slots: Sequence[int]) -> bool:
        """Whether any of these slots is LOADING."""
        return State.LOADING in [self._states[slot] for slot in slots]

    def move(self, slot: int, state: State) -> None:
        """Take a slot to its next state.

        Raises:
            RuntimeError: the drawing above has no such arrow.
        """
        before = self._states[slot]
        if (before, state) not in _LEGAL:
            raise RuntimeError(f"slot {slot} cannot go from {before.value} to {state.value}")
        self._states[slot] = state

    def move_all(self, slots: Iterable[int], *states: State) -> None:
        """Take slots to their next state, and on from there."""
        current = self._states
        seen: tuple[State | None, State | None] = None, None  # the latest that was looked up
        for slot in slots:
            for state in states:
                before = current[slot]
                if before is not seen[0] or state is not seen[1]:
                    if (before, state) not in _LEGAL:
                        self.move(slot, state)  # says what is wrong
                    seen = before, state
                current[slot] = state

    def load(self, slots: Iterable[int]) -> None:
        """Make slots LOADING; the experts in them, if there are any, have been evicted."""
        current = self._states
        for slot in slots:
            if current[slot] is State.READY:
                current[slot] = State.FREE
            self.move(slot, State.LOADING)

    def discard(self, slot: int) -> None:
        """Give the memory of a free slot back to the system until it is written again."""
        if self._states[slot] != State.FREE:
            raise RuntimeError(f"slot {slot} is {self._states[slot].value}: it is in use")
        if self._memory is not None and not self.kept:
            with self._backed:
                self._discarded.add(slot)
                discard(self._memory, slot * self.slot_bytes, self.slot_bytes)

    def back(self, slot: int, count: int) -> bool:
        """Have the system give memory to ``count`` slots from this one, from any thread.

        Those that were discarded stay without. False where the system cannot.
        """
        memory = self._memory
        for number in range(slot, min(slot + count, self.count)):
            with self._backed:
                if number in self._discarded:
                    continue
                if memory is None or not back(memory, number * self.slot_bytes, self.slot_bytes):
                    return False
        return True

    def clear(self) -> None:
        """Forget what is in every slot; only while nothing is read into any and none is in use."""
        self._states = [State.FREE] * self.count

    def close(self) -> None:
        """Let go of the memory: freed at once, or with its last view. Repeating it is fine."""
        self._arena = self._frozen = self._memory = None
        self._experts = [None] * self.count


def _memory(nbytes: int) -> memoryview:
    try:
        return arena(nbytes)
    except OSError as error:
        raise BudgetError(
            f"the system refuses {nbytes:,} bytes of memory for slots ({error.strerror}); "
            "give a smaller --ram, or raise the process's address space limit"
        ) from error

"""Memory for the slots ahead of the reads into them, while the processors would be idle.

Owns one thread, of the lowest ordinary priority, that has the system give the arena its pages in
the order in which slots are first used. Does not own the slots. A system clears a page before it
gives it, and a virtual one has to get it from its host first; a cold prompt that reads into fresh
slots spent a quarter of its time on that (docs/EXPERIMENTS.md, E38).

Invariant: what has been given back is not taken again, and no memory is taken that the machine
is short of. Nothing depends on how far it has come: a page that it has not reached is given at
the first read into it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress

from flashmoe.stream import memory
from flashmoe.stream.memory import Strain
from flashmoe.stream.slots import Slots

WORTH_BYTES = 64 << 20
"""An arena smaller than this takes no thread."""

STEP_BYTES = 4 << 20
"""Taken at once: a millisecond, or some of them, in which a mapping made elsewhere waits."""

LOOK_BYTES = 32 << 20
"""Between two looks at the machine's memory."""

NICE = 19
"""Its priority: the lowest that still gets a turn, since it may hold the interpreter's lock."""

LEAST_HEADROOM_BYTES = 256 << 20
"""Left to the machine: the least margin of a recommended budget."""


class Backing:
    """Backs ``slots`` from the first to the last, until it is stopped or memory is short."""

    def __init__(self, slots: Slots, sample: Callable[[], Strain] = memory.strain) -> None:
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        if slots.count * slots.slot_bytes >= WORTH_BYTES:
            # Weakly, so that an engine that is let go of takes its memory along.
            given = weakref.ref(slots), slots.count, slots.slot_bytes, sample, self._stopping
            self._thread = threading.Thread(
                target=_back, args=given, name="flashmoe-backing", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """End, and take no more; repeating it is fine."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def _back(
    slots: weakref.ref[Slots],
    count: int,
    slot_bytes: int,
    sample: Callable[[], Strain],
    stopping: threading.Event,
) -> None:
    with suppress(OSError, AttributeError):  # where a thread has no priority, it competes
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
    step = max(1, STEP_BYTES // slot_bytes)
    unseen = LOOK_BYTES
    for slot in range(0, count, step):
        if unseen >= LOOK_BYTES:
            unseen = 0
            if sample().headroom_bytes < LEAST_HEADROOM_BYTES:
                return
        held = slots()
        if held is None or stopping.is_set() or not held.back(slot, step):
            return
        del held
        unseen += step * slot_bytes

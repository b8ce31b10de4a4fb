"""Memory for the slots ahead of the reads into them, while the processors would be idle.

Owns one thread, of the lowest priority there is, that has the system give the arena its pages in
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

LEAST_HEADROOM_BYTES = 256 << 20
"""Left to the machine: the least margin of a recommended budget."""


class Backing:
    """Backs ``slots`` from the first to the last, until it is stopped or memory is short."""

    def __init__(self, slots: Slots, sample: Callable[[], Strain] = memory.strain) -> None:
        self._slots = slots
        self._sample = sample
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        if slots.count * slots.slot_bytes >= WORTH_BYTES:
            self._thread = threading.Thread(target=self._run, name="flashmoe-backing", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End, and take no more; repeating it is fine."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        with suppress(OSError, AttributeError):  # where there is no such class, it competes
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
        step = max(1, STEP_BYTES // self._slots.slot_bytes)
        looked = LOOK_BYTES
        for slot in range(0, self._slots.count, step):
            if looked >= LOOK_BYTES:
                looked = 0
                if self._sample().headroom_bytes < LEAST_HEADROOM_BYTES:
                    return
            if self._stopping.is_set() or not self._slots.back(slot, step):
                return
            looked += step * self._slots.slot_bytes

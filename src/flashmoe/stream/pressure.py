"""When the cache is too large for the machine as it is by now, and by how much.

Owns the judgement (:class:`Judge`, pure) and its rhythm (:class:`Relief`). Does not own the
figures (``memory``) or the slots (``streamer``).

A cache that has grown too large does not fail, it makes the system reclaim memory: program text
is dropped and read again, other processes fight for their pages, tokens come several times more
slowly; or, where nothing can be reclaimed, the system kills a process, most likely this one,
the largest. The plan leaves a margin for that at start; what other processes take later
it cannot know. So between passes, and while free slots are being filled:

- *headroom* below RESERVE_BYTES: give back what is missing of one and a half times that, at
  once: where nothing can be reclaimed there is no slowness to wait for as evidence.
- *stalls*: tasks waited for memory in more than STALLED of the time, or more than FAULTS pages a
  second of ours had to be read again, while less than SCARCE_BYTES is free (so that
  another group's trouble, or a program that is being loaded, is not taken for ours): one slot in
  STEP, and again after SETTLE_S, until it ends.
- *swap*: as much as of this process went there.

After CALM_S without any of these, one slot in STEP is taken again, if twice that and the
reserve are there. It does not stay small for good, since a compiler beside us ends some time; but
each time that pressure follows a growth, the calm to wait for doubles, so a cache that is
truly too large costs a try at ever longer intervals.

Invariant: no judgement leaves fewer than the least number of slots, or more than were planned.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from flashmoe.stream import memory
from flashmoe.stream.memory import Strain
from flashmoe.stream.units import format_bytes

_log = logging.getLogger(__name__)

MIB = 1 << 20

INTERVAL_S = 0.1
"""Between two samples, of which each takes about 0.2 ms."""

GROWTH_BYTES = 32 * MIB
"""Read into slots that were free, so that resident memory has grown: look at once. A disk
brings more than RESERVE_BYTES within INTERVAL_S, and a prompt's pass takes many of those."""

RESERVE_BYTES = 64 * MIB
"""Least headroom; a quarter of the least margin of a recommended budget."""

SCARCE_BYTES = 256 * MIB
"""With more than this free, nobody waits for our memory."""

STALLED = 0.10
"""Share of the time in which tasks wait for memory that is too much."""

FAULTS = 100
"""Page faults a second of ours, each a read from disk, that are too many."""

STEP = 16
SETTLE_S = 1.0
CALM_S, LONGEST_CALM_S = 30.0, 3600.0


class Judge:
    """How many slots to give back or take again, from one sample after another."""

    def __init__(self, planned: int, least: int, slot_bytes: int) -> None:
        self._planned = planned
        self._least = least
        self._slot_bytes = slot_bytes
        self._before: Strain | None = None
        self._settled_at = float("-inf")
        self._calm_since = float("-inf")
        self._calm_s = CALM_S
        self._growing = False  # the last change

    def judge(self, strain: Strain, slots: int) -> int:
        """The change of ``slots``, negative to give back; 0 for none."""
        before, self._before = self._before, strain
        if before is None:
            self._calm_since = strain.seconds
            return 0
        excess = self._excess(before, strain, slots)
        if excess:
            if self._growing:
                self._calm_s = min(2 * self._calm_s, LONGEST_CALM_S)
            self._growing = False
            self._calm_since = strain.seconds
            return -min(excess, max(slots - self._least, 0))
        step = min(-(-self._planned // STEP), self._planned - slots)
        room = RESERVE_BYTES + 2 * step * self._slot_bytes
        calm = strain.seconds - self._calm_since >= self._calm_s
        if step <= 0 or not calm or strain.headroom_bytes < room:
            return 0
        self._growing = True
        self._calm_since = strain.seconds
        return step

    def _excess(self, before: Strain, strain: Strain, slots: int) -> int:
        """How many slots are too many."""
        short = 0
        if strain.headroom_bytes < RESERVE_BYTES:
            short = RESERVE_BYTES * 3 // 2 - strain.headroom_bytes  # not again at every sample
        swapped = max(strain.swapped_bytes - before.swapped_bytes, 0)
        excess = -(-max(short, swapped) // self._slot_bytes)
        if strain.seconds >= self._settled_at and self._stalls(before, strain):
            excess = max(excess, -(-slots // STEP))
        if excess:
            self._settled_at = strain.seconds + SETTLE_S
        return excess

    def _stalls(self, before: Strain, strain: Strain) -> bool:
        elapsed = strain.seconds - before.seconds
        if elapsed <= 0 or strain.free_bytes >= SCARCE_BYTES:
            return False
        stalled = (strain.stalled_us - before.stalled_us) / 1e6
        faults = strain.major_faults - before.major_faults
        return stalled > STALLED * elapsed or faults > FAULTS * elapsed


class Resizable(Protocol):
    """A cache of experts, as far as this module knows it."""

    @property
    def slots(self) -> int:
        """Experts that can be in memory."""

    @property
    def withheld(self) -> int:
        """How many more could be, had nothing been given back."""

    def shrink(self, count: int) -> int:
        """Give back the memory of ``count`` experts; how many slots that took."""

    def grow(self, count: int) -> int:
        """Take slots again; how many."""


class Relief:
    """Samples when it is time to, and changes the cache as the judge says."""

    def __init__(
        self,
        planned: int,
        least: int,
        slot_bytes: int,
        sample: Callable[[], Strain] = memory.strain,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._judge = Judge(planned, least, slot_bytes)
        self._planned = planned
        self._slot_bytes = slot_bytes
        self._sample = sample
        self._clock = clock
        self._next_s = float("-inf")
        self._grown_bytes = 0
        self._level = logging.INFO  # once; what follows is of less interest

    def tend(self, cache: Resizable) -> None:
        """Look, if some time has passed, and act."""
        if self._clock() >= self._next_s:
            self._act(cache)

    def note(self, cache: Resizable, nbytes: int) -> None:
        """Resident memory is about to grow; look, if it has by much, and act."""
        self._grown_bytes += nbytes
        if self._grown_bytes >= GROWTH_BYTES:
            self._act(cache)

    def _act(self, cache: Resizable) -> None:
        self._grown_bytes = 0
        # What other parts of the budget use by now is not missing.
        change = self._judge.judge(self._sample(), self._planned - cache.withheld)
        if change < 0:
            self._tell("memory is short", -cache.shrink(-change), cache.slots)
        elif change > 0:
            self._tell("memory is there again", cache.grow(change), cache.slots)
        self._next_s = self._clock() + INTERVAL_S

    def _tell(self, why: str, change: int, slots: int) -> None:
        if change:
            size = format_bytes(abs(change) * self._slot_bytes)
            what = "gives back" if change < 0 else "takes again"
            _log.log(self._level, "%s: the cache %s %s and has %d slots", why, what, size, slots)
            self._level = logging.DEBUG

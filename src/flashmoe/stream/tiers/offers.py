"""Slots on offer: empty ones that the device gives by itself to the experts that it finds in none.

Owns which they are, in order, and how many the device has taken as far as the host has heard. Does
not own who leaves for them (``residence``), nor where the bytes come from.

The device goes through the layers without waiting for the host, as long as there are enough of
them; so they are replaced while it computes. It uses a slot in the order of its work: whoever was
in it before may still be read by what is under way, and is not any more when the slot is written.

Invariant: an expert has left the table before its slot is offered, and no copy reads from it then.
A slot on offer is reserved in the cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from flashmoe.quant import Array
from flashmoe.stream.tiers.residence import Residence

FIRST = 16
"""Where the ring of slots begins in its memory; the first number counts all that were offered."""

MOST = 64
"""So many are on offer at most: several layers' misses, so that the host may be behind."""

SHARE = 16
"""And one slot in so many, if that is enough for a token's experts of a layer."""


def memory() -> Array:
    """Room for a ring, where no device reads it."""
    return np.zeros(FIRST + 1024, np.uint32)


class Offers:
    """Of the slots of ``residence``, in ``ring``, uint32 (FIRST + n,), of which a token wants at
    most ``top_k`` at once."""

    def __init__(self, residence: Residence, ring: Array, top_k: int) -> None:
        self._residence = residence
        self._ring = ring
        self._slots: deque[int] = deque()
        self._leaving: deque[int] = deque()  # reserved, and their bytes still wanted
        slots = residence.cache.slots
        self._most = min(MOST, max(slots // SHARE, top_k))
        self._low = top_k
        self._roomy = slots >= residence.table.size
        self.taken = 0
        """How many of all that there ever were, modulo 2^32."""
        self._offered = 0
        ring[0] = 0

    def fill(self) -> None:
        """Have enough on offer: whoever is least likely to be used leaves, unless all have room."""
        residence = self._residence
        short = self._most - len(self._slots) - len(self._leaving)
        if short > 0:
            if not self._roomy:
                residence.vacate(short)
            for _ in range(min(short, residence.cache.free)):
                self._leaving.append(residence.cache.reserve())
        while self._leaving:
            if not residence.vacant(self._leaving[0], wait=len(self._slots) < self._low):
                return
            self._offer(self._leaving.popleft())

    def _offer(self, slot: int) -> None:
        """The device reads the number of slots first, so that is written last."""
        ring = self._ring
        ring[FIRST + self._offered % (len(ring) - FIRST)] = slot
        self._slots.append(slot)
        self._offered = self._offered + 1 & 0xFFFFFFFF
        ring[0] = self._offered

    def take(self, slots: Sequence[int]) -> None:
        """The device has given these to experts, in the order in which they were offered."""
        for slot in slots:
            if not self._slots or self._slots.popleft() != slot:
                raise RuntimeError(f"the device took slot {slot}, which was not the next on offer")
            self.taken = self.taken + 1 & 0xFFFFFFFF

    def withdraw(self) -> None:
        """Nothing is on offer any more; the device stands still."""
        if not self._slots and not self._leaving:
            return
        cache = self._residence.cache
        self.taken = self._offered
        while self._slots:
            cache.unreserve(self._slots.popleft())
        while self._leaving:
            cache.unreserve(self._leaving.popleft())

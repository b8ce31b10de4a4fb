"""Experts that climb from RAM to VRAM because a routing was hinted, before any hold asks for them.

Owns the copies that hints have begun, and what has come of them. Does not own which slots they may
have (``vram``), nor the copies themselves (``copies``).

Invariant: an expert that climbs is pinned in both caches, for that alone, until its copy has ended
and :meth:`Climb.land` has seen it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from flashmoe.errors import DeviceError
from flashmoe.stream.cache import Key
from flashmoe.stream.streamer import Streamer
from flashmoe.stream.tiers.residence import Residence
from flashmoe.stream.tiers.table import ABSENT

_log = logging.getLogger(__name__)

_CHANCE = 0.9  # that what is hinted is wanted: what is likelier than that keeps its slot


class Climb:
    """From the slots of ``streamer`` to those of ``residence``."""

    def __init__(self, residence: Residence, streamer: Streamer, *, exclusive: bool) -> None:
        self._residence = residence
        self._streamer = streamer
        self._exclusive = exclusive
        self._climbing: list[Key] = []  # the oldest first
        self._unasked: set[Key] = set()

    def __len__(self) -> int:
        return len(self._climbing)

    def start(self, layer: int, experts: Sequence[int], *, evicting: bool) -> None:
        """Copy those that are in RAM, into free slots, or ``evicting`` what is less likely."""
        residence, lending = self._residence, self._streamer.lending
        absent = [e for e in experts if residence.cache.slots_of(layer, [e])[0] < 0]
        if not evicting:
            absent = absent[: residence.cache.free]
        lent = lending.lend(layer, absent)
        places = residence.admit(layer, lent, [_CHANCE] * len(lent))
        for expert in lent:
            if expert not in places:
                lending.take_back((layer, expert))
        for expert, slot in places.items():
            key = (layer, expert)
            try:
                residence.copies.start(key, slot, lending.record(layer, expert))
            except DeviceError as error:
                _log.debug("an expert is not copied in advance: %s", error)
                self._release(key)
            else:
                self._climbing.append(key)
                self._unasked.add(key)

    def asked(self, layer: int, experts: Sequence[int]) -> set[int]:
        """A routing asks for these; which of them are there, or coming, because of a hint."""
        if not self._unasked:
            return set()
        right = self._unasked.intersection((layer, expert) for expert in experts)
        self._unasked -= right
        return {expert for _, expert in right}

    def hand_over(self, layer: int, experts: Sequence[int]) -> None:
        """A hold has pinned these as well and waits for them, if they climb: it takes them back
        when their copies have ended, and looks after their slots."""
        for key in ((layer, expert) for expert in experts):
            self._climbing.remove(key)
            self._residence.cache.unpin(key)

    def land(self, *, all_of_them: bool = False) -> None:
        """Take the copies that have ended, the oldest first, or wait for all of them."""
        copies = self._residence.copies
        while self._climbing:
            key = self._climbing[0]
            if not all_of_them and not copies.done(key):
                return
            try:
                copies.finish(key)
            except DeviceError as error:
                _log.debug("an expert copied in advance is not used: %s", error)
            del self._climbing[0]
            self._release(key)

    def _release(self, key: Key) -> None:
        """A copy has ended, or never begun."""
        self._streamer.lending.take_back(key)
        self._residence.cache.unpin(key)
        self._residence.dismiss(key)
        if self._exclusive and self._residence.table.slot(key) != ABSENT:
            self._streamer.lending.forget(key)

"""A chunk's experts on their way through VRAM: in file order, each copied once, in batches.

Owns the order in which they are claimed, copied, yielded and given back. Does not own whether the
hold is open and sound (``vram``), nor who loses a slot (``residence``).

They go as through RAM (``stream.passage``): in ascending id; what is in VRAM is kept for its turn,
slots are given in the same order ahead of it, as many as the window lets, and a batch makes room
when the next is asked for. Copies into that room begin behind what the device was given to compute
(``Mover.fence``), and what it is given next begins behind the copies of that (``Convoys``): the
host only says what comes after what, and waits for the SSD, for records that could be read over
while they are copied, and at the end. Where all that VRAM lacks is in RAM and stays there, the
streamer holds it to the end of the sweep, and is asked for nothing more. Only where what is in VRAM
would leave no slots for that, the last of it goes at once, and is copied again.

Invariant: every expert in ``_places`` is pinned in its slot; the streamer is asked for more only
once no copy reads what it has yielded before, but where that is lent. No copy is under way when the
hold has ended, but those of ``onward``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from flashmoe.errors import DeviceError, ReadError
from flashmoe.quant import Array
from flashmoe.stream.arrivals import Arrivals
from flashmoe.stream.arrivals import Batch as Arrived
from flashmoe.stream.counters import Counters
from flashmoe.stream.passage import SHARE, window
from flashmoe.stream.records import is_wide
from flashmoe.stream.streamer import Streamer
from flashmoe.stream.tiers.advance import Advance
from flashmoe.stream.tiers.convoys import Convoys
from flashmoe.stream.tiers.descent import Descent
from flashmoe.stream.tiers.held import Batch
from flashmoe.stream.tiers.mover import Mover
from flashmoe.stream.tiers.residence import Residence

_log = logging.getLogger(__name__)

ASIDE = 2
"""Slots that what is in VRAM always leaves, of more than so many: one computes, one is copied."""

WINDOW = 128
"""Slots that copies may take ahead of the arithmetic where RAM holds all of them: no disk is waited
for, and the fewer batches there are the less the host has to do. One slot in so many at most
(``passage.SHARE``), since what is copied ahead displaces what may be wanted again."""


class ChunkHold:
    """Of the experts of a layer that any number of tokens choose."""

    def __init__(
        self,
        residence: Residence,
        streamer: Streamer,
        mover: Mover,
        layer: int,
        top_k: int,
    ) -> None:
        self.layer = layer
        self.failed: ReadError | DeviceError | None = None
        self.onward: Advance | None = None
        """Begins copies for the next layer, once all of this one's have been begun."""
        self._residence = residence
        self._streamer = streamer
        self._mover = mover
        self._window = window(residence.cache.slots, top_k)
        self._reach = min(WINDOW, residence.cache.slots // SHARE)
        # Of a batch so many are copied: half of the window computes, half of it is copied to.
        self._most = max(1, min(self._window, residence.cache.slots) // 2)
        self._order: list[int] = []  # not yielded yet
        self._yielded: list[int] = []
        self._places: dict[int, int] = {}
        self._begun: set[int] = set()  # given a slot by this hold, until they are given back
        self._absent: list[int] = []  # without a slot
        self._arrived: list[int] = []  # yielded by the streamer, not copied yet
        self._coming: dict[int, None] = {}  # with a slot, and no copy begun yet; in file order
        self._arrivals: Arrivals | None = None
        self._batches: Iterator[Arrived] = iter(())
        self._lends = False
        self._held = False  # in RAM all are, and stay
        self._early: dict[int, int] = {}  # copied ahead, be it for nothing
        self._convoys: Convoys  # from the claim on

    def claim(
        self,
        experts: list[int],
        ids: Array,
        descent: Descent | None,
        counters: Counters,
        *,
        lends: bool,
        early: Advance | None = None,
    ) -> None:
        """Pin what is in VRAM, and ask the streamer for the rest. ``lends`` says that nothing in
        RAM is ever read over: all that is copied may stay lent. What was copied ``early`` is taken
        over."""
        layer, residence, cache = self.layer, self._residence, self._residence.cache
        self._mover.fence()  # the device may still compute with the batch of another layer
        wide = is_wide(ids)
        slots = cache.sweep(layer, experts, ids) if wide else cache.lookup_all(layer, experts)
        there = {expert: slot for expert, slot in zip(experts, slots, strict=True) if slot >= 0}
        if early is not None:
            self._early = early.places
            for expert in self._early:
                there.pop(expert, None)
        if len(there) < len(experts):
            spare = len(self._early) + (ASIDE if cache.slots > ASIDE else 1)
            for expert in list(there)[max(cache.slots - spare, 0) :]:
                residence.drop(layer, expert)
                del there[expert]
        counters.vram_hits += len(there)
        counters.vram_misses += len(experts) - len(there)
        cache.pin_all(layer, list(there))
        self._order, self._places = list(experts), there | self._early
        self._begun = {expert for expert in experts if expert in self._early}
        self._lends = lends
        parts = self._mover, residence.table, self._streamer.lending, counters
        self._convoys = Convoys(layer, *parts, lends=lends)
        self._absent = [expert for expert in experts if expert not in self._places]
        if descent:
            descent.finish((layer, expert) for expert in self._absent)
        if not self._absent and not self._begun:
            self._streamer.usage.note(layer, ids)
        else:
            self._ask(ids, frozenset(there))
        if early is not None:
            self._convoys.adopt(early.convoys)

    def _ask(self, ids: Array, there: frozenset[int]) -> None:
        """Ask the streamer for all that is not there already, and give slots to the first."""
        layer, residence = self.layer, self._residence
        if not self._lends:  # who leaves may descend, before the hold takes all room in RAM
            self._came(residence.admit(layer, self._absent[: self._window]))
        self._arrivals = self._streamer.hold(layer, ids, there)
        if self._lends and self._streamer.lending.all_there(layer, self._absent):
            # Its hold keeps all of them where they are, so that none of its batches is asked for.
            self._held = self._convoys.held = True
            self._arrived = list(self._absent)
            self._window = max(self._window, self._reach)
            self._most = max(1, self._window // 2)
        else:
            self._batches = self._arrivals.batches()
        if self._lends:
            self._came(residence.admit(layer, self._room_for()))

    def take(self) -> Batch:
        """The batch that begins with the first not yielded, in place of the one before; none at
        the end.

        Raises:
            ReadError, DeviceError: what was waited for could not be read, or what was yielded
                before could not be copied.
        """
        if not self._order:
            self._land(all_of_them=True)
            return []
        self._land(passed=not self._lends)  # before anybody descends whose copy may have failed
        self._exchange()
        while self._ready and (self._arrived or self._convoys.lasting):
            self._copy()
        while (first := self._order[0]) in self._coming or first not in self._places:
            self._bring(first)
        there = self._first()
        del self._order[: len(there)]
        self._convoys.passing(there[-1])
        self._yielded = there
        if self._ready and not self._lends:  # beside the arithmetic that is to follow
            self._copy()
        if self.onward is not None and not self._absent and not self._coming:
            self.onward.bring(self._reach)
        return [(expert, self._places[expert]) for expert in there]

    def end(self) -> None:
        """Give everything back, whatever has come of it."""
        try:
            self._land(all_of_them=True)
        except DeviceError as error:
            _log.debug("a copy that nobody waits for has failed: %s", error)
        copied = [e for e in self._places if e in self._begun or e in self._early]
        self._residence.give_back(self.layer, list(self._places), copied)
        arrivals, self._arrivals = self._arrivals, None
        if arrivals is not None:
            arrivals.__exit__(None, None, None)

    def _came(self, places: dict[int, int]) -> None:
        """The first of the absent experts have slots."""
        self._places.update(places)
        self._begun.update(places)
        self._coming.update(dict.fromkeys(places))
        del self._absent[: len(places)]

    def _first(self) -> list[int]:
        """Those of the order that pass next: all of them are in VRAM, or will be in time."""
        copied = 0
        for count, expert in enumerate(self._order):
            copied += expert in self._begun
            if copied > self._most or expert in self._coming or expert not in self._places:
                return self._order[:count]
        return list(self._order)

    def _exchange(self) -> None:
        """Give the batch before back, and slots to as many more."""
        leaving, self._yielded = self._yielded, []
        if not leaving:
            return
        if self._absent or self._coming or self.onward is not None:
            self._mover.fence()
        gains = [int(expert in self._begun) for expert in leaving]
        room = self._window - len(self._begun)
        wanted = self._absent[: max(room + sum(gains), 0)]
        for expert in leaving:
            del self._places[expert]
        self._begun.difference_update(leaving)
        if self._held:
            self._came(self._residence.replace(self.layer, leaving, wanted))
        else:
            self._came(self._residence.exchange(self.layer, leaving, gains, wanted, room))

    def _bring(self, expert: int) -> None:
        """A step towards having the first expert in VRAM. It has a slot in any case: others behind
        it may have more than the window, which were copied ahead."""
        if expert not in self._places:
            self._came(self._residence.admit(self.layer, self._room_for() or self._absent[:1]))
        else:
            self._copy(expert)

    def _room_for(self) -> list[int]:
        """The first of the absent experts, as many as the window lets have slots now."""
        return self._absent[: max(self._window - len(self._begun), 0)]

    def _land(self, *, passed: bool = False, all_of_them: bool = False) -> None:
        """Take the copies that have ended, or wait for some of them, or all."""
        try:
            self._convoys.land(passed=passed, all_of_them=all_of_them)
        except DeviceError:
            self._mover.fence()  # what the device was given reads there, for nothing
            for expert in self._convoys.lost:  # but for those that are still to be given back
                if expert not in self._places and (self.layer, expert) in self._residence.cache:
                    self._residence.dismiss((self.layer, expert))
            raise

    @property
    def _ready(self) -> bool:
        """Whether something in RAM can be copied."""
        if self._arrived:
            return any(expert in self._places for expert in self._arrived)
        first = next(iter(self._coming), None)
        return first is not None and self._streamer.lending.there(self.layer, [first]) != []

    def _copy(self, wanted: int | None = None) -> None:
        """Start copies of what the streamer has yielded, or yields next; at least until ``wanted``
        is among that."""
        # Of few experts of a single token those that are still to come may be the first.
        if not self._arrived or (wanted is not None and wanted not in self._arrived):
            if not self._convoys.lasting:
                self._land(all_of_them=True)
            found = [expert for expert, _ in next(self._batches, ())]
            self._arrived += [expert for expert in found if expert not in self._early]
        places = {e: self._places[e] for e in self._arrived if e in self._places}
        self._arrived = [expert for expert in self._arrived if expert not in places]
        for expert in places:
            del self._coming[expert]
        self._convoys.start_all(places)

"""A chunk's copies for its next layer, begun before that layer's router has spoken.

Owns who is copied so, and the copies, until their layer takes them over or they are given up. Does
not own when they may begin (``sweep``), nor who leaves for them (``residence``).

Where a layer wants nearly all of its experts, the next one will (``stream.expectation``), and the
bus would be idle from the last copy of the one to the first choice of the other. So the first
experts of the next layer that are in RAM and not in VRAM follow the last ones of this, in file
order, behind the same fence. RAM has room for all experts then, and is asked for nothing.

Invariant: whoever is in ``places`` is pinned in its slot, and in the table only if its copy has
landed; its record is lent until then.
"""

from __future__ import annotations

import logging

from flashmoe.errors import DeviceError
from flashmoe.stream.counters import Counters
from flashmoe.stream.lending import Lending
from flashmoe.stream.tiers.convoys import Convoys
from flashmoe.stream.tiers.mover import Mover
from flashmoe.stream.tiers.residence import Residence

_log = logging.getLogger(__name__)


class Advance:
    """Of the ``experts`` experts of a layer."""

    def __init__(
        self,
        layer: int,
        experts: int,
        residence: Residence,
        mover: Mover,
        lending: Lending,
        counters: Counters,
    ) -> None:
        self.layer = layer
        self.places: dict[int, int] = {}
        """The slots of those whose copies have been asked for."""
        self.convoys = Convoys(layer, mover, residence.table, lending, counters, lends=True)
        self._residence = residence
        self._lending = lending
        self._experts = experts
        self._absent: list[int] | None = None  # expected, and not asked for yet

    def bring(self, most: int) -> None:
        """Begin the copies of more of them, so that ``most`` have a slot by now.

        Raises:
            DeviceError: the device refuses.
        """
        if self._absent is None:
            here = self._lending.places(self.layer, self._experts)
            there = self._residence.cache.slots_of(self.layer, range(self._experts))
            pairs = enumerate(zip(here, there, strict=True))
            self._absent = [expert for expert, (ram, vram) in pairs if vram < 0 <= ram]
        room = min(most - len(self.places), self._lending.room)
        if room <= 0 or not self._absent:
            return
        found = self._residence.expect(self.layer, self._absent[:room])
        del self._absent[: len(found)]
        self.places.update(found)
        self.convoys.start_all(found)

    def give_up(self) -> None:
        """Nobody takes them over: wait for their copies; whose have come stay."""
        try:
            self.convoys.land(all_of_them=True)
        except DeviceError as error:
            _log.debug("a copy that nobody waits for has failed: %s", error)
        self._residence.give_back(self.layer, list(self.places), list(self.places))

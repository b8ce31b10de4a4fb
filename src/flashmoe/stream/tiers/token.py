"""A token's experts on their way into VRAM: claimed, copied as they arrive, given back.

Owns the order of these steps for one routing. Does not own whether the hold is open and sound
(``vram``), nor who loses a slot (``residence``).

Invariant: from the claim to the end every expert of the routing has a slot of its own and is
pinned there; the streamer's hold is left only once no copy reads from it.
"""

from __future__ import annotations

import numpy as np

from flashmoe.errors import DeviceError, ReadError
from flashmoe.quant import Array
from flashmoe.stream.arrivals import Arrivals
from flashmoe.stream.counters import Counters
from flashmoe.stream.streamer import Streamer
from flashmoe.stream.tiers.climb import Climb
from flashmoe.stream.tiers.descent import Descent
from flashmoe.stream.tiers.residence import Residence


class TokenHold:
    """Of the experts of a layer that one token chooses."""

    def __init__(self, residence: Residence, streamer: Streamer, layer: int) -> None:
        self.layer = layer
        self.failed: ReadError | DeviceError | None = None
        self._residence = residence
        self._streamer = streamer
        self._places: dict[int, int] = {}
        self._coming: list[int] = []  # not in VRAM yet
        self._lacking: list[int] = []  # not in VRAM when it was claimed
        self._borrowed: list[int] = []  # lent by the streamer, since they have climbed
        self._arrivals: Arrivals | None = None
        self._lasting = True

    @property
    def waiting(self) -> bool:
        """Whether something is still to come, which the device waits for."""
        return bool(self._coming)

    def claim(
        self,
        experts: list[int],
        ids: Array,
        climb: Climb,
        descent: Descent | None,
        counters: Counters,
        *,
        foreseen: bool,
    ) -> None:
        """Pin what is in VRAM, give the rest slots, and ask the streamer for what it must bring.

        Also if nothing is missing, where the streamer has ``foreseen`` what to read meanwhile.
        """
        layer, residence, streamer = self.layer, self._residence, self._streamer
        slots = residence.cache.lookup_all(layer, experts)
        there = {expert: slot for expert, slot in zip(experts, slots, strict=True) if slot >= 0}
        residence.cache.pin_all(layer, list(there))
        hinted = climb.asked(layer, experts)
        hits = len(there) - sum(expert in there for expert in hinted)
        counters.vram_hits += hits
        counters.vram_misses += len(experts) - hits
        absent = [expert for expert in experts if expert not in there]
        self._places = dict(there)
        flying = [expert for expert in there if (layer, expert) in residence.copies.flying]
        climb.hand_over(layer, flying)
        self._borrowed, self._coming = list(flying), flying + absent
        self._lacking = list(self._coming)
        if descent is not None:  # what leaves VRAM is then as likely in RAM as it was there
            streamer.lending.heed(layer, [e for e in there if e not in hinted])
        if not absent and not foreseen:
            streamer.usage.note(layer, ids)
            return
        if descent is not None:
            descent.finish((layer, expert) for expert in absent)
        self._admit(absent, climb)
        self._lasting = len(absent) <= streamer.least_slots
        self._arrivals = streamer.hold(layer, ids, there)
        if not absent:
            self._leave()

    def _admit(self, absent: list[int], climb: Climb) -> None:
        """Give absent experts slots, if need be those of what has climbed."""
        self._places |= self._residence.admit(self.layer, absent)
        rest = [expert for expert in absent if expert not in self._places]
        if rest:
            climb.land(all_of_them=True)
            self._places |= self._residence.admit(self.layer, rest)

    def slots(self, ids: Array) -> Array:
        """The slot of each, int32 and shaped as ``ids``."""
        places = self._places
        found = np.array([places[expert] for expert in ids.ravel().tolist()], np.int32)
        return found.reshape(ids.shape)

    def carry(self) -> None:
        """Copy what arrives, and wait until all is there.

        Raises:
            ReadError, DeviceError: what was waited for could not be read, or copied.
        """
        layer, copies = self.layer, self._residence.copies
        if self._arrivals is not None:
            for batch in self._arrivals.batches():
                for expert, _ in batch:
                    record = self._streamer.lending.record(layer, expert)
                    copies.start((layer, expert), self._places[expert], record)
                if not self._lasting:  # the next batch takes their place
                    copies.finish_all((layer, expert) for expert, _ in batch)
        copies.finish_all(
            key for key in ((layer, expert) for expert in self._coming) if key in copies.flying
        )
        self._leave()
        self._coming = []

    def forget(self) -> None:
        """What has come is in VRAM, and need not stay in RAM."""
        for expert in self._lacking:
            self._streamer.lending.forget((self.layer, expert))

    def end(self) -> None:
        """Give everything back, whatever has come of it."""
        self._residence.give_back(self.layer, list(self._places), self._lacking)
        while self._borrowed:
            self._streamer.lending.take_back((self.layer, self._borrowed.pop()))
        self._leave()

    def _leave(self) -> None:
        arrivals, self._arrivals = self._arrivals, None
        if arrivals is not None:
            arrivals.__exit__(None, None, None)

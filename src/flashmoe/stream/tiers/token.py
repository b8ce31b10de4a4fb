"""One token's experts: what the device has found missing comes into the slots that it has taken.

Owns what the host does for a token, layer by layer: says where in RAM a record is, has it read from
SSD if it is not, and learns who is in VRAM from then on. Does not own whether all that is in good
order (``vram``), nor which slots there are to be taken (``offers``).

What has come is believed only when the device is a layer further, or at its end: then the copies
have ended, and the records that they were made from are given back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from flashmoe.quant import Array
from flashmoe.stream.arrivals import Arrivals
from flashmoe.stream.streamer import Streamer
from flashmoe.stream.tiers.descent import Descent
from flashmoe.stream.tiers.offers import Offers
from flashmoe.stream.tiers.residence import Residence

Answer = Callable[[int, int], None]
"""Tells the device of an expert in which slot of RAM it is."""


class Token:
    """On its way through the layers, whose records have ``record_bytes``. ``records``, int32
    (layers, experts), is where the device looks for what is in RAM itself, or None where records
    may lose their places there."""

    def __init__(
        self,
        residence: Residence,
        streamer: Streamer,
        offers: Offers,
        descent: Descent | None,
        records: Array | None,
        record_bytes: Sequence[int],
    ) -> None:
        self._residence = residence
        self._streamer = streamer
        self._offers = offers
        self._descent = descent
        self._records = records
        self._record_bytes = record_bytes
        self._layer = 0
        self._coming: dict[int, int] = {}  # experts and their slots, until the copies have ended
        self._asked: Sequence[int] = ()
        self._arrivals: Arrivals | None = None
        self.foreseen = False
        """The streamer has something to read while the layer that is followed next is computed."""

    def follow(
        self,
        layer: int,
        ids: Array,
        early: Mapping[int, int],
        taken: Mapping[int, int],
        asked: Sequence[int],
        answer: Answer,
    ) -> None:
        """The device has chosen experts of a layer, ids (k,); it had taken slots for some, chosen
        or not, ``early``, has ``taken`` slots for some, and asks where in RAM some of those are.

        Raises:
            ReadError: a record could not be read whole and right.
        """
        residence, streamer, counters = self._residence, self._streamer, self._streamer.counters
        self._offers.take([*early.values(), *taken.values()])
        self._layer, self._coming, self._asked = layer, {**early, **taken}, asked
        experts = sorted(ids.tolist())
        residence.cache.lookup_all(layer, experts)
        missed = len(taken) + sum(expert in early for expert in experts)
        counters.vram_hits += len(experts) - missed
        counters.vram_misses += missed
        counters.hits += missed - len(asked)  # the device has found them in RAM
        counters.copied_bytes += len(self._coming) * self._record_bytes[layer]
        if self._descent is not None:  # what leaves VRAM is then as likely in RAM as it was there
            streamer.lending.heed(layer, [expert for expert in experts if expert not in taken])
        foreseen, self.foreseen = self.foreseen, False
        if asked or foreseen:
            self._answer(layer, ids, answer)
        else:
            streamer.usage.note(layer, ids)
        self._offers.fill()

    def _answer(self, layer: int, ids: Array, answer: Answer) -> None:
        """Tell where in RAM what is asked for is, as it comes there."""
        lending, asked = self._streamer.lending, self._asked
        if self._descent is not None:
            self._descent.finish((layer, expert) for expert in asked)
            self._descent.land(all_of_them=lending.room < 0)
        elsewhere = frozenset(ids.tolist()).difference(asked)
        self._arrivals = self._streamer.hold(layer, ids, elsewhere)
        for batch in self._arrivals.batches():
            for expert, _ in batch:
                slot = lending.slot(layer, expert)
                answer(expert, slot)
                if self._records is not None:
                    self._records[layer, expert] = slot

    def settle(self) -> None:
        """The device has the experts that were coming; they are where it will look for them."""
        coming, self._coming = self._coming, {}
        self._leave()
        for expert, slot in coming.items():
            self._residence.land((self._layer, expert), slot)
        if self._descent is not None:  # they need not stay in RAM
            for expert in self._asked:
                self._streamer.lending.forget((self._layer, expert))
        self._asked = ()

    def abandon(self) -> None:
        """The device has ended, and nobody knows what has come: nobody has, then."""
        coming, self._coming = self._coming, {}
        self._leave()
        for slot in coming.values():
            self._residence.cache.unreserve(slot)

    def _leave(self) -> None:
        arrivals, self._arrivals = self._arrivals, None
        if arrivals is not None:
            arrivals.__exit__(None, None, None)

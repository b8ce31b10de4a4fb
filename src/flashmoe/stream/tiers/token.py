"""One token's experts: what the device has found missing comes into the slots that it has taken.

Owns what the host does for a token, layer by layer: says where in RAM a record is, has it read from
SSD if it is not, and learns who is in VRAM from then on. Does not own whether all that is in good
order (``vram``), nor which slots there are to be taken (``offers``).

What has come is believed only when the device is a layer further, or at its end: then the copies
have ended, and the records that they were made from are given back.

Invariant: an expert gives its slot in RAM to another only while the device waits for an answer of
the layer that is followed, and never one that it has found there for that layer: those are pinned.
Besides, one leaves RAM when it has come to VRAM. So what the device reads is what it has found.
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
    """On its way through the layers, whose records have ``record_bytes``."""

    def __init__(
        self,
        residence: Residence,
        streamer: Streamer,
        offers: Offers,
        descent: Descent | None,
        record_bytes: Sequence[int],
    ) -> None:
        self._residence = residence
        self._streamer = streamer
        self._offers = offers
        self._descent = descent
        self._record_bytes = record_bytes
        self._layer = 0
        self._coming: dict[int, int] = {}  # experts and their slots, until the copies have ended
        self._came: tuple[int, dict[int, int]] = 0, {}  # a layer's, whose copies have
        self._arrivals: Arrivals | None = None
        self._unsaid: set[int] = set()  # asked for, and not answered yet
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

        What it waits for comes first: what is there is said, and the reads start; all else is done
        while they come.

        Raises:
            ReadError: a record could not be read whole and right.
        """
        self._offers.take([*early.values(), *taken.values()])
        lending, self._came = self._streamer.lending, (self._layer, self._coming)
        self._layer, self._coming = layer, {**early, **taken}
        self._leave()
        waited = frozenset(asked)
        # Early ones may still be coming, from a RAM that loses none. With what is asked for, these
        # are no more than a token's.
        found = [expert for expert in taken if expert not in waited]
        lending.keep_found(layer, found)
        experts = sorted(ids.tolist())
        if self._descent is not None:  # what leaves VRAM is then as likely in RAM as it was there
            found = [expert for expert in experts if expert not in waited]
        if found:
            lending.heed(layer, found)
        foreseen, self.foreseen = self.foreseen, False
        if asked or foreseen:
            self._open(layer, ids, waited)
            self._answer(answer, block=False)
        else:
            self._streamer.usage.note(layer, ids)
        self._land()
        self._count(experts, early, taken, asked)
        self._answer(answer, block=False)
        self._offers.fill()
        self._answer(answer)

    def _open(self, layer: int, ids: Array, asked: frozenset[int]) -> None:
        """Have read what is asked for and not in RAM. The device stands still until it has been
        told where all that is: so anybody may leave RAM that it does not read now."""
        if self._descent is not None:
            self._descent.finish((layer, expert) for expert in asked)
            if self._streamer.lending.room < 0:
                self._descent.land(all_of_them=True)
        self._streamer.lending.sealed = not asked
        self._unsaid = set(asked)
        self._arrivals = self._streamer.hold(layer, ids, frozenset(ids.tolist()) - asked)
        self._streamer.lending.save()

    def _answer(self, answer: Answer, *, block: bool = True) -> None:
        """Tell where in RAM what is asked for is, as it comes there; or what is there by now."""
        lending, layer, unsaid = self._streamer.lending, self._layer, self._unsaid
        while unsaid:
            assert self._arrivals is not None
            batch = next(self._arrivals.batches()) if block else self._arrivals.now()
            if not batch:
                return
            for expert, _ in batch:
                unsaid.remove(expert)
                if not unsaid:
                    lending.sealed = True  # before it goes on
                answer(expert, lending.slot(layer, expert))

    def _count(
        self,
        experts: Sequence[int],
        early: Mapping[int, int],
        taken: Mapping[int, int],
        asked: Sequence[int],
    ) -> None:
        """A layer's experts are used; of what it missed, the device has found some in RAM."""
        counters = self._streamer.counters
        self._residence.cache.lookup_all(self._layer, experts)
        missed = len(taken) + sum(expert in early for expert in experts)
        counters.vram_hits += len(experts) - missed
        counters.vram_misses += missed
        counters.hits += missed - len(asked)
        counters.copied_bytes += len(self._coming) * self._record_bytes[self._layer]

    def settle(self) -> None:
        """The device has all that was coming."""
        self._came, self._coming = (self._layer, self._coming), {}
        self._leave()
        self._streamer.lending.keep_found(0, ())
        self._land()

    def _land(self) -> None:
        """Experts are in their slots: where the device will look for them."""
        (layer, came), self._came = self._came, (0, {})
        for expert, slot in came.items():
            self._residence.land((layer, expert), slot)
        if self._descent is not None:  # they need not stay in RAM
            self._streamer.lending.forget(layer, list(came))
            self._descent.land()

    def tend(self) -> None:
        """The device computes, and nobody waits: what was guessed and has come is in RAM now, so
        that the device finds it there."""
        if not self._unsaid:
            self._streamer.lending.take_in()

    def abandon(self) -> None:
        """The device has ended, and nobody knows what has come: nobody has, then."""
        coming, self._coming = self._coming, {}
        self._leave()
        self._streamer.lending.keep_found(0, ())
        self._land()
        for slot in coming.values():
            self._residence.cache.unreserve(slot)

    def _leave(self) -> None:
        arrivals, self._arrivals = self._arrivals, None
        if arrivals is not None:
            arrivals.__exit__(None, None, None)

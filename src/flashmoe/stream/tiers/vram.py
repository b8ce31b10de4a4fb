"""Experts in VRAM: slots on a device above the streamer's in RAM, which are above the SSD.

Joins who is there (``residence``) with the streamer, which brings what is not. Does no arithmetic,
and sees no byte of the device. One thread uses a tier, and it alone uses the streamer.

*A token* runs through the layers on the device, which looks in the table for its experts, gives
slots on offer to those that are missing, and copies them from RAM; the host follows it
(:meth:`Vram.begin`, :meth:`Vram.follow`, :meth:`Vram.end`), tells it where in RAM a record is when
it asks, has it read from SSD, and puts other slots on offer. *A chunk's* experts pass in file
order, through however few slots (:meth:`Vram.sweep`), and the host decides about all.

Invariant: an expert in the table is whole in its slot by the time when the device comes to use it.
When a token or a sweep has been left, by whatever way, nothing is pinned.

An interrupt may come between any two bytecodes. As in ``streamer``, ``_sound`` is False while
steps that belong together are under way; whoever comes next and finds it so, or finds a sweep
that was never left, waits for all copies to end and forgets who is in which slot. The caller has
ended by then what the device was computing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from flashmoe.errors import DeviceError, ReadError
from flashmoe.quant import Array
from flashmoe.store.reader import Store
from flashmoe.stream.expectation import NEARLY_ALL
from flashmoe.stream.records import distinct, is_wide
from flashmoe.stream.streamer import Streamer
from flashmoe.stream.tiers import offers
from flashmoe.stream.tiers.advance import Advance
from flashmoe.stream.tiers.descent import Descent
from flashmoe.stream.tiers.held import Batch, Passing
from flashmoe.stream.tiers.mover import Mover
from flashmoe.stream.tiers.offers import Offers
from flashmoe.stream.tiers.residence import Residence
from flashmoe.stream.tiers.sweep import ChunkHold
from flashmoe.stream.tiers.table import ABSENT, Table
from flashmoe.stream.tiers.token import Answer, Token


class Vram:
    """``slots`` slots that ``mover`` copies to, for the experts of ``store`` from ``streamer``.

    A token chooses ``top_k`` experts of a layer, 0 for as many as the published model's, and wants
    twice as many slots; a chunk is content with one. Where it is ``exclusive``, a token's experts
    leave RAM when they have come to VRAM, and descend to free slots there when they leave. What the
    tier has cost is counted in ``streamer.counters``.

    Memory that the device reads itself: ``table``, int32 (layers, experts), for the slots of
    experts; ``records``, the same for their slots in RAM, from where nobody leaves while a token
    passes but when its device waits for an answer; ``ring`` for the slots on offer (``offers``).
    """

    def __init__(
        self,
        store: Store,
        slots: int,
        mover: Mover,
        streamer: Streamer,
        *,
        top_k: int = 0,
        exclusive: bool = False,
        table: Array | None = None,
        records: Array | None = None,
        ring: Array | None = None,
    ) -> None:
        experts, layers = store.shape.experts, store.manifest.layers
        self.slots = slots
        self.counters = streamer.counters
        self._top_k = top_k or experts.top_k
        self._experts = experts.count
        self._exclusive = exclusive
        self._mover = mover
        self._streamer = streamer
        self._record_bytes = [entry.layout.record_bytes for entry in layers]
        self._table = Table(len(layers), experts.count, table)
        self._records = np.empty((len(layers), experts.count), np.int32)
        if records is not None:
            self._records = records
        self._ring = offers.memory() if ring is None else ring
        self.generation = 0
        """Rises whenever it is forgotten who is in which slot."""
        self._forget()

    def _forget(self) -> None:
        """Every slot is free, nothing is copied, nobody passes."""
        self.generation += 1
        self._table.clear()
        self._lending = self._streamer.lending  # another one, if the streamer forgets everything
        self._lending.tell(self._records)
        self._streamer.picture.above = self.table
        self._descent = Descent(self._mover, self._lending) if self._exclusive else None
        self._residence = Residence(self.slots, self._top_k, self._table, self._descent)
        self._offers = Offers(self._residence, self._ring, self._top_k)
        self._token: Token | None = None
        self._hold: ChunkHold | None = None
        self._early: Advance | None = None  # copies for a layer that is still to pass
        self._sound = True

    @property
    def hints(self) -> bool:
        """Whether anything is to be brought before it is asked for."""
        return self._streamer.hints

    def foresee(self, layer: int, rank: Callable[[], Array]) -> None:
        """As ``Streamer.foresee``, before the layer before is followed: what is guessed and in VRAM
        already is not read."""
        self._passing().foreseen = True
        self._streamer.foresee(layer, partial(self._missing, layer, rank))

    def warm(self, shares: Array) -> None:
        """Expect the experts that were chosen most: ``shares`` (layers, experts) of the tokens
        before chose each one."""
        self._sound, sound = False, self._sound
        self._residence.cache.seed(shares)
        self._sound = sound

    @property
    def whole(self) -> bool:
        """Whether every expert of the model is in VRAM: from then on none ever leaves."""
        filled = self._sound and self._table.filled == self._table.size  # else it may miscount
        return filled and self.slots >= self._table.size

    def passed(self, layer: int, ids: Array) -> None:
        """Count a routing, ids (k,), that nobody held because all are there."""
        self.counters.vram_hits += len(ids)
        self._streamer.usage.note(layer, ids)

    def begin(self) -> int:
        """A token is about to pass: slots are on offer. How many of all it had taken before.

        Raises:
            ValueError: there are not twice as many slots as a token wants of a layer.
        """
        if self.slots < min(2 * self._top_k, self._table.size):
            raise ValueError(f"{self.slots} slots are too few for twice {self._top_k} experts")
        self._restored()
        self._sound = False
        self._give_up_early()
        self._land()
        self._offers.fill()
        parts = self._residence, self._streamer, self._offers, self._descent
        self._token = Token(*parts, self._record_bytes)
        self._lending.save()
        self._lending.sealed = True  # from now on the device reads there
        self._sound = True
        return self._offers.taken

    def follow(
        self,
        layer: int,
        ids: Array,
        early: Mapping[int, int],
        taken: Mapping[int, int],
        asked: Sequence[int],
        answer: Answer,
    ) -> None:
        """The device has chosen experts of a layer, ids (k,): some were not there and have slots,
        in this order: ``early`` ones, which may not have been chosen after all, and ``taken`` ones;
        some of the latter are ``asked`` for, and ``answer`` called with each and its slot in RAM,
        where it stays until the next layer is followed.

        Raises:
            ReadError: a record could not be read whole and right.
        """
        token = self._passing()
        self._sound = False
        try:
            token.follow(layer, ids, early, taken, asked, answer)
        except ReadError:
            self._sound = True  # what has come is whole, the rest goes when the token ends
            raise
        self._sound = True

    def tend(self) -> None:
        """While the device computes: take what has been read ahead for its next layers."""
        token = self._passing()
        if not self._lending.expecting:  # mostly: an interrupt of the wait finds all in good order
            return
        self._sound = False
        token.tend()
        self._sound = True

    def end(self) -> None:
        """The device has done with a token."""
        token = self._passing()
        self._sound = False
        self._lending.sealed = False
        token.settle()
        self._token = None
        self._sound = True

    def abandon(self) -> None:
        """A token was given up; the device stands still."""
        if self._token is None or not self._sound:
            return
        self._sound = False
        self._lending.sealed = False
        self._token.abandon()
        self._token = None
        self._sound = True

    def _passing(self) -> Token:
        if self._token is None or not self._sound:
            raise RuntimeError("no token passes: it was ended by an interrupt")
        return self._token

    @property
    def lasting(self) -> bool:
        """Whether RAM has a slot for every expert, so that none there ever loses its place; else
        it pays a token to :meth:`foresee`."""
        return self._streamer.slots >= self._table.size and not self._exclusive

    def sweep(self, layer: int, ids: Array) -> Passing:
        """Let the experts of any number of tokens pass, ids (T, k), while a ``with`` block uses
        them: batch by batch, in ascending order, each once. One slot is enough.

        Nothing on the device may run ahead. Leaving the block ends the hold, early if need be.
        Where nearly all experts of the layer pass, copies for the next one may go on behind it.
        """
        experts = self._opening(layer, ids)
        self._sound = False
        parts = self._residence, self._streamer, self._mover
        hold = self._hold = ChunkHold(*parts, layer, self._top_k)
        early = self._early
        self._early = hold.onward = self._onward(layer, ids, len(experts))
        hold.claim(experts, ids, self._descent, self.counters, lends=self.lasting, early=early)
        self._sound = True
        return Passing(partial(self._take, hold), partial(self._end, hold))

    def _onward(self, layer: int, ids: Array, experts: int) -> Advance | None:
        """Copies ahead of the layer behind this one, where these pay."""
        nearly_all = experts >= NEARLY_ALL * self._experts
        if not nearly_all or not is_wide(ids) or not self.lasting or not self.hints:
            return None
        if layer + 1 == len(self._table.rows()):
            return None
        parts = self._residence, self._mover, self._lending, self.counters
        return Advance(layer + 1, self._experts, *parts)

    def _give_up_early(self) -> None:
        """What was copied ahead is nobody's; what has come stays."""
        early, self._early = self._early, None
        if early is not None:
            early.give_up()

    def table(self, layer: int) -> Array:
        """The slot of each expert of a layer that is in VRAM, else -1: int32 (experts,), read-only
        and kept up to date."""
        row: Array = self._table.rows()[layer]
        return row

    def tables(self) -> Array:
        """The same of all layers, (layers, experts)."""
        return self._table.rows()

    def empty(self) -> None:
        """Forget every expert and all that was learned of them; the device stands still."""
        self._reset()

    def _restored(self) -> None:
        """In good order; what an interrupt has left is forgotten, a token left so is abandoned."""
        streamer = self._streamer
        if not self._sound or not streamer.sound or streamer.lending is not self._lending:
            self._reset()
        if self._hold is not None:  # never left
            self._reset()
        self.abandon()

    def _opening(self, layer: int, ids: Array) -> list[int]:
        """The distinct experts of a routing, in file order, for a sweep."""
        if not 0 <= layer < len(self._table.rows()):
            raise ValueError(f"there is no layer {layer}")
        experts = distinct(ids)
        if experts and not 0 <= experts[0] <= experts[-1] < self._experts:
            raise ValueError(
                f"experts {experts} of layer {layer} are not all below {self._experts}"
            )
        self._restored()
        self._sound = False
        if self._early is not None and self._early.layer != layer:
            self._give_up_early()
        self._land(all_of_them=True)
        self._offers.withdraw()
        self._sound = True
        return experts

    def _land(self, *, all_of_them: bool = False) -> None:
        """Take the copies that nobody waits for and that have ended."""
        if self._descent:
            self._descent.land(all_of_them=all_of_them or self._streamer.lending.room < 0)

    def _reset(self) -> None:
        """Start anew with empty slots, whatever an interrupt has left."""
        self._sound = False
        self._mover.drain()
        if self._streamer.sound:
            self._streamer.lending.take_all_back()
        self._streamer.recover()
        self._forget()

    def _missing(self, layer: int, rank: Callable[[], Array]) -> Array:
        """Those of the experts ranked that are not in VRAM, in their order."""
        ranked = rank()
        missing: Array = ranked[self._table.rows()[layer, ranked] == ABSENT]
        return missing

    def _take(self, hold: ChunkHold) -> Batch:
        """The next experts of a sweep that are there, at least one; none at its end."""
        if self._hold is not hold or not self._sound:
            raise RuntimeError(
                "this sweep has ended: it was left, or ended by another or by an interrupt"
            )
        if hold.failed is not None:
            raise hold.failed
        self._sound = False
        try:
            batch = hold.take()
        except (ReadError, DeviceError) as error:
            hold.failed = error
            self._sound = True  # what has come is whole, the rest goes when the sweep ends
            raise
        self._sound = True
        return batch

    def _end(self, hold: ChunkHold) -> bool:
        """Leave a sweep; False where another or an interrupt has ended it already."""
        if self._hold is not hold:
            return False
        if self._sound:
            self._sound = False
            hold.end()
            self._hold = None
            self._sound = True
        return True

"""Experts in VRAM: slots on a device above the streamer's in RAM, which are above the SSD.

Joins who is there (``residence``) with the streamer, which brings what is not. Does no arithmetic,
and sees no byte of the device. One thread uses a tier, and it alone uses the streamer.

A routing is what a layer asks for one token or one chunk. :meth:`Vram.hold` gives a token's
experts their slots and brings what is missing; :meth:`Vram.sweep` lets a chunk's pass in file
order, through however few slots.

*The device may run ahead* of the host through layers whose experts are all in the table, of which
it has a copy (:meth:`Vram.changes`). So a slot is given to another expert only while the device
is known to stand still: inside a hold that is not ready, until its wait is over, in a sweep, and
between tokens; and its expert is withdrawn from the table before the copy starts. The caller tells
the device what has changed before it lets it go on.

Invariant: an expert in the table is whole in its slot. When a hold has been left, by whatever
way, nothing is pinned but what a hint has begun to copy.

An interrupt may come between any two bytecodes. As in ``streamer``, ``_sound`` is False while
steps that belong together are under way; whoever comes next and finds it so, or finds a hold
that was never left, waits for all copies to end and forgets who is in which slot. The caller has
ended by then what the device was computing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np

from flashmoe.errors import DeviceError, ReadError
from flashmoe.quant import Array
from flashmoe.store.reader import Store
from flashmoe.stream.records import distinct, is_wide
from flashmoe.stream.streamer import Streamer
from flashmoe.stream.tiers.climb import Climb
from flashmoe.stream.tiers.descent import Descent
from flashmoe.stream.tiers.held import Batch, Held, Passing
from flashmoe.stream.tiers.mover import Mover
from flashmoe.stream.tiers.residence import Residence
from flashmoe.stream.tiers.sweep import ChunkHold
from flashmoe.stream.tiers.table import ABSENT, Table
from flashmoe.stream.tiers.token import TokenHold

Outcome = TypeVar("Outcome")


class Vram:
    """``slots`` slots that ``mover`` copies to, for the experts of ``store`` from ``streamer``.

    A token chooses ``top_k`` experts of a layer, 0 for as many as the published model's. Up to
    ``spare`` slots are emptied whenever the device stands still, for hints that come while it
    does not. Where it is ``exclusive``, a token's experts leave RAM when they have come to VRAM,
    and descend to free slots there when they leave. ``table``, int32 (layers, experts), is memory
    for the resident table that the device reads itself: then nothing has to be told. What the tier
    has cost is counted in ``streamer.counters``.
    """

    def __init__(
        self,
        store: Store,
        slots: int,
        mover: Mover,
        streamer: Streamer,
        *,
        top_k: int = 0,
        spare: int = 0,
        exclusive: bool = False,
        table: Array | None = None,
    ) -> None:
        experts = store.shape.experts
        self.slots = slots
        self.counters = streamer.counters
        self._top_k = top_k or experts.top_k
        self._experts = experts.count
        self._spare = spare
        self._exclusive = exclusive
        self._mover = mover
        self._streamer = streamer
        self._table = Table(len(store.manifest.layers), experts.count, table)
        self._forget()

    def _forget(self) -> None:
        """Every slot is free, nothing is copied, no hold is open."""
        self._table.clear()
        self._lending = self._streamer.lending  # another one, if the streamer forgets everything
        self._streamer.picture.above = self.table
        self._descent = Descent(self._mover, self._lending) if self._exclusive else None
        parts = self._table, self._mover, self.counters, self._descent
        self._residence = Residence(self.slots, self._top_k, *parts)
        self._climb = Climb(self._residence, self._streamer, exclusive=self._exclusive)
        self._foreseen = False
        self._hold: TokenHold | ChunkHold | None = None
        self._sound = True

    def hint(self, layer: int, ids: Array) -> None:
        """Bring closer what a routing will hold: read into RAM what is only on SSD, and copy what
        is in RAM, for one token, where a slot is free or, while the device stands still, has an
        expert that is less likely to be used.

        Neither displaces an expert of an open hold. Does nothing where the streamer has hints off.
        """
        if not self._streamer.hints:
            return
        experts = self._routed(layer, ids)
        hold, residence = self._hold, self._residence
        self._sound = False
        self._land()
        slots = residence.cache.slots_of(layer, experts)
        there = {expert for expert, slot in zip(experts, slots, strict=True) if slot >= 0}
        if self._descent:
            there.update(expert for expert in experts if (layer, expert) in self._descent)
        absent = [expert for expert in experts if expert not in there]
        if absent and (hold is None or hold.layer != layer):
            self._streamer.hint(layer, ids, there)
            if not is_wide(ids):
                still = isinstance(hold, TokenHold) and hold.waiting
                self._climb.start(layer, absent, evicting=still)
        self._sound = True

    def foresee(self, layer: int, rank: Callable[[], Array]) -> None:
        """As ``Streamer.foresee``: what is guessed and in VRAM already is not read."""
        self._foreseen = True
        self._streamer.foresee(layer, partial(self._missing, layer, rank))

    def expect(
        self, layer: int, tokens: int, early: Callable[[], Array], *, at_once: bool = False
    ) -> None:
        """As ``Streamer.expect``: what is expected and in VRAM already is not read."""
        elsewhere = partial(self._present, layer)
        self._streamer.expect(layer, tokens, early, elsewhere, at_once=at_once)

    def warm(self, shares: Array) -> None:
        """Expect the experts that were chosen most: ``shares`` (layers, experts) of the tokens
        before chose each one."""
        self._sound, sound = False, self._sound
        self._residence.cache.seed(shares)
        self._sound = sound

    @property
    def whole(self) -> bool:
        """Whether every expert of the model is in VRAM: from then on none ever leaves."""
        return self.slots >= self._table.size and self._table.filled == self._table.size

    def passed(self, layer: int, ids: Array) -> None:
        """Count a routing, ids (k,), that nobody held because all are there."""
        self.counters.vram_hits += len(ids)
        self._streamer.usage.note(layer, ids)

    def tend(self) -> None:
        """Between tokens, while the device stands still: make room for hints."""
        if not self._sound or self._hold is not None:
            return
        self._sound = False
        self._land()
        self._residence.vacate(self._spare)
        self._sound = True

    def hold(self, layer: int, ids: Array) -> Held:
        """Keep the experts of one token, ids (k,) or (1, k), while a ``with`` block uses them.

        The call gives each its slot, and starts the reads of what is not in RAM; ``wait`` copies.
        Leaving the block ends the hold, early if need be. Holds do not nest.

        Raises:
            ValueError: no such layer or expert, several tokens, or more experts than slots, which
                :meth:`sweep` is for.
        """
        experts = self._opening(layer, ids)
        if is_wide(ids) or len(experts) > self.slots:
            raise ValueError(
                f"a routing of shape {ids.shape} wants {len(experts)} experts at once of "
                f"{self.slots} slots: let it pass in a sweep"
            )
        self._sound = False
        hold = self._hold = TokenHold(self._residence, self._streamer, layer)
        foreseen, self._foreseen = self._foreseen, False
        parts = self._climb, self._descent, self.counters
        hold.claim(experts, ids, *parts, foreseen=foreseen)
        slots = hold.slots(ids)
        self._sound = True
        return Held(slots, not hold.waiting, partial(self._wait, hold), partial(self._end, hold))

    def sweep(self, layer: int, ids: Array) -> Passing:
        """Let the experts of any number of tokens pass, ids (T, k), while a ``with`` block uses
        them: batch by batch, in ascending order, each once. One slot is enough.

        Nothing on the device may run ahead. Leaving the block ends the hold, early if need be.
        """
        experts = self._opening(layer, ids)
        self._sound = False
        parts = self._residence, self._streamer, self._mover, self._climb
        hold = self._hold = ChunkHold(*parts, layer, self._top_k)
        self._land(all_of_them=True)
        self._foreseen = False
        hold.claim(experts, ids, self._descent, self.counters)
        self._sound = True
        return Passing(partial(self._take, hold), partial(self._end, hold))

    def table(self, layer: int) -> Array:
        """The slot of each expert of a layer that is in VRAM, else -1: int32 (experts,), read-only
        and kept up to date."""
        row: Array = self._table.rows()[layer]
        return row

    def changes(self) -> list[tuple[int, int, int]]:
        """(layer, expert, slot or -1) of every entry of the table that has changed since asked
        last. Whoever is interrupted before the device knows them gives it all of the table."""
        sound, self._sound = self._sound, False
        changes = self._table.changes()
        self._sound = sound
        return changes

    def empty(self) -> None:
        """Forget every expert and all that was learned of them; the device stands still."""
        self._reset()

    def _routed(self, layer: int, ids: Array) -> list[int]:
        """The distinct experts of a routing, in file order, for a tier in good order."""
        if not 0 <= layer < len(self._table.rows()):
            raise ValueError(f"there is no layer {layer}")
        experts = distinct(ids)
        if experts and not 0 <= experts[0] <= experts[-1] < self._experts:
            raise ValueError(
                f"experts {experts} of layer {layer} are not all below {self._experts}"
            )
        streamer = self._streamer
        if not self._sound or not streamer.sound or streamer.lending is not self._lending:
            self._reset()
        return experts

    def _opening(self, layer: int, ids: Array) -> list[int]:
        """The same, for a new hold: one that was never left is forgotten with all the rest."""
        experts, streamer = self._routed(layer, ids), self._streamer
        if self._hold is not None:
            self._reset()
        if self._climb or self._descent:
            self._sound = False
            self._land(all_of_them=streamer.lending.room < 0)
            self._sound = True
        return experts

    def _land(self, *, all_of_them: bool = False) -> None:
        """Take the copies that no hold waits for and that have ended."""
        self._climb.land(all_of_them=all_of_them)
        if self._descent:
            self._descent.land(all_of_them=all_of_them)

    def _reset(self) -> None:
        """Start anew with empty slots, whatever an interrupt has left."""
        self._sound = False
        self._mover.drain()
        if self._streamer.sound:
            self._streamer.lending.take_all_back()
        self._forget()

    def _missing(self, layer: int, rank: Callable[[], Array]) -> Array:
        """Those of the experts ranked that are not in VRAM, in their order."""
        ranked = rank()
        missing: Array = ranked[self._table.rows()[layer, ranked] == ABSENT]
        return missing

    def _present(self, layer: int) -> frozenset[int]:
        """The experts of a layer that are in VRAM."""
        return frozenset(np.flatnonzero(self._table.rows()[layer] != ABSENT).tolist())

    def _wait(self, hold: TokenHold) -> None:
        """Bring what a hold still lacks."""
        self._advance(hold, partial(self._carry, hold))

    def _carry(self, hold: TokenHold) -> None:
        if hold.waiting:
            hold.carry()
            if self._exclusive:
                hold.forget()
            self._residence.vacate(self._spare)

    def _take(self, hold: ChunkHold) -> Batch:
        """The next experts of a sweep that are there, at least one; none at its end."""
        return self._advance(hold, hold.take)

    def _advance(self, hold: TokenHold | ChunkHold, act: Callable[[], Outcome]) -> Outcome:
        """Let an open hold act."""
        if self._hold is not hold or not self._sound:
            raise RuntimeError(
                "this hold has ended: it was left, or ended by another hold or by an interrupt"
            )
        if hold.failed is not None:
            raise hold.failed
        self._sound = False
        try:
            outcome = act()
        except (ReadError, DeviceError) as error:
            hold.failed = error
            self._sound = True  # what has come is whole, the rest goes when the hold ends
            raise
        self._sound = True
        return outcome

    def _end(self, hold: TokenHold | ChunkHold) -> bool:
        """Leave a hold; False where another hold or an interrupt has ended it already."""
        if self._hold is not hold:
            return False
        if self._sound:
            self._sound = False
            hold.end()
            self._hold = None
            self._sound = True
        return True

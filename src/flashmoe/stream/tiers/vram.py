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

from functools import partial

from flashmoe.errors import DeviceError, ReadError
from flashmoe.quant import Array
from flashmoe.store.reader import Store
from flashmoe.stream.records import is_wide
from flashmoe.stream.streamer import Streamer
from flashmoe.stream.tiers.held import Held
from flashmoe.stream.tiers.mover import Mover
from flashmoe.stream.tiers.residence import Residence
from flashmoe.stream.tiers.table import Table
from flashmoe.stream.tiers.token import TokenHold


class Vram:
    """``slots`` slots that ``mover`` copies to, for the experts of ``store`` from ``streamer``.

    A token chooses ``top_k`` experts of a layer, 0 for as many as the published model's. What the
    tier has cost is counted in ``streamer.counters``. ``table``, int32 (layers, experts), is memory
    for the resident table that the device reads itself: then nothing has to be told.
    """

    def __init__(
        self,
        store: Store,
        slots: int,
        mover: Mover,
        streamer: Streamer,
        top_k: int = 0,
        table: Array | None = None,
    ) -> None:
        experts = store.shape.experts
        self.slots = slots
        self.counters = streamer.counters
        self._top_k = top_k or experts.top_k
        self._experts = experts.count
        self._mover = mover
        self._streamer = streamer
        self._table = Table(len(store.manifest.layers), experts.count, table)
        self._forget()

    def _forget(self) -> None:
        """Every slot is free, nothing is copied, no hold is open."""
        self._table.clear()
        self._residence = Residence(
            self.slots, self._top_k, self._table, self._mover, self.counters
        )
        self._hold: TokenHold | None = None
        self._sound = True

    def hold(self, layer: int, ids: Array) -> Held:
        """Keep the experts of one token, ids (k,) or (1, k), while a ``with`` block uses them.

        The call gives each its slot, and starts the reads of what is not in RAM; ``wait`` copies.
        Leaving the block ends the hold, early if need be. Holds do not nest.

        Raises:
            ValueError: no such layer or expert, several tokens, or more experts than slots, which
                :meth:`sweep` is for.
        """
        experts = self._routed(layer, ids)
        if is_wide(ids) or len(experts) > self.slots:
            raise ValueError(
                f"a routing of shape {ids.shape} wants {len(experts)} experts at once of "
                f"{self.slots} slots: let it pass in a sweep"
            )
        self._sound = False
        hold = self._hold = TokenHold(self._residence, self._streamer, layer)
        hold.claim(experts, ids, (), self.counters)
        slots = hold.slots(ids)
        self._sound = True
        return Held(slots, not hold.waiting, partial(self._wait, hold), partial(self._end, hold))

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
        experts = sorted(set(ids.ravel().tolist()))
        if experts and not 0 <= experts[0] <= experts[-1] < self._experts:
            raise ValueError(
                f"experts {experts} of layer {layer} are not all below {self._experts}"
            )
        if not self._sound or self._hold is not None:
            self._reset()
        return experts

    def _reset(self) -> None:
        """Start anew with empty slots, whatever an interrupt has left."""
        self._sound = False
        self._mover.drain()
        self._forget()

    def _wait(self, hold: TokenHold) -> None:
        """Bring what a hold still lacks."""
        if self._hold is not hold or not self._sound:
            raise RuntimeError(
                "this hold has ended: it was left, or ended by another hold or by an interrupt"
            )
        if hold.failed is not None:
            raise hold.failed
        self._sound = False
        try:
            hold.carry()
        except (ReadError, DeviceError) as error:
            hold.failed = error
            self._sound = True  # what has come is whole, the rest goes when the hold ends
            raise
        self._sound = True

    def _end(self, hold: TokenHold) -> bool:
        """Leave a hold; False where another hold or an interrupt has ended it already."""
        if self._hold is not hold:
            return False
        if self._sound:
            self._sound = False
            hold.end()
            self._hold = None
            self._sound = True
        return True

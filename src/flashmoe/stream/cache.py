"""Which slot holds which expert: a pure policy, no bytes and no I/O.

Says who has which slot, who leaves, and which pins keep an expert in place while it is read or
used. Does not own the slots' bytes (``slots``) or the reads (``streamer``). The policy itself is
native (``native/cache.h``, and ``native/forecast.h`` for the chance that an expert is chosen),
since between kernels that stream megabytes the interpreter's own data has left the processor's
cache (E26 in docs/EXPERIMENTS.md); here are its door and the rules it follows.

The same calls in the same order always give the same answers, so that a routing log replays to the
hit rate of the run that wrote it; nearly so where experts were guessed, since a wrong guess takes a
slot and depends on the disk's timing.

A token visits the layers in turn, so an expert can be used again only when its layer comes
round. Who leaves is the expert whose use is expected farthest ahead, in visits of layers:

    layers until its layer comes round + layers * (1 / p - 1)

with p the forecast chance that its layer then chooses it. (Belady's rule, "evict what is
used last", with an expectation in place of the future.) While no visit of its own layer
intervenes, the moment so expected stays where it is; so only the layer being visited is ranked
anew, and an eviction compares one candidate a layer. Figures: E7 in docs/EXPERIMENTS.md.

A *visit* is what is looked up of one layer until another layer, or the same expert again, is
looked up. Look up a whole routing before admitting what it lacks: the others of its layer are
then known to be a sweep away. Its experts leave only when nobody else can: so pins, which merely
keep what is in use, never change who is evicted as long as the slots hold one token's routing.
``admit`` alone is no use.

A prompt's chunk makes a *sweep*: each layer in turn, all that its T tokens choose of it at once.
It must leave what decoding will want, so it tells the forecast its last tokens one by one. Its
layers to come choose T times, which makes their experts T times as likely to be used; those
passed, and those of the layer being visited that are not pinned, count as for decoding. So what a
sweep reads displaces what is unlikely among what has passed, itself first of all, and hardly ever
what it is still to need.

Invariant: every slot is free or holds exactly one expert; a pinned expert is never evicted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from flashmoe import _native
from flashmoe.quant import Array

Key: TypeAlias = tuple[int, int]
"""An expert: (layer, index within the layer)."""


LAST_TOKENS = 128
"""So many of a chunk's tokens tell what decoding will choose: four half-lives of the slowest
average."""


class Admission(NamedTuple):
    """The slot given to an expert, and the expert that had to leave it."""

    slot: int
    evicted: Key | None


class Cache:
    """``slots`` places for the experts of ``layers`` layers, of which a token chooses ``top_k``.

    Looking up, pinning and dropping are O(1), plus O(experts of a layer) once a visit; an
    eviction is O(layers + experts of a layer). Both are short passes over arrays; neither
    depends on the number of slots.

    The calls that end in ``_all`` are the single ones for several experts of one layer, in this
    order; where one of them raises, those before it stand.
    """

    def __init__(self, slots: int, layers: int, top_k: int) -> None:
        self._policy = _native.Cache(slots, layers, top_k)

    @property
    def slots(self) -> int:
        """Slots there are, free ones included and retired ones not."""
        return self._policy.slots

    @property
    def layers(self) -> int:
        """Layers whose experts may have one."""
        return self._policy.layers

    def __len__(self) -> int:
        return len(self._policy)

    def __contains__(self, key: Key) -> bool:
        return self._policy.slot(*key) >= 0

    def lookup(self, key: Key) -> int | None:
        """The slot of an expert, or None where it has none; counts as a use."""
        slot = self._policy.lookup(*key)
        return None if slot < 0 else slot

    def lookup_all(self, layer: int, experts: Sequence[int]) -> list[int]:
        """The slot of each, or -1; each counts as a use."""
        return self._policy.lookup_all(layer, experts)

    def sweep(self, layer: int, experts: Sequence[int], ids: Array) -> list[int]:
        """The slot of each, or -1, of all that a chunk chooses; each counts as a use.

        ``experts`` are the distinct ones among ``ids`` (tokens, experts a token), whose last
        :data:`LAST_TOKENS` rows teach the forecast as if they had been decoded. Pin what has a
        slot before admitting what has none: nothing else keeps it.
        """
        rows = np.sort(np.asarray(ids[-LAST_TOKENS:], np.int64), axis=1)  # as a log has them
        return self._policy.sweep(layer, experts, np.ascontiguousarray(rows), len(ids))

    def resident(self, layer: int) -> int:
        """How many experts of a layer have a slot."""
        return self._policy.resident(layer)

    def slot(self, key: Key) -> int:
        """The slot of an expert that has one; does not count as a use."""
        slot = self._policy.slot(*key)
        if slot < 0:
            raise KeyError(key)
        return slot

    def slots_of(self, layer: int, experts: Sequence[int]) -> list[int]:
        """The slot of each, or -1; does not count as a use."""
        return self._policy.slots_of(layer, experts)

    def admit(self, key: Key, chance: float | None = None) -> Admission | None:
        """Give an absent expert a slot, evicting if need be.

        None when it may displace nobody now, since every slot is pinned. An expert that nobody
        has asked for yet, and that is only guessed to be used next, with a ``chance``, displaces
        neither experts of this visit nor one that is likelier to be used when its own layer comes
        round; pin it at once.
        """
        found = self._policy.admit(*key, chance)
        if found is None:
            return None
        slot, layer, expert = found
        return Admission(slot, None if layer < 0 else (layer, expert))

    def admit_all(
        self, layer: int, experts: Sequence[int], chances: Sequence[float] | None = None
    ) -> list[tuple[int, int, int]]:
        """Admit and pin each, until nobody may leave for one: the answer may be the shorter.

        Each is (slot, layer, expert), the latter two of who was evicted, or -1.
        """
        return self._policy.admit_all(layer, experts, chances)

    def exchange(
        self,
        layer: int,
        leaving: Sequence[int],
        gains: Sequence[int],
        wanted: Sequence[int],
        room: int,
    ) -> list[tuple[int, int, int]]:
        """Unpin each of ``leaving``; after each, :meth:`admit_all` more of ``wanted``.

        As many as there is room for, which grows by that one's of ``gains``, 0 or 1. So who
        leaves for whom does not depend on how many are unpinned in one call.
        """
        return self._policy.exchange(layer, leaving, gains, wanted, room)

    @property
    def free(self) -> int:
        """Slots that hold nothing and are reserved for nobody."""
        return self._policy.free

    def reserve(self) -> int:
        """Take a free slot for an expert that is to come; :meth:`place` or ``unreserve`` it.

        IndexError where none is free.
        """
        return self._policy.reserve()

    def unreserve(self, slot: int) -> None:
        """A reserved slot is free again."""
        self._policy.unreserve(slot)

    def place(self, key: Key, slot: int) -> None:
        """An absent expert is in a reserved slot; does not count as a use."""
        self._policy.place(*key, slot)

    def seed(self, shares: Array) -> None:
        """How often each expert was chosen before all this, (layers, experts), 0 to 1."""
        self._policy.seed(np.require(shares, np.float64, ["C", "A"]))

    def retire(self, count: int, least: int) -> list[int]:
        """Take ``count`` experts and every free slot away, as far as ``least`` slots remain.

        Returns the slots. Pinned experts stay, so it may be fewer.
        """
        return self._policy.retire(count, least)

    def restore(self, slots: Collection[int]) -> None:
        """Give retired slots back."""
        self._policy.restore(list(slots))

    def tell(self, places: Array) -> None:
        """Let somebody else look up where experts are: in ``places``, int32 (layers, experts),
        which others read at any time. An expert is there from :meth:`reveal_all` on, and taken out
        before its slot is anybody else's."""
        self._policy.tell(places)

    def reveal_all(self, layer: int, experts: Sequence[int]) -> None:
        """The bytes of those that have slots are there whole."""
        self._policy.reveal_all(layer, experts)

    @property
    def sealed(self) -> bool:
        """While it is, nobody leaves for another: only free slots are given."""
        return self._policy.sealed

    @sealed.setter
    def sealed(self, sealed: bool) -> None:
        self._policy.sealed = sealed

    @property
    def pinned(self) -> int:
        """Experts that are pinned, once or more often."""
        return self._policy.pinned

    def is_pinned(self, key: Key) -> bool:
        """Whether an expert has a slot and is pinned there."""
        return self._policy.is_pinned(*key)

    def pin(self, key: Key) -> None:
        """Keep an expert in its slot until as many :meth:`unpin` calls; pins add up."""
        self._policy.pin(*key)

    def pin_all(self, layer: int, experts: Sequence[int]) -> None:
        """:meth:`pin` each."""
        self._policy.pin_all(layer, experts)

    def unpin(self, key: Key) -> None:
        """Take back one :meth:`pin`."""
        self._policy.unpin(*key)

    def unpin_all(self, layer: int, experts: Sequence[int]) -> None:
        """:meth:`unpin` each."""
        self._policy.unpin_all(layer, experts)

    def drop(self, key: Key) -> int:
        """Forget an expert, because its bytes are no good; returns the slot that is now free."""
        return self._policy.drop(*key)

"""Which slot holds which expert: a pure policy, no bytes and no I/O.

Owns the map from experts to slots, the order in which they leave, and the pins that keep an
expert in place while it is read or used. Does not own the slots' bytes (``slots``) or the reads
(``streamer``). The same calls in the same order always give the same answers, so that a routing
log replays to the hit rate of the run that wrote it.

The policy is one global least-recently-used list. Recency is the order of asking (``lookup``
and ``admit``), not of arrival or release: which read ended first never changes what is evicted.
Its known weakness is the layer sweep: a token visits the layers in turn, so what this token used
longest ago is what the next token asks first, and a cache smaller than one token's sweep over
all layers never hits. Replayed on two routing logs, hits with 10, 17, 25 and 50 % of the experts
in memory: OLMoE-1B-7B .000 .440 .565 .784 (the best possible .541 .678 .766 .913), austen-moe
.000 .291 .426 .734.

Invariant: every slot is free or holds exactly one expert; a pinned expert is never evicted.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple, TypeAlias

Key: TypeAlias = tuple[int, int]
"""An expert: (layer, index within the layer)."""


class Admission(NamedTuple):
    """The slot given to an expert, and the expert that had to leave it."""

    slot: int
    evicted: Key | None


class Cache:
    """``slots`` places for the experts of ``layers`` layers. Every operation is O(1).

    ``admit`` passes over pinned experts from the oldest on. Pinned ones have just been asked
    for, so they lie at the other end of the list and none are passed in practice.
    """

    def __init__(self, slots: int, layers: int) -> None:
        if slots < 1 or layers < 1:
            raise ValueError(f"a cache of {slots} slots for {layers} layers holds nothing")
        self.slots = slots
        self.layers = layers
        self._slot: OrderedDict[Key, int] = OrderedDict()  # least recently asked first
        self._pins: dict[Key, int] = {}
        self._free = list(range(slots - 1, -1, -1))  # the lowest leaves first

    def __len__(self) -> int:
        return len(self._slot)

    def __contains__(self, key: object) -> bool:
        return key in self._slot

    def lookup(self, key: Key) -> int | None:
        """The slot of an expert, or None where it has none; counts as a use."""
        slot = self._slot.get(key)
        if slot is not None:
            self._slot.move_to_end(key)
        return slot

    def slot(self, key: Key) -> int:
        """The slot of an expert that has one; does not count as a use."""
        return self._slot[key]

    def admit(self, key: Key) -> Admission | None:
        """Give an absent expert a slot, evicting if need be; None when every slot is pinned."""
        if key in self._slot:
            raise RuntimeError(f"expert {key} already has slot {self._slot[key]}")
        if not 0 <= key[0] < self.layers:
            raise RuntimeError(f"expert {key} lies outside the {self.layers} layers")
        evicted = None
        if not self._free:
            if len(self._pins) == len(self._slot):
                return None
            evicted = next(old for old in self._slot if old not in self._pins)
            self._free.append(self._slot.pop(evicted))
        slot = self._free.pop()
        self._slot[key] = slot
        return Admission(slot, evicted)

    def pin(self, key: Key) -> None:
        """Keep an expert in its slot until as many :meth:`unpin` calls; pins add up."""
        if key not in self._slot:
            raise RuntimeError(f"expert {key} has no slot to be pinned in")
        self._pins[key] = self._pins.get(key, 0) + 1

    def unpin(self, key: Key) -> None:
        """Take back one :meth:`pin`."""
        pins = self._pins.get(key, 0)
        if not pins:
            raise RuntimeError(f"expert {key} is not pinned")
        if pins == 1:
            del self._pins[key]
        else:
            self._pins[key] = pins - 1

    def drop(self, key: Key) -> int:
        """Forget an expert, because its bytes are no good; returns the slot that is now free."""
        if key in self._pins:
            raise RuntimeError(f"expert {key} is pinned and cannot be dropped")
        slot = self._slot.pop(key, None)
        if slot is None:
            raise RuntimeError(f"expert {key} has no slot to be dropped from")
        self._free.append(slot)
        return slot

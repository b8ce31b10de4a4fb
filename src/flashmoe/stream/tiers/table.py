"""The resident table: which expert is in which slot of the device, as the device may believe it.

Owns the table. Does not own who gets a slot (the tier's ``cache``).

Invariant: an expert has an entry only while the slot holds all of its record and is given to
nobody else: it is put when its copy has ended, or when all that the device is given from then on
begins behind that; and withdrawn before its slot is given away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flashmoe.quant import Array
from flashmoe.stream.cache import Key

ABSENT = -1


class Table:
    """Of ``layers`` layers of ``experts`` experts each.

    ``memory``, int32 of that shape, is where the table lies, where the device reads it itself.
    """

    def __init__(self, layers: int, experts: int, memory: Array | None = None) -> None:
        self._slots = np.empty((layers, experts), np.int32) if memory is None else memory
        self._slots[...] = ABSENT
        self.filled = 0
        """How many entries there are."""
        self._frozen = self._slots.view()
        self._frozen.flags.writeable = False

    @property
    def size(self) -> int:
        """How many there can be."""
        return self._slots.size

    def rows(self) -> Array:
        """The slot of every expert or ABSENT, int32 (layers, experts); read-only, kept up to
        date."""
        return self._frozen

    def slot(self, key: Key) -> int:
        """The slot of an expert, or ABSENT."""
        return int(self._slots[key])

    def put(self, key: Key, slot: int) -> None:
        """A slot holds an expert from now on."""
        self.filled += int(self._slots[key] == ABSENT)
        self._slots[key] = slot

    def put_all(self, layer: int, places: Mapping[int, int]) -> None:
        """Slots hold experts of a layer from now on."""
        row, experts = self._slots[layer], list(places)
        self.filled += int(np.count_nonzero(row[experts] == ABSENT))
        row[experts] = list(places.values())

    def withdraw_all(self, layers: Sequence[int], experts: Sequence[int]) -> None:
        """:meth:`withdraw` each of distinct experts, of the layers in the same place."""
        where = list(layers), list(experts)
        self.filled -= int(np.count_nonzero(self._slots[where] != ABSENT))
        self._slots[where] = ABSENT

    def withdraw(self, key: Key) -> None:
        """An expert is no longer in its slot; or it never was."""
        if self._slots[key] != ABSENT:
            self.filled -= 1
            self._slots[key] = ABSENT

    def clear(self) -> None:
        """Nothing is in any slot."""
        self._slots.fill(ABSENT)
        self.filled = 0

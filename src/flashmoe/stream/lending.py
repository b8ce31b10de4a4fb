"""Records in RAM, lent to whoever copies them somewhere quicker.

Owns how their bytes are had. Does not own where they are copied to (``tiers``), nor who leaves
(``cache``).
"""

from __future__ import annotations

from flashmoe.quant import Array
from flashmoe.stream.cache import Cache
from flashmoe.stream.records import Records
from flashmoe.stream.slots import Slots


class Lending:
    """The records of one streamer's slots."""

    def __init__(self, cache: Cache, slots: Slots, records: Records) -> None:
        self._cache = cache
        self._slots = slots
        self._records = records

    def record(self, layer: int, expert: int) -> Array:
        """The bytes of an expert that a hold has yielded, uint8 (record_bytes,), read-only; as
        valid as the arrays that it was yielded with."""
        slot = self._cache.slot((layer, expert))
        return self._slots.frozen(slot, self._records.layout(layer).record_bytes)

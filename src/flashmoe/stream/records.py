"""The records of a store as the reader takes them: file, place, size and checksum of each.

Owns the look-up. Does not own the open files (``drives``), the reader, the destinations
(``slots``) or the order of reads (``streamer``).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from flashmoe.quant import Array
from flashmoe.store.layout import RecordLayout
from flashmoe.store.reader import Store
from flashmoe.stream.cache import Key
from flashmoe.stream.direct import DirectReader, Urgency
from flashmoe.stream.drives import Drives

MANY = 128
"""More ids than these, as of a chunk, are counted to be sorted."""


class _Layer(NamedTuple):
    """What a read from a layer's file needs, looked up once."""

    file: int
    layout: RecordLayout  # the same object for equal layouts, as Slots.expert likes it
    experts: int


class Records:
    """Every expert's record, through ``reader``, from wherever ``drives`` found it."""

    def __init__(self, store: Store, reader: DirectReader, drives: Drives) -> None:
        self._reader = reader
        self._layers: list[_Layer] = []
        layouts: dict[RecordLayout, RecordLayout] = {}
        for number, (entry, file) in enumerate(
            zip(store.manifest.layers, drives.files, strict=True)
        ):
            layout = layouts.setdefault(entry.layout, entry.layout)
            sums = array("Q", (int(checksum, 16) for checksum in entry.checksums))
            label = partial(
                _label, store, number
            )  # not of this object, which the reader would keep
            reader.describe(file, entry.data_offset, layout.record_bytes, sums, label)
            self._layers.append(_Layer(file, layout, len(sums)))

    def __len__(self) -> int:
        return len(self._layers)

    def count(self, layer: int) -> int:
        """How many experts a layer has."""
        return self._layers[layer].experts

    def routed(self, layer: int, ids: Array) -> list[int]:
        """The distinct experts of a routing, ids (any shape), in file order.

        Raises:
            ValueError: the layer has no such expert.
        """
        count = self._layers[layer].experts
        found = distinct(ids)
        if found and not 0 <= found[0] <= found[-1] < count:
            raise ValueError(f"experts {found} of layer {layer} are not all below {count}")
        return found

    def layout(self, layer: int) -> RecordLayout:
        """What is where in a record of a layer; one object for all equal layouts."""
        return self._layers[layer].layout

    def submit(
        self, layer: int, experts: Sequence[int], slots: Sequence[int], urgency: Urgency
    ) -> range:
        """Start reading experts of a layer, each into its slot; the tickets."""
        file = self._layers[layer].file
        return self._reader.submit_records(file, experts, slots, urgency)

    def submit_idle(self, key: Key, slot: int) -> int:
        """Read an expert when the disk has nothing else to do; the ticket."""
        layer, expert = key
        return self._reader.submit_idle(self._layers[layer].file, expert, slot)


def _label(store: Store, layer: int, expert: int) -> str:
    return store.record(layer, expert).label


def distinct(ids: Array) -> list[int]:
    """The distinct numbers of ids (any shape), ascending."""
    if ids.size > MANY and ids.min() >= 0:
        found: list[int] = np.flatnonzero(np.bincount(ids.ravel())).tolist()
        return found
    return sorted(set(ids.ravel().tolist()))


def token_count(ids: Array | None) -> int:
    """How many tokens a routing is for; a vector is one token's."""
    return len(ids) if ids is not None and ids.ndim > 1 else 1


def is_wide(ids: Array) -> bool:
    """Whether a routing is of several tokens."""
    return token_count(ids) > 1

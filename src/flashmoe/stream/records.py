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
from flashmoe.stream.direct import DirectReader
from flashmoe.stream.drives import Drives


class _Layer(NamedTuple):
    """What a read from a layer's file needs, looked up once."""

    file: int
    layout: RecordLayout  # the same object for equal layouts, as Slots.expert likes it
    record_bytes: int
    offset: int  # of the first record
    checksums: array[int]


class Records:
    """Every expert's record, through ``reader``, from wherever ``drives`` found it."""

    def __init__(self, store: Store, reader: DirectReader, drives: Drives) -> None:
        self._store = store
        self._reader = reader
        self._layers: list[_Layer] = []
        layouts: dict[RecordLayout, RecordLayout] = {}
        for entry, file in zip(store.manifest.layers, drives.files, strict=True):
            layout = layouts.setdefault(entry.layout, entry.layout)
            sums = array("Q", (int(checksum, 16) for checksum in entry.checksums))
            self._layers.append(_Layer(file, layout, layout.record_bytes, entry.data_offset, sums))

    def __len__(self) -> int:
        return len(self._layers)

    def count(self, layer: int) -> int:
        """How many experts a layer has."""
        return len(self._layers[layer].checksums)

    def keys(self, layer: int, ids: Array) -> list[Key]:
        """The distinct experts of a routing, ids (any shape), in file order.

        Raises:
            ValueError: the layer has no such expert.
        """
        distinct, count = sorted(set(np.ravel(ids).tolist())), self.count(layer)
        if distinct and not 0 <= distinct[0] <= distinct[-1] < count:
            raise ValueError(f"experts {distinct} of layer {layer} are not all below {count}")
        return [(layer, expert) for expert in distinct]

    def layout(self, layer: int) -> RecordLayout:
        """What is where in a record of a layer; one object for all equal layouts."""
        return self._layers[layer].layout

    def record_bytes(self, layer: int) -> int:
        """The size of a record of a layer on disk."""
        return self._layers[layer].record_bytes

    def submit(
        self, keys: Sequence[Key], destinations: Sequence[Array], *, demand: bool
    ) -> list[int]:
        """Start reading experts of one layer, each into its destination; the tickets."""
        layer = self._layers[keys[0][0]]
        return self._reader.submit_all(
            layer.file,
            [layer.offset + expert * layer.record_bytes for _, expert in keys],
            destinations,
            [layer.checksums[expert] for _, expert in keys],
            labels=[partial(self._label, key) for key in keys],
            demand=demand,
        )

    def submit_idle(self, key: Key, destination: Array) -> int:
        """Read an expert when the disk has nothing else to do; the ticket."""
        layer = self._layers[key[0]]
        return self._reader.submit_idle(
            layer.file,
            layer.offset + key[1] * layer.record_bytes,
            destination,
            layer.checksums[key[1]],
            label=partial(self._label, key),
        )

    def _label(self, key: Key) -> str:
        return self._store.record(*key).label

"""A chunk of a prompt through every layer: launches, and the experts as they come.

Owns the order between device and host: while the shared expert is computed the host learns which
experts are wanted, and while a batch of these is computed the next one is copied (``tiers.sweep``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from flashmoe.kernels.cuda.descriptors import Placed, Resident
from flashmoe.kernels.cuda.device import Device, DeviceArray
from flashmoe.kernels.cuda.rows import RowsEmbedding
from flashmoe.model.decoder import Between
from flashmoe.model.gpu.chunk import ChunkLayer
from flashmoe.model.gpu.layer import Slots
from flashmoe.model.gpu.state import GpuState
from flashmoe.model.gpu.weights import Weights
from flashmoe.model.observer import Observer
from flashmoe.quant import Array
from flashmoe.shape import ModelShape
from flashmoe.stream.tiers.vram import Vram


class Chunks:
    """The layers of ``decoder.GpuDecoder``, for many tokens at once."""

    def __init__(
        self,
        device: Device,
        shape: ModelShape,
        weights: Weights,
        embedding: Resident,
        slots: Slots,
        records: list[tuple[Placed, ...]],
        tier: Vram,
        observer: Observer,
    ) -> None:
        self._device, self._shape, self._tier = device, shape, tier
        self._observer = observer
        self._embedding = RowsEmbedding(device, embedding)
        self._layers = [
            ChunkLayer(device, shape, weights, index, slots, record)
            for index, record in enumerate(records)
        ]
        self._ids: Array = device.pinned((0, shape.experts.top_k), np.int32)

    def __call__(self, ids: Array, state: GpuState, between: Between | None) -> Array:
        """Pass ids (T,); returns the final hidden states (T, hidden)."""
        count, device, observer = len(ids), self._device, self._observer
        x = device.empty((count, self._shape.hidden), np.float32)
        self._embedding(device.upload(ids.astype(np.int32)), x)
        observer.ended(0, "embed")
        with self._whole():
            for index, layer in enumerate(self._layers):
                if between is not None:
                    between(count, index)
                with device.kept():
                    layer.mix(x, state.of_layer(index, state.turn), state.position)
                observer.ended(index, "mixer")
                with device.kept():
                    self._feed_forward(index, layer, x)
                observer.ended(index, "experts")
        return device.download(x)

    def _feed_forward(self, index: int, layer: ChunkLayer, x: DeviceArray) -> None:
        chosen = self._room(len(x))
        normed, weights = layer.route(x, chosen)
        told = self._device.mark()
        layer.share(normed, x)
        told.wait()
        ids = chosen.astype(np.int64)
        self._observer.routed(index, ids)
        self._observer.ended(index, "route")
        tier = self._tier
        if tier.whole:
            tier.passed(index, ids)
            layer.add_experts(normed, ids, weights, [_all(ids, tier.table(index))], x)
            return
        with tier.sweep(index, ids) as passing:
            layer.add_experts(normed, ids, weights, passing.batches(), x)

    def _room(self, count: int) -> Array:
        """Pinned memory for the ids of so many tokens."""
        if len(self._ids) < count:
            self._ids = self._device.pinned((count, self._shape.experts.top_k), np.int32)
        return self._ids[:count]

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Where a chunk is left early, what the device was given has ended before others use it."""
        try:
            yield
        except BaseException:
            self._device.synchronize()
            raise


def _all(ids: Array, table: Array) -> list[tuple[int, int]]:
    """The distinct experts of a routing with their slots, in ascending order."""
    numbers = np.flatnonzero(np.bincount(ids.reshape(-1), minlength=len(table)))
    return list(zip(numbers.tolist(), table[numbers].tolist(), strict=True))

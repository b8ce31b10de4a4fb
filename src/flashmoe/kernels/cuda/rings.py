"""Matrices that share a vector, and how a launch streams them through shared memory
(source/ring.cuh).

Owns the geometry: how many rows a warp multiplies at once, how many warps a block has, how much of
a row is under way. Which kernel, and with what besides, is the caller's (``decode``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flashmoe.errors import InputError
from flashmoe.kernels.cuda.descriptors import (
    CHUNK,
    MATRICES,
    MOST_MATRICES,
    TYPES,
    Resident,
)
from flashmoe.kernels.cuda.device import Argument, Device
from flashmoe.quant import Affine, Array

RING_BYTES = 76 << 10
"""Of a block's weights under way, where shared memory allows: beside a block of the launch before
another one has room, so that one begins while the other ends."""
OWN_BYTES = 2 << 10
"""What a kernel has of shared memory besides: arrivals, and room for a sum."""
MOST_STAGES, MOST_WARPS = 4, 16
"""kMostStages and kMostWarps of source/ring.cuh."""
PIECE = 32
"""Chunks of a row are taken in multiples of so many, one a lane, or all of them."""

STAGING = np.dtype([(name, "<i4") for name in ("chunks", "stages", "bytes", "unused")])

_i32 = np.int32


class Rings:
    """Matrices of as many inputs, and a launch's geometry for them; the block has
    ``input_bytes`` an input for the vector."""

    def __init__(self, device: Device, matrices: Sequence[Resident], input_bytes: int) -> None:
        columns = {weights.shape[1] for weights in matrices}
        if len(columns) != 1:
            raise InputError(f"matrices of {sorted(columns)} inputs do not share a vector")
        if len(matrices) > MOST_MATRICES:
            raise ValueError(f"{len(matrices)} matrices at once; {MOST_MATRICES} are possible")
        (self.inputs,) = columns
        self.outputs = sum(weights.shape[0] for weights in matrices)
        self._device, self._kept = device, tuple(matrices)  # whose memory must live
        self._input_bytes = input_bytes * self.inputs
        free = device.shared_bytes - self._input_bytes - OWN_BYTES
        self._rows, self._warps, self._grid = self._geometry(device.processors)
        self._staging = self._staged(min(RING_BYTES, free))
        self._parts, made = 0, np.zeros((), MATRICES)
        for number, weights in enumerate(matrices):
            made["all"][number] = weights.described(self._parts)
            self._parts += -(-weights.shape[0] // (self._rows * self._warps))
        made["count"] = len(matrices)
        self._table = made[()]

    def _geometry(self, processors: int) -> tuple[int, int, int]:
        """Rows a warp multiplies at once, warps of a block, and blocks at most.

        Of few rows each warp has its own, as early as may be. Of some more, four a warp, so that
        all of them are under way at once. Of many, two and then the next two.
        """
        if self.outputs <= 2 * MOST_WARPS * processors:
            return 2, MOST_WARPS // 2, 2 * processors
        if self.outputs <= 2 * 4 * MOST_WARPS * processors:
            return 4, MOST_WARPS, 2 * processors
        return 2, MOST_WARPS, processors

    def _staged(self, room: int) -> Array:
        """Which part of a row is a stage, and how many there are; whole rows if that can be."""
        chunks = self.inputs // CHUNK
        several = self.outputs > self._rows * self._warps * self._grid
        stages = 2 if several else 1
        while self._warps > 4 and self._warps * stages * self._bytes(chunks) > room:
            self._warps //= 2
        if self._warps * stages * self._bytes(chunks) > room and self._aligned:
            fitting = (c for c in range(PIECE, chunks, PIECE))
            stages = 2
            chunks = max(
                (c for c in fitting if self._warps * stages * self._bytes(c) <= room),
                default=min(PIECE, chunks),
            )
        while self._warps > 1 and self._warps * self._bytes(chunks) > room:
            self._warps, stages = self._warps // 2, 1
        nbytes = self._bytes(chunks)
        if self._warps * nbytes > room:
            raise InputError(
                f"matrices of {self.inputs} inputs: the GPU has {room:,} bytes of shared memory "
                f"for their rows, of {nbytes:,}; run this model with --kernels cpu"
            )
        stages = min(room // (self._warps * nbytes), MOST_STAGES)
        made = np.zeros((), STAGING)
        made["chunks"], made["stages"], made["bytes"] = chunks, stages, nbytes
        return made

    def _bytes(self, chunks: int) -> int:
        """Of a stage for so many chunks of a row: that of the largest matrix."""
        return max(self._stage_bytes(weights, chunks) for weights in self._kept)

    def _stage_bytes(self, weights: Resident, chunks: int) -> int:
        codes, numbers = _row_bytes(weights, chunks)
        return _room(self._rows * codes) + 2 * _room(self._rows * numbers)

    @property
    def _aligned(self) -> bool:
        """Whether rows can be taken piece by piece: each piece is a copy of its own."""
        chunks = self.inputs // CHUNK
        return all(
            not any(nbytes % 16 for nbytes in (*_row_bytes(weights, chunks), *weights.places))
            for weights in self._kept
        )

    def launch(self, kernel: str, *arguments: Argument) -> None:
        """Run ``kernel``, whose first parameters say what this has found."""
        ring = self._warps * int(self._staging["stages"]) * int(self._staging["bytes"])
        self._device.launch(
            "decode",
            f"{kernel}_{self._rows}",
            (min(self._parts, self._grid), 1, 1),
            32 * self._warps,
            self._table,
            self._staging[()],
            _i32(self._parts),
            *arguments,
            shared_bytes=self._input_bytes + ring,
            early=True,
        )


def _row_bytes(weights: Resident, chunks: int) -> tuple[int, int]:
    """Of so many chunks of a row: codes, and scales or biases."""
    form, inputs = weights.form, chunks * CHUNK
    if isinstance(form, Affine):
        number = 4 if form.scales == "F32" else 2
        return inputs * form.bits // 8, inputs // form.group * number
    return inputs * (4 if TYPES[form.dtype] == TYPES["F32"] else 2), 0


def _room(nbytes: int) -> int:
    """span_room of source/ring.cuh."""
    return -(-nbytes // 16) * 16 + 16

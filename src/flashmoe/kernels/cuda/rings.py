"""How rows of weights stream through a block's shared memory (source/ring.cuh): how many at once,
how much of each, how far ahead.

Owns that geometry, and the launches of matrices that share a vector. Which kernel, and with what
besides, is the caller's (``decode``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flashmoe.errors import InputError
from flashmoe.kernels.cuda.descriptors import CHUNK, MATRICES, MOST_MATRICES, Resident
from flashmoe.kernels.cuda.device import Argument, Device
from flashmoe.quant import Affine, Array, Format

RING_BYTES = 76 << 10
"""Of a block's weights under way, where that is enough: two blocks fit a processor then."""
OWN_BYTES = 3 << 10
"""What a kernel has of shared memory besides, at most."""
MOST_STAGES, MOST_WARPS = 4, 16
"""kMostStages and kMostWarps of source/ring.cuh."""
FEWEST_WARPS = 4
"""Of a block that takes rows whole, if they can be taken in pieces instead."""
LANES = 32
"""Chunks of a row are taken in multiples of so many, one a lane, or all of them; or fewer where
there is no room for so many."""

STAGING = np.dtype([(name, "<i4") for name in ("chunks", "stages", "bytes", "unused")])

_i32 = np.int32

Laid = tuple[Format, tuple[int, ...]]
"""Of a matrix: format, and where its arrays begin."""


@dataclass(frozen=True, eq=False)
class Staging:
    """What a warp has under way: ``table`` () of STAGING, as kernels take it; and how many warps
    there are to a block at most."""

    table: Array
    warps: int

    @property
    def warp_bytes(self) -> int:
        """Shared memory of each of them."""
        return int(self.table["stages"]) * int(self.table["bytes"])


@dataclass(frozen=True)
class _Rows:
    """Rows that a warp takes at once of each of some matrices."""

    matrices: Sequence[Laid]
    inputs: int
    rows: int

    @property
    def chunks(self) -> int:
        return self.inputs // CHUNK

    def stage_bytes(self, chunks: int) -> int:
        """Of so many chunks of each row, of the largest."""
        return max(
            _room(self.rows * codes) + 2 * _room(self.rows * numbers)
            for codes, numbers in (_row_bytes(form, chunks * CHUNK) for form, _ in self.matrices)
        )

    def pieces(self) -> Iterator[int]:
        """Chunks of a row that can be taken instead of all: each is a copy of its own."""
        for chunks in (*range(self.chunks // LANES * LANES, 0, -LANES), LANES // 2, LANES // 4):
            spans = [
                (*_row_bytes(form, self.inputs), *_row_bytes(form, chunks * CHUNK), *places)
                for form, places in self.matrices
            ]
            if chunks < self.chunks and not any(n % 16 for span in spans for n in span):
                yield chunks

    def ways(self, warps: int, stages: int) -> Iterator[tuple[int, int, int]]:
        """Chunks, warps and stages at least, the best first."""
        many = [warps >> n for n in range(warps.bit_length())]
        yield from ((self.chunks, w, stages) for w in many if w >= min(FEWEST_WARPS, warps))
        yield from ((chunks, many[0], 2) for chunks in self.pieces())
        yield from ((chunks, w, 1) for w in many for chunks in (self.chunks, *self.pieces()))


def staged(
    device: Device,
    matrices: Sequence[Laid],
    inputs: int,
    rows: int,
    warps: int,
    *,
    beside_bytes: int = 0,
    items: int = 1,
) -> Staging:
    """How a block of up to ``warps`` has ``rows`` rows of ``inputs`` a warp under way, which takes
    ``items`` times so many in turn. ``beside_bytes`` of its shared memory are for something else.

    Raises:
        InputError: there is no room for so few.
    """
    wanted = _Rows(matrices, inputs, rows)
    free = device.shared_bytes - beside_bytes - OWN_BYTES
    for room in (min(RING_BYTES, free), free):
        for chunks, many, stages in wanted.ways(warps, min(items, 2)):
            nbytes = wanted.stage_bytes(chunks)
            if many * stages * nbytes <= room:
                steps = items * -(-wanted.chunks // chunks)
                made = np.zeros((), STAGING)
                made["chunks"], made["bytes"] = chunks, nbytes
                made["stages"] = min(room // (many * nbytes), steps, MOST_STAGES)
                return Staging(made, many)
    raise InputError(
        f"matrices of {inputs} inputs: a row takes more than the {free:,} bytes of "
        "shared memory that the GPU has for it; run this model with --kernels cpu"
    )


class Rings:
    """Matrices of as many inputs, and a launch's geometry for them; its blocks have
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
        self._rows, warps, self._grid = self._geometry(device.processors)
        self._how = staged(
            device,
            [(weights.form, weights.places) for weights in matrices],
            self.inputs,
            self._rows,
            warps,
            beside_bytes=self._input_bytes,
            items=-(-self.outputs // (self._rows * warps * self._grid)),
        )
        self._parts, made = 0, np.zeros((), MATRICES)
        for number, weights in enumerate(matrices):
            made["all"][number] = weights.described(self._parts)
            self._parts += -(-weights.shape[0] // (self._rows * self._how.warps))
        made["count"] = len(matrices)
        self._table = made[()]

    def _geometry(self, processors: int) -> tuple[int, int, int]:
        """Rows a warp multiplies at once, warps of a block, and blocks at most.

        Of few rows each warp has two, so that more of them take part. Of many, four and then the
        next four: what a warp has to do besides is shared by them.
        """
        if self.outputs <= 2 * MOST_WARPS * processors:
            return 2, MOST_WARPS // 2, 2 * processors
        return 4, MOST_WARPS, 2 * processors

    def launch(self, kernel: str, *arguments: Argument) -> None:
        """Run ``kernel``, whose first parameters say what this has found."""
        self._device.launch(
            "decode",
            f"{kernel}_{self._rows}",
            (min(self._parts, self._grid), 1, 1),
            LANES * self._how.warps,
            self._table,
            self._how.table[()],
            _i32(self._parts),
            *arguments,
            shared_bytes=self._input_bytes + self._how.warps * self._how.warp_bytes,
        )


def _row_bytes(form: Format, inputs: int) -> tuple[int, int]:
    """Of so many inputs of a row: codes, and scales or biases."""
    if isinstance(form, Affine):
        number = 4 if form.scales == "F32" else 2
        return inputs * form.bits // 8, inputs // form.group * number
    return inputs * (4 if form.dtype == "F32" else 2), 0


def _room(nbytes: int) -> int:
    """span_room of source/ring.cuh."""
    return -(-nbytes // 16) * 16 + 16

"""Launches of products of many rows, a prompt's (source/panels.cu).

Owns the checks, the launch geometry, and the forms in which activations are held: floats
(T, inputs), and *planes* in fixed point for each group size that a matrix has (source/panel.cuh).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flashmoe.errors import InputError
from flashmoe.kernels.cuda.descriptors import MATRICES, Resident
from flashmoe.kernels.cuda.device import Device, DeviceArray, check
from flashmoe.quant import Affine, Format

TILE_ROWS, TILE_OUTPUTS, PLAIN_OUTPUTS = 64, 128, 64
"""What a block multiplies (source/panel_tile.cuh, plain_tile.cuh)."""
SHARED_BYTES = {32: 38912, 64: 35840, 128: 68608}
"""Two steps of a tile of such a group size (source/panel_tile.cuh)."""
TOGETHER = 4
"""Matrices of a launch."""
BLOCKS = 65535
"""Of a grid, but in its first direction."""

_i32 = np.int32


def plane_bytes(rows: int, inputs: int, group: int) -> int:
    """Bytes of activations in fixed point."""
    return rows * (-(-inputs // 64) * 128 + inputs // group * 8)


def group_of(form: Format) -> int:
    """The form of activations that a matrix wants: a group size, 0 for floats."""
    return form.group if isinstance(form, Affine) else 0


class Rows:
    """Activations (T, inputs), in every form that was asked for.

    With ``up`` they are ``silu(floats) * up``, and may take the place of the floats.
    """

    def __init__(self, device: Device, floats: DeviceArray, up: DeviceArray | None = None) -> None:
        if len(floats.shape) != 2 or not all(floats.shape):
            raise ValueError(f"activations of shape {floats.shape} do not fit; (T, in) is wanted")
        if up is not None:
            check("the straight half", up, floats.shape)
        self.count, self.inputs = floats.shape
        self._device, self._floats, self._up = device, floats, up
        self._planes: dict[int, DeviceArray] = {}

    def form(self, group: int) -> DeviceArray:
        """Floats for 0, else planes of that group size, made at the first call."""
        grid = (-(-self.count // 8), -(-self.inputs // 256), 1)
        sizes = _i32(self.count), _i32(self.inputs)
        if not group:
            if self._up is not None:
                self._device.launch("panels", "swiglu", grid, 256, self._floats, self._up, *sizes)
                self._up = None
            return self._floats
        if group not in self._planes:
            size = plane_bytes(self.count, self.inputs, group)
            self._planes[group] = made = self._device.empty((size,), np.uint8)
            arguments = self._floats, self._up, *sizes, _i32(group), made
            self._device.launch("panels", "prepare", grid, 256, *arguments)
        return self._planes[group]


class Products:
    """Products of the same rows with several matrices."""

    def __init__(self, device: Device, matrices: Sequence[Resident]) -> None:
        columns = {weights.shape[1] for weights in matrices}
        if len(columns) != 1:
            raise InputError(f"matrices of {sorted(columns)} inputs do not share activations")
        (self.inputs,) = columns
        self.outputs = [weights.shape[0] for weights in matrices]
        self._device = device
        self._matrices = tuple(matrices)  # whose memory must live
        self._launches = [
            _Launch(device, group, matrices, some) for group, some in _kinds(matrices)
        ]

    def __call__(
        self, x: Rows, y: Sequence[DeviceArray], residual: DeviceArray | None = None
    ) -> None:
        """``y[i] = x @ matrices[i].T``, each (T, out), plus ``residual`` to that of one matrix,
        where there is one, which may be y itself."""
        if x.inputs != self.inputs:
            raise ValueError(f"activations of {x.inputs} inputs do not fit {self.inputs}")
        for array, outputs in zip(y, self.outputs, strict=True):
            check("results", array, (x.count, outputs))
        if residual is not None:
            (only,) = y
            check("the residual", residual, only.shape)
        for each in self._launches:
            each(x, y, residual)


class _Launch:
    """Some of the matrices: up to four of one kind."""

    def __init__(
        self, device: Device, group: int, matrices: Sequence[Resident], which: Sequence[int]
    ) -> None:
        self._device, self._group, self._which = device, group, which
        self._blocks, made = 0, np.zeros((), MATRICES)
        for number, index in enumerate(which):
            made["all"][number] = matrices[index].described(self._blocks)
            self._blocks += output_blocks(group, matrices[index].shape[0])
        if self._blocks > BLOCKS:
            raise InputError(f"matrices of more than {BLOCKS * PLAIN_OUTPUTS} outputs together")
        made["count"] = len(which)
        self._table = made[()]

    def __call__(self, x: Rows, y: Sequence[DeviceArray], residual: DeviceArray | None) -> None:
        results = [y[index] for index in self._which]
        self._device.launch(
            "panels",
            f"product_{self._group or 'plain'}",
            (-(-x.count // TILE_ROWS), self._blocks, 1),
            256,
            self._table,
            x.form(self._group),
            _i32(x.count),
            residual,
            *results,
            *[None] * (TOGETHER - len(results)),
            shared_bytes=SHARED_BYTES.get(self._group, 0),
        )


def output_blocks(group: int, outputs: int) -> int:
    """Blocks that so many outputs take."""
    return -(-outputs // (TILE_OUTPUTS if group else PLAIN_OUTPUTS))


def _kinds(matrices: Sequence[Resident]) -> list[tuple[int, list[int]]]:
    """Which matrices pass in one launch, by their group size (0: plain)."""
    by_group: dict[int, list[int]] = {}
    for index, weights in enumerate(matrices):
        by_group.setdefault(group_of(weights.form), []).append(index)
    return [
        (group, which[first : first + TOGETHER])
        for group, which in by_group.items()
        for first in range(0, len(which), TOGETHER)
    ]

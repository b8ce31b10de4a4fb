"""Launches of what many rows pass besides products (source/rows.cu): embedding, norm, sums, router.

Owns the checks and the launch geometry. Rows are float32 arrays (T, n) of the device.
"""

from __future__ import annotations

import numpy as np

from flashmoe.errors import InputError
from flashmoe.kernels.cuda.decode import MOST_CHOSEN, MOST_EXPERTS
from flashmoe.kernels.cuda.descriptors import Resident
from flashmoe.kernels.cuda.device import Device, DeviceArray, check

_i32, _f32 = np.int32, np.float32


class RowsEmbedding:
    """Rows of the embedding by id."""

    def __init__(self, device: Device, weights: Resident) -> None:
        self._device, self._weights = device, weights
        self._table = weights.described()[()]

    def __call__(self, ids: DeviceArray, y: DeviceArray) -> None:
        """``y`` (T, hidden) becomes the rows of ids (T,), int32."""
        hidden = self._weights.shape[1]
        check("rows", y, (len(ids), hidden))
        grid = (len(ids), -(-hidden // 256), 1)
        self._device.launch("rows", "lookup_rows", grid, 256, self._table, ids, y)


class RowsNorm:
    """``y = x / sqrt(mean(x^2) + eps) * weight`` of every row."""

    def __init__(self, device: Device, weight: DeviceArray, eps: float) -> None:
        self._device, self._weight, self._eps = device, weight, _f32(eps)

    def __call__(self, x: DeviceArray, y: DeviceArray) -> None:
        """x and y (T, columns)."""
        columns = len(self._weight)
        check("rows", x, (len(x), columns))
        check("results", y, x.shape)
        arguments = x, self._weight, self._eps, _i32(columns), y
        self._device.launch("rows", "norm_rows", (len(x), 1, 1), 256, *arguments)


def add(device: Device, y: DeviceArray, x: DeviceArray, logits: DeviceArray | None = None) -> None:
    """``y += x``, or ``y += sigmoid(logits) * x``: y and x (T, columns), logits (T, 1)."""
    count, columns = y.shape
    check("rows", x, (count, columns))
    if logits is not None:
        check("logits", logits, (count, 1))
    grid = (count, -(-columns // 1024), 1)
    device.launch("rows", "add_rows", grid, 256, y, x, logits, _i32(columns))


def route(
    device: Device,
    logits: DeviceArray,
    renormalize: bool,
    ids: DeviceArray,
    weights: DeviceArray,
) -> None:
    """The best of logits (T, experts), as ``reference.route``, into ids int32 and weights float32,
    both (T, top_k)."""
    rows, count = logits.shape
    top_k = ids.shape[1]
    if count > MOST_EXPERTS or not 0 < top_k <= min(MOST_CHOSEN, count):
        raise InputError(
            f"{top_k} of {count} experts: the GPU's kernels choose at most {MOST_CHOSEN} of "
            f"{MOST_EXPERTS}; run this model with --kernels cpu"
        )
    check("ids", ids, (rows, top_k))
    check("weights", weights, (rows, top_k))
    numbers = _i32(rows), _i32(count), _i32(top_k), _i32(renormalize)
    device.launch("rows", "route_rows", (-(-rows // 4), 1, 1), 128, logits, *numbers, ids, weights)

"""One token's experts: those chosen, in slots of an arena, and the shared one (source/experts.cu).

Owns the checks and the launch geometry of both halves. Who is chosen, and that each is in its slot,
is ``decode``'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flashmoe.errors import InputError
from flashmoe.kernels.cuda.decode import Choice, Vector, fixed_bytes
from flashmoe.kernels.cuda.descriptors import CHUNK, Placed, Resident, described_experts
from flashmoe.kernels.cuda.device import Device, DeviceArray, check

DOWN_ROWS, DOWN_WARPS = 8, 10
"""kDownRows and kDownWarps of source/experts.cu."""

_i32 = np.int32


class FeedForward:
    """The experts of a layer, in slots of an arena, and the shared one.

    ``record`` describes gate, up and down of every expert; ``shared`` are those of the shared
    one, or none.
    """

    def __init__(
        self,
        device: Device,
        arena: int,
        slot_bytes: int,
        record: Sequence[Placed],
        shared: Sequence[Resident],
    ) -> None:
        self._device, self._shared = device, tuple(shared)
        (self.width, self.hidden) = record[0][1]
        widths = [self.width, *(weights.shape[0] for weights in shared[:1])]
        for width in widths:
            if width % CHUNK:
                raise InputError(
                    f"experts of width {width}: the GPU's kernels want a multiple of {CHUNK}; "
                    "run this model with --kernels cpu"
                )
        made = described_experts(arena, slot_bytes, record)
        for name, weights in zip(("gate", "up", "down"), shared, strict=False):
            made[f"shared_{name}"] = weights.described()
        self._widest = max(widths)
        self._table = made[()]

    def room(self, top_k: int) -> tuple[DeviceArray, DeviceArray]:
        """Memory for what lies between the two halves, for any layer of these widths."""
        stride = fixed_bytes(self._widest)
        floats = self._device.empty((top_k + 1, self._widest), np.float32)
        return floats, self._device.empty((top_k + 1, stride), np.uint8)

    def __call__(
        self,
        x: Vector,
        chosen: Choice,
        shared_logit: DeviceArray | None,
        room: tuple[DeviceArray, DeviceArray],
        residual: DeviceArray,
        y: DeviceArray,
    ) -> None:
        """``y = residual + sum weight * expert(x) + sigmoid(shared_logit) * shared(x)``.

        Every slot in ``chosen`` holds its expert. y may be the residual itself.
        """
        check("activations", x.floats, (self.hidden,))
        check("results", y, (self.hidden,))
        top_k = len(chosen.ids)
        h, fixed = room
        width, stride = _i32(h.shape[1]), _i32(fixed.shape[1])
        grid = (self._widest // CHUNK, top_k + bool(self._shared), 1)
        inward = self._table, chosen.slots, _i32(top_k), x.floats, x.fixed, h, fixed, width, stride
        self._device.launch("experts", "experts_up", grid, 256, *inward)
        grid = (-(-self.hidden // DOWN_ROWS), 1, 1)
        outward = self._table, chosen.slots, chosen.weights, _i32(top_k), shared_logit, h, fixed
        arguments = *outward, width, stride, residual, y
        threads = 32 * min(top_k + bool(self._shared), DOWN_WARPS)
        self._device.launch("experts", "experts_down", grid, threads, *arguments)

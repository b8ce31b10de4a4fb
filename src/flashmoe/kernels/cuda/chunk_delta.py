"""The gated delta net of a chunk's tokens between their projections (source/chunk_delta.cu).

Owns its checks and its geometry. The old state is read and the new one written elsewhere, as
``delta`` does for one token.
"""

from __future__ import annotations

import numpy as np

from flashmoe.errors import InputError
from flashmoe.kernels.cuda.delta import MOST_DIM, DeltaState
from flashmoe.kernels.cuda.descriptors import CHUNK
from flashmoe.kernels.cuda.device import Device, DeviceArray, check
from flashmoe.kernels.mixers import DeltaWeights
from flashmoe.kernels.reference import CHUNK as BLOCK

SLICE, PITCH = 32, BLOCK + 4
"""Columns of a state that a thread block has, and of its rows in shared memory
(source/chunk_delta.cu)."""

DELTA_CHUNK = np.dtype(
    [
        *((name, "<u8") for name in ("conv", "decay", "dt_bias", "norm")),
        *((name, "<i4") for name in ("key_heads", "value_heads", "key_dim", "value_dim", "taps")),
        ("eps", "<f4"),
        ("tokens", "<i4"),
        ("skipped", "<i4"),
    ]
)


class ChunkDeltaNet:
    """The gated delta net of a layer, for many tokens at once.

    Raises:
        InputError: its heads are of a width that the kernels do not take.
    """

    def __init__(self, device: Device, weights: DeltaWeights) -> None:
        self.shape, self._device = weights.shape, device
        for name in ("key_dim", "value_dim"):
            width = getattr(self.shape, name)
            if width % CHUNK or width > MOST_DIM:
                raise InputError(
                    f"a gated delta net of {name} {width}: the GPU's kernel wants a multiple of "
                    f"{CHUNK} up to {MOST_DIM}; run this model with --kernels cpu"
                )
        small = {
            "conv": weights.conv.T,
            "decay": weights.decay,
            "dt_bias": weights.dt_bias,
            "norm": weights.norm,
        }
        self._arrays = {  # whose memory must live
            name: device.upload(np.ascontiguousarray(array, np.float32))
            for name, array in small.items()
        }
        self._net = np.zeros((), DELTA_CHUNK)
        for name, array in self._arrays.items():
            self._net[name] = device.address(array)
        for name in ("key_heads", "value_heads", "key_dim", "value_dim"):
            self._net[name] = getattr(self.shape, name)
        self._net["taps"], self._net["eps"] = self.shape.conv_kernel, weights.eps

    def __call__(
        self,
        inputs: tuple[DeviceArray, DeviceArray, DeviceArray, DeviceArray],
        start: int,
        state: DeltaState,
        after: DeltaState,
        y: DeviceArray,
    ) -> None:
        """``y`` (T, value_heads * value_dim) of T tokens, the first of which stands at ``start``.

        ``inputs`` are qkv (T, channels), z (T, value_heads * value_dim), b and a (T, value_heads).
        The new state goes to ``after``, which shares no memory with ``state``; that is left as it
        was.
        """
        self._check(inputs, state, after, y)
        qkv, z, b, a = inputs
        shape, device, count = self.shape, self._device, len(qkv)
        heads, blocks = shape.value_heads, -(-(start % BLOCK + count) // BLOCK)
        made = self._net.copy()
        made["tokens"], made["skipped"] = count, start % BLOCK
        net = made[()]

        def launch(
            kernel: str, grid: tuple[int, int], *arguments: DeviceArray, room: int = 0
        ) -> None:
            device.launch(
                "chunk_delta", kernel, (*grid, 1), 256, net, *arguments, shared_bytes=room
            )

        mixed = device.empty((count, shape.conv_channels), np.float32)
        warps = 2 * shape.key_heads + heads
        launch("convolve", (-(-warps // 8), count + 1), qkv, state.conv, after.conv, mixed)
        inverse, weights = (
            device.empty((blocks, heads, BLOCK, BLOCK), np.float32) for _ in range(2)
        )
        growth = device.empty((blocks, heads, BLOCK, 2), np.float32)
        room = 4 * 2 * shape.key_dim * PITCH
        launch("pair_up", (blocks, heads), mixed, b, a, inverse, weights, growth, room=room)
        room = 4 * (shape.key_dim * (SLICE + BLOCK) + BLOCK * (BLOCK + SLICE))
        grid = shape.value_dim // SLICE, heads
        arrays = mixed, inverse, weights, growth, state.delta, after.delta, y
        launch("recur", grid, *arrays, room=room)
        launch("gate", (-(-heads // 8), count), z, y)

    def _check(
        self,
        inputs: tuple[DeviceArray, ...],
        state: DeltaState,
        after: DeltaState,
        y: DeviceArray,
    ) -> None:
        shape, count = self.shape, len(inputs[0])
        heads, outputs = shape.value_heads, shape.value_heads * shape.value_dim
        for name, array, width in zip(
            ("qkv", "z", "b", "a"),
            inputs,
            (shape.conv_channels, outputs, heads, heads),
            strict=True,
        ):
            check(f"a delta net's {name}", array, (count, width))
        check("results", y, (count, outputs))
        for each in (state, after):
            check("a recurrent state", each.delta, (heads, shape.key_dim, shape.value_dim))
            conv = shape.conv_kernel - 1, shape.conv_channels
            check("a convolution's state", each.conv, conv)
        for old, new in ((state.delta, after.delta), (state.conv, after.conv)):
            if old.size and self._device.address(old) == self._device.address(new):
                raise ValueError("the new recurrent state would overwrite the old one")

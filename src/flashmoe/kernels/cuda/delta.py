"""One token's gated delta net between its projections, in one launch (source/delta.cu).

Owns its checks and its geometry. The old state is read and the new one written elsewhere, so that
a token can be undone; which arrays are whose turn is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmoe.errors import InputError
from flashmoe.kernels.cuda.decode import Vector
from flashmoe.kernels.cuda.descriptors import CHUNK, uploaded
from flashmoe.kernels.cuda.device import Device, DeviceArray, check
from flashmoe.kernels.mixers import DeltaWeights
from flashmoe.shape import RecurrentShape

THREADS, MOST_DIM, MOST_TAPS = 512, 256, 4
"""Of a block, a head and the convolution: kThreads, kMostDim, kMostTaps of source/delta.cu."""

DELTA_NET = np.dtype(
    [
        *((name, "<u8") for name in ("conv", "decay", "dt_bias", "norm")),
        *((name, "<i4") for name in ("key_heads", "value_heads", "key_dim", "value_dim", "taps")),
        ("eps", "<f4"),
    ]
)


@dataclass(frozen=True, eq=False)
class DeltaState:
    """``delta`` (value_heads, key_dim, value_dim), ``conv`` (taps - 1, channels), oldest first."""

    delta: DeviceArray
    conv: DeviceArray


def delta_state(device: Device, shape: RecurrentShape) -> DeltaState:
    """That of an empty timeline."""
    delta, conv = _extents(shape)
    return DeltaState(device.zeros(delta, np.float32), device.zeros(conv, np.float32))


class DeltaNet:
    """The gated delta net of a layer.

    Raises:
        InputError: its heads, or its convolution, are of a size that the kernel does not take.
    """

    def __init__(self, device: Device, weights: DeltaWeights) -> None:
        shape = weights.shape
        for name in ("key_dim", "value_dim"):
            width = getattr(shape, name)
            if width % CHUNK or width > MOST_DIM:
                raise InputError(
                    f"a gated delta net of {name} {width}: the GPU's kernel wants a multiple of "
                    f"{CHUNK} up to {MOST_DIM}; run this model with --kernels cpu"
                )
        if shape.conv_kernel > MOST_TAPS:
            raise InputError(
                f"a convolution of {shape.conv_kernel} taps: the GPU's kernel takes at most "
                f"{MOST_TAPS}; run this model with --kernels cpu"
            )
        self.shape, self._device = shape, device
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
        made = np.zeros((), DELTA_NET)
        for name, array in self._arrays.items():
            made[name] = device.address(array)
        for name in ("key_heads", "value_heads", "key_dim", "value_dim"):
            made[name] = getattr(shape, name)
        made["taps"], made["eps"] = shape.conv_kernel, weights.eps
        self._table = uploaded(device, made)

    @property
    def inputs(self) -> int:
        """Values from the projection: qkv, z, b and a, one after the other."""
        return self.shape.conv_channels + self.outputs + 2 * self.shape.value_heads

    @property
    def outputs(self) -> int:
        """Values of the result."""
        return self.shape.value_heads * self.shape.value_dim

    def __call__(self, x: DeviceArray, state: DeltaState, after: DeltaState, y: Vector) -> None:
        """``y`` (value_heads * value_dim) of x (inputs,); the new state goes to ``after``.

        ``after`` shares no memory with ``state``, which is left as it was.
        """
        check("a delta net's inputs", x, (self.inputs,))
        check("results", y.floats, (self.outputs,))
        delta, conv = _extents(self.shape)
        for each in (state, after):
            check("a recurrent state", each.delta, delta)
            check("a convolution's state", each.conv, conv)
        for old, room in ((state.delta, after.delta), (state.conv, after.conv)):
            if old.size and self._device.address(old) == self._device.address(room):
                raise ValueError("the new recurrent state would overwrite the old one")
        arrays = state.delta, after.delta, state.conv, after.conv, y.floats, y.fixed
        grid = (self.shape.value_heads, 1, 1)
        self._device.launch("delta", "gated_delta", grid, THREADS, self._table, x, *arrays)


def _extents(shape: RecurrentShape) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Those of delta and conv."""
    delta = (shape.value_heads, shape.key_dim, shape.value_dim)
    return delta, (shape.conv_kernel - 1, shape.conv_channels)

"""The attention of a chunk's tokens between its projections (source/chunk_attention.cu).

Owns the checks and the launch geometry. Keys and values are held as ``attention`` holds them, so
that a prompt's chunks and single tokens may follow one another.
"""

from __future__ import annotations

import numpy as np

from flashmoe.errors import InputError
from flashmoe.kernels.cuda.attention import WIDTHS, KeyValues
from flashmoe.kernels.cuda.device import Device, DeviceArray, check
from flashmoe.kernels.mixers import AttentionWeights
from flashmoe.kernels.reference import frequencies

TILE_TOKENS = 64
"""Queries of a block, and keys it takes at once."""
SHARED_BYTES = {64: 50176, 128: 66560, 256: 99328}
"""Of a block, by head_dim."""
FORMS = {"f32": 0, "f16": 1, "bf16": 2, "int8": 3}
"""As source/machine.cuh and attention_row.cuh number them."""

_i32 = np.int32


class ChunkAttention:
    """The attention of a layer, for many tokens at once.

    Raises:
        InputError: its heads are of a width that there are no kernels for.
    """

    def __init__(self, device: Device, weights: AttentionWeights) -> None:
        self.shape = shape = weights.shape
        if shape.head_dim not in WIDTHS:
            raise InputError(
                f"attention of head_dim {shape.head_dim}: the GPU's kernels know "
                f"{', '.join(map(str, WIDTHS))}; run this model with --kernels cpu"
            )
        self._device = device
        self._eps = np.float32(weights.eps)
        turning = frequencies(shape.rope_dims, shape.rope_theta, np.dtype(np.float32))
        self._frequencies = device.upload(np.ascontiguousarray(turning, np.float32))
        self._norms = [
            None if norm is None else device.upload(np.ascontiguousarray(norm, np.float32))
            for norm in (weights.q_norm, weights.k_norm)
        ]

    def __call__(
        self,
        q: DeviceArray,
        k: DeviceArray,
        v: DeviceArray,
        start: int,
        held: KeyValues,
        y: DeviceArray,
    ) -> None:
        """``y`` (T, heads * head_dim) of T tokens from position ``start`` on, whose keys and values
        are put into ``held`` there.

        q is (T, heads * head_dim), or twice as wide where gated: a head's queries, then its gate;
        k and v are (T, kv_heads * head_dim).
        """
        shape, count, device = self.shape, len(q), self._device
        heads, context, width = held.extent
        if (heads, width) != (shape.kv_heads, shape.head_dim):
            raise ValueError(f"keys and values {held.extent} are those of another layer")
        if not 0 <= start <= context - count:
            raise ValueError(f"{count} tokens from {start} on do not fit a context of {context}")
        check("queries", q, (count, shape.heads * width * (1 + shape.gated)))
        check("keys", k, (count, heads * width))
        check("values", v, (count, heads * width))
        check("results", y, (count, shape.heads * width))
        names = ("keys", "values", "key_scales", "value_scales")
        arrays = [held.arrays.get(name) for name in names]
        form = *arrays, _i32(FORMS[held.kind]), _i32(context)
        queries = device.empty((count, shape.heads, width), np.float32)
        numbers = start, shape.heads, heads, shape.rope_dims // 2, shape.gated
        device.launch(
            "chunk_attention",
            f"prepare_{width}",
            (-(-(shape.heads + 2 * heads) // 8), count, 1),
            256,
            *(q, k, v, self._frequencies, *self._norms, self._eps),
            *map(_i32, numbers),
            queries,
            *form,
        )
        device.launch(
            "chunk_attention",
            f"attend_{width}",
            (-(-count // TILE_TOKENS), shape.heads, 1),
            256,
            queries,
            q,
            *map(_i32, (shape.gated, start, count, heads)),
            y,
            *form,
            shared_bytes=SHARED_BYTES[width],
        )

"""Blocks of Q4_0, Q4_1 and Q8_0 as affine codes, scales and biases of the same values.

Owns the layout of a block and the choice of a format that holds it exactly. Reads no file.

Invariant: every weight of a matrix made here equals gguf.quants' dequantisation in float32.
"""

from __future__ import annotations

import math

import numpy as np
from gguf.constants import GGMLQuantizationType

from flashmoe.errors import CheckpointError
from flashmoe.quant import FLOATS, Affine, Array, Matrix, pack
from flashmoe.store.published_files import AGAIN

F16_MAX = 65504.0

BITS = {
    GGMLQuantizationType.Q4_0: 4,
    GGMLQuantizationType.Q4_1: 4,
    GGMLQuantizationType.Q8_0: 8,
}
ZERO_CODE = {GGMLQuantizationType.Q4_0: 8, GGMLQuantizationType.Q8_0: 128}
"""The code that stands for zero; these blocks have no bias of their own, so it is -zero * scale."""


def bias_overflows(blocks: Array, zero: int, label: str) -> bool:
    """Whether ``zero`` times a scale of these blocks (rows, blocks, bytes) is beyond F16.

    Raises:
        CheckpointError: a scale is not finite; the message begins with ``label``.
    """
    largest = float(np.abs(_halves(blocks, 0)).max())
    if not math.isfinite(largest):
        raise CheckpointError(_not_finite(label))
    return largest * zero > F16_MAX


def affine(blocks: Array, kind: int, form: Affine, label: str) -> Matrix:
    """Blocks (rows, blocks, bytes) of type ``kind`` as an affine matrix of the same values.

    A scale has 11 significant bits and a code 4 or 8, so ``code * scale``, ``-zero * scale``
    and their sum are exact in float32, and the last is ``(code - zero) * scale``.

    Raises:
        CheckpointError: a scale or bias is not finite; the message begins with ``label``.
    """
    rows, columns = len(blocks), blocks.shape[1] * form.group
    scales = _halves(blocks, 0)
    zero = ZERO_CODE.get(GGMLQuantizationType(kind))
    biases = _halves(blocks, 2) if zero is None else scales * np.float32(-zero)
    if not (np.isfinite(scales).all() and np.isfinite(biases).all()):
        raise CheckpointError(_not_finite(label))
    body = blocks[..., 4 if zero is None else 2 :]
    if form.bits == 8:
        codes = body ^ np.uint8(128)  # signed q to q + 128
    else:
        codes = np.concatenate([body & np.uint8(15), body >> np.uint8(4)], axis=-1)
    words = pack(codes.reshape(rows, columns), form.bits)
    dtype = FLOATS[form.scales]
    return Matrix(form, (rows, columns), words, scales.astype(dtype), biases.astype(dtype))


def _halves(blocks: Array, offset: int) -> Array:
    """The float16 at a byte offset of every block, as float32 (rows, blocks)."""
    pair = np.ascontiguousarray(blocks[..., offset : offset + 2])
    return pair.view("<f2")[..., 0].astype(np.float32)


def _not_finite(label: str) -> str:
    return f"{label} has a scale that is NaN or infinite: the file is damaged; {AGAIN}"

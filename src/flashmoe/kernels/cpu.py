"""The door to the native kernels: checks shape, dtype and contiguity, then calls.

Owns nothing of the formulas (``native/kernels.h``) and keeps no state. Float32 activations only.
Results do not depend on ``threads``: the work is split by output row.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from flashmoe import _native
from flashmoe.kernels import reference
from flashmoe.kernels.table import Kernels
from flashmoe.quant import Affine, Array, Matrix

ROW_BYTES = 5 << 15
"""Scratch of a thread: one row of weights as codes and as float32 (native/generic.cpp), for up
to 32,768 inputs, more than any published model has."""

_TYPES = {"F32": 0, "F16": 1, "BF16": 2}


def _bits(array: Array) -> Array:
    """The array as the native side takes it: 16-bit floats as their bit patterns."""
    array = np.ascontiguousarray(array)
    return array.view(np.uint16) if array.dtype.itemsize == 2 else array


def matmul(x: Array, weights: Matrix, *, threads: int) -> Array:
    """``x @ weights.T``: (T, in) float32 by (out, in) to (T, out)."""
    rows, columns = weights.shape
    if x.dtype != np.float32 or x.ndim != 2 or x.shape[1] != columns:
        raise ValueError(f"activations {x.dtype}{x.shape} do not fit weights {weights.shape}")
    x = np.ascontiguousarray(x)
    y = np.empty((len(x), rows), np.float32)
    if not isinstance(weights.form, Affine):
        _native.matmul_plain(x, _bits(weights.weight), _TYPES[weights.form.dtype], y, threads)
        return y
    assert weights.scales is not None and weights.biases is not None
    form = weights.form
    _native.matmul_affine(
        x,
        np.ascontiguousarray(weights.weight),
        _bits(weights.scales),
        _bits(weights.biases),
        form.bits,
        form.group,
        _TYPES[form.scales],
        y,
        threads,
    )
    return y


def table(threads: int) -> Kernels:
    """The native table, for ``threads`` threads."""
    product = partial(matmul, threads=threads)
    return Kernels(
        name="cpu",
        dtype=np.dtype(np.float32),
        block_bytes=threads * ROW_BYTES,
        matmul=product,
        swiglu=partial(reference.swiglu, product=product),
        experts=partial(reference.experts, product=product),
    )

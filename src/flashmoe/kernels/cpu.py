"""The door to the native kernels: checks shape, dtype and contiguity, then calls.

Owns nothing of the formulas (``native/kernels.h``) and keeps no state. Float32 activations only.
Results do not depend on ``threads``: the work is split by output row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from flashmoe import _native
from flashmoe.kernels import reference
from flashmoe.kernels.table import Kernels
from flashmoe.quant import Affine, Array, Expert, Matrix

ROW_BYTES = 5 << 15
"""Scratch of a thread: one row of weights as codes and as float32 (native/generic.cpp), for up
to 32,768 inputs, more than any published model has."""

_TYPES = {"F32": 0, "F16": 1, "BF16": 2}


def _bits(array: Array) -> Array:
    """The array as the native side takes it: 16-bit floats as their bit patterns."""
    array = np.ascontiguousarray(array)
    return array.view(np.uint16) if array.dtype.itemsize == 2 else array


def _parts(weights: Matrix) -> tuple[Any, ...]:
    """The arguments that stand for a matrix: its arrays, then what their bits mean."""
    if not isinstance(weights.form, Affine):
        return _bits(weights.weight), _TYPES[weights.form.dtype]
    assert weights.scales is not None and weights.biases is not None
    form = weights.form
    arrays = np.ascontiguousarray(weights.weight), _bits(weights.scales), _bits(weights.biases)
    return *arrays, form.bits, form.group, _TYPES[form.scales]


def _fitting(x: Array, weights: Matrix) -> Array:
    """The activations, contiguous, if the weights take them."""
    if x.dtype != np.float32 or x.ndim != 2 or x.shape[1] != weights.shape[1]:
        raise ValueError(f"activations {x.dtype}{x.shape} do not fit weights {weights.shape}")
    return np.ascontiguousarray(x)


def matmul(x: Array, weights: Matrix, *, threads: int) -> Array:
    """``x @ weights.T``: (T, in) float32 by (out, in) to (T, out)."""
    x = _fitting(x, weights)
    y = np.empty((len(x), weights.shape[0]), np.float32)
    affine = isinstance(weights.form, Affine)
    product: Callable[..., None] = _native.matmul_affine if affine else _native.matmul_plain
    product(x, *_parts(weights), y, threads)
    return y


def swiglu(x: Array, expert: Expert, *, threads: int) -> Array:
    """``down(silu(gate(x)) * up(x))``: (T, hidden) float32 to (T, hidden)."""
    x = _fitting(x, expert.gate)
    y = np.empty((len(x), expert.down.shape[0]), np.float32)
    gate, up, down = _parts(expert.gate), _parts(expert.up), _parts(expert.down)
    _native.expert_swiglu(x, gate, up, down, y, threads)
    return y


def table(threads: int) -> Kernels:
    """The native table, for ``threads`` threads."""
    network = partial(swiglu, threads=threads)
    return Kernels(
        name="cpu",
        dtype=np.dtype(np.float32),
        block_bytes=threads * ROW_BYTES,
        matmul=partial(matmul, threads=threads),
        swiglu=network,
        experts=partial(reference.experts, network=network),
    )

"""The door to the native kernels: checks shape, dtype and contiguity, then calls.

Owns nothing of the formulas (``native/kernels.h``, ``decode.h``, ``panels.h``, ``chunk_*.h``) and
no state but handles: the native description of a matrix, an expert or a layer is made once and kept
while that lives. Float32 activations only. Results do not depend on ``threads``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from flashmoe import _native
from flashmoe.kernels import mixers, reference
from flashmoe.kernels.handles import Handles
from flashmoe.kernels.kv import KeyValues
from flashmoe.kernels.mixers import AttentionWeights, Block, DeltaWeights, Parts
from flashmoe.kernels.reference import CONTEXT_BLOCK
from flashmoe.kernels.table import Kernels
from flashmoe.quant import Affine, Array, Expert, Matrix
from flashmoe.shape import AttentionShape

ROW_BYTES = 3 << 16
"""Scratch of a thread: weights unpacked in panels (native/panels.h), or one row of them as codes
and as float32 (native/generic.cpp), for up to 32,768 inputs, more than any published model has."""

UNIT_ROWS = 256
"""Queries of one unit of a chunk's attention (native/chunk_attention.h), unless the heads that read
a key are more."""

_TYPES = {"F32": 0, "F16": 1, "BF16": 2}
_KINDS = {"f32": 0, "bf16": 1, "int8": 2, "f16": 3}
_F32 = np.dtype(np.float32)


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


def _make_matrix(weights: Matrix) -> _native.Matrix:
    return _native.Matrix(_parts(weights), weights.shape[1])


def _make_expert(expert: Expert) -> _native.Expert:
    return _native.Expert(*map(_make_matrix, (expert.gate, expert.up, expert.down)))


def _make_attention(weights: AttentionWeights) -> _native.Attention:
    shape = weights.shape
    return _native.Attention(
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        shape.rope_dims,
        shape.gated,
        weights.q_norm,
        weights.k_norm,
        weights.eps,
    )


def _make_delta(weights: DeltaWeights) -> _native.DeltaNet:
    shape = weights.shape
    heads = (shape.key_heads, shape.value_heads, shape.key_dim, shape.value_dim)
    small = (weights.conv, weights.decay, weights.dt_bias, weights.norm)
    return _native.DeltaNet(*heads, *small, weights.eps)


def _make_kv(kv: KeyValues) -> _native.KeyValues:
    whole = kv.whole
    keys, values = _bits(whole["keys"]), _bits(whole["values"])
    scales = whole.get("key_scales"), whole.get("value_scales")
    return _native.KeyValues(_KINDS[kv.kind], keys, values, *scales)


_matrix = Handles[Matrix, _native.Matrix](_make_matrix)
_expert = Handles[Expert, _native.Expert](_make_expert)


def _make_block(block: Block) -> _native.Block:
    inputs = [_matrix(weights) for weights in block.inputs]
    return _native.Block(block.norm, block.eps, inputs, _matrix(block.out))


_block = Handles[Block, _native.Block](_make_block)
_attention = Handles[AttentionWeights, _native.Attention](_make_attention)
_delta = Handles[DeltaWeights, _native.DeltaNet](_make_delta)
_kv = Handles[KeyValues, _native.KeyValues](_make_kv)


def _fitting(x: Array, weights: Matrix) -> Array:
    """The activations, contiguous, if the weights take them."""
    if x.dtype != _F32 or x.ndim != 2 or x.shape[1] != weights.shape[1]:
        raise ValueError(f"activations {x.dtype}{x.shape} do not fit weights {weights.shape}")
    return np.ascontiguousarray(x)


def matmul(x: Array, weights: Matrix, *, threads: int) -> Array:
    """``x @ weights.T``: (T, in) float32 by (out, in) to (T, out)."""
    x = _fitting(x, weights)
    y = np.empty((len(x), weights.shape[0]), np.float32)
    _native.project(x, [_matrix(weights)], y, threads)
    return y


def project(x: Array, matrices: Sequence[Matrix], *, threads: int) -> tuple[Array, ...]:
    """The products of the same activations with several matrices, in one go.

    Those of more than one token take the form for many rows (``native/panels.h``).
    """
    x, count = _fitting(x, matrices[0]), len(x)
    widths = [weights.shape[0] for weights in matrices]
    y = np.empty(count * sum(widths), np.float32)
    _native.project(x, [_matrix(weights) for weights in matrices], y, threads, panels=count > 1)
    parts, start = [], 0
    for width in widths:
        parts.append(y[start : start + count * width].reshape(count, width))
        start += count * width
    return tuple(parts)


def swiglu(x: Array, expert: Expert, gate: Matrix | None = None, *, threads: int) -> Array:
    """``down(silu(gate(x)) * up(x))``: (T, hidden) float32 to (T, hidden), under its own gate."""
    x = _fitting(x, expert.gate)
    y = np.empty(x.shape, np.float32)
    under = None if gate is None else _matrix(gate)
    _native.swiglu(x, _expert(expert), under, y, threads)
    return y


def experts(
    x: Array, ids: Array, weights: Array, held: Iterable[tuple[int, Expert]], *, threads: int
) -> Array:
    """The weighted sum of the chosen experts: x (T, hidden), ids and weights (T, k).

    Where ``held`` has ``batches()``, those of a batch are computed together, which changes no bit.
    The outputs of a single token go to their places and are summed in the order of ids, whatever
    arrived first; those of more tokens are added as the experts come, so ``held`` yields these in
    the order of their numbers.
    """
    x, ids = np.ascontiguousarray(x), np.ascontiguousarray(ids, np.int64)
    weights = np.ascontiguousarray(weights)
    y = np.zeros(x.shape, np.float32)
    outputs = np.empty((ids.shape[1], x.shape[1]), np.float32) if len(x) == 1 else None
    batches = getattr(held, "batches", None)
    for batch in batches() if batches else ([each] for each in held):
        numbers = [number for number, _ in batch]
        handles = [_expert(expert) for _, expert in batch]
        if outputs is None:
            _native.add_experts(x, ids, weights, numbers, handles, y, threads)
        else:
            _native.experts(x, ids, numbers, handles, outputs, threads)
    if outputs is not None:
        _native.combine(outputs, weights, y)
    return y


def rms_norm(x: Array, weight: Array, eps: float, *, threads: int) -> Array:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis."""
    y = np.empty(x.shape, np.float32)
    _native.rms_norm(np.ascontiguousarray(x), weight, eps, y, threads)
    return y


def add(y: Array, x: Array, *, threads: int) -> Array:
    """``y + x``, in y's memory."""
    _native.add(x, y, threads)
    return y


def route(logits: Array, top_k: int, renormalize: bool) -> tuple[Array, Array]:
    """Softmax router: (T, experts) to the top_k ids and weights (T, top_k), best first."""
    shape = (len(logits), top_k)
    ids, weights = np.empty(shape, np.int64), np.empty(shape, np.float32)
    _native.route(logits, renormalize, ids, weights)
    return ids, weights


def unit_bytes(shape: AttentionShape, *, threads: int) -> int:
    """Scratch of a chunk's attention: ``AttendChunk::scratch`` floats a thread at most."""
    group, padded = shape.heads // shape.kv_heads, -(-shape.head_dim // 32) * 32
    tokens = 1 << max(0, (UNIT_ROWS // group).bit_length() - 1)
    rows = -(-tokens * group // 8) * 8
    floats = rows * (2 * padded + CONTEXT_BLOCK + 3) + 2 * CONTEXT_BLOCK * padded
    return threads * -(-floats // 16) * 64


def attend(
    q: Array, k: Array, v: Array, weights: AttentionWeights, kv: KeyValues, *, threads: int
) -> Array:
    """Attention of T tokens. A decode step, T = 1, has a kernel of its own."""
    shape, count = weights.shape, len(q)
    cos, sin = reference.angles(kv.length, count, shape.rope_dims, shape.rope_theta, _F32)
    y = np.empty((count, shape.heads * shape.head_dim), np.float32)
    native = _attention(weights)
    work = native.step if count == 1 else native.chunk
    work(q, k, v, cos, sin, _kv(kv), kv.length, y, threads)
    kv.length += count
    return y


def gated_delta(
    qkv: Array,
    z: Array,
    b: Array,
    a: Array,
    weights: DeltaWeights,
    state: tuple[Array, Array],
    room: tuple[Array, Array] | None = None,
    start: int = 0,
    *,
    threads: int,
) -> tuple[Array, tuple[Array, Array]]:
    """The gated delta net of T tokens: one is a decode step, more pass in blocks."""
    delta, conv = room or (np.empty_like(state[0]), np.empty_like(state[1]))
    y = np.empty(z.shape, np.float32)
    arrays = qkv, z, b, a, state[1], state[0], conv, delta, y
    if len(qkv) == 1:
        _delta(weights).step(*arrays, threads)
    else:
        _delta(weights).chunk(*arrays, start, threads)
    return y, (delta, conv)


def attention_block(
    x: Array,
    block: Block,
    weights: AttentionWeights,
    kv: KeyValues,
    parts: Parts,
    *,
    threads: int,
) -> Array:
    """``x + attention(norm(x))``; in one native call for one token."""
    if len(x) != 1:
        return mixers.attention_block(x, block, weights, kv, parts)
    shape = weights.shape
    cos, sin = reference.angles(kv.length, 1, shape.rope_dims, shape.rope_theta, _F32)
    x = _fitting(x, block.inputs[0])
    y = np.empty(x.shape, np.float32)
    native = _attention(weights)
    native.block(x, _block(block), cos, sin, _kv(kv), kv.length, y, threads)
    kv.length += 1
    return y


def delta_block(
    x: Array,
    block: Block,
    weights: DeltaWeights,
    state: tuple[Array, Array],
    room: tuple[Array, Array],
    parts: Parts,
    start: int = 0,
    *,
    threads: int,
) -> tuple[Array, tuple[Array, Array]]:
    """``x + gated_delta(norm(x))`` and the new state; in one native call for one token."""
    if len(x) != 1:
        return mixers.delta_block(x, block, weights, state, room, parts, start)
    x = _fitting(x, block.inputs[0])
    y = np.empty(x.shape, np.float32)
    native = _delta(weights)
    native.block(x, _block(block), state[1], state[0], room[1], room[0], y, threads)
    return y, room


def table(threads: int) -> Kernels:
    """The native table, for ``threads`` threads."""
    return Kernels(
        name="cpu",
        dtype=_F32,
        block_bytes=threads * ROW_BYTES,
        instruction_set=_native.instruction_sets()[0],
        unit_bytes=partial(unit_bytes, threads=threads),
        matmul=partial(matmul, threads=threads),
        project=partial(project, threads=threads),
        swiglu=partial(swiglu, threads=threads),
        experts=partial(experts, threads=threads),
        rms_norm=partial(rms_norm, threads=threads),
        add=partial(add, threads=threads),
        attend=partial(attend, threads=threads),
        gated_delta=partial(gated_delta, threads=threads),
        attention_block=partial(attention_block, threads=threads),
        delta_block=partial(delta_block, threads=threads),
        route=route,
    )

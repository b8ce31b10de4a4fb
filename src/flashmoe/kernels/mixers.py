"""The two mixers of a layer, between their projections and with them, and what weights they need.

Owns the order of the steps (SPEC 1.3), in numpy: the reference twins of the fused kernels. Each
step of a mixer is a function of :mod:`flashmoe.kernels.reference`; a block is composed of whatever
set of kernels it is given.
Source of the delta net: Yang et al., Gated Delta Networks, arXiv 2412.06464.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flashmoe.kernels.kv import KeyValues
from flashmoe.kernels.reference import (
    Matmul,
    attention,
    blocks,
    causal_conv,
    delta_rule,
    l2_norm,
    rms_norm,
    rotary,
    sigmoid,
    silu,
)
from flashmoe.quant import Array, Matrix
from flashmoe.shape import AttentionShape, RecurrentShape


@dataclass(frozen=True, eq=False)
class AttentionWeights:
    """Of one attention layer: factors of the query and key norms (head_dim), or None."""

    shape: AttentionShape
    eps: float
    q_norm: Array | None
    k_norm: Array | None


@dataclass(frozen=True, eq=False)
class DeltaWeights:
    """Of one gated delta net.

    ``conv`` (channels, taps), ``decay`` = -exp(A_log) and ``dt_bias`` (value_heads), ``norm``
    (value_dim).
    """

    shape: RecurrentShape
    eps: float
    conv: Array
    decay: Array
    dt_bias: Array
    norm: Array


@dataclass(frozen=True, eq=False)
class Block:
    """What surrounds a mixer: the factors of its norm (hidden), its projections in and out."""

    norm: Array
    eps: float
    inputs: tuple[Matrix, ...]
    out: Matrix


class Parts(Protocol):
    """The kernels of which a block is composed."""

    @property
    def rms_norm(self) -> Callable[[Array, Array, float], Array]: ...
    @property
    def add(self) -> Callable[[Array, Array], Array]: ...
    @property
    def project(self) -> Callable[[Array, Sequence[Matrix]], tuple[Array, ...]]: ...
    @property
    def matmul(self) -> Matmul: ...
    @property
    def attend(self) -> Callable[..., Array]: ...
    @property
    def gated_delta(self) -> Callable[..., tuple[Array, tuple[Array, Array]]]: ...


def attention_block(
    x: Array, block: Block, weights: AttentionWeights, kv: KeyValues, parts: Parts
) -> Array:
    """``x + attention(norm(x))`` of T tokens, (T, hidden); ``block.inputs`` give q, k and v."""
    q, k, v = parts.project(parts.rms_norm(x, block.norm, block.eps), block.inputs)
    (y,) = parts.project(parts.attend(q, k, v, weights, kv), (block.out,))
    return parts.add(y, x)


def delta_block(
    x: Array,
    block: Block,
    weights: DeltaWeights,
    state: tuple[Array, Array],
    room: tuple[Array, Array],
    parts: Parts,
    start: int = 0,
) -> tuple[Array, tuple[Array, Array]]:
    """``x + gated_delta(norm(x))`` of T tokens, (T, hidden), and the new state.

    ``block.inputs`` give qkv, z, b and a; states and ``start`` are those of :func:`gated_delta`.
    """
    inputs = parts.project(parts.rms_norm(x, block.norm, block.eps), block.inputs)
    y, state = parts.gated_delta(*inputs, weights, state, room, start)
    del inputs  # the largest arrays of the block
    (out,) = parts.project(y, (block.out,))
    return parts.add(out, x), state


def attend(q: Array, k: Array, v: Array, weights: AttentionWeights, kv: KeyValues) -> Array:
    """Attention of T tokens, whose keys and values are appended; returns (T, heads * head_dim).

    q is (T, heads * head_dim), or twice as wide where gated: a head's queries, then its gate. k
    and v are (T, kv_heads * head_dim).
    """
    shape, count = weights.shape, len(q)
    width, start = shape.head_dim, kv.length
    q = q.reshape(count, shape.heads, -1)
    k, v = (a.reshape(count, shape.kv_heads, width) for a in (k, v))
    q, gate = q[..., :width], q[..., width:]
    if weights.q_norm is not None and weights.k_norm is not None:
        q, k = rms_norm(q, weights.q_norm, weights.eps), rms_norm(k, weights.k_norm, weights.eps)
    rope = (start, shape.rope_dims, shape.rope_theta)
    y = attention(rotary(q, *rope), *kv.extend(rotary(k, *rope), v))
    if shape.gated:
        y = y * sigmoid(gate)
    return y.reshape(count, -1)


def gated_delta(
    qkv: Array,
    z: Array,
    b: Array,
    a: Array,
    weights: DeltaWeights,
    state: tuple[Array, Array],
    room: tuple[Array, Array] | None = None,
    start: int = 0,
) -> tuple[Array, tuple[Array, Array]]:
    """The gated delta net of T tokens; returns (T, value_heads * value_dim) and the new state.

    qkv is (T, channels), z (T, value_heads * value_dim), b and a (T, value_heads); the first token
    stands at ``start``. The state is delta (value_heads, key_dim, value_dim) and conv (taps - 1,
    channels), and is left as it was; the new one may lie in ``room``, two arrays of the same
    shapes. Holds intermediates of one block of tokens at a time.
    """
    del room
    y = np.empty_like(z)
    for rows in blocks(start, len(qkv)):
        y[rows], state = _delta_block(qkv[rows], z[rows], b[rows], a[rows], weights, state)
    return y, state


def _delta_block(
    qkv: Array, z: Array, b: Array, a: Array, weights: DeltaWeights, state: tuple[Array, Array]
) -> tuple[Array, tuple[Array, Array]]:
    delta, conv = state
    mixed, conv = causal_conv(qkv, conv, weights.conv)
    q, k, v = split(mixed, weights.shape)
    step = np.logaddexp(a + weights.dt_bias, a.dtype.type(0))
    decay, beta = weights.decay * step, sigmoid(b)
    o, after = np.empty_like(v), np.empty_like(delta)
    repeat = weights.shape.value_heads // weights.shape.key_heads
    for head in range(0, len(delta), repeat):  # those of a key head, so that few matrices live
        h = slice(head, head + repeat)
        inputs = q[:, h], k[:, h], v[:, h], decay[:, h], beta[:, h]
        o[:, h], after[h] = delta_rule(*inputs, delta[h])
    y = rms_norm(o, weights.norm, weights.eps) * silu(z.reshape(o.shape))
    return y.reshape(z.shape), (after, conv)


def split(mixed: Array, shape: RecurrentShape) -> tuple[Array, Array, Array]:
    """Queries and keys, normalised and repeated to value heads, and values: (T, heads, d)."""
    keys = shape.key_heads * shape.key_dim
    q, k, v = np.split(mixed, [keys, 2 * keys], axis=1)
    repeat = shape.value_heads // shape.key_heads  # value head h reads key head h // repeat
    q = l2_norm(q.reshape(len(mixed), shape.key_heads, -1)) * mixed.dtype.type(shape.key_dim**-0.5)
    k = l2_norm(k.reshape(len(mixed), shape.key_heads, -1))
    v = v.reshape(len(mixed), shape.value_heads, -1)
    return np.repeat(q, repeat, axis=1), np.repeat(k, repeat, axis=1), v

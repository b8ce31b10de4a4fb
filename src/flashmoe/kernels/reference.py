"""Every kernel in plain numpy: always present, always right, the twin of each fast one.

Owns the formulas (SPEC 1.3); computes in the dtype of the activations, float32 or float64.
Weights enter as the float32 numbers that :mod:`flashmoe.quant` defines. ``T`` is the number of
tokens passing together; all arrays are (T, ...) with the token first unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from flashmoe.kernels.kv import Held
from flashmoe.quant import Array, Expert, Matrix, dequantize

Matmul: TypeAlias = Callable[[Array, Matrix], Array]

BLOCK_ELEMENTS = 1 << 21
"""Weights dequantised at once: 8 MiB of float32, so that no matrix is ever whole in floats."""

SCORE_BYTES = 1 << 20
"""Attention scores held at once; longer prompts pass in blocks of queries."""

CONTEXT_BLOCK = 256
"""Keys of one partial softmax (as in native/decode.h)."""

CHUNK = 64
"""Tokens a block of the chunked delta rule (the size that the published models use).

Blocks end at multiples of it, counted from the timeline's start, so that results do not depend on
where a prompt is cut, if it is cut at such multiples.
"""


def matmul(x: Array, weights: Matrix) -> Array:
    """``x @ weights.T``: (T, in) by (out, in) to (T, out)."""
    rows, columns = weights.shape
    step = max(1, BLOCK_ELEMENTS // columns)
    y: Array = np.empty((len(x), rows), x.dtype)
    for start in range(0, rows, step):
        # Unnamed, so that no block is still alive while the next one is made.
        y[:, start : start + step] = (
            x @ dequantize(weights.rows(slice(start, start + step))).astype(x.dtype, copy=False).T
        )
    return y


def project(x: Array, matrices: Sequence[Matrix]) -> tuple[Array, ...]:
    """The products of the same activations with several matrices."""
    return tuple(matmul(x, weights) for weights in matrices)


def block_bytes(dtype: np.dtype[Any]) -> int:
    """Most memory :func:`matmul` holds beside x and results of ``dtype``: one block of weights.

    Codes (a byte each) become float32, which becomes ``dtype`` where that is another.
    """
    wider = 0 if dtype == np.float32 else dtype.itemsize
    return BLOCK_ELEMENTS * (4 + max(1, wider))


def lookup(ids: Array, embedding: Matrix, dtype: np.dtype[np.floating]) -> Array:
    """Rows of the (vocabulary, hidden) embedding for ids (T,), as (T, hidden) of ``dtype``."""
    return dequantize(embedding.rows(ids)).astype(dtype, copy=False)


def sigmoid(x: Array) -> Array:
    """``1 / (1 + exp(-x))``; a very negative x overflows to the right answer, 0."""
    with np.errstate(over="ignore"):
        y: Array = 1 / (1 + np.exp(-x))
    return y


def silu(x: Array) -> Array:
    """``x * sigmoid(x)``."""
    return x * sigmoid(x)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis; weight as it is applied."""
    mean = np.mean(x * x, axis=-1, keepdims=True)
    y: Array = x / np.sqrt(mean + x.dtype.type(eps)) * weight
    return y


def add(y: Array, x: Array) -> Array:
    """``y + x``, in y's memory."""
    y += x
    return y


def rotary(x: Array, start: int, dims: int, theta: float) -> Array:
    """Rotate the first ``dims`` of each head by its position, in halves (pairs i, i + dims/2).

    x is (T, heads, head_dim); token t stands at position ``start + t``. Frequencies
    ``theta^(-2i/dims)`` and angles are computed in x's dtype, as the published models do.
    """
    half = dims // 2
    cos, sin = angles(start, len(x), dims, theta, x.dtype)
    cos, sin = cos[:, None, :], sin[:, None, :]
    first, second = x[..., :half], x[..., half:dims]
    rotated = x.copy()
    rotated[..., :half] = first * cos - second * sin
    rotated[..., half:dims] = second * cos + first * sin
    return rotated


def frequencies(dims: int, theta: float, dtype: np.dtype[Any]) -> Array:
    """``theta^(-2i/dims)`` of the rotation, (dims / 2), computed in ``dtype``."""
    exponent = np.arange(0, dims, 2, dtype=dtype) / dtype.type(dims)
    frequency: Array = dtype.type(1) / dtype.type(theta) ** exponent
    return frequency


@lru_cache(maxsize=2)  # every layer of a pass asks for the same
def angles(
    start: int, count: int, dims: int, theta: float, dtype: np.dtype[Any]
) -> tuple[Array, Array]:
    """Cosines and sines (count, dims / 2) of the positions from ``start`` on; not to be written."""
    angle = np.arange(start, start + count, dtype=dtype)[:, None] * frequencies(dims, theta, dtype)
    cos, sin = np.cos(angle), np.sin(angle)
    cos.flags.writeable = sin.flags.writeable = False
    return cos, sin


def attention(q: Array, keys: Held, values: Held) -> Array:
    """Causal grouped-query softmax attention of the last T positions over all S.

    q is (T, heads, head_dim); keys and values are (kv_heads, S, head_dim) and already hold the
    T new positions. Query head h reads kv head ``h // (heads / kv_heads)``. Returns q's shape.

    Source: Milakov and Gimelshein, Online normalizer calculation for softmax, arXiv 1805.02867.
    """
    count, heads, width = q.shape
    kv_heads, length, _ = keys.shape
    group = heads // kv_heads
    out = np.empty_like(q)
    scale = q.dtype.type(width**-0.5)
    step = max(1, SCORE_BYTES // (group * CONTEXT_BLOCK * q.dtype.itemsize))
    for head in range(kv_heads):
        block = slice(head * group, (head + 1) * group)
        for first in range(0, count, step):
            rows = slice(first, min(first + step, count))
            start = length - count + first
            out[rows, block] = _attended(q[rows, block] * scale, keys, values, head, start)
    return out


def _attended(q: Array, keys: Held, values: Held, head: int, start: int) -> Array:
    """Of one kv head, (T, group, head_dim), block of keys by block, merged by their maxima."""
    end = start + len(q)
    positions = np.arange(start, end)[:, None]
    most = np.full((*q.shape[:2], 1), -np.inf, q.dtype)
    total, y = np.zeros_like(most), np.zeros_like(q)
    for skipped in range(0, end, CONTEXT_BLOCK):
        span = slice(skipped, min(skipped + CONTEXT_BLOCK, end))
        scores = q @ keys[head, span].T
        hidden = np.arange(span.start, span.stop) > positions
        scores[np.broadcast_to(hidden[:, None, :], scores.shape)] = -np.inf
        now = np.maximum(most, scores.max(axis=-1, keepdims=True))
        weights, factor = np.exp(scores - now), np.exp(most - now)
        total = total * factor + weights.sum(axis=-1, keepdims=True)
        y = y * factor + weights @ values[head, span]
        most = now
    attended: Array = y / total
    return attended


def softmax(x: Array) -> Array:
    """Over the last axis, shifted by the maximum."""
    exponentials: Array = np.exp(x - x.max(axis=-1, keepdims=True))
    exponentials /= exponentials.sum(axis=-1, keepdims=True)
    return exponentials


def causal_conv(x: Array, state: Array, weight: Array) -> tuple[Array, Array]:
    """Depthwise causal convolution and SiLU; returns the output and the new state.

    x is (T, channels), state the K - 1 inputs before it (K - 1, channels), oldest first, weight
    (channels, K) whose last column meets the current token.
    """
    window = np.concatenate([state, x])
    y = np.zeros_like(x)
    for tap in range(weight.shape[1]):
        y += window[tap : tap + len(x)] * weight[:, tap]
    return silu(y), window[len(x) :].copy()


def l2_norm(x: Array) -> Array:
    """``x / sqrt(sum(x^2) + 1e-6)``: the constant is on the sum, inside the root."""
    y: Array = x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + x.dtype.type(1e-6))
    return y


def delta_rule(
    q: Array, k: Array, v: Array, log_decay: Array, beta: Array, state: Array
) -> tuple[Array, Array]:
    """The gated delta rule over T tokens of one block; returns (T, heads, dv) and the new state.

    q and k are (T, heads, dk), normalised and q scaled; v (T, heads, dv); log_decay and beta
    (T, heads); state (heads, dk, dv). One token takes the recurrent form, more the chunked one
    (Yang et al., Gated Delta Networks, arXiv 2412.06464, section 3.3). Memory grows with T
    squared: see :func:`blocks`.
    """
    if len(q) == 1:
        o, state = delta_step(q[0], k[0], v[0], log_decay[0], beta[0], state)
        return o[None], state
    inputs = (a.swapaxes(0, 1) for a in (q, k, v, log_decay, beta))
    o, state = _delta_chunk(*inputs, state=state)
    return o.swapaxes(0, 1), state


def blocks(start: int, count: int) -> list[slice]:
    """``count`` tokens from position ``start`` on, cut at multiples of :data:`CHUNK`."""
    first = CHUNK - start % CHUNK
    edges = [0, *range(first, count, CHUNK), count]
    return [slice(*pair) for pair in pairwise(edges)]


def delta_step(
    q: Array, k: Array, v: Array, log_decay: Array, beta: Array, state: Array
) -> tuple[Array, Array]:
    """One token: ``S = e^g S; S += k (beta (v - S'k))'; o = S'q`` for every head."""
    state = state * np.exp(log_decay)[:, None, None]
    recalled = np.einsum("hkv,hk->hv", state, k)
    correction = beta[:, None] * (v - recalled)
    state += k[:, :, None] * correction[:, None, :]
    return np.einsum("hkv,hk->hv", state, q), state


def _delta_chunk(
    q: Array, k: Array, v: Array, log_decay: Array, beta: Array, *, state: Array
) -> tuple[Array, Array]:
    """A chunk of C tokens at once, heads first: q, k (heads, C, dk), v (heads, C, dv)."""
    total = np.cumsum(log_decay, axis=-1)  # (heads, C)
    lower = np.tri(q.shape[1], dtype=bool)
    gap = np.where(lower, total[:, :, None] - total[:, None, :], -np.inf)  # masked before exp
    decay = np.exp(gap)
    system = np.tril(beta[..., None] * (k @ k.swapaxes(1, 2)) * decay, -1)
    system += np.eye(q.shape[1], dtype=q.dtype)
    grown = np.exp(total)[..., None]
    right = np.concatenate([beta[..., None] * v, beta[..., None] * k * grown], axis=-1)
    solved = np.linalg.solve(system, right)
    update = solved[..., : v.shape[-1]] - solved[..., v.shape[-1] :] @ state
    o = (q * grown) @ state + ((q @ k.swapaxes(1, 2)) * decay) @ update
    last = total[:, -1:, None]
    state = np.exp(last) * state + (k * np.exp(last - total[..., None])).swapaxes(1, 2) @ update
    return o, state


def route(logits: Array, top_k: int, renormalize: bool) -> tuple[Array, Array]:
    """Softmax router: (T, experts) to the top_k ids and weights (T, top_k), best first.

    Probabilities are taken over all experts; ties go to the lower id. ``renormalize`` divides
    the chosen weights by their sum.
    """
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :top_k]
    weights = np.take_along_axis(softmax(logits), ids, axis=-1)
    if renormalize:
        weights /= weights.sum(axis=-1, keepdims=True)
    return ids, weights


def swiglu(x: Array, expert: Expert, gate: Matrix | None = None) -> Array:
    """``down(silu(gate(x)) * up(x))``: (T, hidden) to (T, hidden).

    ``gate`` (1, hidden) multiplies each token's result by the sigmoid of its product.
    """
    y = matmul(silu(matmul(x, expert.gate)) * matmul(x, expert.up), expert.down)
    return y if gate is None else sigmoid(matmul(x, gate)) * y


def experts(
    x: Array,
    ids: Array,
    weights: Array,
    held: Iterable[tuple[int, Expert]],
) -> Array:
    """The weighted sum of the chosen experts: x (T, hidden), ids and weights (T, k).

    ``held`` yields each distinct expert once. Those of a single token may come in any order and are
    summed in the order of ids, so the answer does not depend on which arrived first; those of more
    come in the order of their numbers, and are added as they come.
    """
    if len(x) > 1:
        total = np.zeros_like(x)
        for number, expert in held:
            token, rank = np.nonzero(ids == number)
            total[token] += weights[token, rank, None] * swiglu(x[token], expert)
        return total
    outputs = np.empty((*ids.shape, x.shape[1]), x.dtype)
    for number, expert in held:
        token, rank = np.nonzero(ids == number)
        outputs[token, rank] = swiglu(x[token], expert)
    y = np.zeros_like(x)
    for place in range(ids.shape[1]):
        y += weights[:, place, None] * outputs[:, place]
    return y

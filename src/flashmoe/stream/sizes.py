"""How large things are in memory: one formula a part of the plan, for a model's dimensions.

Owns the formulas alone; measures nothing and decides nothing. Each names what it counts, so that
a change of the arithmetic shows where its size has to follow.

Invariant: a formula is never below what the parts really take; activations are rounded up.
"""

from __future__ import annotations

import math

from flashmoe.kernels.kv import row_bytes
from flashmoe.kernels.reference import CHUNK, SCORE_BYTES
from flashmoe.options import Budget
from flashmoe.quant import Plain
from flashmoe.shape import ModelShape
from flashmoe.store.reader import Store

BLAS_BYTES = 4 << 20
"""Buffers of numpy's BLAS on one thread, which is all that a pass uses. Measured: OpenBLAS 0.3.31
takes under 2.5 MiB for the products and systems of the reference kernels, in either dtype."""

SAMPLER_FLOATS = 12
"""Float64 numbers a word while a token is drawn: logits, scores, weights, their order, sums."""

REPLY_FLOATS = 3
"""Those of them that a reply keeps from one token to the next."""

_VECTORS_BELOW = 64  # a tensor with a side this short is kept as floats too


def trunk_bytes(store: Store, float_bytes: int) -> int:
    """The resident tensors as stored, and a float copy of those that are not matrices."""
    total = 0
    for tensor in store.manifest.trunk:
        total += sum(part.nbytes for _, part in tensor.named_parts())
        vector = len(tensor.shape) != 2 or min(tensor.shape) < _VECTORS_BELOW
        if isinstance(tensor.form, Plain) and vector:
            total += math.prod(tensor.shape) * float_bytes
    return total


def state_bytes(shape: ModelShape, float_bytes: int) -> int:
    """Recurrent and conv state of one timeline, over all such layers.

    The first is (value_heads, key_dim, value_dim), the second (conv_kernel - 1, channels).
    """
    net = shape.recurrent
    if net is None:
        return 0
    recurrent = net.value_heads * net.key_dim * net.value_dim
    conv = (net.conv_kernel - 1) * net.conv_channels
    return shape.mixers.count("recurrent") * (recurrent + conv) * float_bytes


def kv_bytes(
    shape: ModelShape, context_tokens: int, float_bytes: int, kind: str = Budget.kv
) -> int:
    """Keys and values of one timeline of ``context_tokens`` tokens, over all attention layers."""
    if shape.attention is None:
        return 0
    row = row_bytes(kind, shape.attention.head_dim, float_bytes)
    token = 2 * shape.attention.kv_heads * row
    return shape.mixers.count("attention") * context_tokens * token


def array_bytes(
    shape: ModelShape, context_tokens: int, float_bytes: int, kind: str = Budget.kv
) -> int:
    """The largest single array of a timeline: what saving and loading copy at a time."""
    keys = delta = 0
    if (attention := shape.attention) is not None and "attention" in shape.mixers:
        row = row_bytes(kind, attention.head_dim, float_bytes)
        keys = attention.kv_heads * context_tokens * row
    if (net := shape.recurrent) is not None:
        delta = net.value_heads * net.key_dim * net.value_dim * float_bytes
    return max(keys, delta)


def scratch_bytes(
    shape: ModelShape,
    *,
    chunk_tokens: int,
    context_tokens: int,
    block_bytes: int,
    float_bytes: int,
    kv: str = Budget.kv,
    sessions: int = 1,
) -> int:
    """What one pass and the drawing of a token take, rounded up throughout, and what a reply in
    each of ``sessions`` keeps for that.

    The mixer and the experts of a layer do not live at the same time, so the larger counts.
    ``block_bytes`` is the kernels' own. Never smaller for a longer chunk or context.
    """
    scores = SCORE_BYTES // float_bytes
    floats = 8 * chunk_tokens * shape.hidden + max(
        chunk_tokens * _experts_floats(shape),
        _attention_floats(shape, chunk_tokens, context_tokens, scores)
        + _decoded_floats(shape, context_tokens, kv),
        _recurrent_floats(shape, chunk_tokens),
    )
    words = shape.vocabulary * (SAMPLER_FLOATS + REPLY_FLOATS * (sessions - 1)) * 8
    return floats * float_bytes + words + BLAS_BYTES + block_bytes


def _experts_floats(shape: ModelShape) -> int:
    """Floats a token: router, one output an expert, and intermediates of the widest part."""
    experts = shape.experts
    width = max(experts.intermediate, experts.shared_intermediate)
    return 6 * experts.count + experts.top_k * shape.hidden + 6 * width


def _attention_floats(
    shape: ModelShape, chunk_tokens: int, context_tokens: int, block_floats: int
) -> int:
    """Projections and their copies, and the scores of one block of queries with theirs."""
    attention = shape.attention
    if attention is None:
        return 0
    queries = attention.heads * attention.head_dim * (2 if attention.gated else 1)
    keys = 2 * attention.kv_heads * attention.head_dim
    query_scores = attention.heads // attention.kv_heads * context_tokens
    block = min(chunk_tokens * query_scores, max(block_floats, query_scores))
    return 5 * chunk_tokens * (queries + keys) + 4 * block


def _decoded_floats(shape: ModelShape, context_tokens: int, kv: str) -> int:
    """Keys and values of one head as floats, and a copy on the way, where they are held smaller."""
    if shape.attention is None or kv == Budget.kv:
        return 0
    return 3 * context_tokens * shape.attention.head_dim


def _recurrent_floats(shape: ModelShape, chunk_tokens: int) -> int:
    """What goes into the delta net and comes out, and what it holds besides, one block at a time.

    Outcomes count twice: the projection that follows holds them in a form of its own. The
    reference holds a block of all channels, the matrices of one key head and two states; each
    native thread what is named in native/chunk_delta.h, at most one a value head.
    """
    net = shape.recurrent
    if net is None:
        return 0
    values, block = net.value_heads * net.value_dim, min(chunk_tokens, CHUNK)
    tokens = net.conv_channels + 3 * values + 2 * net.value_heads
    heads = net.value_heads // net.key_heads
    matrices = heads * (8 * block + 6 * (net.key_dim + net.value_dim))
    repeated = 4 * net.value_heads * net.key_dim
    states = (2 * net.value_heads + 4 * heads) * net.key_dim * net.value_dim
    twin = block * (6 * net.conv_channels + 5 * values + repeated + matrices) + states
    key_dim, value_dim = (-(-dim // 16) * 16 for dim in (net.key_dim, net.value_dim))
    rows = 3 * key_dim + 2 * value_dim + 6 * CHUNK + 8
    native = net.value_heads * (key_dim * value_dim + CHUNK * rows)
    return chunk_tokens * tokens + max(twin, native)

"""How large things are in memory: one formula a part of the plan, for a model's dimensions.

Owns the formulas alone; measures nothing and decides nothing. Each names what it counts, so that
a change of the arithmetic shows where its size has to follow.

Invariant: a formula is never below what the parts really take; activations are rounded up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flashmoe.arena import LARGE_PAGE_BYTES
from flashmoe.kernels.kv import row_bytes
from flashmoe.kernels.reference import CHUNK, CONTEXT_BLOCK, SCORE_BYTES
from flashmoe.quant import Plain
from flashmoe.shape import ModelShape
from flashmoe.store.reader import Store

BLAS_BYTES = 4 << 20
"""Buffers of numpy's BLAS on one thread, which is all that a pass uses. Measured: OpenBLAS 0.3.31
takes under 2.5 MiB for the products and systems of the reference kernels, in either dtype."""

SAMPLER_FLOATS = 12
"""Float64 numbers a word while a token is drawn: logits, scores, weights, their order, sums."""

BATCH_PLACES = 1024
"""Most (token, expert) pairs whose activations a product of several experts holds at once."""

BATCH_EXPERTS = 16
"""Experts of a chunk that are computed together at most."""

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


def passing_trunk_bytes(store: Store) -> int:
    """The largest of the resident tensors, twice: what is here while they go, one by one, to the
    memory of a device, which copies from memory of its own."""
    tensors = (tensor.named_parts() for tensor in store.manifest.trunk)
    return 2 * max(sum(part.nbytes for _, part in parts) for parts in tensors)


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


def kv_bytes(shape: ModelShape, context_tokens: int, float_bytes: int, kind: str) -> int:
    """Keys and values of one timeline of ``context_tokens`` tokens, over all attention layers."""
    if shape.attention is None:
        return 0
    row = row_bytes(kind, shape.attention.head_dim, float_bytes)
    token = 2 * shape.attention.kv_heads * row
    return shape.mixers.count("attention") * context_tokens * token


def touched_kv_bytes(
    shape: ModelShape, tokens: int, context_tokens: int, float_bytes: int, kind: str
) -> int:
    """How much of :func:`kv_bytes` for ``context_tokens`` is resident once ``tokens`` have passed.

    Each head has a stretch of its own in each array, which fills from its start, in large pages.
    """
    attention = shape.attention
    if attention is None or not tokens:
        return 0
    rows = [row_bytes(kind, attention.head_dim, float_bytes)]
    if kind == "int8":  # scales have arrays of their own
        rows = [attention.head_dim, rows[0] - attention.head_dim]
    touched = sum(_touched(attention.kv_heads, context_tokens * row, tokens * row) for row in rows)
    return 2 * shape.mixers.count("attention") * touched


def _touched(heads: int, stride: int, filled: int) -> int:
    """Resident bytes of an array that begins with a page, ``filled`` of each ``stride``."""
    pages = end = 0
    for begin in range(0, heads * stride, stride):
        first = max(begin // LARGE_PAGE_BYTES, end)
        end = max(-(-(begin + filled) // LARGE_PAGE_BYTES), end)
        pages += end - first
    return min(pages * LARGE_PAGE_BYTES, heads * stride)


def array_bytes(shape: ModelShape, context_tokens: int, float_bytes: int, kind: str) -> int:
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
    kv: str,
    sessions: int = 1,
) -> int:
    """What one pass and the drawing of a token take, rounded up throughout, and what a reply in
    each of ``sessions`` keeps for that.

    The mixer and the experts of a layer do not live at the same time, so the larger counts.
    ``block_bytes`` is the kernels' own. Never smaller for a longer chunk or context.
    """
    scores = SCORE_BYTES // float_bytes
    floats = 8 * chunk_tokens * shape.hidden + max(
        _experts_floats(shape, chunk_tokens),
        _attention_floats(shape, chunk_tokens, context_tokens, scores) + _decoded_floats(shape, kv),
        _recurrent_floats(shape, chunk_tokens),
    )
    words = shape.vocabulary * (SAMPLER_FLOATS + REPLY_FLOATS * (sessions - 1)) * 8
    return floats * float_bytes + words + BLAS_BYTES + block_bytes


def told_bytes(shape: ModelShape, *, chunk_tokens: int, sessions: int) -> int:
    """What of :func:`scratch_bytes` is here while a device has the pass: the hidden states and
    choices that it tells of, and the drawing of a token."""
    told = chunk_tokens * (3 * shape.hidden * 4 + 6 * shape.experts.top_k * 8)
    return (
        told + shape.vocabulary * (SAMPLER_FLOATS + REPLY_FLOATS * (sessions - 1)) * 8 + BLAS_BYTES
    )


def _experts_floats(shape: ModelShape, chunk_tokens: int) -> int:
    """Router, shared expert, the sum, and the experts of one batch: gathered inputs and their
    16-bit form, gate, up and their product, its 16-bit form, and outputs."""
    experts, hidden = shape.experts, shape.hidden
    router = 6 * experts.count
    shared = hidden + 4 * experts.shared_intermediate
    # The reference kernels take all tokens of one expert at once, however many these are.
    places = min(chunk_tokens * experts.top_k, max(chunk_tokens, BATCH_PLACES))
    # Each expert's inputs in 16 bits are rounded up to a block of 16.
    places += 15 * min(BATCH_EXPERTS, chunk_tokens * experts.top_k)
    batch = places * (3 * hidden + 4 * experts.intermediate)
    return chunk_tokens * (router + shared + hidden) + batch


def _attention_floats(
    shape: ModelShape, chunk_tokens: int, context_tokens: int, block_floats: int
) -> int:
    """Projections and their copies; for each query of a block its scores, its result and theirs.

    A decode step keeps a partial result a head and block of keys instead, to merge them in order.
    """
    attention = shape.attention
    if attention is None:
        return 0
    queries = attention.heads * attention.head_dim * (2 if attention.gated else 1)
    keys = 2 * attention.kv_heads * attention.head_dim
    group = attention.heads // attention.kv_heads
    rows = min(chunk_tokens * group, max(block_floats // CONTEXT_BLOCK, group))
    blocks = -(-context_tokens // CONTEXT_BLOCK)
    partials = blocks * attention.heads * (attention.head_dim + 18)  # whole vectors, maximum, sum
    block = max(4 * rows * (CONTEXT_BLOCK + attention.head_dim), partials)
    return 5 * chunk_tokens * (queries + keys) + block


def _decoded_floats(shape: ModelShape, kv: str) -> int:
    """A block of one head's keys and values as floats, with copies, where they are held smaller."""
    if shape.attention is None or kv == "f32":
        return 0
    return 4 * CONTEXT_BLOCK * shape.attention.head_dim


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


@dataclass(frozen=True)
class Outlay:
    """What the timelines and passes of one engine take, by their length in tokens.

    ``context_tokens`` is the longest timeline, ``sessions`` how many are planned. ``float_bytes``
    is the size of an activation, ``block_bytes`` what the kernels hold of weights in floats, ``kv``
    the form of keys and values. Where a pass is a device's, ``on_device``, its activations are not
    here.
    """

    shape: ModelShape
    context_tokens: int
    sessions: int
    float_bytes: int
    block_bytes: int
    kv: str
    on_device: bool = False

    @property
    def state_bytes(self) -> int:
        """Recurrent and conv state of one timeline, twice: what the last pass began with is kept,
        to undo it and to write the next into."""
        return 2 * state_bytes(self.shape, self.float_bytes)

    def kv_bytes(self, tokens: int) -> int:
        """Resident keys and values of one timeline of so many tokens."""
        tokens = min(tokens, self.context_tokens)
        return touched_kv_bytes(self.shape, tokens, self.context_tokens, self.float_bytes, self.kv)

    def copied_bytes(self, tokens: int) -> int:
        """What saving or loading one timeline of so many tokens holds beside it."""
        tokens = min(tokens, self.context_tokens)
        return array_bytes(self.shape, tokens, self.float_bytes, self.kv)

    def pass_bytes(self, tokens: int) -> int:
        """Scratch of a pass of so many tokens, and of drawing the next."""
        tokens = min(tokens, self.context_tokens)
        if self.on_device:
            return told_bytes(self.shape, chunk_tokens=tokens, sessions=self.sessions)
        return scratch_bytes(
            self.shape,
            chunk_tokens=tokens,
            context_tokens=self.context_tokens,
            block_bytes=self.block_bytes,
            float_bytes=self.float_bytes,
            kv=self.kv,
            sessions=self.sessions,
        )

    def trunk_bytes(self, store: Store) -> int:
        """Of the resident tensors what is here at any time."""
        if self.on_device:
            return passing_trunk_bytes(store)
        return trunk_bytes(store, self.float_bytes)

    @property
    def idle_bytes(self) -> int:
        """What of that stays from one pass to the next."""
        replies = REPLY_FLOATS * self.shape.vocabulary * 8 * self.sessions
        return BLAS_BYTES + replies

    def scratch_bytes(self, tokens: int) -> int:
        """A pass and a timeline's copy: one session is saved between its passes, others may be
        while another has a pass."""
        work, copied = self.pass_bytes(tokens), self.copied_bytes(self.context_tokens)
        return max(work, copied + self.idle_bytes) if self.sessions == 1 else work + copied

"""Sizes from the specification's own numbers, and never below what the arithmetic takes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe import kernels
from flashmoe.kernels import mixers, reference
from flashmoe.kernels.kv import KeyValues
from flashmoe.kernels.mixers import AttentionWeights, DeltaWeights
from flashmoe.options import Budget, Sampling
from flashmoe.sampler import Sampler
from flashmoe.shape import AttentionShape, ExpertsShape, ModelShape, RecurrentShape
from flashmoe.stream import sizes
from flashmoe.stream.needs import outlay
from flashmoe.stream.sizes import scratch_bytes, trunk_bytes
from tests.stream.conftest import TinyStore

MIB = 1 << 20


def traced_bytes(work: Callable[[], object]) -> int:
    """Most memory that is newly allocated at once while something is done."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


QWEN_397B = ModelShape(
    family="qwen3_5_moe",
    hidden=4096,
    vocabulary=248320,
    mixers=("recurrent", "recurrent", "recurrent", "attention") * 15,
    attention=AttentionShape(32, 2, 256, 64, 1e7, gated=True, qk_norm=True),
    recurrent=RecurrentShape(16, 64, 128, 128, 4),
    experts=ExpertsShape(512, 10, 1024, "softmax", True, 1024),
    norm_eps=1e-6,
    norm_offset=1,
    tied_head=False,
    max_context_tokens=262144,
)


def test_state_and_kv_are_the_specifications() -> None:
    # SPEC 1.4, 397B: 180 MiB of float32 state, 3.2 MiB of bf16 conv, 30,720 B of bf16 KV a token.
    recurrent = 180 * MIB
    conv = 45 * 3 * 12288 * 2
    assert sizes.state_bytes(QWEN_397B, 4) == recurrent + 2 * conv
    assert round(conv / MIB, 1) == 3.2
    assert sizes.kv_bytes(QWEN_397B, 1000, 4, "bf16") == 30_720_000


def test_a_model_without_one_kind_of_layer_pays_nothing_for_it() -> None:
    plain = replace(QWEN_397B, mixers=("attention",) * 4, recurrent=None)
    assert sizes.state_bytes(plain, 4) == 0
    pure = replace(QWEN_397B, mixers=("recurrent",) * 4, attention=None)
    assert sizes.kv_bytes(pure, 1000, 4, "f32") == 0


def test_the_largest_array_is_of_either_kind() -> None:
    delta = 64 * 128 * 128 * 4
    assert sizes.array_bytes(QWEN_397B, 16, 4, "f32") == delta
    assert sizes.array_bytes(QWEN_397B, 262144, 4, "f32") == 2 * 256 * 262144 * 4
    pure = replace(QWEN_397B, mixers=("recurrent",) * 4, attention=None)
    assert sizes.array_bytes(pure, 262144, 8, "f32") == 2 * delta


def scratch(
    chunk_tokens: int, context_tokens: int, block_bytes: int = 0, float_bytes: int = 4
) -> int:
    """Scratch of the largest model."""
    return scratch_bytes(
        QWEN_397B,
        chunk_tokens=chunk_tokens,
        context_tokens=context_tokens,
        block_bytes=block_bytes,
        float_bytes=float_bytes,
        kv="f32",
    )


def test_scratch_covers_the_largest_arrays_of_a_chunk() -> None:
    hidden = 8 * 128 * 4096 * 4
    places = 1024 * (3 * 4096 + 4 * 1024) * 4
    projections = 128 * 2 * (2 * 32 + 2 * 2) * 256 * 4
    partials = 262144 // 256 * 32 * 258 * 4
    assert hidden + max(places, projections) <= scratch(128, 4096) < 256 * MIB
    assert hidden + partials <= scratch(1, 262144) < 128 * MIB
    assert scratch(128, 262144) - scratch(128, 4096) < partials + MIB
    assert scratch(1, 4096) < 64 * MIB


@pytest.mark.parametrize("kv", ["f32", "f16", "int8"])
@pytest.mark.parametrize("float_bytes", [4, 8])
def test_attention_takes_no_more_than_counted(kv: str, float_bytes: int) -> None:
    """However long the context, in numpy."""
    dtype = np.dtype(f"f{float_bytes}")
    attention = AttentionShape(8, 2, 64, 64, 1e7, gated=True, qk_norm=False)
    tokens, context, width = 1500, 3000, attention.head_dim
    shape = replace(QWEN_397B, attention=attention, hidden=8)
    held = KeyValues(kv, (2, context, width), dtype)
    held.extend(*2 * (np.ones((context - tokens, 2, width), dtype),))
    sizes_of = 2 * attention.heads * width, 2 * width, 2 * width
    q, k, v = (np.ones((tokens, size), dtype) for size in sizes_of)
    weights = AttentionWeights(attention, 1e-6, None, None)
    taken = traced_bytes(lambda: mixers.attend(q, k, v, weights, held))
    scores = reference.SCORE_BYTES // float_bytes
    counted = sizes._attention_floats(shape, tokens, context, scores)
    counted = (counted + sizes._decoded_floats(shape, kv)) * float_bytes
    assert taken + q.nbytes + k.nbytes + v.nbytes < counted
    assert counted < 3 * (taken + q.nbytes)


@given(st.integers(1, 512), st.integers(1, 262143), st.sampled_from([4, 8]))
def test_scratch_never_shrinks_with_a_longer_chunk_or_context(
    chunk: int, context: int, float_bytes: int
) -> None:
    found = scratch(chunk, context, float_bytes=float_bytes)
    assert scratch(chunk + 1, context, float_bytes=float_bytes) > found
    assert scratch(chunk, context + 1, float_bytes=float_bytes) >= found
    assert scratch(chunk, context, 12345, float_bytes) == found + 12345


@pytest.mark.parametrize("tokens", (2, 64, 300))
@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_a_delta_net_takes_no_more_than_counted(tokens: int, dtype: str) -> None:
    net = RecurrentShape(4, 16, 64, 48, 4)
    values, heads, random = 16 * 48, 16, np.random.default_rng(5).standard_normal
    small = random((net.conv_channels, 4)), -np.ones(heads), np.zeros(heads), np.ones(48)
    weights = DeltaWeights(net, 1e-6, *(array.astype(dtype) for array in small))
    state = np.zeros((heads, 64, 48), dtype), np.zeros((3, net.conv_channels), dtype)
    widths = net.conv_channels, values, heads, heads
    inputs = [random((tokens, width)).astype(dtype) for width in widths]
    table = kernels.choose("reference", dtype)
    table.gated_delta(*inputs, weights, state)
    taken = traced_bytes(lambda: table.gated_delta(*inputs, weights, state))
    given = sum(array.nbytes for array in inputs)
    shape = replace(QWEN_397B, recurrent=net)
    counted = sizes._recurrent_floats(shape, tokens) * np.dtype(dtype).itemsize
    assert given + taken < counted
    assert tokens < 64 or counted < 3 * (given + taken)


@pytest.mark.parametrize("spread", [1.0, 0.0])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(top_p=0.9999, logprobs=20),
        Sampling(top_p=0.999999, min_p=1e-9, logprobs=20),
        Sampling(top_k=90_000, top_p=0.9, repetition_penalty=1.1, presence_penalty=1.0),
    ],
)
def test_drawing_a_token_takes_no_more_than_counted(sampling: Sampling, spread: float) -> None:
    """What a reply keeps from one token to the next included."""
    words = 100_000
    logits = np.random.default_rng(3).standard_normal(words).astype(np.float32) * spread

    def draw() -> None:
        sampler = Sampler(sampling, range(words))
        for _ in range(2):
            sampler(logits)

    draw()
    taken = traced_bytes(draw)
    least = 0 if spread else words * 8  # scores that are equal are all looked at
    assert least < taken < words * sizes.SAMPLER_FLOATS * 8


def test_the_trunk_is_its_parts_and_float_copies_of_vectors(tiny: TinyStore) -> None:
    embedding = 96 * 64 // 2 + 2 * 96 * 2
    assert sizes.trunk_bytes(tiny.store, 4) == embedding + 64 * 2 + 64 * 4


def test_where_a_device_has_the_passes_the_trunk_only_comes_by(tiny: TinyStore) -> None:
    shape = tiny.store.shape
    sizes = {
        where: outlay(shape, Budget(context_tokens=4096), float_bytes=4, on_device=where)
        for where in (False, True)
    }
    largest = max(
        sum(part.nbytes for _, part in tensor.named_parts()) for tensor in tiny.store.manifest.trunk
    )
    assert sizes[True].trunk_bytes(tiny.store) == 2 * largest
    assert sizes[False].trunk_bytes(tiny.store) == trunk_bytes(tiny.store, 4)
    for tokens in (1, 64, 4096):
        told = sizes[True].pass_bytes(tokens)
        assert 3 * 4 * tokens * shape.hidden < told < sizes[False].pass_bytes(tokens)
    assert sizes[True].kv_bytes(4096) == sizes[False].kv_bytes(4096)

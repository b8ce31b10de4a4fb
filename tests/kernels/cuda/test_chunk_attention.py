"""A chunk's attention on an imitated GPU against its twin in float64."""

import numpy as np
import pytest

from flashmoe.errors import InputError
from flashmoe.kernels import reference
from flashmoe.kernels.cuda.attention import key_values
from flashmoe.kernels.cuda.chunk_attention import ChunkAttention
from flashmoe.kernels.kv import KeyValues, Rows
from flashmoe.kernels.mixers import AttentionWeights
from flashmoe.options import KV_KINDS
from flashmoe.shape import AttentionShape
from tests.kernels.test_decode import F32, F64, near, normal
from tests.tolerances import MIXER

SHAPES = {
    "published": AttentionShape(4, 1, 256, 64, 1e7, gated=True, qk_norm=True),
    "one a kv head": AttentionShape(3, 3, 64, 64, 1e4, gated=False, qk_norm=False),
    "two a kv head": AttentionShape(4, 2, 128, 128, 1e6, gated=False, qk_norm=True),
}
CONTEXT = 144


def given(shape, count):
    """q, k and v of so many tokens, and the layer's weights."""
    norms = [normal(n, shape.head_dim) if shape.qk_norm else None for n in (1, 2)]
    widths = shape.heads * (1 + shape.gated), shape.kv_heads, shape.kv_heads
    inputs = [normal(n, count, heads * shape.head_dim) for n, heads in enumerate(widths, 3)]
    return inputs, AttentionWeights(shape, 1e-6, *norms)


def passed(device, shape, kind, cuts, inputs, weights):
    """The results of all tokens, in chunks that end at ``cuts``; and what is held."""
    part = ChunkAttention(device, weights)
    held = key_values(device, kind, (shape.kv_heads, CONTEXT, shape.head_dim))
    results, start = [], 0
    for end in cuts:
        chunk = [device.upload(a[start:end]) for a in inputs]
        y = device.empty((end - start, shape.heads * shape.head_dim), F32)
        part(*chunk, start, held, y)
        results.append(device.download(y))
        start = end
    return np.concatenate(results), {n: device.download(a) for n, a in held.arrays.items()}


def exact(shape, kind, inputs, weights, held):
    """In float64, over the keys and values that are really held."""
    q, count = inputs[0].astype(F64), len(inputs[0])
    q = q.reshape(count, shape.heads, -1)
    q, gate = q[..., : shape.head_dim], q[..., shape.head_dim :]
    if weights.q_norm is not None:
        q = reference.rms_norm(q, weights.q_norm.astype(F64), weights.eps)
    cos, sin = reference.angles(0, count, shape.rope_dims, shape.rope_theta, F32)
    cos, sin, half = cos[:, None], sin[:, None], shape.rope_dims // 2
    first, second = q[..., :half].copy(), q[..., half : 2 * half].copy()
    q[..., :half], q[..., half : 2 * half] = first * cos - second * sin, second * cos + first * sin
    kv = KeyValues(kind, (shape.kv_heads, CONTEXT, shape.head_dim), F32)
    rows = []
    for name in ("keys", "values"):
        codes = held[name].view(kv.whole[name].dtype)[:, :count]
        scales = held.get(f"{name[:-1]}_scales")
        rows.append(Rows(codes, None if scales is None else scales[:, :count], F64))
    y = reference.attention(q, *rows)
    return (y * reference.sigmoid(gate) if shape.gated else y).reshape(count, -1)


@pytest.mark.parametrize("kind", KV_KINDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_chunk_and_the_next(device, shape, kind):
    inputs, weights = given(shape, 77)
    y, held = passed(device, shape, kind, (70, 77), inputs, weights)
    assert near(y, exact(shape, kind, inputs, weights, held), MIXER)


@pytest.mark.parametrize("kind", KV_KINDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_tokens_are_held_as_the_reference_holds_them(device, shape, kind):
    inputs, weights = given(shape, 7)
    _, held = passed(device, shape, kind, (7,), inputs, weights)
    twin = KeyValues(kind, (shape.kv_heads, CONTEXT, shape.head_dim), F32)
    k, v = (a.reshape(7, shape.kv_heads, -1) for a in inputs[1:])
    if weights.k_norm is not None:
        k = reference.rms_norm(k, weights.k_norm, weights.eps)
    twin.extend(reference.rotary(k, 0, shape.rope_dims, shape.rope_theta), v)
    for name, array in twin.arrays().items():
        got = held[name].view(array.dtype)[:, :7]
        if name.startswith("value"):
            np.testing.assert_array_equal(got, array)
        elif array.dtype == np.int8:
            assert np.abs(got.astype(int) - array).max() <= 1
        else:
            np.testing.assert_allclose(got.astype(F64), array.astype(F64), rtol=2**-7, atol=1e-5)


def test_neither_cuts_nor_what_follows_change_a_bit(device):
    shape = SHAPES["two a kv head"]
    inputs, weights = given(shape, 135)
    whole, _ = passed(device, shape, "f32", (135,), inputs, weights)
    cut, _ = passed(device, shape, "f32", (1, 64, 101, 135), inputs, weights)
    np.testing.assert_array_equal(cut, whole)
    for array in inputs:
        array[100, ::3] = np.nan
    y, _ = passed(device, shape, "f32", (135,), inputs, weights)
    np.testing.assert_array_equal(y[:100], whole[:100])
    assert np.isnan(y[100:]).all()


def test_what_does_not_fit_is_refused(device):
    shape = SHAPES["one a kv head"]
    inputs, weights = given(shape, 7)
    part, chunk = ChunkAttention(device, weights), [device.upload(a) for a in inputs]
    y = device.empty((7, 192), F32)
    with pytest.raises(ValueError, match="do not fit a context of 10"):
        part(*chunk, 4, key_values(device, "f32", (3, 10, 64)), y)
    with pytest.raises(ValueError, match="another layer"):
        part(*chunk, 0, key_values(device, "f32", (1, 10, 64)), y)
    narrow = AttentionShape(1, 1, 32, 32, 1e4, gated=False, qk_norm=False)
    with pytest.raises(InputError, match="head_dim 32"):
        ChunkAttention(device, AttentionWeights(narrow, 1e-6, None, None))

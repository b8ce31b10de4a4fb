"""The kernels of a decode step against their twins in float64, on every instruction set.

Each result is also the same, bit for bit, whatever the number of threads.
"""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from flashmoe import _native, kernels
from flashmoe.kernels import cpu, mixers, reference
from flashmoe.kernels.kv import KeyValues, Rows, quantized
from flashmoe.kernels.mixers import AttentionWeights, DeltaWeights
from flashmoe.options import KV_KINDS
from flashmoe.shape import AttentionShape, RecurrentShape
from tests.tolerances import CODE, HALF, MIXER, NORM

SETS = _native.instruction_sets()
F32, F64 = np.dtype(np.float32), np.dtype(np.float64)

every_set = pytest.mark.parametrize("kind", SETS)


def normal(seed, *shape):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def near(got, wanted, tolerance):
    return np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()


@every_set
@pytest.mark.parametrize("width", (1, 3, 16, 31, 128, 2050))
def test_rms_norm(kind, width):
    x, weight = normal(1, 3, 2, width) * 7, normal(2, width)
    y = np.full_like(x, np.nan)
    _native.rms_norm(x, weight, 1e-6, y, 1, kind)
    assert near(y, reference.rms_norm(x.astype(F64), weight.astype(F64), 1e-6), NORM)
    x[0, 0, -1] = np.nan
    _native.rms_norm(x, weight, 1e-6, y, 1, kind)
    assert np.isnan(y[0, 0]).all() and np.isfinite(y[1:]).all()


@every_set
@pytest.mark.parametrize("count", (1, 8, 61, 256))
@pytest.mark.parametrize("renormalize", (True, False))
def test_route(kind, count, renormalize):
    logits = np.round(normal(3, 5, count) * 4) / 2  # with ties
    logits[4] *= 100
    top = min(8, count)
    ids, weights = np.empty((5, top), np.int64), np.empty((5, top), np.float32)
    _native.route(logits, renormalize, ids, weights, kind)
    wanted = reference.route(logits.astype(F64), top, renormalize)
    np.testing.assert_array_equal(ids, wanted[0])
    assert near(weights, wanted[1], NORM)


@every_set
def test_a_routing_of_what_is_not_finite_has_ids_and_shows_it(kind):
    logits = normal(4, 3, 20)
    logits[0, 7], logits[1, 3], logits[2] = np.nan, np.inf, np.nan
    ids, weights = np.empty((3, 4), np.int64), np.empty((3, 4), np.float32)
    _native.route(logits, True, ids, weights, kind)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(ids, reference.route(logits, 4, True)[0])
    assert np.isnan(weights[[0, 2]]).all() and np.isnan(weights[1]).any()


@every_set
def test_combine_and_the_gate_of_a_shared_expert(kind):
    outputs, weights = normal(5, 8, 45), normal(6, 1, 8)
    y = np.empty((1, 45), np.float32)
    _native.combine(outputs, weights, y, kind)
    assert near(y, weights.astype(F64) @ outputs.astype(F64), NORM)


DELTA_SHAPES = {
    "published": RecurrentShape(2, 4, 128, 128, 4),
    "odd": RecurrentShape(3, 9, 20, 39, 3),
    "narrow": RecurrentShape(1, 1, 5, 3, 1),
    "wide": RecurrentShape(16, 32, 64, 80, 4),
}


def delta_case(shape):
    channels, heads = shape.conv_channels, shape.value_heads
    small = normal(1, channels, shape.conv_kernel), -np.exp(normal(2, heads)), normal(3, heads)
    weights = DeltaWeights(shape, 1e-6, *small, normal(4, shape.value_dim))
    inputs = [normal(5, 1, channels), normal(6, 1, heads * shape.value_dim), normal(7, 1, heads),
              normal(8, 1, heads) * 30]  # fmt: skip
    state = (normal(9, heads, shape.key_dim, shape.value_dim),
             normal(10, shape.conv_kernel - 1, channels))  # fmt: skip
    return inputs, weights, state


def widened(weights):
    names = ("conv", "decay", "dt_bias", "norm")
    return replace(weights, **{name: getattr(weights, name).astype(F64) for name in names})


def delta_step(inputs, weights, state, threads, kind):
    new = [np.full_like(array, np.nan) for array in state]
    y = np.full(inputs[1].shape, np.nan, np.float32)
    step = cpu._delta(weights).step
    step(*inputs, state[1], state[0], new[1], new[0], y, threads, kind)
    return y, *new


@every_set
@pytest.mark.parametrize("shape", DELTA_SHAPES.values(), ids=DELTA_SHAPES)
def test_gated_delta(shape, kind):
    inputs, weights, state = delta_case(shape)
    kept = [array.copy() for array in state]
    got = delta_step(inputs, weights, state, 1, kind)
    wide = [array.astype(F64) for array in inputs]
    y, new = mixers.gated_delta(*wide, widened(weights), tuple(a.astype(F64) for a in state))
    for one, other in zip(got, (y, *new), strict=True):
        assert one.shape == other.shape
        assert not other.size or near(one, other, MIXER)
    for one, other in zip(state, kept, strict=True):
        np.testing.assert_array_equal(one, other)
    for threads in (2, 3):
        again = delta_step(inputs, weights, state, threads, kind)
        assert all(np.array_equal(a, b) for a, b in zip(got, again, strict=True))


@every_set
def test_a_large_state_is_the_same_wherever_it_lies(kind):
    """Aligned to 64 bytes it is written past the caches."""
    shape = RecurrentShape(16, 32, 128, 80, 4)
    inputs, weights, state = delta_case(shape)
    room = np.empty(state[0].size + 32, np.float32)
    start = -room.ctypes.data // 4 % 16
    y, new = np.empty(inputs[1].shape, np.float32), []
    for skipped in (0, 1):
        delta = room[start + skipped :][: state[0].size].reshape(state[0].shape)
        step = cpu._delta(weights).step
        step(*inputs, state[1], state[0], np.empty_like(state[1]), delta, y, 2, kind)
        new.append((y.copy(), delta.copy()))
    for one, other in zip(*new, strict=True):
        np.testing.assert_array_equal(one, other)


@every_set
def test_gates_at_their_ends_and_what_is_not_finite(kind):
    inputs, weights, state = delta_case(DELTA_SHAPES["odd"])
    for value in (1e4, -1e4):
        inputs[2][:], inputs[3][:] = value, value
        y, delta, _ = delta_step(inputs, weights, state, 1, kind)
        assert np.isfinite(y).all() and np.isfinite(delta).all()
    inputs[3][0, 4] = np.nan
    y, delta, _ = delta_step(inputs, weights, state, 1, kind)
    assert np.isnan(delta[4]).all() and np.isfinite(delta[:4]).all()
    assert np.isnan(y.reshape(9, 39)[4]).all()


def test_the_new_state_may_not_lie_where_the_old_one_does():
    inputs, weights, state = delta_case(DELTA_SHAPES["narrow"])
    table = kernels.choose("cpu", "float32", 1)
    with pytest.raises(ValueError, match="overwrite"):
        table.gated_delta(*inputs, weights, state, state)
    with pytest.raises(ValueError, match="channels"):
        table.gated_delta(inputs[0][:, :-1].copy(), *inputs[1:], weights, state)


ATTENTION_SHAPES = {
    "published": AttentionShape(16, 2, 256, 64, 1e7, gated=True, qk_norm=True),
    "plain": AttentionShape(9, 3, 64, 64, 1e4, gated=False, qk_norm=False),
    "odd": AttentionShape(13, 1, 22, 6, 1e4, gated=True, qk_norm=False),
    "narrow": AttentionShape(2, 2, 3, 2, 1e4, gated=False, qk_norm=True),
}


def attention_case(shape):
    norms = [normal(n, shape.head_dim) if shape.qk_norm else None for n in (1, 2)]
    weights = AttentionWeights(shape, 1e-6, *norms)
    q = normal(3, 1, shape.heads * shape.head_dim * (2 if shape.gated else 1))
    k, v = (normal(n, 1, shape.kv_heads * shape.head_dim) for n in (4, 5))
    return q, k, v, weights


def history(shape, kv_kind, length):
    extent = (shape.kv_heads, length + 8, shape.head_dim)
    kv = KeyValues(kv_kind, extent, F32)
    kv.extend(*(normal(n, length, shape.kv_heads, shape.head_dim) for n in (6, 7)))
    return kv


def attention_step(q, k, v, weights, kv, threads, kind):
    shape = weights.shape
    cos, sin = reference.angles(kv.length, 1, shape.rope_dims, shape.rope_theta, F32)
    y = np.full((1, shape.heads * shape.head_dim), np.nan, np.float32)
    cpu._attention(weights).step(q, k, v, cos, sin, cpu._kv(kv), kv.length, y, threads, kind)
    kv.length += 1
    return y


def exact(q, weights, kv):
    """In float64, over the keys and values that ``kv`` really holds."""
    shape, position = weights.shape, kv.length - 1
    q = q.astype(F64).reshape(1, shape.heads, -1)
    q, gate = q[..., : shape.head_dim], q[..., shape.head_dim :]
    if weights.q_norm is not None:
        q = reference.rms_norm(q, weights.q_norm.astype(F64), weights.eps)
    cos, sin = reference.angles(position, 1, shape.rope_dims, shape.rope_theta, F32)
    half = shape.rope_dims // 2
    first, second = q[..., :half].copy(), q[..., half : 2 * half].copy()
    q[..., :half], q[..., half : 2 * half] = first * cos - second * sin, second * cos + first * sin
    held = kv.arrays()
    rows = (Rows(held[name], held.get(f"{name[:-1]}_scales"), F64) for name in ("keys", "values"))
    y = reference.attention(q, *rows)
    return (y * reference.sigmoid(gate) if shape.gated else y).reshape(1, -1)


@every_set
@pytest.mark.parametrize("length", (0, 1, 255, 256, 600))
@pytest.mark.parametrize("kv_kind", KV_KINDS)
@pytest.mark.parametrize("shape", ATTENTION_SHAPES.values(), ids=ATTENTION_SHAPES)
def test_attention(shape, kv_kind, length, kind):
    q, k, v, weights = attention_case(shape)
    kv = history(shape, kv_kind, length)
    y = attention_step(q, k, v, weights, kv, 1, kind)
    assert near(y, exact(q, weights, kv), MIXER)
    for threads in (2, 3):
        again = history(shape, kv_kind, length)
        assert np.array_equal(attention_step(q, k, v, weights, again, threads, kind), y)
        for one, other in zip(kv.arrays().values(), again.arrays().values(), strict=True):
            np.testing.assert_array_equal(one, other)


@every_set
@pytest.mark.parametrize(
    ("kv_kind", "tolerance"),
    [("f32", MIXER), ("f16", HALF / 8), ("bf16", HALF), ("int8", CODE)],
)
def test_the_token_is_held_as_the_reference_holds_it(kv_kind, tolerance, kind):
    shape = ATTENTION_SHAPES["published"]
    q, k, v, weights = attention_case(shape)
    native, twin, wide = (history(shape, name, 40) for name in (kv_kind, kv_kind, "f32"))
    attention_step(q, k, v, weights, native, 1, kind)
    mixers.attend(q, k, v, weights, twin)
    mixers.attend(q, k, v, weights, wide)
    for name, unrounded in wide.arrays().items():
        scales = native.arrays().get(f"{name[:-1]}_scales")
        for head in range(2):
            held = Rows(native.arrays()[name], scales, F64)[head][-1]
            assert near(held, unrounded[head][-1].astype(F64), tolerance)
    np.testing.assert_array_equal(native.arrays()["values"], twin.arrays()["values"])


@every_set
@pytest.mark.parametrize("kv_kind", KV_KINDS)
def test_a_key_or_value_that_is_not_finite_shows(kv_kind, kind):
    shape = ATTENTION_SHAPES["plain"]
    for number in (1, 2):
        for wrong in (np.nan, np.inf):
            case = [array.copy() for array in attention_case(shape)[:3]]
            case[number][0, 5] = wrong
            kv = history(shape, kv_kind, 9)
            y = attention_step(*case, AttentionWeights(shape, 1e-6, None, None), kv, 1, kind)
            assert not np.isfinite(y.reshape(9, 64)[:3]).all()
            assert np.isfinite(y.reshape(9, 64)[3:]).all()


def test_eight_bits_of_zeros_and_of_any_size():
    rows = np.zeros((3, 8), np.float32)
    rows[1] = np.linspace(-1e-30, 1e-30, 8)
    rows[2, 3] = np.nan
    codes, scales = quantized(rows)
    assert not codes[0].any() and scales[0] == 0 and np.isnan(scales[2])
    assert np.abs(codes[1] * scales[1] - rows[1]).max() <= CODE * 1e-30
    halves = rows[1].astype(ml_dtypes.bfloat16)
    assert np.abs(halves.astype(np.float32) - rows[1]).max() <= HALF * 1e-30


def test_positions_outside_the_context_and_keys_of_other_layers_are_refused():
    shape = ATTENTION_SHAPES["plain"]
    q, k, v, weights = attention_case(shape)
    table = kernels.choose("cpu", "float32", 1)
    full = KeyValues("f32", (3, 2, 64), F32)
    full.length = 2
    with pytest.raises(ValueError, match="context"):
        table.attend(q, k, v, weights, full)
    with pytest.raises(ValueError, match="another layer"):
        table.attend(q, k, v, weights, KeyValues("f32", (3, 4, 32), F32))
    with pytest.raises(ValueError, match="must be"):
        table.attend(q[:, :-1].copy(), k, v, weights, KeyValues("f32", (3, 4, 64), F32))

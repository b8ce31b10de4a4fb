"""Attention of tokens that pass together against its twin in float64, on every instruction set.

Each result is also the same, bit for bit, however the tokens are cut into passes of more than one,
and whatever the number of threads.
"""

import numpy as np
import pytest

from flashmoe import _native, kernels
from flashmoe.kernels import cpu, mixers, reference
from flashmoe.kernels.kv import KeyValues, Rows
from flashmoe.kernels.mixers import AttentionWeights
from flashmoe.options import KV_KINDS
from flashmoe.shape import AttentionShape
from tests.tolerances import HALF, MIXER

SETS = _native.instruction_sets()
F32, F64 = np.dtype(np.float32), np.dtype(np.float64)

every_set = pytest.mark.parametrize("kind", SETS)
every_form = pytest.mark.parametrize("kv_kind", KV_KINDS)

SHAPES = {
    "published": AttentionShape(16, 2, 256, 64, 1e7, gated=True, qk_norm=True),
    "sixteen": AttentionShape(16, 1, 64, 32, 1e4, gated=True, qk_norm=False),
    "plain": AttentionShape(9, 3, 64, 64, 1e4, gated=False, qk_norm=False),
    "odd": AttentionShape(13, 1, 22, 6, 1e4, gated=True, qk_norm=False),
    "narrow": AttentionShape(2, 2, 3, 2, 1e4, gated=False, qk_norm=True),
    "wide": AttentionShape(300, 1, 34, 34, 1e4, gated=False, qk_norm=True),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def normal(seed, *shape):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def near(got, wanted, tolerance=MIXER):
    return np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()


def case(shape, count):
    """Queries (with gates), keys and values of a timeline from its start, and the weights."""
    norms = [normal(n, shape.head_dim) if shape.qk_norm else None for n in (1, 2)]
    rows = shape.heads * shape.head_dim * (2 if shape.gated else 1)
    keys = shape.kv_heads * shape.head_dim
    inputs = normal(3, count, rows), normal(4, count, keys), normal(5, count, keys)
    return inputs, AttentionWeights(shape, 1e-6, *norms)


def empty(shape, kv_kind, context, dtype=F32):
    return KeyValues(kv_kind, (shape.kv_heads, context, shape.head_dim), dtype)


def turned(k, v, weights, start):
    """Keys and values as they are to be held, (T, kv_heads, head_dim) each."""
    shape = weights.shape
    k, v = (a.reshape(len(a), shape.kv_heads, -1) for a in (k, v))
    if weights.k_norm is not None:
        k = reference.rms_norm(k, weights.k_norm, weights.eps)
    return reference.rotary(k, start, shape.rope_dims, shape.rope_theta), v


def attend(inputs, weights, kv, first, end, threads=1, kind=""):
    """Tokens [first, end) natively; what came before is there."""
    shape = weights.shape
    assert kv.length == first
    angles = reference.angles(first, end - first, shape.rope_dims, shape.rope_theta, F32)
    y = np.full((end - first, shape.heads * shape.head_dim), np.nan, np.float32)
    rows = [np.ascontiguousarray(a[first:end]) for a in inputs]
    native = cpu._attention(weights)
    native.chunk(*rows, *angles, cpu._kv(kv), first, y, threads, kind)
    kv.length = end
    return y


def after(inputs, weights, kv_kind, length, context):
    """Keys and values of the first ``length`` tokens of the timeline."""
    kv = empty(weights.shape, kv_kind, context)
    if length:
        kv.extend(*turned(inputs[1][:length], inputs[2][:length], weights, 0))
    return kv


def exact(inputs, weights, kv, first, end):
    """In float64, over the keys and values that ``kv`` really holds."""
    shape = weights.shape
    q = inputs[0][first:end].astype(F64).reshape(end - first, shape.heads, -1)
    q, gate = q[..., : shape.head_dim], q[..., shape.head_dim :]
    if weights.q_norm is not None:
        q = reference.rms_norm(q, weights.q_norm.astype(F64), weights.eps)
    half = shape.rope_dims // 2
    angles = reference.angles(first, end - first, shape.rope_dims, shape.rope_theta, F32)
    cos, sin = (a[:, None, :].astype(F64) for a in angles)
    one, two, rest = q[..., :half], q[..., half : 2 * half], q[..., 2 * half :]
    q = np.concatenate([one * cos - two * sin, two * cos + one * sin, rest], axis=-1)
    held = {name: array[:, :end] for name, array in kv.whole.items()}
    rows = (Rows(held[name], held.get(f"{name[:-1]}_scales"), F64) for name in ("keys", "values"))
    y = reference.attention(q, *rows)
    return (y * reference.sigmoid(gate) if shape.gated else y).reshape(end - first, -1)


@every_set
@every_form
@pytest.mark.parametrize(("first", "end"), [(0, 2), (0, 300), (250, 283), (511, 514), (700, 765)])
@every_shape
def test_a_chunk(shape, first, end, kv_kind, kind):
    inputs, weights = case(shape, end)
    kv = after(inputs, weights, kv_kind, first, end)
    y = attend(inputs, weights, kv, first, end, 1, kind)
    assert near(y, exact(inputs, weights, kv, first, end))
    again = after(inputs, weights, kv_kind, first, end + 5)
    assert np.array_equal(attend(inputs, weights, again, first, end, 3, kind), y)
    for one, other in zip(kv.arrays().values(), again.arrays().values(), strict=True):
        np.testing.assert_array_equal(one, other)


@every_set
@pytest.mark.parametrize("shape", [SHAPES["sixteen"], SHAPES["plain"]], ids=["gated", "plain"])
def test_the_whole_pass_is_its_twins(shape, kind):
    """Norms, rotation and what is held included."""
    inputs, weights = case(shape, 300)
    wide = AttentionWeights(shape, weights.eps, None, None)
    wanted = mixers.attend(*(a.astype(F64) for a in inputs), wide, empty(shape, "f32", 300, F64))
    for threads in (1, 2):
        got = attend(inputs, weights, empty(shape, "f32", 300), 0, 300, threads, kind)
        assert near(got, wanted)


@every_set
@pytest.mark.parametrize("around", (256, 512))
def test_every_start_and_length_around_a_border_of_blocks(around, kind):
    shape = SHAPES["narrow"]
    inputs, weights = case(shape, around + 70)
    whole = attend(inputs, weights, empty(shape, "f32", around + 70), 0, around + 70, 2, kind)
    assert near(whole, exact(inputs, weights, after(inputs, weights, "f32", around + 70,
                                                    around + 70), 0, around + 70))  # fmt: skip
    for first in range(around - 35, around + 35):
        for count in (2, 3, 5, 17, 35):
            kv = empty(shape, "f32", first + count)
            attend(inputs, weights, kv, 0, first, 1, kind)
            y = attend(inputs, weights, kv, first, first + count, 1, kind)
            np.testing.assert_array_equal(y, whole[first : first + count])


@every_set
@every_form
@pytest.mark.parametrize("name", ["published", "plain", "odd"])
def test_cuts_and_threads_do_not_change_a_bit(name, kv_kind, kind):
    shape, count = SHAPES[name], 523
    inputs, weights = case(shape, count)
    kv = empty(shape, kv_kind, count)
    whole = attend(inputs, weights, kv, 0, count, 1, kind)
    for cuts in ((64,), (256,), (128, 192, 448), (2, 9, 255, 257, 300, 511, 513)):
        pieces, parted = [], empty(shape, kv_kind, count)
        for first, end in zip((0, *cuts), (*cuts, count), strict=True):
            pieces.append(attend(inputs, weights, parted, first, end, len(pieces) % 4 + 1, kind))
        assert np.concatenate(pieces).tobytes() == whole.tobytes()
        for one, other in zip(kv.arrays().values(), parted.arrays().values(), strict=True):
            assert one.tobytes() == other.tobytes()


@every_form
@pytest.mark.parametrize("name", ["published", "plain"])
def test_a_chunk_is_near_its_steps(name, kv_kind):
    shape, first, count = SHAPES[name], 250, 14
    inputs, weights = case(shape, first + count)
    table = kernels.choose("cpu", "float32", 2)
    kv, stepped = (after(inputs, weights, kv_kind, first, first + count) for _ in range(2))
    chunk = table.attend(*(a[first:] for a in inputs), weights, kv)
    steps = [table.attend(*(a[t : t + 1] for a in inputs), weights, stepped)
             for t in range(first, first + count)]  # fmt: skip
    assert kv.length == stepped.length == first + count
    assert near(chunk, np.concatenate(steps))
    for one, other in zip(kv.arrays().values(), stepped.arrays().values(), strict=True):
        np.testing.assert_array_equal(one, other)


@every_set
@every_form
def test_what_is_not_finite_shows_from_its_token_on_and_no_sooner(kv_kind, kind):
    shape, count, at = SHAPES["plain"], 300, 270
    for number in (1, 2):
        for wrong in (np.nan, np.inf):
            inputs, weights = case(shape, count)
            clean = attend(inputs, weights, empty(shape, kv_kind, count), 0, count, 1, kind)
            inputs[number][at, 5] = wrong
            y = attend(inputs, weights, empty(shape, kv_kind, count), 0, count, 2, kind)
            np.testing.assert_array_equal(y[:at], clean[:at])
            rows = y.reshape(count, 9, 64)
            assert not np.isfinite(rows[at:, :3]).all(axis=-1).all()
            assert np.isfinite(rows[:, 3:]).all()
    inputs[0][3, 0] = np.nan
    y = attend(inputs, weights, empty(shape, kv_kind, count), 0, count, 1, kind)
    assert np.isnan(y[3, :64]).all() and np.isfinite(y[3, 64:]).all()


@every_set
def test_sharp_and_flat_scores_of_any_size(kind):
    """One key that outweighs all others in a late block, and equal keys."""
    shape, count = SHAPES["sixteen"], 520
    inputs, weights = case(shape, count)
    inputs[1][[100, 400]] *= 60
    inputs[0][300:350] = 0
    inputs[0][400:] *= 40
    kv = empty(shape, "f32", count)
    y = attend(inputs, weights, kv, 0, count, 1, kind)
    assert np.isfinite(y).all() and near(y, exact(inputs, weights, kv, 0, count), 10 * MIXER)


@every_set
@pytest.mark.parametrize("steps", (True, False))
def test_float16_holds_what_numpy_holds(steps, kind):
    """Ties to even, subnormals, zeros of either sign; what is too large is infinite."""
    ends = [0.0, -0.0, 65504, 65519.996, 65520, 65536, -1e6, 3e38, np.inf, -np.inf, np.nan, 2**-14]
    ends += [
        2.0**-24,
        2.0**-25,
        1.5 * 2**-25,
        -(2.0**-26),
        6.1e-5,
        1e-40,
        1 + 2**-11,
        1 + 3 * 2**-11,
    ]
    values = np.concatenate([np.float32(ends), normal(8, 4076) * np.exp(6 * normal(9, 4076))])
    shape = AttentionShape(1, 1, 1024, 2, 1e4, gated=False, qk_norm=False)
    rows = values.astype(np.float32).reshape(4, 1024)
    weights, kv = AttentionWeights(shape, 1e-6, None, None), empty(shape, "f16", 4)
    inputs = np.ones_like(rows), np.ones_like(rows), rows
    y = np.empty((1, 1024), np.float32)
    for t in range(4 if steps else 0):
        angles = reference.angles(t, 1, 2, 1e4, F32)
        one = [a[t : t + 1] for a in inputs]
        cpu._attention(weights).step(*one, *angles, cpu._kv(kv), t, y, 1, kind)
    if not steps:
        y = attend(inputs, weights, kv, 0, 4, 1, kind)
    with np.errstate(over="ignore"):
        wanted = rows.astype(np.float16)
    held = kv.whole["values"][0]
    nans = np.isnan(wanted)
    np.testing.assert_array_equal(np.isnan(held), nans)
    assert (held.view(np.uint16) == wanted.view(np.uint16))[~nans].all()
    # The last token reads them all with about the same weight.
    assert np.isnan(y[-1][nans.any(axis=0)]).all() and nans.any()
    finite = np.isfinite(wanted).all(axis=0)
    assert near(y[-1][finite], exact(inputs, weights, kv, 3, 4)[0][finite], HALF)


def test_scratch_is_as_counted_and_bounded():
    for shape in SHAPES.values():
        weights = case(shape, 1)[1]
        floats = cpu._attention(weights).unit_floats
        counted = cpu.unit_bytes(shape, threads=3)
        assert 0 <= counted - 3 * 4 * floats < 3 * 64
        assert kernels.choose("cpu", "float32", 3).unit_bytes(shape) == counted
    assert cpu.unit_bytes(SHAPES["published"], threads=1) < 1.4 * 2**20


def test_positions_outside_the_context_and_arrays_that_do_not_fit_are_refused():
    shape = SHAPES["plain"]
    (q, k, v), weights = case(shape, 5)
    table = kernels.choose("cpu", "float32", 1)
    kv = empty(shape, "f32", 8)
    kv.length = 4
    with pytest.raises(ValueError, match="context"):
        table.attend(q, k, v, weights, kv)
    kv.length = 3
    for wrong in ((q[:, :-1].copy(), k, v), (q, k[:, :-1].copy(), v), (q, k, v[:-1].copy())):
        with pytest.raises(ValueError, match="must be"):
            table.attend(*wrong, weights, kv)
    assert kv.length == 3

"""One token's kernels against the reference, on the imitated machine."""

import numpy as np
import pytest

from flashmoe.errors import InputError
from flashmoe.kernels import reference
from flashmoe.kernels.cuda import decode, rings
from flashmoe.kernels.cuda.descriptors import resident
from flashmoe.kernels.cuda.feed_forward import FeedForward
from flashmoe.quant import AFFINE_BITS, Affine, Expert, Plain, dequantize
from flashmoe.store.layout import RecordLayout
from tests.kernels.test_cpu import RELATIVE, stored
from tests.tolerances import AFFINE_PRODUCT, NORM

FORMS = [Affine(bits, group) for bits in AFFINE_BITS for group in (32, 64, 128)]
FORMS += [Affine(4, 64, "F16"), Affine(8, 32, "F32"), *map(Plain, ("F32", "F16", "BF16"))]


def fixed(device, x):
    """A vector of the device as the kernels want it."""
    into = decode.Vector(device.upload(x), device.empty((decode.fixed_bytes(len(x)),), np.uint8))
    arguments = into.floats, np.int32(len(x)), into.fixed
    device.launch("decode", "fix_vector", (-(-len(x) // 128), 1, 1), 128, *arguments)
    return into


def bound(x, *matrices):
    """The largest error of products with x."""
    return max(AFFINE_PRODUCT * (np.abs(dequantize(m)) @ np.abs(x)).max() for m in matrices)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_project(device, form):
    rng = np.random.default_rng(3)
    matrices = [stored(rng, form, rows, 256) for rows in (37, 1, 16)]
    x = (rng.standard_normal(256) * 10 ** rng.uniform(-3, 3, 256)).astype(np.float32)
    projection = decode.Projection(device, [resident(device, m) for m in matrices])
    y = device.empty((54,), np.float32)
    projection(fixed(device, x), y)
    y = device.download(y)
    wanted = np.concatenate([reference.matmul(x[None].astype(np.float64), m)[0] for m in matrices])
    assert np.abs(y - wanted).max() <= bound(x, *matrices)
    residual = rng.standard_normal(54).astype(np.float32)
    added = device.upload(residual)
    projection(fixed(device, x), added, added)
    np.testing.assert_array_equal(device.download(added), residual + y)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_lookup_gives_the_very_numbers(device, form):
    embedding = stored(np.random.default_rng(4), form, 5, 384)
    table = decode.Embedding(device, resident(device, embedding))
    x = device.empty((384,), np.float32)
    for token in (4, 0):
        inputs = device.empty((6,), np.int32)
        given = [token, 7, 8, 9, 10, 11]
        table(device.upload(np.array(given, np.int32)), inputs, x)
        np.testing.assert_array_equal(device.download(inputs), given)
        wanted = reference.lookup(np.array([token]), embedding, np.dtype(np.float32))[0]
        np.testing.assert_array_equal(device.download(x), wanted)


@pytest.mark.parametrize("columns", (32, 96, 1024, 2080))
def test_norm(device, columns):
    rng = np.random.default_rng(5)
    x, weight = (rng.standard_normal(columns).astype(np.float32) for _ in range(2))
    y = decode.vector(device, columns)
    decode.Norm(device, device.upload(weight), 1e-6)(device.upload(x), y)
    wanted = reference.rms_norm(x.astype(np.float64), weight, 1e-6)
    floats = device.download(y.floats)
    assert np.abs(floats - wanted).max() <= NORM * np.abs(wanted).max()
    again = fixed(device, floats).fixed
    np.testing.assert_array_equal(device.download(y.fixed), device.download(again))


MIXED = [Affine(4, 32), Plain("BF16"), Affine(2, 32), Affine(8, 32), Affine(4, 32), Plain("F32")]


GEOMETRIES = [(2, 8, 99), (4, 16, 2), (2, 16, 1)]
"""Rows a warp, warps of a block, blocks: with fewer each comes to several matrices."""


@pytest.mark.parametrize("forms", (*([form] * 3 for form in FORMS), MIXED), ids=str)
@pytest.mark.parametrize("columns, room", ((256, 1 << 16), (2176, 1 << 16), (6144, 40000)))
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_project_normed(device, monkeypatch, forms, columns, room, geometry):
    """That of the norm as a launch of its own gives it; whatever the number of blocks, and how much
    of a row is under way."""
    monkeypatch.setattr(rings.Rings, "_geometry", lambda self, processors: geometry)
    monkeypatch.setattr(rings, "RING_BYTES", room)
    rng = np.random.default_rng(9)
    sizes = (69, 1, 32, 5, 40, 3)[: len(forms)]
    matrices = [stored(rng, form, rows, columns) for form, rows in zip(forms, sizes, strict=True)]
    x, weight = (rng.standard_normal(columns).astype(np.float32) for _ in range(2))
    placed = [resident(device, m) for m in matrices]
    projection = decode.NormedProjection(device, placed, device.upload(weight), 1e-6)
    y, normed = device.empty((sum(sizes),), np.float32), decode.vector(device, columns)
    projection(device.upload(x), y, normed)
    floats, y = device.download(normed.floats), device.download(y)
    wanted = reference.rms_norm(x.astype(np.float64), weight, 1e-6)
    assert np.abs(floats - wanted).max() <= NORM * np.abs(wanted).max()
    again = fixed(device, floats)
    np.testing.assert_array_equal(device.download(normed.fixed), device.download(again.fixed))
    other = device.empty((sum(sizes),), np.float32)
    decode.Projection(device, placed)(again, other)
    np.testing.assert_array_equal(device.download(other), y)


def test_fixed_points_keep_float32s_own_precision(device):
    x = np.random.default_rng(6).standard_normal(64).astype(np.float32)
    x[32:] = 0
    planes = device.download(fixed(device, x).fixed)
    high, middle, low = planes[:192].reshape(3, 64)
    scales, sums = planes[192:].view(np.float32).reshape(2, 2)
    v = (high.astype(np.int8).astype(np.int32) << 16) + (middle.astype(np.int32) << 8) + low
    assert np.abs(v[:32] * scales[0].astype(np.float64) - x[:32]).max() <= 1.5 * scales[0]
    assert scales[0] == np.abs(x).max() / np.float32(127 * 65536)
    assert sums[0] == pytest.approx(x[:32].sum(dtype=np.float64), rel=1e-5)
    assert not planes[32:64].any() and scales[1] == 0


@pytest.mark.parametrize("odd", (np.nan, np.inf, -np.inf))
def test_what_is_not_finite_shows(device, odd):
    weights = stored(np.random.default_rng(7), Affine(4, 32), 16, 64)
    x = np.ones(64, np.float32)
    x[40] = odd
    y = device.empty((16,), np.float32)
    decode.Projection(device, [resident(device, weights)])(fixed(device, x), y)
    assert np.isnan(device.download(y)).all()


@pytest.mark.parametrize("renormalize", (True, False))
@pytest.mark.parametrize("count, top_k", ((16, 4), (256, 8), (512, 10), (7, 7), (1000, 31)))
def test_route(device, count, top_k, renormalize):
    rng = np.random.default_rng(count)
    logits = rng.standard_normal(count).astype(np.float32)
    logits[count // 2] = logits[0]  # a tie
    table = rng.permutation(count).astype(np.int32)
    into = decode.choice(device, device.empty((top_k,), np.int32))
    decode.route(device, device.upload(logits), renormalize, device.upload(table), into)
    ids, weights = reference.route(logits[None].astype(np.float64), top_k, renormalize)
    np.testing.assert_array_equal(device.download(into.ids), ids[0])
    np.testing.assert_array_equal(device.download(into.slots), table[ids[0]])
    assert np.abs(device.download(into.weights) - weights[0]).max() <= NORM


def test_more_than_the_kernels_choose_is_refused(device):
    logits, table = device.zeros((2048,), np.float32), device.zeros((2048,), np.int32)
    with pytest.raises(InputError, match="8 of 2048 experts"):
        decode.route(
            device, logits, True, table, decode.choice(device, device.empty((8,), np.int32))
        )


def test_all_experts_are_chosen_where_there_is_no_router(device):
    into = decode.choice(device, device.empty((5,), np.int32))
    decode.route(device, None, False, device.upload(np.arange(5, 0, -1, dtype=np.int32)), into)
    np.testing.assert_array_equal(device.download(into.ids), np.arange(5))
    np.testing.assert_array_equal(device.download(into.slots), np.arange(5, 0, -1))
    np.testing.assert_array_equal(device.download(into.weights), np.ones(5))


NETWORKS = {
    "4 bits": ([Affine(4, 64)] * 3, [Affine(8, 64)] * 3),
    "gate and up differ": ([Affine(3, 32), Affine(2, 64), Affine(6, 32)], [Affine(4, 32)] * 3),
    "plain": ([Plain("BF16")] * 3, [Plain("F32")] * 3),
    "none shared": ([Affine(4, 32)] * 3, []),
}


@pytest.mark.parametrize("width, shared_width", ((64, 128), (192, 64), (1088, 64)))
@pytest.mark.parametrize("network", NETWORKS)
def test_experts(device, network, width, shared_width):
    check_experts(device, network, width, shared_width, count=6, top_k=3)


def test_many_experts(device):
    check_experts(device, "4 bits", 64, 64, count=20, top_k=18)


@pytest.mark.parametrize("network", ("4 bits", "plain"))
@pytest.mark.parametrize("hidden, width", ((4096, 64), (64, 8192)))
def test_experts_of_which_a_block_holds_no_whole_rows(device, network, hidden, width):
    check_experts(device, network, width, 64, count=3, top_k=2, hidden=hidden)


def check_experts(device, network, width, shared_width, count, top_k, hidden=192):
    rng = np.random.default_rng(8)
    forms, shared_forms = NETWORKS[network]
    layout = RecordLayout(*forms, hidden, width)
    shapes = [shape for _, shape, _ in layout.matrices]
    experts = [
        Expert(*(stored(rng, form, *shape) for form, shape in zip(forms, shapes, strict=True)))
        for _ in range(count)
    ]
    arena = device.upload(np.concatenate([layout.encode(expert) for expert in experts[::-1]]))
    shapes = [(shared_width, hidden), (shared_width, hidden), (hidden, shared_width)]
    shared = [stored(rng, form, *shape) for form, shape in zip(shared_forms, shapes, strict=False)]
    record = [
        (form, shape, tuple(field.offset for field in fields))
        for form, shape, fields in layout.matrices
    ]
    part = FeedForward(
        device,
        device.address(arena),
        layout.record_bytes,
        record,
        [resident(device, weights) for weights in shared],
    )
    x, residual = (rng.standard_normal(hidden).astype(np.float32) for _ in range(2))
    ids, weights = rng.permutation(count)[:top_k], rng.random(top_k).astype(np.float32)
    slots = (count - 1 - ids).astype(np.int32)  # they lie the other way round
    told = ids.astype(np.int32), weights, slots, slots
    chosen = decode.Choice(*map(device.upload, told))
    logit = np.float32(0.3)
    y = device.upload(residual)
    opening = device.upload(np.array([logit])) if shared else None
    part(fixed(device, x), chosen, opening, part.room(top_k), y, y)
    wide = x[None].astype(np.float64)
    wanted = residual + reference.experts(
        wide, ids[None], weights[None].astype(np.float64), [(n, experts[n]) for n in ids]
    )
    if shared:
        wanted += reference.sigmoid(np.float64(logit)) * reference.swiglu(wide, Expert(*shared))
    assert np.abs(device.download(y) - wanted).max() <= RELATIVE * np.abs(wanted).max()

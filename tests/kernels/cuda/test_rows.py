"""What many rows pass besides products, on an imitated GPU, against the reference."""

import numpy as np
import pytest

from flashmoe.errors import InputError
from flashmoe.kernels import reference
from flashmoe.kernels.cuda import rows
from flashmoe.kernels.cuda.descriptors import resident
from flashmoe.quant import AFFINE_BITS, Affine, Plain
from tests.kernels.test_cpu import stored
from tests.tolerances import NORM

FORMS = [Affine(bits, group) for bits in AFFINE_BITS for group in (32, 128)]
FORMS += [Affine(4, 64, "F16"), Affine(8, 32, "F32"), *map(Plain, ("F32", "F16", "BF16"))]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_lookup_gives_the_very_numbers(device, form):
    embedding = stored(np.random.default_rng(4), form, 5, 384)
    ids = np.array([4, 0, 4], np.int32)
    y = device.empty((3, 384), np.float32)
    rows.RowsEmbedding(device, resident(device, embedding))(device.upload(ids), y)
    wanted = reference.lookup(ids, embedding, np.dtype(np.float32))
    np.testing.assert_array_equal(device.download(y), wanted)


@pytest.mark.parametrize("columns", (32, 96, 1024, 2080))
def test_norm(device, columns):
    rng = np.random.default_rng(5)
    x, weight = rng.standard_normal((7, columns)), rng.standard_normal(columns)
    x, weight = x.astype(np.float32), weight.astype(np.float32)
    x[3, 5] = np.nan
    y = device.empty(x.shape, np.float32)
    rows.RowsNorm(device, device.upload(weight), 1e-6)(device.upload(x), y)
    y = device.download(y)
    wanted = reference.rms_norm(x.astype(np.float64), weight, 1e-6)
    assert np.isnan(y[3]).all()
    y, wanted = np.delete(y, 3, 0), np.delete(wanted, 3, 0)
    assert np.abs(y - wanted).max() <= NORM * np.abs(wanted).max()


@pytest.mark.parametrize("columns", (32, 1056))
def test_add(device, columns):
    rng = np.random.default_rng(6)
    y, x = (rng.standard_normal((5, columns)).astype(np.float32) for _ in range(2))
    logits = rng.standard_normal((5, 1)).astype(np.float32)
    plain, opened = device.upload(y), device.upload(y)
    rows.add(device, plain, device.upload(x))
    np.testing.assert_array_equal(device.download(plain), y + x)
    rows.add(device, opened, device.upload(x), device.upload(logits))
    wanted = y + reference.sigmoid(logits.astype(np.float64)) * x
    assert np.abs(device.download(opened) - wanted).max() <= NORM * np.abs(wanted).max()


@pytest.mark.parametrize("renormalize", (True, False))
@pytest.mark.parametrize("count, top_k", ((16, 4), (256, 8), (512, 10), (7, 7), (1000, 31)))
def test_route(device, count, top_k, renormalize):
    rng = np.random.default_rng(count)
    logits = rng.standard_normal((7, count)).astype(np.float32)
    logits[:, count // 2] = logits[:, 0]  # a tie
    ids, weights = device.empty((7, top_k), np.int32), device.empty((7, top_k), np.float32)
    rows.route(device, device.upload(logits), renormalize, ids, weights)
    ids, weights = device.download(ids), device.download(weights)
    wanted = reference.route(logits.astype(np.float64), top_k, renormalize)
    np.testing.assert_array_equal(ids, wanted[0])
    assert np.abs(weights - wanted[1]).max() <= NORM


def test_logits_that_are_not_finite_show_in_their_row_alone(device):
    logits = np.random.default_rng(7).standard_normal((5, 16)).astype(np.float32)
    logits[2, 3] = np.nan
    ids, weights = device.empty((5, 4), np.int32), device.empty((5, 4), np.float32)
    rows.route(device, device.upload(logits), True, ids, weights)
    ids, weights = device.download(ids), device.download(weights)
    assert np.isnan(weights[2]).all() and np.isfinite(np.delete(weights, 2, 0)).all()
    assert ((ids >= 0) & (ids < 16)).all(), "numbers of experts, whatever they are worth"


def test_more_than_the_kernels_choose_is_refused(device):
    ids, weights = device.empty((1, 8), np.int32), device.empty((1, 8), np.float32)
    with pytest.raises(InputError, match="8 of 2048 experts"):
        rows.route(device, device.zeros((1, 2048), np.float32), True, ids, weights)

"""Products of many rows on an imitated GPU: the processor's bits, and the reference's numbers."""

import numpy as np
import pytest

from flashmoe import kernels
from flashmoe.errors import InputError
from flashmoe.kernels import reference
from flashmoe.kernels.cuda import panels
from flashmoe.kernels.cuda.descriptors import resident
from flashmoe.quant import AFFINE_BITS, Affine, Plain, dequantize
from tests.kernels.cuda.emulated import EmulatedDevice
from tests.kernels.test_cpu import RELATIVE, stored
from tests.tolerances import PANEL

AFFINE = [Affine(bits, group) for bits in AFFINE_BITS for group in (32, 64, 128)]
AFFINE += [Affine(4, 64, "F16"), Affine(8, 32, "F32")]
PLAIN = [*map(Plain, ("F32", "F16", "BF16"))]


def products(device, x, *matrices, residual=None):
    """The results (T, out) of each."""
    rows = panels.Rows(device, device.upload(x))
    y = [device.empty((len(x), m.shape[0]), np.float32) for m in matrices]
    panels.Products(device, [resident(device, m) for m in matrices])(rows, y, residual)
    return [device.download(each) for each in y]


def rows(rng, count, inputs):
    """Activations whose sizes differ from row to row."""
    return (rng.standard_normal((count, inputs)) * 10 ** rng.uniform(-3, 3, (count, 1))).astype(
        np.float32
    )


@pytest.mark.parametrize("form", AFFINE, ids=str)
def test_the_same_bits_as_the_processors(device, form):
    rng = np.random.default_rng(3)
    weights, x = stored(rng, form, 37, 384), rows(rng, 7, 384)
    x[2, 128:256] = 0
    (y,) = products(device, x, weights)
    (wanted,) = kernels.choose("cpu", "float32", 1).project(x, (weights,))
    np.testing.assert_array_equal(y, wanted)
    exact = reference.matmul(x.astype(np.float64), weights)
    assert (np.abs(y - exact).max(axis=1) <= PANEL * np.abs(exact).max(axis=1)).all()


@pytest.mark.parametrize("form", PLAIN, ids=str)
def test_plain_weights(device, form):
    rng = np.random.default_rng(4)
    weights, x = stored(rng, form, 37, 96), rows(rng, 7, 96)
    (y,) = products(device, x, weights)
    wanted = reference.matmul(x.astype(np.float64), weights)
    assert (np.abs(y - wanted).max(axis=1) <= RELATIVE * np.abs(wanted).max(axis=1)).all()


@pytest.mark.parametrize("form", [Affine(4, 32), Affine(5, 64), Affine(8, 128), Plain("BF16")])
@pytest.mark.parametrize("count, outputs", ((1, 130), (33, 128), (64, 1), (130, 150)))
def test_whatever_the_number_of_rows_and_outputs(device, form, count, outputs):
    rng = np.random.default_rng(count)
    weights, x = stored(rng, form, outputs, 128), rows(rng, count, 128)
    (y,) = products(device, x, weights)
    wanted = reference.matmul(x.astype(np.float64), weights)
    terms = np.abs(x) @ np.abs(dequantize(weights)).T  # of one output alone, which may cancel
    assert (np.abs(y - wanted) <= PANEL * terms).all()
    some = slice(count // 2, count)
    np.testing.assert_array_equal(products(device, x[some], weights)[0], y[some])


@pytest.mark.parametrize("inputs", (32, 96, 160))
def test_inputs_that_end_within_a_block_of_64(device, inputs):
    rng = np.random.default_rng(5)
    weights, x = stored(rng, Affine(3, 32), 5, inputs), rows(rng, 3, inputs)
    wanted = kernels.choose("cpu", "float32", 1).project(x, (weights,))
    np.testing.assert_array_equal(products(device, x, weights), wanted)


def test_several_matrices_of_several_kinds():
    device, rng = EmulatedDevice(), np.random.default_rng(6)
    forms = [Affine(4, 64), Plain("F32"), Affine(8, 64), Affine(4, 32), *[Affine(4, 64)] * 3]
    outputs = (130, 5, 1, 7, 129, 2, 3)
    matrices = [stored(rng, form, n, 128) for form, n in zip(forms, outputs, strict=True)]
    x = rows(rng, 3, 128)
    for y, matrix in zip(products(device, x, *matrices), matrices, strict=True):
        np.testing.assert_array_equal(y, products(device, x, matrix)[0])
    together = ["prepare", *["product_64"] * 2, "product_plain", "prepare", "product_32"]
    assert device.launches[:6] == together, "each form of the activations is made once"


@pytest.mark.parametrize("form", [Affine(4, 64), Plain("BF16")], ids=str)
def test_a_residual_is_added(device, form):
    rng = np.random.default_rng(7)
    weights, x = stored(rng, form, 37, 128), rows(rng, 3, 128)
    residual = rng.standard_normal((3, 37)).astype(np.float32)
    (y,), added = products(device, x, weights), device.upload(residual)
    panels.Products(device, [resident(device, weights)])(
        panels.Rows(device, device.upload(x)), [added], added
    )
    np.testing.assert_array_equal(device.download(added), residual + y)


@pytest.mark.parametrize("odd", (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("form", [Affine(4, 32), Affine(6, 64), Affine(8, 128), Plain("F32")])
def test_what_is_not_finite_shows_in_its_row_alone(device, form, odd):
    rng = np.random.default_rng(8)
    weights, x = stored(rng, form, 33, 128), rows(rng, 5, 128)
    (clean,) = products(device, x, weights)
    x[3, 70] = odd
    (y,) = products(device, x, weights)
    assert not np.isfinite(y[3]).any()
    np.testing.assert_array_equal(np.delete(y, 3, 0), np.delete(clean, 3, 0))


@pytest.mark.parametrize("group", (64, 128))
def test_the_largest_sums_are_exact(device, group):
    """Codes and values at their ends, where the float that stands for a sum is fullest."""
    rng = np.random.default_rng(9)
    weights = stored(rng, Affine(8, group), 3, 256)
    weights.weight[...] = 0xFFFFFFFF
    x = np.ones((4, 256), np.float32)
    x[1], x[2], x[3, ::2] = -1, 32511 / 32512, -1
    wanted = kernels.choose("cpu", "float32", 1).project(x, (weights,))
    np.testing.assert_array_equal(products(device, x, weights), wanted)


def test_what_does_not_fit_is_refused(device):
    rng = np.random.default_rng(10)
    one, other = (resident(device, stored(rng, Affine(4, 32), 4, n)) for n in (64, 96))
    with pytest.raises(InputError, match="do not share"):
        panels.Products(device, [one, other])
    x = panels.Rows(device, device.zeros((3, 64), np.float32))
    with pytest.raises(ValueError, match="do not fit"):
        panels.Products(device, [one])(x, [device.empty((2, 4), np.float32)])
    with pytest.raises(ValueError, match="do not fit"):
        panels.Products(device, [other])(x, [device.empty((3, 4), np.float32)])

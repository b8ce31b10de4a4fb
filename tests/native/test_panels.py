"""Products of many rows: the same bits on every instruction set, within the bound of panels.h."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from flashmoe import _native
from flashmoe.kernels import cpu, reference
from flashmoe.quant import FLOATS, Affine, Array, Expert, Matrix, Plain, dequantize, quantize
from tests.native.test_matmul import KINDS

Floats = npt.NDArray[np.float32]
BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
STEP = 1 / 65024  # half a step of the fixed point, of the group's largest

every_kind = pytest.mark.parametrize("kind", KINDS)


def matrix(bits: int, group: int, out: int, columns: int) -> Matrix:
    """Random weights around zero, quantised as the converter does."""
    rng = np.random.default_rng([bits, group, out, columns])
    return quantize(rng.standard_normal((out, columns)).astype(np.float32), Affine(bits, group))


def activations(rows: int, columns: int) -> Floats:
    return (
        np.random.default_rng([rows, columns]).standard_normal((rows, columns)).astype(np.float32)
    )


def product(x: Floats, weights: Matrix, kind: str = "", threads: int = 1) -> Floats:
    y = np.full(len(x) * weights.shape[0], np.nan, np.float32)
    _native.project(x, [cpu._make_matrix(weights)], y, threads, kind, True)
    return y.reshape(len(x), -1)


def bound(x: Floats, weights: Matrix) -> Array:
    """The tolerance that native/panels.h names, (rows, out)."""
    assert isinstance(weights.form, Affine)
    group, values = weights.form.group, dequantize(weights).astype(np.float64)
    parts = np.abs(x.astype(np.float64)).reshape(len(x), -1, group)
    sizes = np.abs(values).reshape(len(values), -1, group).sum(-1)
    rounding = parts.max(-1) @ sizes.T * STEP
    assert weights.scales is not None and weights.biases is not None
    largest = np.abs(weights.scales.astype(np.float64)) * (2**weights.form.bits - 1)
    largest += np.abs(weights.biases.astype(np.float64))
    sums = (parts.shape[1] + 5) * 2.0**-23 * (parts.sum(-1) @ largest.T)
    return rounding + sums


@every_kind
@pytest.mark.parametrize("rows", [1, 2, 5, 16, 19])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", BITS)
def test_products(bits: int, group: int, rows: int, kind: str) -> None:
    """Whole and partial halves of panels, more than one stretch of inputs, padded lines."""
    for out, columns in ((1, group), (13, 3 * group), (70, 384), (33, 1024 + group), (16, 2176)):
        weights, x = matrix(bits, group, out, columns), activations(rows, columns)
        y = product(x, weights, kind)
        wanted = reference.matmul(x.astype(np.float64), weights)
        assert np.all(np.abs(y - wanted) <= bound(x, weights))
        assert np.array_equal(y, product(x, weights, "generic"))


@every_kind
def test_a_row_is_the_same_bits_in_any_company_and_on_any_number_of_threads(kind: str) -> None:
    weights, x = matrix(4, 64, 200, 1344), activations(37, 1344)
    whole = product(x, weights, kind)
    for first, last in ((0, 1), (3, 20), (20, 37), (36, 37)):
        assert np.array_equal(product(x[first:last], weights, kind), whole[first:last])
    for threads in (2, 5):
        assert np.array_equal(product(x, weights, kind, threads), whole)


@every_kind
@pytest.mark.parametrize("bits", BITS)
def test_what_is_not_finite_shows_in_its_row_alone(bits: int, kind: str) -> None:
    weights, x = matrix(bits, 32, 40, 96), activations(5, 96)
    for wrong in (np.nan, np.inf, -np.inf):
        spoilt = x.copy()
        spoilt[2, 40] = wrong
        y = product(spoilt, weights, kind)
        assert np.isnan(y[2]).all()
        assert np.array_equal(np.delete(y, 2, 0), np.delete(product(x, weights, kind), 2, 0))


@every_kind
def test_activations_of_any_size(kind: str) -> None:
    weights = matrix(4, 64, 9, 512)
    x = activations(9, 512) * np.logspace(-25, 30, 9, dtype=np.float32)[:, None]
    x[3] = 0
    x[4, ::64] *= 1000
    y = product(x, weights, kind)
    assert np.all(np.abs(y - reference.matmul(x.astype(np.float64), weights)) <= bound(x, weights))
    assert not y[3].any()
    assert not product(np.full((2, 512), 1e-35, np.float32), weights, kind).any()


@every_kind
@pytest.mark.parametrize("bits", BITS)
def test_the_largest_integers_do_not_wrap(bits: int, kind: str) -> None:
    weights = matrix(bits, 128, 3, 256)
    assert weights.scales is not None
    full = Matrix(
        weights.form,
        weights.shape,
        np.full_like(weights.weight, 0xFFFFFFFF),
        weights.scales,
        weights.scales,
    )
    for sign in (1, -1):
        x = np.full((2, 256), sign * 3.0, np.float32)
        wanted = reference.matmul(x.astype(np.float64), full)
        assert np.all(np.abs(product(x, full, kind) - wanted) <= bound(x, full))


@every_kind
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_plain_weights_are_multiplied_in_float32(dtype: str, kind: str) -> None:
    form = Plain(dtype)
    values = np.random.default_rng(1).standard_normal((50, 70)).astype(np.float32)
    weights, x = plain(values, form), activations(6, 70)
    y, wanted = product(x, weights, kind, 2), reference.matmul(x.astype(np.float64), weights)
    size = np.abs(x).astype(np.float64) @ np.abs(dequantize(weights)).astype(np.float64).T
    assert np.all(np.abs(y - wanted) <= (70 / 16 + 5) * 2.0**-24 * size)


def plain(values: Floats, form: Plain) -> Matrix:

    return Matrix(form, (len(values), values.shape[1]), values.astype(FLOATS[form.dtype]))


@every_kind
@pytest.mark.parametrize("bits", [2, 4, 16])
def test_experts_are_added_in_the_order_given(bits: int, kind: str) -> None:
    """More places than are computed together, an expert that nobody wants, one that all want."""
    tokens, hidden, width, count, top_k = 700, 96, 64, 6, 3
    rng = np.random.default_rng(bits)
    experts = [expert(bits, hidden, width, number) for number in range(count)]
    x = activations(tokens, hidden)
    ids = 1 + np.argsort(rng.random((tokens, count - 2)), 1)[:, :top_k].astype(np.int64)
    ids[:, 0] = 5
    weights = rng.random((tokens, top_k), np.float32)
    handles = [cpu._make_expert(each) for each in experts]

    def added(threads: int, batches: list[list[int]]) -> Floats:
        y = np.zeros_like(x)
        for numbers in batches:
            chosen = [handles[number] for number in numbers]
            _native.add_experts(x, ids, weights, numbers, chosen, y, threads, kind)
        return y

    y = added(1, [[0, 1, 2, 3, 4, 5]])
    assert np.array_equal(y, added(3, [[0], [1, 2], [3, 4], [5]]))
    wide = x.astype(np.float64)
    wanted = reference.experts(wide, ids, weights, enumerate(experts))
    assert np.abs(y - wanted).max() < 1e-4 * np.abs(wanted).max()


def expert(bits: int, hidden: int, width: int, seed: int) -> Expert:
    rng = np.random.default_rng([seed, bits])

    def part(rows: int, columns: int) -> Matrix:
        values = rng.standard_normal((rows, columns)).astype(np.float32) / 8
        return plain(values, Plain("BF16")) if bits == 16 else quantize(values, Affine(bits, 32))

    return Expert(part(width, hidden), part(width, hidden), part(hidden, width))

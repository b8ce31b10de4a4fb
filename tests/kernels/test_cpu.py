"""The native kernels against the reference, through the door that the model uses."""

import numpy as np
import pytest

from flashmoe import kernels, quant
from flashmoe.errors import InputError
from flashmoe.kernels import cpu, reference
from flashmoe.quant import AFFINE_BITS, FLOATS, Affine, Expert, Matrix, Plain
from flashmoe.stream.memory import resident_bytes

RELATIVE = 1e-5  # float32 sums of some hundred terms, in another order

FORMS = [Affine(bits, group) for bits in AFFINE_BITS for group in (32, 64, 128)]
FORMS += [Affine(4, 64, "F16"), Affine(8, 32, "F32"), *(Plain(name) for name in FLOATS)]


def stored(rng, form, rows, columns):
    weights = rng.standard_normal((rows, columns)).astype(np.float32)
    if isinstance(form, Affine):
        return quant.quantize(weights, form)
    return Matrix(form, weights.shape, weights.astype(FLOATS[form.dtype]))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("tokens", (1, 3, 8))
def test_matmul(form, tokens):
    rng = np.random.default_rng(3)
    weights = stored(rng, form, 37, 256)
    x = rng.standard_normal((tokens, 256)).astype(np.float32)
    wanted = reference.matmul(x.astype(np.float64), weights)
    got = kernels.choose("cpu", "float32", 2).matmul(x, weights)
    assert got.dtype == np.float32
    assert np.abs(got - wanted).max() <= RELATIVE * np.abs(wanted).max()


@pytest.mark.parametrize("form", [Affine(4, 64), Plain("BF16")], ids=str)
def test_threads_do_not_change_a_bit(form):
    rng = np.random.default_rng(4)
    weights, x = stored(rng, form, 101, 128), rng.standard_normal((5, 128)).astype(np.float32)
    one = kernels.choose("cpu", "float32", 1).matmul(x, weights)
    for threads in (2, 3, 7):
        again = kernels.choose("cpu", "float32", threads).matmul(x, weights)
        np.testing.assert_array_equal(one, again)


def test_views_and_strided_activations_are_taken():
    rng = np.random.default_rng(5)
    weights = stored(rng, Affine(4, 32), 16, 128).columns(32, 96)
    x = rng.standard_normal((64, 6)).astype(np.float32).T
    got = kernels.choose("cpu", "float32", 2).matmul(x, weights)
    np.testing.assert_allclose(got, reference.matmul(x, weights), rtol=0, atol=1e-4)


def test_activations_that_do_not_fit_are_refused_before_the_native_side():
    weights = stored(np.random.default_rng(6), Affine(4, 32), 16, 128)
    table = kernels.choose("cpu", "float32", 1)
    for x in (np.ones((1, 64), np.float32), np.ones((1, 128)), np.ones(128, np.float32)):
        with pytest.raises(ValueError, match="do not fit"):
            table.matmul(x, weights)


def test_swiglu_and_experts_use_the_native_product():
    rng = np.random.default_rng(8)
    form = Affine(4, 32)
    expert = Expert(stored(rng, form, 64, 96), stored(rng, form, 64, 96), stored(rng, form, 96, 64))
    x = rng.standard_normal((2, 96)).astype(np.float32)
    table = kernels.choose("cpu", "float32", 2)
    wanted = reference.swiglu(x, expert)
    np.testing.assert_allclose(table.swiglu(x, expert), wanted, rtol=1e-4, atol=1e-3)
    ids, weights = np.array([[0], [0]]), np.full((2, 1), 0.5, np.float32)
    got = table.experts(x, ids, weights, [(0, expert)])
    np.testing.assert_allclose(got, 0.5 * wanted, rtol=1e-4, atol=1e-3)


def test_the_table_is_chosen_by_name_and_dtype():
    assert kernels.choose("auto", "float32").name == "cpu"
    assert kernels.choose("auto", "float64").name == "reference"
    assert kernels.choose("reference", "float32").matmul is reference.matmul
    for name, dtype in (("cpu", "float64"), ("gpu", "float32"), ("auto", "float16")):
        with pytest.raises(InputError):
            kernels.choose(name, dtype)


def test_each_set_says_what_its_blocks_of_weights_take():
    float32, float64 = np.dtype(np.float32), np.dtype(np.float64)
    chosen = kernels.choose("reference", "float32", 64)
    assert chosen.block_bytes == reference.block_bytes(float32) == 10 << 20
    assert kernels.choose("reference", "float64").block_bytes == 24 << 20
    assert reference.block_bytes(float64) == 24 << 20
    row = cpu.ROW_BYTES
    assert kernels.choose("cpu", "float32", 3).block_bytes == 3 * row
    assert kernels.choose("cpu", "float32", 64).block_bytes == 64 * row < 16 << 20


def test_the_native_scratch_is_a_row_a_thread():
    """Resident memory, since the native side's allocations are not Python's."""
    threads, columns = 4, 32768
    weights = Matrix(Plain("F16"), (64, columns), np.ones((64, columns), np.float16))
    x = np.ones((1, columns), np.float32)
    product = kernels.choose("cpu", "float32", threads).matmul
    product(x[:, :32].copy(), Matrix(Plain("F16"), (64, 32), np.ones((64, 32), np.float16)))
    before = resident_bytes()
    for _ in range(3):
        product(x, weights)
    assert resident_bytes() - before <= threads * cpu.ROW_BYTES + (1 << 20)


def test_threads_default_to_the_processors_this_process_may_use(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 5, 7}, raising=False)
    assert kernels.choose("cpu", "float32").matmul.keywords["threads"] == 3
    assert kernels.choose("cpu", "float32", 2).matmul.keywords["threads"] == 2
    with pytest.raises(InputError, match="threads is 1025"):
        kernels.choose("cpu", "float32", 1025)

"""Formats and packing: bit order, exactness of the round trip, and the quantiser's definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flashmoe import quant
from flashmoe.errors import InputError
from flashmoe.quant import AFFINE_BITS, FLOATS, Affine, Matrix, Plain


@given(st.sampled_from(AFFINE_BITS), st.data())
def test_pack_is_inverse_of_unpack(bits, data):
    codes = data.draw(
        hnp.arrays(np.uint8, (3, 96), elements=st.integers(0, 2**bits - 1)), label="codes"
    )
    words = quant.pack(codes, bits)
    assert words.shape == (3, 96 * bits // 32) and words.dtype == np.dtype("<u4")
    np.testing.assert_array_equal(quant.unpack(words, bits), codes)


@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_code_k_occupies_bits_from_bits_times_k(bits):
    for k in (0, 1, 7, 10, 31):
        codes = np.zeros((1, 32), np.uint8)
        codes[0, k] = 2**bits - 1
        stream = int.from_bytes(quant.pack(codes, bits).tobytes(), "little")
        assert stream == (2**bits - 1) << (bits * k)


def test_four_bits_put_the_first_code_in_the_low_nibble():
    codes = np.arange(32, dtype=np.uint8)[None] % 16
    assert quant.pack(codes, 4).view(np.uint8)[0, :3].tolist() == [0x10, 0x32, 0x54]


@pytest.mark.parametrize("bits", AFFINE_BITS)
@pytest.mark.parametrize("group", (32, 64, 128))
@pytest.mark.parametrize("scales", tuple(FLOATS))
def test_quantise_is_within_half_a_step_before_scales_are_rounded(bits, group, scales):
    rng = np.random.default_rng(bits * group)
    weights = rng.standard_normal((6, 256)).astype(np.float32)
    stored = quant.quantize(weights, Affine(bits, group, scales))
    step = np.abs(stored.scales.astype(np.float32)).repeat(group, axis=1)
    # half a step, plus what rounding scale and bias to 8 significant bits may add
    slack = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 1e-6}[scales]
    largest = np.abs(weights).reshape(6, -1, group).max(-1).repeat(group, axis=1)
    error = np.abs(quant.dequantize(stored) - weights)
    # the code at the far end is clipped once the scale was stretched: one whole step there
    assert (error <= step + 3 * slack * largest).all()
    assert np.median(error / step) < 0.5


def test_the_larger_end_of_a_group_and_zero_are_exact():
    weights = np.zeros((1, 32), np.float32)
    weights[0, :3] = [-2.0, 0.5, 1.0]
    stored = quant.quantize(weights, Affine(4, 32, "F32"))
    back = quant.dequantize(stored)
    assert back[0, 0] == -2.0 and back[0, 5] == 0.0


def test_dequantised_weight_is_rounded_after_the_product_and_after_the_sum():
    rng = np.random.default_rng(0)
    stored = quant.quantize(rng.standard_normal((4, 64)).astype(np.float32), Affine(3, 64, "F32"))
    codes = quant.unpack(stored.weight, 3).astype(np.float32)
    wanted = (codes * stored.scales).astype(np.float32) + stored.biases
    np.testing.assert_array_equal(quant.dequantize(stored), wanted.astype(np.float32))


def test_rows_and_columns_cut_the_same_weights():
    rng = np.random.default_rng(1)
    stored = quant.quantize(rng.standard_normal((8, 192)).astype(np.float32), Affine(3, 32))
    whole = quant.dequantize(stored)
    np.testing.assert_array_equal(quant.dequantize(stored.rows(slice(2, 5))), whole[2:5])
    np.testing.assert_array_equal(quant.dequantize(stored.rows(np.array([7, 0]))), whole[[7, 0]])
    np.testing.assert_array_equal(quant.dequantize(stored.columns(64, 160)), whole[:, 64:160])
    with pytest.raises(InputError, match="cut a quantisation group of 32"):
        stored.columns(16, 64)


def test_plain_weights_are_the_published_numbers():
    for name, kind in FLOATS.items():
        weights = np.array([[1.5, -2.25]], kind)
        stored = Matrix(Plain(name), (1, 2), weights)
        assert quant.dequantize(stored).tolist() == [[1.5, -2.25]]
        assert stored.columns(1, 2).weight.tolist() == [[-2.25]]


def test_unfit_inputs_are_refused_with_the_mend():
    with pytest.raises(InputError, match=r"96 inputs .* groups of 64; use --group 32"):
        quant.quantize(np.ones((1, 96), np.float32), Affine(4, 64))
    with pytest.raises(InputError, match="keep this matrix at 16 bits"):
        quant.parts(Affine(4, 64), (1, 40))
    with pytest.raises(InputError, match="NaN or infinite"):
        quant.quantize(np.full((1, 64), np.nan, np.float32), Affine(4, 64))
    with pytest.raises(InputError, match="7 bits"):
        Affine(7, 64)


@pytest.mark.parametrize("form", [Affine(4, 64), Affine(3, 32, "F16"), Plain("BF16")])
def test_a_format_survives_its_description(form):
    assert quant.parse(quant.describe(form)) == form


@pytest.mark.parametrize("bad", [None, {}, {"bits": 4}, {"dtype": "F64"}, {"dtype": "F32", "x": 1}])
def test_an_unknown_format_is_refused(bad):
    with pytest.raises(InputError):
        quant.parse(bad)

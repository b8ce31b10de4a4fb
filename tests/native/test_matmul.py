"""The native products against numpy in float64, and bit for bit against themselves.

The weight is unpacked here from its bits one by one, on purpose unlike both the native code and
quant.py.
"""

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from flashmoe import _native

Floats = npt.NDArray[np.float32]

SCALARS: tuple[npt.DTypeLike, ...] = (np.float32, np.float16, ml_dtypes.bfloat16)
BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)


def as_passed(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return values if values.dtype == np.float32 else values.view(np.uint16)


class Affine:
    """Random codes, scales and biases, and the float32 weights they stand for."""

    def __init__(self, bits: int, group: int, scalar: int, out: int, columns: int) -> None:
        rng = np.random.default_rng([bits, group, scalar, out])
        codes = rng.integers(0, 1 << bits, (out, columns), np.uint8)
        stream = (codes[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
        packed = np.packbits(stream.reshape(out, -1), axis=1, bitorder="little")
        self.weight = packed.view("<u4")
        shape = (out, columns // group)
        self.scales = (rng.standard_normal(shape) / 8).astype(SCALARS[scalar])
        self.biases = rng.standard_normal(shape).astype(SCALARS[scalar])
        scales, biases = (
            np.repeat(array.astype(np.float32), group, 1) for array in (self.scales, self.biases)
        )
        self.values: Floats = codes.astype(np.float32) * scales + biases
        self.arguments = (bits, group, scalar)

    def product(self, x: Floats, threads: int = 1) -> Floats:
        y = np.full((len(x), len(self.weight)), np.nan, np.float32)
        scales, biases = as_passed(self.scales), as_passed(self.biases)
        _native.matmul_affine(x, self.weight, scales, biases, *self.arguments, y, threads)
        return y


def activations(rows: int, columns: int) -> Floats:
    return np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)


def assert_close(y: Floats, x: Floats, values: Floats) -> None:
    """Within the bound that native/kernels.h names."""
    wide_x, wide_w = x.astype(np.float64), values.astype(np.float64)
    bound = (x.shape[1] / 16 + 5) * 2.0**-24 * (np.abs(wide_x) @ np.abs(wide_w).T)
    assert np.all(np.abs(y - wide_x @ wide_w.T) <= bound)


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
@pytest.mark.parametrize("scalar", range(3))
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", BITS)
def test_affine(bits: int, group: int, scalar: int, rows: int) -> None:
    matrix = Affine(bits, group, scalar, out=13, columns=384)
    x = activations(rows, 384)
    assert_close(matrix.product(x), x, matrix.values)


@pytest.mark.parametrize("bits", BITS)
def test_a_weight_is_rounded_twice(bits: int) -> None:
    """A unit vector picks one weight out: it is f32(f32(q * scale) + bias) to the last bit."""
    matrix = Affine(bits, 32, 0, out=9, columns=64)
    assert np.array_equal(matrix.product(np.eye(64, dtype=np.float32)), matrix.values.T)


def plain(values: Floats, scalar: int, x: Floats, threads: int = 1) -> Floats:
    y = np.full((len(x), len(values)), np.nan, np.float32)
    _native.matmul_plain(x, as_passed(values.astype(SCALARS[scalar])), scalar, y, threads)
    return y


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
@pytest.mark.parametrize("columns", [1, 15, 16, 257, 512])
@pytest.mark.parametrize("scalar", range(3))
def test_plain(scalar: int, columns: int, rows: int) -> None:
    values = activations(11, columns)[:, ::-1].copy()
    x = activations(rows, columns)
    stored = values.astype(SCALARS[scalar]).astype(np.float32)
    assert_close(plain(values, scalar, x), x, stored)


@pytest.mark.parametrize("scalar", [1, 2])
def test_every_16_bit_number_widens_exactly(scalar: int) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    y = np.empty((1, 1 << 16), np.float32)
    one = np.ones((1, 1), np.float32)
    _native.matmul_plain(one, every[:, None].copy(), scalar, y, 1)
    wanted = every.view(SCALARS[scalar]).astype(np.float32)
    # NaN payloads are free, and a sum turns -0 into 0, which compare equal.
    assert np.array_equal(y[0], wanted, equal_nan=True)


def products() -> Iterator[tuple[str, Floats, Floats]]:
    """(name, product by 1 thread, product by n) large enough for threads to start."""
    x = activations(3, 512)
    for threads in (2, 3, 7):
        for bits in BITS:
            matrix = Affine(bits, 64, 2, out=101, columns=512)
            yield f"{bits} bits", matrix.product(x), matrix.product(x, threads)
        values = activations(101, 512)
        for scalar in range(3):
            yield f"plain {scalar}", plain(values, scalar, x), plain(values, scalar, x, threads)


def test_threads_do_not_change_a_bit() -> None:
    for name, one, many in products():
        assert np.array_equal(one, many), name


def test_rows_computed_together_are_the_same_as_alone() -> None:
    matrix = Affine(4, 64, 2, out=33, columns=1024)
    x = activations(8, 1024)
    alone = np.concatenate([matrix.product(x[t : t + 1]) for t in range(8)])
    assert np.array_equal(matrix.product(x, threads=2), alone)


def test_weights_may_lie_at_any_byte() -> None:
    matrix = Affine(4, 64, 2, out=7, columns=128)
    x = activations(2, 128)
    wanted = matrix.product(x)
    for name in ("weight", "scales", "biases"):
        array = getattr(matrix, name)
        room = np.zeros(array.nbytes + 1, np.uint8)
        room[1:] = array.view(np.uint8).ravel()
        setattr(matrix, name, room[1:].view(array.dtype).reshape(array.shape))
        assert np.array_equal(matrix.product(x), wanted), name


def test_no_rows_and_no_outputs() -> None:
    matrix = Affine(4, 64, 2, out=7, columns=128)
    assert matrix.product(activations(0, 128)).shape == (0, 7)
    assert plain(np.empty((0, 16), np.float32), 0, activations(2, 16)).shape == (2, 0)


def test_wrong_arguments_are_refused() -> None:
    good = Affine(4, 64, 2, out=7, columns=128)
    scales, biases = as_passed(good.scales), as_passed(good.biases)
    x, y = activations(2, 128), np.zeros((2, 7), np.float32)

    def call(**change: object) -> None:
        arguments: dict[str, object] = dict(
            x=x, weight=good.weight, scales=scales, biases=biases, bits=4, group=64,
            scales_type=2, y=y, threads=1,
        )  # fmt: skip
        _native.matmul_affine(**(arguments | change))  # type: ignore[arg-type]

    call()
    wrong: list[dict[str, object]] = [
        {"bits": 7}, {"bits": 8}, {"group": 16}, {"group": 32}, {"scales_type": 0},
        {"scales_type": 3}, {"threads": 0}, {"threads": 100_000}, {"x": activations(2, 64)},
        {"y": np.zeros((2, 6), np.float32)}, {"y": np.zeros((1, 7), np.float32)},
        {"weight": good.weight[:6]}, {"scales": scales[:6]}, {"biases": scales[:, :1].copy()},
        {"scales": scales.astype(np.float32)},
    ]  # fmt: skip
    for change in wrong:
        with pytest.raises(ValueError):
            call(**change)
    frozen = y.copy()
    frozen.flags.writeable = False
    kinds: list[dict[str, object]] = [
        {"x": x.astype(np.float64)}, {"y": y.astype(np.float64)}, {"y": frozen},
        {"x": np.asfortranarray(x)}, {"weight": good.weight.view(np.int32)}, {"x": x[0]},
    ]  # fmt: skip
    for change in kinds:
        with pytest.raises(TypeError):
            call(**change)
    with pytest.raises(ValueError):
        _native.matmul_plain(x, activations(7, 64), 0, y, 1)
    with pytest.raises(ValueError):
        _native.matmul_plain(x, activations(7, 128), 1, y, 1)

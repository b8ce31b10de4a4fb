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
KINDS = _native.instruction_sets()

every_kind = pytest.mark.parametrize("kind", KINDS)


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

    def product(self, x: Floats, threads: int = 1, kind: str = "") -> Floats:
        y = np.full((len(x), len(self.weight)), np.nan, np.float32)
        scales, biases = as_passed(self.scales), as_passed(self.biases)
        _native.matmul_affine(x, self.weight, scales, biases, *self.arguments, y, threads, kind)
        return y


def activations(rows: int, columns: int) -> Floats:
    return np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)


def assert_close(y: Floats, x: Floats, values: Floats, roundings: float | None = None) -> None:
    """Within the bound that native/kernels.h names: so many roundings, n / 16 + 5 by default."""
    if roundings is None:
        roundings = x.shape[1] / 16 + 5
    wide_x, wide_w = x.astype(np.float64), values.astype(np.float64)
    bound = roundings * 2.0**-24 * (np.abs(wide_x) @ np.abs(wide_w).T)
    assert np.all(np.abs(y - wide_x @ wide_w.T) <= bound)


def test_the_sets_are_named_and_an_unknown_one_is_refused() -> None:
    assert KINDS[-1] == "generic" and len(set(KINDS)) == len(KINDS)
    assert set(KINDS) <= {"generic", "avx2", "avxvnni", "avx512", "amx", "neon", "i8mm"}
    matrix, x = Affine(4, 64, 2, out=7, columns=128), activations(1, 128)
    assert np.array_equal(matrix.product(x), matrix.product(x, kind=KINDS[0]))
    with pytest.raises(ValueError, match="instruction_set"):
        matrix.product(x, kind="altivec")
    with pytest.raises(ValueError, match="instruction_set"):
        plain(activations(3, 16), 0, activations(1, 16), kind="altivec")


@every_kind
@pytest.mark.parametrize("rows", [1, 2, 5, 8])
@pytest.mark.parametrize("scalar", range(3))
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", BITS)
def test_affine(bits: int, group: int, scalar: int, rows: int, kind: str) -> None:
    matrix = Affine(bits, group, scalar, out=13, columns=384)
    x = activations(rows, 384)
    assert_close(matrix.product(x, kind=kind), x, matrix.values)


@every_kind
@pytest.mark.parametrize("groups", [1, 2, 3, 15, 16, 17, 33])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", BITS)
def test_any_number_of_groups(bits: int, group: int, groups: int, kind: str) -> None:
    """Whole blocks, part of one, more than a vector of scales; NaN behind the arrays."""
    matrix = Affine(bits, group, 2, out=3, columns=group * groups)
    for name in ("weight", "scales", "biases"):
        array = getattr(matrix, name)
        room = np.full(array.nbytes + 64, 0xFF, np.uint8)
        room[: array.nbytes] = array.view(np.uint8).ravel()
        setattr(matrix, name, room[: array.nbytes].view(array.dtype).reshape(array.shape))
    x = activations(2, group * groups)
    assert_close(matrix.product(x, kind=kind), x, matrix.values, x.shape[1] / 16 + 16)


@every_kind
def test_activations_of_any_size(kind: str) -> None:
    """Zeros, an outlier in each group, and scales from the tiniest to nearly the largest."""
    matrix = Affine(4, 64, 0, out=9, columns=512)
    x = activations(9, 512) * np.logspace(-30, 30, 9, dtype=np.float32)[:, None]
    x[3] = 0
    x[4, ::64] *= 1000
    assert_close(matrix.product(x, kind=kind), x, matrix.values, 1e-5 * 2**24)
    assert not matrix.product(x, kind=kind)[3].any()


@every_kind
@pytest.mark.parametrize("bits", BITS)
def test_the_largest_codes_and_digits(bits: int, kind: str) -> None:
    """No integer sum saturates or wraps: the largest fixed-point numbers, and digits of -128."""
    matrix = Affine(bits, 128, 0, out=2, columns=256)
    matrix.weight[:] = 0xFFFFFFFF
    matrix.values = np.float32(2**bits - 1) * np.repeat(matrix.scales, 128, 1)
    matrix.biases[:] = 0
    largest = np.array([0x3FFFFF, 0x3F7F80, -0x3F7F80, -0x3FFFFF], np.float32)
    x = np.repeat(largest[:, None] / np.float32(2**21), 256, 1)
    assert_close(matrix.product(x, kind=kind), x, matrix.values)


@every_kind
@pytest.mark.parametrize("bits", BITS)
def test_an_activation_that_is_not_finite_shows(bits: int, kind: str) -> None:
    matrix = Affine(bits, 32, 2, out=9, columns=96)
    for wrong in (np.nan, np.inf, -np.inf):
        x = activations(1, 96)
        x[0, 40] = wrong
        assert not np.isfinite(matrix.product(x, kind=kind)).any()


@every_kind
@pytest.mark.parametrize("bits", BITS)
def test_a_weight_is_the_number_that_the_format_defines(bits: int, kind: str) -> None:
    """A unit vector picks one weight out: f32(f32(q * scale) + bias), portably to the last bit."""
    matrix = Affine(bits, 32, 0, out=9, columns=64)
    y = matrix.product(np.eye(64, dtype=np.float32), kind=kind)
    if kind == "generic":
        assert np.array_equal(y, matrix.values.T)
    largest = np.abs(matrix.scales) * 2**bits + np.abs(matrix.biases)
    assert np.all(np.abs(y.T - matrix.values) <= 2.0**-22 * np.repeat(largest, 32, 1))


def plain(values: Floats, scalar: int, x: Floats, threads: int = 1, kind: str = "") -> Floats:
    y = np.full((len(x), len(values)), np.nan, np.float32)
    _native.matmul_plain(x, as_passed(values.astype(SCALARS[scalar])), scalar, y, threads, kind)
    return y


@every_kind
@pytest.mark.parametrize("rows", [1, 2, 5, 8])
@pytest.mark.parametrize("columns", [1, 15, 16, 257, 512])
@pytest.mark.parametrize("scalar", range(3))
def test_plain(scalar: int, columns: int, rows: int, kind: str) -> None:
    values = activations(11, columns)[:, ::-1].copy()
    x = activations(rows, columns)
    stored = values.astype(SCALARS[scalar]).astype(np.float32)
    assert_close(plain(values, scalar, x, kind=kind), x, stored)


@every_kind
@pytest.mark.parametrize("scalar", [1, 2])
def test_every_16_bit_number_widens_exactly(scalar: int, kind: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    y = np.empty((1, 1 << 16), np.float32)
    one = np.ones((1, 1), np.float32)
    _native.matmul_plain(one, every[:, None].copy(), scalar, y, 1, kind)
    wanted = every.view(SCALARS[scalar]).astype(np.float32)
    # NaN payloads are free, and a sum turns -0 into 0, which compare equal.
    assert np.array_equal(y[0], wanted, equal_nan=True)


def products(kind: str) -> Iterator[tuple[str, Floats, Floats]]:
    """(name, product by 1 thread, product by n) large enough for threads to start."""
    x = activations(3, 512)
    for threads in (2, 3, 7):
        for bits in BITS:
            matrix = Affine(bits, 64, 2, out=101, columns=512)
            yield f"{bits} bits", matrix.product(x, 1, kind), matrix.product(x, threads, kind)
        values = activations(101, 512)
        for scalar in range(3):
            one = plain(values, scalar, x, 1, kind)
            yield f"plain {scalar}", one, plain(values, scalar, x, threads, kind)


@every_kind
def test_threads_do_not_change_a_bit(kind: str) -> None:
    for name, one, many in products(kind):
        assert np.array_equal(one, many), name


@every_kind
@pytest.mark.parametrize("bits", BITS)
def test_rows_computed_together_are_the_same_as_alone(bits: int, kind: str) -> None:
    matrix = Affine(bits, 64, 2, out=33, columns=1024)
    x = activations(8, 1024)
    for count in (8, 7, 5, 3, 2):
        alone = np.concatenate([matrix.product(x[t : t + 1], 1, kind) for t in range(count)])
        assert np.array_equal(matrix.product(x[:count], 2, kind), alone)


@every_kind
def test_plain_rows_computed_together_are_the_same_as_alone(kind: str) -> None:
    values, x = activations(33, 333), activations(7, 333)
    alone = np.concatenate([plain(values, 2, x[t : t + 1], 1, kind) for t in range(7)])
    assert np.array_equal(plain(values, 2, x, 2, kind), alone)


@every_kind
def test_weights_may_lie_at_any_byte(kind: str) -> None:
    matrix = Affine(4, 64, 2, out=7, columns=128)
    x = activations(2, 128)
    wanted = matrix.product(x, kind=kind)
    for name in ("weight", "scales", "biases"):
        array = getattr(matrix, name)
        room = np.zeros(array.nbytes + 1, np.uint8)
        room[1:] = array.view(np.uint8).ravel()
        setattr(matrix, name, room[1:].view(array.dtype).reshape(array.shape))
        assert np.array_equal(matrix.product(x, kind=kind), wanted), name


def test_no_rows_and_no_outputs() -> None:
    matrix = Affine(4, 64, 2, out=7, columns=128)
    assert matrix.product(activations(0, 128)).shape == (0, 7)
    for kind in KINDS:
        assert not Affine(4, 64, 2, out=7, columns=0).product(activations(2, 0), kind=kind).any()
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

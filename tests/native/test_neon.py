"""The NEON products on imitated processors: against numpy, and bit for bit against themselves.

The inputs differ in every run; a failure names the seed they come from. The driver lets no load
pass the end of an array (driver.cpp).
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xxhash

from flashmoe.kernels import reference
from flashmoe.quant import (
    AFFINE_BITS,
    FLOATS,
    GROUPS,
    Affine,
    FloatName,
    Format,
    Matrix,
    Plain,
    dequantize,
    parts,
)
from tests.native import imitated
from tests.native.imitated import Floats, Program, build, require_tools, sets
from tests.native.test_panels import bound
from tests.tolerances import AFFINE_PRODUCT

WITHOUT, WITH, WITH_I8MM = "cortex-a53", "neoverse-n1", "max"
"""Processors without and with the dot product, and with i8mm too; instructions that one lacks end
the driver."""

every_set = pytest.mark.parametrize(("name", "processor"), [("neon", WITH), ("i8mm", WITH_I8MM)])
"""The sets with products of many rows of their own, each where it is the best."""

COLUMNS = 384
"""12, 6 and 3 groups: whole vectors of scales, and parts of one."""

SCALARS: tuple[FloatName, ...] = ("F32", "F16", "BF16")

SEED = int(np.random.SeedSequence().generate_state(1)[0])
RNG = np.random.default_rng(SEED)

every_form = pytest.mark.parametrize(
    ("bits", "group"), [(bits, group) for bits in AFFINE_BITS for group in GROUPS]
)


@pytest.fixture(scope="module")
def driver() -> Path:
    require_tools()
    return build()


def test_missing_tools_skip_and_fail_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imitated, "QEMU", None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"apt-get install .* qemu-user-static"):
        require_tools()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match=r"apt-get install g..-aarch64-linux-gnu"):
        require_tools()


def random_matrix(form: Format, out: int, columns: int = COLUMNS) -> Matrix:
    if isinstance(form, Plain):
        values = RNG.standard_normal((out, columns))
        return Matrix(form, (out, columns), values.astype(FLOATS[form.dtype]))
    weight, scales, _ = parts(form, (out, columns))
    words = RNG.integers(0, 1 << 32, weight.shape, np.uint32)
    pairs = RNG.standard_normal((2, *scales.shape)) * [[[0.125]], [[1]]]
    return Matrix(form, (out, columns), words, *pairs.astype(FLOATS[form.scales]))


def activations(rows: int, columns: int = COLUMNS) -> Floats:
    return RNG.standard_normal((rows, columns), dtype=np.float32)


def error(y: npt.NDArray[Any], x: Floats, matrix: Matrix) -> float:
    """Largest error relative to ``sum_i |x_i w_i|``, as native/kernels.h states tolerances."""
    wide = x.astype(np.float64)
    size = np.abs(wide) @ np.abs(dequantize(matrix).astype(np.float64)).T
    apart: npt.NDArray[np.float64] = np.abs(y - reference.matmul(wide, matrix))
    return float((apart / np.maximum(size, 1e-300)).max())


def roundings(columns: int) -> float:
    """The tolerance of the portable kernels and of every plain product."""
    return (columns / 16 + 5) * 2.0**-24


def large_enough(rows: int) -> int:
    """An odd number of outputs for which a second thread starts (dispatch.cpp)."""
    return (1 << 18) // (rows * COLUMNS) // 2 * 2 + 3


def test_the_dot_product_decides(driver: Path) -> None:
    assert sets(driver, WITHOUT) == sets(driver, "cortex-a57") == ["generic"]
    assert sets(driver, WITH) == ["neon", "generic"]
    assert sets(driver, WITH_I8MM) == ["i8mm", "neon", "generic"]


@pytest.mark.parametrize("scalar", SCALARS)
@every_form
def test_affine(bits: int, group: int, scalar: FloatName, driver: Path) -> None:
    """1 to 8 rows, threads or none, and rows computed together as alone: the same bits."""
    matrix, x = random_matrix(Affine(bits, group, scalar), large_enough(1)), activations(8)
    program = Program(driver)
    for rows in range(1, 9):
        for threads in (1, 3):
            program.matmul("neon", threads, x[:rows], matrix.rows(slice(large_enough(rows))))
    few = matrix.rows(slice(large_enough(8)))
    for row in range(8):
        program.matmul("neon", 1, x[row : row + 1], few)
    *results, a, b, c, d, e, f, g, h = program.run(WITH)
    alone = np.concatenate([a, b, c, d, e, f, g, h])
    for rows in range(1, 9):
        one, three = results[2 * rows - 2 : 2 * rows]
        assert np.array_equal(one, three), (SEED, rows)
        assert np.array_equal(one[:, : alone.shape[1]], alone[:rows]), (SEED, rows)
        apart = error(one, x[:rows], matrix.rows(slice(large_enough(rows))))
        assert apart <= roundings(COLUMNS), (SEED, rows, apart)


@pytest.mark.parametrize("groups", [1, 2, 5])
@every_form
def test_any_number_of_groups(bits: int, group: int, groups: int, driver: Path) -> None:
    matrix = random_matrix(Affine(bits, group, "BF16"), 3, group * groups)
    x, program = activations(2, group * groups), Program(driver)
    program.matmul("neon", 1, x, matrix)
    assert error(program.run(WITH)[0], x, matrix) <= AFFINE_PRODUCT, SEED


@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_activations_of_any_size(bits: int, driver: Path) -> None:
    """Zeros, an outlier in each group, from the tiniest to nearly the largest; and no number."""
    matrix = random_matrix(Affine(bits, 64, "F32"), 9)
    x = activations(12) * np.logspace(-30, 30, 12, dtype=np.float32)[:, None]
    x[3] = 0
    x[4, ::64] *= 1000
    finite, x[9:, 40] = x[:9].copy(), [np.nan, np.inf, -np.inf]
    program = Program(driver)
    program.matmul("neon", 1, x, matrix)
    (y,) = program.run(WITH)
    assert error(y[:9], finite, matrix) <= AFFINE_PRODUCT, SEED
    assert not y[3].any()
    assert not np.isfinite(y[9:]).any()


def test_the_largest_codes_and_digits(driver: Path) -> None:
    """No integer sum saturates or wraps: the largest fixed-point numbers, and digits of -128."""
    largest = np.array([0x3FFFFF, 0x3F7F80, -0x3F7F80, -0x3FFFFF], np.float32)
    x, program = np.repeat(largest[:, None] / np.float32(2**21), COLUMNS, 1), Program(driver)
    matrices = [random_matrix(Affine(bits, 128, "F32"), 3) for bits in AFFINE_BITS]
    for matrix in matrices:
        matrix.weight[:] = 0xFFFFFFFF
        program.matmul("neon", 1, x, matrix)
    for matrix, y in zip(matrices, program.run(WITH), strict=True):
        assert error(y, x, matrix) <= AFFINE_PRODUCT, (SEED, matrix.form)


@every_set
@pytest.mark.parametrize("scalar", SCALARS)
@every_form
def test_panels(
    bits: int, group: int, scalar: FloatName, name: str, processor: str, driver: Path
) -> None:
    """Products of many rows: the portable ones' bits, whole tiles and parts, threads or none."""
    program, form = Program(driver), Affine(bits, group, scalar)
    shapes = [(1, group), (13, 3 * group), (130, 384), (8, 5 * group), (9, 2048 + group)]
    matrices = [random_matrix(form, *shape) for shape in shapes]
    cases = [(activations(rows, m.shape[1]), m) for m in matrices for rows in (1, 4, 7)]
    for x, matrix in cases:
        program.panels("generic", 1, x, matrix)
        program.panels(name, 1, x, matrix)
        program.panels(name, 3, x, matrix)
    results = program.run(processor)
    for n, (x, matrix) in enumerate(cases):
        wanted, one, three = results[3 * n : 3 * n + 3]
        assert np.array_equal(one, wanted), (SEED, x.shape, matrix.shape)
        assert np.array_equal(three, wanted), (SEED, x.shape, matrix.shape)
        apart = np.abs(one - reference.matmul(x.astype(np.float64), matrix))
        assert np.all(apart <= bound(x, matrix)), (SEED, x.shape, matrix.shape)


@every_set
@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_panels_of_activations_of_any_size(
    bits: int, name: str, processor: str, driver: Path
) -> None:
    """Zeros, outliers, the tiniest, nearly the largest, no number; and the largest codes."""
    matrix, program = random_matrix(Affine(bits, 128, "F32"), 9), Program(driver)
    x = activations(12) * np.logspace(-35, 30, 12, dtype=np.float32)[:, None]
    x[3] = 0
    x[4, ::64] *= 1000
    x[5] = np.abs(x[5]).max()
    x[9:, 40] = [np.nan, np.inf, -np.inf]
    for codes in (matrix.weight.copy(), np.full_like(matrix.weight, 0xFFFFFFFF)):
        matrix = Matrix(matrix.form, matrix.shape, codes, matrix.scales, matrix.biases)
        program.panels("generic", 1, x, matrix)
        program.panels(name, 1, x, matrix)
    results = program.run(processor)
    for wanted, y in zip(results[::2], results[1::2], strict=True):
        assert np.array_equal(y, wanted, equal_nan=True), SEED
        assert not y[3].any() and np.isfinite(y[:9]).all() and np.isnan(y[9:]).all()


@pytest.mark.parametrize("scalar", SCALARS)
@pytest.mark.parametrize("columns", [1, 15, 16, 257, 512])
def test_plain(columns: int, scalar: FloatName, driver: Path) -> None:
    out = (1 << 18) // columns + 1 if columns > 100 else 11
    matrix, x = random_matrix(Plain(scalar), out, columns), activations(8, columns)
    program = Program(driver)
    for rows in (1, 2, 5, 8):
        for threads in (1, 3):
            program.matmul("neon", threads, x[:rows], matrix)
    results = program.run(WITH)
    for rows, one, three in zip((1, 2, 5, 8), results[::2], results[1::2], strict=True):
        assert np.array_equal(one, three), (SEED, rows)
        assert np.array_equal(one, results[-1][:rows]), (SEED, rows)
        assert error(one, x[:rows], matrix) <= roundings(columns), (SEED, rows)


@pytest.mark.parametrize("processor", [WITHOUT, WITH])
@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_the_portable_products(bits: int, processor: str, driver: Path) -> None:
    """On a processor without the dot product, and where it is there but not asked for."""
    x, program = activations(5), Program(driver)
    forms: list[Format] = [Affine(bits, group, name) for group in GROUPS for name in SCALARS]
    forms += [Plain(name) for name in SCALARS]
    matrices = [random_matrix(form, 101) for form in forms]
    for matrix in matrices:
        for threads in (1, 3):
            program.matmul("generic", threads, x, matrix)
    results = program.run(processor)
    for matrix, one, three in zip(matrices, results[::2], results[1::2], strict=True):
        assert np.array_equal(one, three), (SEED, matrix.form)
        assert error(one, x, matrix) <= roundings(COLUMNS), (SEED, matrix.form)


@pytest.mark.parametrize("name", ["neon", "generic"])
def test_an_expert(name: str, driver: Path) -> None:
    forms: tuple[Format, ...] = (Affine(4, 64), Affine(4, 64), Affine(6, 32))
    shapes = ((192, 128), (192, 128), (128, 192))
    gate, up, down = (random_matrix(f, *shape) for f, shape in zip(forms, shapes, strict=True))
    x, program = activations(1, 128) / np.float32(16), Program(driver)
    for threads in (1, 3):
        program.expert(name, threads, x, (gate, up, down))
    one, three = program.run(WITH)
    wide = x.astype(np.float64)
    hidden = reference.silu(reference.matmul(wide, gate)) * reference.matmul(wide, up)
    wanted = reference.matmul(hidden, down)
    assert np.array_equal(one, three), SEED
    assert np.abs(one - wanted).max() <= AFFINE_PRODUCT * np.abs(wanted).max(), SEED


def test_checksums_and_reads(driver: Path, tmp_path: Path) -> None:
    """The parts of the native code that no instruction set divides."""
    data = RNG.integers(0, 256, 3 * 4096, np.uint8)
    path = tmp_path / "data"
    path.write_bytes(data.tobytes())
    tail = data[4096:]
    program = Program(driver)
    lengths = (0, 3, 8, 16, 17, 128, 129, 240, 241, 1024, 1025, data.size)
    for length in lengths:
        program.checksum(data[:length])
    wanted = [xxhash.xxh3_64_intdigest(data[:length].tobytes()) for length in lengths]
    for threads in (1, 3):
        program.touch(threads, data)
    program.read(path, 4096, 8192, xxhash.xxh3_64_intdigest(tail.tobytes()))
    program.read(path, 4096, 8192, 1)
    *sums, one, three, good, bad = program.run(WITHOUT)
    assert sums == wanted
    assert one == three == np.bitwise_or.reduce(data.view("<u8"))
    assert good["code"] == 0 and np.array_equal(good["data"], tail)
    assert bad["code"] == 3 and bad["detail"] == xxhash.xxh3_64_intdigest(tail.tobytes())

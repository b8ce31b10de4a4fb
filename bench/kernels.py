"""Speed of the products, as a share of the memory rate seen in the same run.

    .venv/bin/python bench/kernels.py [--rows 65536] [--columns 4096] [--threads 2] [--tokens 1]

Weights are larger than the cache. For each format, the plain read of the same bytes and the
product with every instruction set are timed in turn, several times over. Medians are printed,
the largest error relative to float64 beside them, and one JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import results

from flashmoe import _native
from flashmoe.kernels import reference
from flashmoe.quant import AFFINE_BITS, FLOATS, Affine, Array, Format, Matrix, Plain, parts

REPEATS = 5
TYPES = {"F32": 0, "F16": 1, "BF16": 2}


def random_matrix(form: Format, rows: int, columns: int) -> Matrix:
    """Weights of random codes and small scales; finite whatever the type."""
    rng = np.random.default_rng(0)
    if isinstance(form, Plain):
        values = rng.standard_normal((rows, columns), dtype=np.float32)
        return Matrix(form, (rows, columns), values.astype(FLOATS[form.dtype]))
    weight, scales, _ = parts(form, (rows, columns))
    words = rng.integers(0, 1 << 32, weight.shape, dtype=np.uint32)
    small = np.full(scales.shape, 0.01, scales.numpy_dtype)
    return Matrix(form, (rows, columns), words, small, -small)


def seconds(work: Callable[[], object]) -> float:
    """Time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def product(x: Array, matrix: Matrix, y: Array, threads: int, name: str) -> Callable[[], object]:
    """The native product with one instruction set, as the kernels' door would call it."""
    weight, *rest = (a.view(np.uint16) if a.itemsize == 2 else a for a in matrix.arrays())
    if isinstance(matrix.form, Plain):
        kind = TYPES[matrix.form.dtype]
        return lambda: _native.matmul_plain(x, weight, kind, y, threads, name)
    form = matrix.form
    arguments = (form.bits, form.group, TYPES[form.scales])
    return lambda: _native.matmul_affine(x, weight, *rest, *arguments, y, threads, name)


def error(x: Array, matrix: Matrix, y: Array) -> float:
    """Largest error of the first outputs, relative to their root mean square."""
    some = slice(0, 512)
    wanted = reference.matmul(x.astype(np.float64), matrix.rows(some))
    return float(np.abs(y[:, some] - wanted).max() / np.sqrt(np.mean(wanted**2)))


def compare(form: Format, x: Array, rows: int, threads: int) -> dict[str, dict[str, float]]:
    """Rates of one format by instruction set; prints a line each."""
    matrix = random_matrix(form, rows, x.shape[1])
    y = np.empty((len(x), rows), np.float32)
    works = {name: product(x, matrix, y, threads, name) for name in _native.instruction_sets()}
    times: dict[str, list[float]] = {name: [] for name in ("read", *works)}
    errors: dict[str, float] = {}
    for _ in range(REPEATS + 1):
        spent = sum(seconds(lambda a=a: _native.touch(a, threads)) for a in matrix.arrays())
        times["read"].append(spent)
        for name, work in works.items():
            times[name].append(seconds(work))
            errors[name] = errors.get(name) or error(x, matrix, y)
    rates = {name: matrix.nbytes / statistics.median(t[1:]) / 1e9 for name, t in times.items()}
    label = f"{form.bits} bits" if isinstance(form, Affine) else form.dtype
    for name in works:
        share = rates[name] / rates["read"]
        print(f"{label:>8} {name:>8} {rates[name]:7.2f} {share:7.1%} {errors[name]:10.1e}")
    print(f"{label:>8} {'read':>8} {rates['read']:7.2f}", flush=True)
    return {label: {name: round(rate, 2) for name, rate in rates.items()}}


def small(threads: int) -> None:
    """Microseconds of one 512 x 2048 product at 4 bits out of the cache's reach."""
    form = Affine(4, 64)
    x = np.random.default_rng(1).standard_normal((1, 2048), dtype=np.float32)
    many = [random_matrix(form, 512, 2048) for _ in range(256)]
    y = np.empty((1, 512), np.float32)
    for name in _native.instruction_sets():
        for count in sorted({1, threads}):
            calls = [product(x, matrix, y, count, name) for matrix in many]
            for call in calls:
                call()
            spent = statistics.median(seconds(call) for call in calls)
            rate = many[0].nbytes / spent / 1e9
            print(f"512 x 2048, {count} threads, {name:>8}: {spent * 1e6:6.1f} us, {rate:.1f} GB/s")


def main() -> None:
    """Time every format and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1)
    results.add_arguments(parser)
    given = parser.parse_args()
    rng = np.random.default_rng(1)
    x = rng.standard_normal((given.tokens, given.columns), dtype=np.float32)
    forms: list[Format] = [Affine(bits, 64) for bits in AFFINE_BITS]
    forms += [Plain(name) for name in FLOATS]
    rates: dict[str, dict[str, float]] = {}
    print(f"{'weights':>8} {'kernels':>8} {'GB/s':>7} {'of read':>7} {'error':>10}")
    for form in forms:
        rates |= compare(form, x, given.rows, given.threads)
    small(given.threads)
    data = np.ones(1 << 26, np.float32)
    checked = statistics.median(seconds(lambda: _native.xxh3_64(data)) for _ in range(REPEATS))
    rates["xxh3"] = {"one thread": round(data.nbytes / checked / 1e9, 2)}
    print(f"checksum: {rates['xxh3']['one thread']} GB/s on one thread")
    line = {"threads": given.threads, "tokens": given.tokens, "gb_s": rates}
    results.save_if_asked(given, "kernels", line, {"rows": given.rows, "columns": given.columns})
    print(json.dumps(line))


if __name__ == "__main__":
    main()

"""Speed of the matrix-vector kernels, as a share of the memory rate seen in the same run.

    .venv/bin/python bench/kernels.py [--rows 65536] [--columns 4096] [--threads 2]

Weights are larger than the cache. Every kernel is timed in turn with a plain read of as many
bytes, several times over; the median is printed, and one JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from flashmoe import kernels
from flashmoe._native import xxh3_64
from flashmoe.quant import AFFINE_BITS, FLOATS, Affine, Array, Format, Matrix, Plain, parts

REPEATS = 5


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


def read(pool: ThreadPoolExecutor, data: Array, threads: int) -> None:
    """Touch every byte once."""
    list(pool.map(np.sum, np.array_split(data, threads)))


def main() -> None:
    """Time every format and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    table = kernels.choose("cpu", "float32", given.threads)
    x = np.random.default_rng(1).standard_normal((1, given.columns), dtype=np.float32)
    forms: list[Format] = [Affine(bits, 64) for bits in AFFINE_BITS]
    forms += [Plain(name) for name in FLOATS]
    ceiling = np.ones(1 << 26, np.float32)
    rates: dict[str, float] = {}
    print(f"{'weights':>10}  {'GB/s':>6}  of a plain read")
    with ThreadPoolExecutor(given.threads) as pool:
        for form in forms:
            matrix = random_matrix(form, given.rows, given.columns)
            mine, plain = [], []
            for _ in range(REPEATS + 1):
                mine.append(seconds(lambda: table.matmul(x, matrix)))  # noqa: B023
                plain.append(seconds(lambda: read(pool, ceiling, given.threads)))
            rate = matrix.nbytes / statistics.median(mine[1:]) / 1e9
            limit = ceiling.nbytes / statistics.median(plain[1:]) / 1e9
            name = f"{form.bits} bits" if isinstance(form, Affine) else form.dtype
            rates[name] = round(rate, 2)
            print(f"{name:>10}  {rate:6.2f}  {rate / limit:6.1%} of {limit:.1f}")
    checked = statistics.median(seconds(lambda: xxh3_64(ceiling)) for _ in range(REPEATS))
    rates["xxh3"] = round(ceiling.nbytes / checked / 1e9, 2)
    print(f"{'checksum':>10}  {rates['xxh3']:6.2f}  on one thread")
    print(json.dumps({"threads": given.threads, "gb_s": rates}))


if __name__ == "__main__":
    main()

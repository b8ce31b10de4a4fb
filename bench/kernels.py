"""Speed of the products, as a share of the memory rate seen in the same run; decode kernels.

    .venv/bin/python bench/kernels.py [--rows 65536] [--columns 4096] [--threads 2] [--tokens 1]
        [--steps | --checksums]

Weights are larger than the cache. For each format, the plain read of the same bytes and the
product with every instruction set are timed in turn, several times over; of more than one token
also in the form for many rows. Medians are printed, the largest error relative to float64 beside
them, and one JSON line at the end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import islice

import numpy as np
import results
from command import run, whole

from flashmoe import _native
from flashmoe.kernels import cpu, mixers, reference
from flashmoe.kernels.kv import KeyValues
from flashmoe.options import KV_KINDS, MAX_THREADS
from flashmoe.quant import AFFINE_BITS, FLOATS, Affine, Array, Format, Matrix, Plain, parts
from flashmoe.shape import AttentionShape, RecurrentShape

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


def panels(x: Array, matrix: Matrix, y: Array, threads: int, name: str) -> Callable[[], object]:
    """The same in the form for many rows (native/panels.h)."""
    handle, into = cpu._make_matrix(matrix), y.reshape(-1)
    return lambda: _native.project(x, [handle], into, threads, name, True)


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
    if len(x) > 1:
        many = {f"{name} panels": panels(x, matrix, y, threads, name) for name in works}
        works |= many
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
        products = len(x) * rows * x.shape[1] / statistics.median(times[name][1:]) / 1e9
        speed = f"{rates[name]:7.2f} {share:7.1%} {products:7.1f}"
        print(f"{label:>8} {name:>14} {speed} {errors[name]:10.1e}")
    print(f"{label:>8} {'read':>14} {rates['read']:7.2f}", flush=True)
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


def handles(form: Format, rows: int, columns: int, count: int) -> list[_native.Matrix]:
    """So many matrices, as the native side knows them."""
    many = [random_matrix(form, rows, columns) for _ in range(count)]
    return [cpu._make_matrix(matrix) for matrix in many]


def turns(works: dict[str, Callable[[], object]], laps: int = 60) -> None:
    """Medians of several ways, called in turn, and what of each is Python."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(laps):
        for name, work in works.items():
            busy = _native.busy_seconds()
            spent = seconds(work)
            times[name].append((spent, spent - (_native.busy_seconds() - busy)))
    for name, measured in times.items():
        spent, python = (statistics.median(column) * 1e6 for column in zip(*measured, strict=True))
        print(f"{name:>40}: {spent:8.1f} us, {python:5.1f} of it Python", flush=True)


def steps(threads: int) -> None:
    """The kernels of a decode step in the dimensions of Qwen3.5-35B-A3B, weights out of cache."""
    form, rng = Affine(4, 64), np.random.default_rng(2)
    x, y = rng.standard_normal((1, 2048), dtype=np.float32), np.empty((1, 2048), np.float32)
    pools = (handles(form, *shape, 128) for shape in ((512, 2048), (512, 2048), (2048, 512)))
    experts = itertools.cycle([_native.Expert(*three) for three in zip(*pools, strict=True)])
    ids, outputs = np.arange(8)[None].copy(), np.empty((8, 2048), np.float32)
    rows = (8192, 4096, 32, 32)
    inputs = itertools.cycle(
        list(zip(*(handles(form, count, 2048, 16) for count in rows), strict=True))
    )
    flat = np.empty(sum(rows), np.float32)

    def together() -> None:
        _native.experts(x, ids, list(range(8)), list(islice(experts, 8)), outputs, threads)

    def one_by_one() -> None:
        for number in range(8):
            _native.experts(x, ids, [number], [next(experts)], outputs, threads)

    def at_once() -> None:
        _native.project(x, list(next(inputs)), flat, threads)

    def apart() -> None:
        for count, matrix in zip(rows, next(inputs), strict=True):
            _native.project(x, [matrix], flat[:count], threads)

    turns({"8 experts together": together, "8 experts one by one": one_by_one})
    turns({"delta net's 4 products in one call": at_once, "in four calls": apart})
    mixers_of_a_step(threads)
    weight, logits = (
        rng.standard_normal(2048, np.float32),
        rng.standard_normal((1, 256), np.float32),
    )
    turns({
        "norm": lambda: cpu.rms_norm(x, weight, 1e-6, threads=1),
        "norm, numpy": lambda: reference.rms_norm(x, weight, 1e-6),
        "router": lambda: cpu.route(logits, 8, True),
        "router, numpy": lambda: reference.route(logits, 8, True),
        "sum of 8 outputs": lambda: _native.combine(outputs, logits[:, :8].copy(), y),
    })  # fmt: skip


def mixers_of_a_step(threads: int) -> None:
    """Both mixers between their projections, natively and in numpy."""
    rng = np.random.default_rng(3)

    def some(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    net = RecurrentShape(16, 32, 128, 128, 4)
    small = some(net.conv_channels, 4), -np.abs(some(32)), some(32), some(128)
    weights = mixers.DeltaWeights(net, 1e-6, *small)
    given = some(1, net.conv_channels), some(1, 4096), some(1, 32), some(1, 32)
    shapes = (32, 128, 128), (3, net.conv_channels)
    states = itertools.cycle([tuple(map(np.zeros, shapes, ("f4", "f4"))) for _ in range(30)])
    room = next(states)
    turns({
        "gated delta net": lambda: cpu.gated_delta(
            *given, weights, next(states), room, threads=threads),
        "gated delta net, numpy": lambda: mixers.gated_delta(*given, weights, next(states)),
    })  # fmt: skip
    shape = AttentionShape(16, 2, 256, 64, 1e7, gated=True, qk_norm=True)
    layer = mixers.AttentionWeights(shape, 1e-6, some(256), some(256))
    token = some(1, 8192), some(1, 512), some(1, 512)
    for length in (64, 1024, 4096):
        works: dict[str, Callable[[], object]] = {}
        for kind in KV_KINDS:
            kv = KeyValues(kind, (2, length + 200, 256), np.dtype(np.float32))
            kv.extend(some(length, 2, 256), some(length, 2, 256))
            works[f"attention over {length}, {kind}"] = partial(
                cpu.attend, *token, layer, kv, threads=threads
            )
            works[f"attention over {length}, {kind}, numpy"] = partial(
                mixers.attend, *token, layer, kv
            )
        turns(works, 20)


def checksums() -> dict[str, float]:
    """GB/s of XXH3 on one thread, from memory and from the cache, as built and in portable C++."""
    data, rates = np.ones(1 << 28, np.uint8), {}
    for place, count in (("memory", len(data)), ("cache", 1 << 18)):
        for form, portable in (("", False), (", portable", True)):
            times = []
            for _ in range(REPEATS):
                calls = [data[i : i + count] for i in range(0, len(data), count)]
                if place == "cache":
                    calls = calls[:1] * len(calls)
                began = time.perf_counter()
                for part in calls:
                    _native.xxh3_64(part, portable)
                times.append(time.perf_counter() - began)
            rate = round(len(data) / statistics.median(times) / 1e9, 2)
            rates[f"from {place}{form}"] = rate
            print(f"checksum from {place}{form}: {rate} GB/s on one thread", flush=True)
    return rates


def main() -> None:
    """Time every format and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=whole(512), default=65536)
    parser.add_argument("--columns", type=whole(64), default=4096, help="a multiple of 64")
    parser.add_argument("--threads", type=whole(1, MAX_THREADS), default=2)
    parser.add_argument("--tokens", type=whole(), default=1)
    results.add_arguments(parser)
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument("--steps", action="store_true", help="the kernels of a decode step alone")
    alone.add_argument("--checksums", action="store_true", help="the checksum of records alone")
    given = parser.parse_args()
    if given.columns % 64:
        parser.error(f"--columns {given.columns} is no multiple of 64")
    if given.steps:
        return steps(given.threads)
    if given.checksums:
        print(json.dumps({"xxh3": checksums()}))
        return
    rng = np.random.default_rng(1)
    x = rng.standard_normal((given.tokens, given.columns), dtype=np.float32)
    forms: list[Format] = [Affine(bits, 64) for bits in AFFINE_BITS]
    forms += [Plain(name) for name in FLOATS]
    rates: dict[str, dict[str, float]] = {}
    head = f"{'GB/s':>7} {'of read':>7} {'GMAC/s':>7} {'error':>10}"
    print(f"{'weights':>8} {'kernels':>14} {head}")
    for form in forms:
        rates |= compare(form, x, given.rows, given.threads)
    small(given.threads)
    steps(given.threads)
    rates["xxh3"] = checksums()
    line = {"threads": given.threads, "tokens": given.tokens, "gb_s": rates}
    results.save_if_asked(given, "kernels", line, {"rows": given.rows, "columns": given.columns})
    print(json.dumps(line))


if __name__ == "__main__":
    run(main)

"""How near the GPU's memory rate the kernels of one token come, by shape and width.

    .venv/bin/python bench/gpu_kernels.py [--gpu 0] [--bits 4] [--group 64] [--repeat 9]
        [--store demo] [--save]

Each case launches one kernel over many matrices in turn, several times the second cache together,
as one captured graph, and counts the bytes of weights, scales and biases. Products behind a norm
are measured with it in a launch of its own and in theirs, in turns. The ceiling is a copy
within the GPU's memory, read plus written, measured before and between. Weights and activations
are random. Medians; the spread is in the JSON line. At the end: how many launches a token of a
store takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import results
from command import run, whole

from flashmoe import Budget, Engine
from flashmoe.kernels import on_device
from flashmoe.kernels.cuda import decode
from flashmoe.kernels.cuda.descriptors import Resident
from flashmoe.kernels.cuda.feed_forward import FeedForward
from flashmoe.kernels.cuda.gpu import Gpu, Graph
from flashmoe.quant import Affine, Format, parts

SPREAD_BYTES = 1 << 30
"""What a case reads, at the least, so that no cache serves it."""
COPY_BYTES = 4 << 30

PRODUCTS = {
    "35B qkv, z, b, a": ((8192, 4096, 32, 32), 2048),
    "35B out": ((2048,), 4096),
    "35B router, gate": ((256, 1), 2048),
    "35B head": ((248320,), 2048),
    "397B qkv, z, b, a": ((12288, 8192, 64, 64), 4096),
    "397B out": ((4096,), 8192),
    "397B head": ((248320,), 4096),
    "16,384 x 4,096": ((16384,), 4096),
    "4,096 x 1,024": ((1024,), 4096),
}
"""Rows of the matrices that share a vector, and its inputs."""
NORMED = (
    "35B qkv, z, b, a",
    "35B router, gate",
    "35B head",
    "397B qkv, z, b, a",
    "397B head",
)
"""Those that have a norm in front."""


@dataclass(frozen=True)
class Layer:
    """Experts of a layer: inputs, width, how many there are and are chosen."""

    hidden: int
    width: int
    top_k: int


LAYERS = {"35B experts": Layer(2048, 512, 8), "397B experts": Layer(4096, 1024, 10)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--bits", type=whole(), default=4)
    parser.add_argument("--group", type=whole(), default=64)
    parser.add_argument("--repeat", type=whole(), default=9)
    parser.add_argument("--store", default="demo", help="whose token's launches are counted")
    results.add_arguments(parser)
    given = parser.parse_args()
    gpu, form = Gpu(given.gpu), Affine(given.bits, given.group)
    bench = Bench(gpu, form, given.repeat)
    line: dict[str, Any] = {"gpu": gpu.name, "copy_gb_s": [bench.copy_rate()], "cases": {}}
    print(f"{gpu.name}: a copy moves {line['copy_gb_s'][0]:,.0f} GB/s")
    print("| case | us | GB/s | of the copy |")
    print("|---|---|---|---|")
    cases: dict[str, Callable[[], dict[str, float]]] = {
        **{name: lambda shape=shape: bench.products(*shape) for name, shape in PRODUCTS.items()},
        **{name: lambda layer=layer: bench.experts(layer) for name, layer in LAYERS.items()},
        "norm of 2,048": lambda: bench.norm(2048),
        "norm of 4,096": lambda: bench.norm(4096),
        "route 8 of 256": lambda: bench.route(256, 8),
        "route 10 of 512": lambda: bench.route(512, 10),
    }

    def tell(name: str, figures: dict[str, float]) -> None:
        line["cases"][name] = figures
        line["copy_gb_s"].append(bench.copy_rate())
        rate = statistics.median(line["copy_gb_s"])
        share = f"{figures['gb_s'] / rate:.0%}" if figures["gb_s"] else ""
        print(f"| {name} | {figures['us']:.2f} | {figures['gb_s']:,.0f} | {share} |", flush=True)

    for name, case in cases.items():
        tell(name, case())
    for name in NORMED:
        for way, figures in bench.normed(*PRODUCTS[name]).items():
            tell(f"{name}, {way}", figures)
    line["launches"] = launches = launches_of(given.gpu, given.store)
    print(f"{sum(launches.values())} launches a token of {given.store}: {dict(launches)}")
    print(json.dumps(line))
    results.save_if_asked(given, "gpu_kernels", line, {"bits": form.bits, "group": form.group})


class Bench:
    """Times launches of one format on one GPU."""

    def __init__(self, gpu: Gpu, form: Format, repeat: int) -> None:
        self.gpu, self.form, self.repeat = gpu, form, repeat
        self._rng = np.random.default_rng(1)
        self._block = self._rng.integers(0, 1 << 32, 1 << 22, np.uint64).astype(np.uint32)
        half = COPY_BYTES // 2
        self._copied = [gpu.zeros((half,), np.uint8) for _ in range(2)]
        self._copied[0][...] = 7

    def copy_rate(self) -> float:
        """GB/s, bytes read and written."""
        source, target = self._copied

        def work() -> None:
            target[...] = source

        self.gpu.time_ms(work)
        return COPY_BYTES / statistics.median(self.gpu.time_ms(work) for _ in range(3)) / 1e6

    def timed(self, work: Callable[[], None], launches: int, nbytes: int) -> dict[str, float]:
        """Microseconds of one of the launches of ``work``, and the rate of its bytes."""
        work()
        graph = self.gpu.captured(work)
        self.gpu.time_ms(graph.launch)
        took = [self.gpu.time_ms(graph.launch) * 1e3 / launches for _ in range(self.repeat)]
        return of_times(took, nbytes)

    def matrix(self, rows: int, columns: int) -> Resident:
        """One of random numbers."""
        arrays = []
        for part in parts(self.form, (rows, columns)):
            if part.suffix == "weight":
                array = self.gpu.empty(part.shape, np.uint32)
                flat, block = array.reshape(-1), self.gpu.upload(self._block)
                for start in range(0, len(flat), len(block)):
                    span = flat[start : start + len(block)]
                    span[...] = block[: len(span)]
            else:
                bits = self._rng.integers(0x3A00, 0x3C00, part.shape, np.uint16)
                array = self.gpu.upload(bits)
            arrays.append(array)
        places = tuple(map(self.gpu.address, arrays))
        return Resident(self.form, (rows, columns), tuple(arrays), places)

    def vector(self, inputs: int) -> decode.Vector:
        x = decode.vector(self.gpu, inputs)
        weight = self.gpu.upload(self._rng.standard_normal(inputs).astype(np.float32))
        decode.Norm(self.gpu, weight, 1e-6)(weight, x)
        return x

    def products(self, rows: tuple[int, ...], inputs: int) -> dict[str, float]:
        """Products of several matrices, of many sets of them in turn."""
        each = sum(part.nbytes for many in rows for part in parts(self.form, (many, inputs)))
        count = max(4, -(-SPREAD_BYTES // each))
        sets = [
            decode.Projection(self.gpu, [self.matrix(many, inputs) for many in rows])
            for _ in range(min(count, 64))
        ]
        x, y = self.vector(inputs), self.gpu.empty((sum(rows),), np.float32)

        def work() -> None:
            for projection in sets:
                projection(x, y)

        return self.timed(work, len(sets), each)

    def normed(self, rows: tuple[int, ...], inputs: int) -> dict[str, dict[str, float]]:
        """The same with a norm in front: as two launches, and as one."""
        each = sum(part.nbytes for many in rows for part in parts(self.form, (many, inputs)))
        count = min(max(4, -(-SPREAD_BYTES // each)), 64)
        sets = [[self.matrix(many, inputs) for many in rows] for _ in range(count)]
        apart = [decode.Projection(self.gpu, matrices) for matrices in sets]
        weight = self.gpu.upload(np.ones(inputs, np.float32))
        together = [decode.NormedProjection(self.gpu, each, weight, 1e-6) for each in sets]
        norm = decode.Norm(self.gpu, weight, 1e-6)
        x, y = self.vector(inputs), self.gpu.empty((sum(rows),), np.float32)
        normed = decode.vector(self.gpu, inputs)

        def two() -> None:
            for projection in apart:
                norm(x.floats, normed)
                projection(normed, y)

        def one() -> None:
            for projection in together:
                projection(x.floats, y, normed)

        ways = {"the norm apart": two, "the norm in it": one}
        graphs = {}
        for way, work in ways.items():
            work()
            graphs[way] = self.gpu.captured(work)
            self.gpu.time_ms(graphs[way].launch)
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(self.repeat):
            for way, graph in graphs.items():
                times[way].append(self.gpu.time_ms(graph.launch) * 1e3 / count)
        return {way: of_times(took, each) for way, took in times.items()}

    def experts(self, layer: Layer) -> dict[str, float]:
        """Both launches of the experts of a token, chosen anew each time."""
        inward, outward = (layer.width, layer.hidden), (layer.hidden, layer.width)
        record, offset = [], 0
        for shape in (inward, inward, outward):
            places = []
            for part in parts(self.form, shape):
                places.append(offset)
                offset += part.nbytes
            record.append((self.form, shape, tuple(places)))
        slot_bytes = -(-offset // 4096) * 4096
        slots = max(4 * layer.top_k, -(-SPREAD_BYTES // slot_bytes))
        arena = self.gpu.empty((slots * slot_bytes // 4,), np.uint32)
        block = self.gpu.upload(self._block & 0x3BFF3BFF)  # every bit pattern a sound scale
        for start in range(0, len(arena), len(block)):
            span = arena[start : start + len(block)]
            span[...] = block[: len(span)]
        part = FeedForward(self.gpu, self.gpu.address(arena), slot_bytes, record, ())
        room, x = part.room(layer.top_k), self.vector(layer.hidden)
        y = self.gpu.zeros((layer.hidden,), np.float32)
        order = self._rng.permutation(slots).astype(np.int32)
        weights = self.gpu.upload(np.full(layer.top_k, 1 / layer.top_k, np.float32))
        chosen = []
        for start in range(0, slots - layer.top_k + 1, layer.top_k):
            ids = self.gpu.upload(order[start : start + layer.top_k])
            chosen.append(decode.Choice(ids, weights, ids, ids))

        def work() -> None:
            for choice in chosen:
                part(x, choice, None, room, y, y)

        return self.timed(work, len(chosen), layer.top_k * offset)

    def norm(self, inputs: int) -> dict[str, float]:
        """Latency of a norm among others."""
        x = self.vector(inputs)
        norm = decode.Norm(self.gpu, self.gpu.upload(np.ones(inputs, np.float32)), 1e-6)
        y = decode.vector(self.gpu, inputs)
        return self.timed(lambda: [norm(x.floats, y) for _ in range(50)] and None, 50, 0)

    def route(self, count: int, top_k: int) -> dict[str, float]:
        """Latency of a choice among others."""
        logits = self.gpu.upload(self._rng.standard_normal(count).astype(np.float32))
        into = decode.choice(self.gpu, self.gpu.empty((top_k,), np.int32))
        table = self.gpu.upload(np.arange(count, dtype=np.int32))

        def work() -> None:
            for _ in range(50):
                decode.route(self.gpu, logits, True, table, into)

        return self.timed(work, 50, 0)


def of_times(took_us: list[float], nbytes: int) -> dict[str, float]:
    """Of one launch that reads so many bytes."""
    middle, rate = statistics.median(took_us), nbytes / statistics.median(took_us) / 1e3
    ends = {"us_least": min(took_us), "us_most": max(took_us)}
    return {"us": middle, **ends, "gb_s": rate, "bytes": nbytes}


class Counting(Gpu):
    """A GPU that counts what is captured in its latest graph."""

    launches: Counter[str]

    def launch(self, source: str, kernel: str, *rest: Any, **more: Any) -> None:
        self.launches[kernel] += 1
        super().launch(source, kernel, *rest, **more)

    def captured(self, work: Callable[[], None]) -> Graph:
        self.launches = Counter()
        return super().captured(work)


def launches_of(number: int, store: str) -> Counter[str]:
    """By kernel, those of a token's graph."""
    gpu = Counting(number)
    gpu.launches = Counter()
    with Engine.open(store, kernels=on_device(gpu), budget=Budget(context_tokens=64)) as engine:
        session = engine.session()
        session.logits([0])
        return gpu.launches


if __name__ == "__main__":
    run(main)

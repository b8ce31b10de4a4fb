"""How quickly the GPU's kernels of a prompt's chunk are: products, experts, mixers.

    .venv/bin/python bench/gpu_prompts.py [--gpu 0] [--tokens 4096] [--bits 4] [--group 64] [--save]
    .venv/bin/python bench/gpu_prompts.py --store STORE [--vram 6410MiB] [--lengths 512,4096]

With ``--store`` whole prompts instead, with all experts in VRAM and with so little of it, in turns
(``gpu_chunks``). Otherwise:

Multiplications and additions of the weights and activations are counted, two a pair, whatever the
kernels do besides; of attention those of the keys that a token sees. Weights and activations are
random. Medians; the spread is in the JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import gpu_chunks
import numpy as np
import results
from command import folder, run, whole

from flashmoe.kernels.cuda import chunk_attention, chunk_delta, panel_experts, panels
from flashmoe.kernels.cuda.attention import key_values
from flashmoe.kernels.cuda.delta import delta_state
from flashmoe.kernels.cuda.descriptors import Resident
from flashmoe.kernels.cuda.gpu import Gpu
from flashmoe.kernels.mixers import AttentionWeights, DeltaWeights
from flashmoe.quant import Affine, Array, Format, Plain, parts
from flashmoe.shape import AttentionShape, RecurrentShape
from flashmoe.stream.units import parse_bytes

PRODUCTS = {
    "35B qkv, z, b, a": ((8192, 4096, 32, 32), 2048),
    "35B out": ((2048,), 4096),
    "8,192 x 2,048": ((8192,), 2048),
    "397B qkv, z, b, a": ((12288, 8192, 64, 64), 4096),
}
"""Rows of the matrices that share activations, and their inputs."""
ATTENTION = AttentionShape(16, 2, 256, 64, 1e7, gated=True, qk_norm=True)
DELTA = RecurrentShape(16, 32, 128, 128, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--tokens", type=whole(), default=4096)
    parser.add_argument("--bits", type=whole(), default=4)
    parser.add_argument("--group", type=whole(), default=64)
    parser.add_argument("--repeat", type=whole(), default=9)
    parser.add_argument("--store", type=folder, help="measure prompts of this store instead")
    parser.add_argument("--vram", type=parse_bytes, default="6410MiB", help="of some in VRAM")
    parser.add_argument("--lengths", type=lengths, default="512,4096", help="tokens of the prompts")
    results.add_arguments(parser)
    given = parser.parse_args()
    if given.store:
        of_store(given)
        return
    gpu, form = Gpu(given.gpu), Affine(given.bits, given.group)
    bench = Bench(gpu, given.tokens, given.repeat)
    line: dict[str, Any] = {"gpu": gpu.name, "tokens": given.tokens, "cases": {}}
    print("| case | ms | T operations/s |")
    print("|---|---|---|")
    for name, case in cases(bench, form).items():
        line["cases"][name] = figures = case()
        print(f"| {name} | {figures['ms']:.3f} | {figures['t_s']:,.1f} |", flush=True)
    print(json.dumps(line))
    settings = {"bits": form.bits, "group": form.group, "tokens": given.tokens}
    results.save_if_asked(given, "gpu_prompts", line, settings)


def of_store(given: argparse.Namespace) -> None:
    """Prompts of a store."""
    gpu = Gpu(given.gpu)
    figures = gpu_chunks.measured(gpu, given.store, given.vram, given.lengths, given.repeat)
    line = {"gpu": gpu.name, **figures}
    print(json.dumps(line))
    settings = {"vram": given.vram, "lengths": given.lengths, "store": given.store.name}
    results.save_if_asked(given, "gpu_prompts", line, settings)


def lengths(text: str) -> list[int]:
    """A flag that is numbers of tokens with commas between them, of two and more."""
    return [whole(2)(word) for word in text.split(",")]


def cases(bench: Bench, form: Format) -> dict[str, Callable[[], dict[str, float]]]:
    """What is measured, by name."""
    return {
        "fixed point of 2,048": lambda: bench.prepare(2048),
        **{
            name: lambda shape=shape: bench.products(form, *shape)
            for name, shape in PRODUCTS.items()
        },
        "35B router, BF16": lambda: bench.products(Plain("BF16"), (256,), 2048),
        "35B experts, 8 of 256": lambda: bench.experts(form, 2048, 512, 256, 8),
        "35B attention from 0 on": lambda: bench.attention(ATTENTION, 0),
        "35B attention from 28,672 on": lambda: bench.attention(ATTENTION, 28672),
        "35B gated delta net": lambda: bench.delta(DELTA),
    }


class Bench:
    """Times launches for a number of tokens on one GPU."""

    def __init__(self, gpu: Any, tokens: int, repeat: int) -> None:
        self.gpu, self.tokens, self.repeat = gpu, tokens, repeat
        self._rng = np.random.default_rng(1)

    def timed(self, work: Callable[[], object], operations: float) -> dict[str, float]:
        """Milliseconds of ``work``, and the rate of its operations."""
        self.gpu.time_ms(work)
        times = sorted(self.gpu.time_ms(work) for _ in range(self.repeat))
        middle = statistics.median(times)
        rate = operations / middle / 1e9
        return {"ms": middle, "ms_least": times[0], "ms_most": times[-1], "t_s": rate}

    def random(self, *shape: int) -> Array:
        """Activations of the device."""
        return self.gpu.upload(self._rng.standard_normal(shape, np.float32))

    def record(self, form: Format, shape: tuple[int, int]) -> list[Array]:
        """A matrix's arrays: any codes, small scales."""
        return [
            self._rng.integers(0, 1 << 32, part.shape, np.uint32)
            if part.dtype == "U32"
            else self._rng.integers(0x3A00, 0x3C00, part.shape, np.uint16)
            for part in parts(form, shape)
        ]

    def matrix(self, form: Format, shape: tuple[int, int]) -> Resident:
        arrays = tuple(map(self.gpu.upload, self.record(form, shape)))
        return Resident(form, shape, arrays, tuple(map(self.gpu.address, arrays)))

    def prepare(self, inputs: int) -> dict[str, float]:
        x = self.random(self.tokens, inputs)
        return self.timed(lambda: panels.Rows(self.gpu, x).form(64), 0)

    def products(self, form: Format, rows: tuple[int, ...], inputs: int) -> dict[str, float]:
        """Of activations that are ready."""
        part = panels.Products(self.gpu, [self.matrix(form, (many, inputs)) for many in rows])
        x = panels.Rows(self.gpu, self.random(self.tokens, inputs))
        y = [self.gpu.empty((self.tokens, many), np.float32) for many in rows]
        return self.timed(lambda: part(x, y), 2.0 * self.tokens * inputs * sum(rows))

    def experts(
        self, form: Format, hidden: int, width: int, count: int, top_k: int
    ) -> dict[str, float]:
        """All experts of a layer, host's share included."""
        record, pieces, offset = [], [], 0
        for shape in ((width, hidden), (width, hidden), (hidden, width)):
            arrays = self.record(form, shape)
            places = tuple(offset + sum(a.nbytes for a in arrays[:n]) for n in range(len(arrays)))
            record.append((form, shape, places))
            pieces += [array.reshape(-1).view(np.uint8) for array in arrays]
            offset += sum(array.nbytes for array in arrays)
        slot_bytes = -(-offset // 4096) * 4096
        one = np.zeros(slot_bytes, np.uint8)
        one[:offset] = np.concatenate(pieces)
        arena = self.gpu.upload(np.tile(one, count))
        part = panel_experts.Experts(self.gpu, self.gpu.address(arena), slot_bytes, record)
        x = panels.Rows(self.gpu, self.random(self.tokens, hidden))
        ids = self._rng.random((self.tokens, count)).argsort(axis=1)[:, :top_k]
        weights = self.gpu.upload(np.full(ids.shape, 1 / top_k, np.float32))
        y = self.gpu.zeros((self.tokens, hidden), np.float32)
        held = [(number, number) for number in range(count)]
        operations = 6.0 * self.tokens * top_k * hidden * width

        def work() -> None:
            part(x, panel_experts.Meetings(self.gpu, ids), weights, held, y)

        return self.timed(work, operations)

    def attention(self, shape: AttentionShape, start: int) -> dict[str, float]:
        norms = (np.ones(shape.head_dim, np.float32) for _ in range(2))
        part = chunk_attention.ChunkAttention(self.gpu, AttentionWeights(shape, 1e-6, *norms))
        held = key_values(self.gpu, "f16", (shape.kv_heads, start + self.tokens, shape.head_dim))
        for array in held.arrays.values():
            array[...] = 0
        heads = shape.heads * (1 + shape.gated), shape.kv_heads, shape.kv_heads
        q, k, v = (self.random(self.tokens, many * shape.head_dim) for many in heads)
        y = self.gpu.empty((self.tokens, shape.heads * shape.head_dim), np.float32)
        pairs = self.tokens * (start + (self.tokens + 1) / 2)
        operations = 4.0 * pairs * shape.heads * shape.head_dim
        return self.timed(lambda: part(q, k, v, start, held, y), operations)

    def delta(self, shape: RecurrentShape) -> dict[str, float]:
        heads, outputs = shape.value_heads, shape.value_heads * shape.value_dim
        small = (np.ones(n, np.float32) for n in (heads, heads, shape.value_dim))
        conv = np.ones((shape.conv_channels, shape.conv_kernel), np.float32) / 4
        decay, bias, norm = small
        weights = DeltaWeights(shape, 1e-6, conv, -decay, bias, norm)
        part = chunk_delta.ChunkDeltaNet(self.gpu, weights)
        widths = shape.conv_channels, outputs, heads, heads
        qkv, z, b, a = (self.random(self.tokens, width) for width in widths)
        before, after = (delta_state(self.gpu, shape) for _ in range(2))
        y = self.gpu.empty((self.tokens, outputs), np.float32)
        operations = 6.0 * self.tokens * outputs * shape.key_dim
        return self.timed(lambda: part((qkv, z, b, a), 0, before, after, y), operations)


if __name__ == "__main__":
    run(main)

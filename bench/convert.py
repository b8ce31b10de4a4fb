"""Peak memory and speed of a conversion, on a synthetic checkpoint of any size.

Writes a Qwen3.5-MoE of the 35B-A3B's widths (hidden 2048, 256 experts of 512) with as many layers
as the size asks for, bf16, one shard a layer; converts it in a process of its own; prints the
peak resident memory, the rate, and one JSON line; removes what it made.

    python bench/convert.py /tmp/bench --gib 8
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from command import above_zero, check_space, folder, run

from flashmoe.quant import AFFINE_BITS

HIDDEN, EXPERTS, WIDTH, VOCABULARY = 2048, 256, 512, 248320
POOL = 1 << 24
"""Distinct weights; tensors take them from changing places."""

CHILD = """
import json, resource, sys, time
from pathlib import Path
from flashmoe.store.convert import convert
began = time.monotonic()
manifest = convert(Path(sys.argv[1]), Path(sys.argv[2]), bits=int(sys.argv[3]))
seconds = time.monotonic() - began
try:
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
except OSError:  # macOS counts in bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "peak_bytes": peak,
                  "record_bytes": manifest.layers[0].layout.record_bytes}))
"""


def layer_shapes(layer: int) -> dict[str, tuple[int, ...]]:
    """Published tensors of one layer; every fourth has attention."""
    at = f"model.language_model.layers.{layer}."
    shapes: dict[str, tuple[int, ...]] = {
        f"{at}input_layernorm.weight": (HIDDEN,),
        f"{at}post_attention_layernorm.weight": (HIDDEN,),
        f"{at}mlp.gate.weight": (EXPERTS, HIDDEN),
        f"{at}mlp.experts.gate_up_proj": (EXPERTS, 2 * WIDTH, HIDDEN),
        f"{at}mlp.experts.down_proj": (EXPERTS, HIDDEN, WIDTH),
        f"{at}mlp.shared_expert.gate_proj.weight": (WIDTH, HIDDEN),
        f"{at}mlp.shared_expert.up_proj.weight": (WIDTH, HIDDEN),
        f"{at}mlp.shared_expert.down_proj.weight": (HIDDEN, WIDTH),
        f"{at}mlp.shared_expert_gate.weight": (1, HIDDEN),
    }
    if layer % 4 == 3:
        at += "self_attn."
        return shapes | {
            f"{at}q_proj.weight": (8192, HIDDEN),
            f"{at}k_proj.weight": (512, HIDDEN),
            f"{at}v_proj.weight": (512, HIDDEN),
            f"{at}o_proj.weight": (HIDDEN, 4096),
            f"{at}q_norm.weight": (256,),
            f"{at}k_norm.weight": (256,),
        }
    at += "linear_attn."
    return shapes | {
        f"{at}in_proj_qkv.weight": (8192, HIDDEN),
        f"{at}in_proj_z.weight": (4096, HIDDEN),
        f"{at}in_proj_b.weight": (32, HIDDEN),
        f"{at}in_proj_a.weight": (32, HIDDEN),
        f"{at}conv1d.weight": (8192, 1, 4),
        f"{at}A_log": (32,),
        f"{at}dt_bias": (32,),
        f"{at}norm.weight": (128,),
        f"{at}out_proj.weight": (HIDDEN, 4096),
    }


def config(layers: int) -> dict[str, Any]:
    """Of the 35B-A3B, but for the number of layers."""
    text = {
        "model_type": "qwen3_5_moe_text",
        "hidden_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": WIDTH,
        "shared_expert_intermediate_size": WIDTH,
        "rms_norm_eps": 1e-6,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.25,
        },
    }
    return {"model_type": "qwen3_5_moe", "text_config": text}


def synthesize(directory: Path, layers: int) -> int:
    """Write the checkpoint; its bytes."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config(layers)))
    ends = {
        "model.language_model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.language_model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    shards: list[dict[str, tuple[int, ...]]] = [ends, *map(layer_shapes, range(layers))]
    # Sign and mantissa at random, exponents from 2**-7 to 2**-4: weights as trained ones are.
    drawn = np.random.default_rng(0).integers(0, 1 << 16, 2 * POOL, dtype=np.uint16)
    pool = (drawn & np.uint16(0x81FF)) | np.uint16(0x3C00)
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with open(directory / name, "wb") as file:
            write_shard(file, shapes, pool)
        weight_map |= dict.fromkeys(shapes, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(path.stat().st_size for path in directory.iterdir())


def write_shard(
    file: BinaryIO, shapes: dict[str, tuple[int, ...]], pool: np.ndarray[Any, np.dtype[np.uint16]]
) -> None:
    """One safetensors file, on disk and out of the page cache."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        nbytes = 2 * int(np.prod(shape))
        extent = [offset, offset + nbytes]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": extent}
        offset += nbytes
    text = json.dumps(header).encode()
    file.write(struct.pack("<Q", len(text)) + text)
    for place, shape in enumerate(shapes.values()):
        for start, count in pieces(int(np.prod(shape))):
            first = (start * 7 + place * 1_000_003) % POOL
            file.write(pool[first : first + count].data)
    file.flush()
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def pieces(count: int) -> Iterator[tuple[int, int]]:
    """A tensor's weights in runs that the pool holds."""
    for start in range(0, count, POOL):
        yield start, min(POOL, count - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=folder, help="where there is room for 1.6 times the size")
    parser.add_argument("--gib", type=above_zero, default=8.0, help="size of the source, at least")
    parser.add_argument("--bits", type=int, default=4, choices=(*AFFINE_BITS, 16))
    arguments = parser.parse_args()
    layer_bytes = 2 * sum(int(np.prod(shape)) for shape in layer_shapes(0).values())
    ends_bytes = 2 * 2 * VOCABULARY * HIDDEN
    layers = max(1, -int(-(arguments.gib * (1 << 30) - ends_bytes) // layer_bytes))
    root = arguments.directory / f"flashmoe-convert-{os.getpid()}"
    wanted = int(1.6 * (ends_bytes + layers * layer_bytes))
    check_space({root: wanted}, "give a smaller --gib, or another disk")
    try:
        began = time.monotonic()
        source_bytes = synthesize(root / "source", layers)
        print(
            f"source: {layers} layers, {source_bytes / 2**30:.2f} GiB bf16, "
            f"written in {time.monotonic() - began:.0f} s",
            flush=True,
        )
        command = [sys.executable, "-c", CHILD, root / "source", root / "store", arguments.bits]
        done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, check=True)
        report(json.loads(done.stdout), root / "store", source_bytes, layers, arguments.bits)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def report(child: dict[str, Any], store: Path, source_bytes: int, layers: int, bits: int) -> None:
    """The bound, the share of it, the rates; then one JSON line."""
    store_bytes = sum(path.stat().st_size for path in store.iterdir())
    bound = (1 << 30) + 3 * child["record_bytes"]
    peak, seconds = child["peak_bytes"], child["seconds"]
    print(f"bound on memory:  {bound / 2**20:8.0f} MiB (1 GiB and three records)")
    print(f"peak resident:    {peak / 2**20:8.0f} MiB ({peak / bound:.0%} of it)")
    print(f"time:             {seconds:8.1f} s")
    print(f"source read:      {source_bytes / seconds / 1e6:8.0f} MB/s")
    print(f"store written:    {store_bytes / seconds / 1e6:8.0f} MB/s")
    line = {
        "bench": "convert",
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "layers": layers,
        "bits": bits,
        "source_bytes": source_bytes,
        "store_bytes": store_bytes,
        "peak_bytes": peak,
        "bound_bytes": bound,
        "seconds": round(seconds, 2),
        "source_mb_per_s": round(source_bytes / seconds / 1e6, 1),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    run(main)

"""Checkpoints of a few tensors, in each published format, for the tests of the readers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.numpy import save_file

from flashmoe.quant import Array, Matrix

Q4_0, Q4_1, Q8_0 = (GGMLQuantizationType[name] for name in ("Q4_0", "Q4_1", "Q8_0"))
BLOCK_BYTES = {Q4_0: 18, Q4_1: 20, Q8_0: 34}
Json = dict[str, Any]


def publish(
    directory: Path, tensors: dict[str, Array], config: Json | None = None, by: str = "pt"
) -> Path:
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": by})
    (directory / "config.json").write_text(json.dumps(config or {"model_type": "mixtral"}))
    return directory


def weights(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def same(read: Matrix, expected: Matrix) -> None:
    assert (read.form, read.shape) == (expected.form, expected.shape)
    for ours, theirs in zip(read.arrays(), expected.arrays(), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def write_gguf(path: Path, fill: Callable[[GGUFWriter], object]) -> Path:
    """A GGUF file of what ``fill`` adds to the writer."""
    writer = GGUFWriter(path, "llama")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks(kind: Any, scales: Array, seed: int) -> Array:
    """Random blocks (rows, groups * bytes) with given float16 scales (rows, groups)."""
    rows, groups = scales.shape
    raw = np.random.default_rng(seed).integers(0, 256, (rows, groups, BLOCK_BYTES[kind]), np.uint8)
    raw[..., :2] = scales.astype("<f2")[..., None].view(np.uint8)
    if kind == Q4_1:
        biases = np.random.default_rng(seed + 1).permuted(scales).astype("<f2")
        raw[..., 2:4] = biases[..., None].view(np.uint8)
    return raw.reshape(rows, -1)


def quantised(path: Path, kind: Any, raw: Array) -> Path:
    return write_gguf(path, lambda w: w.add_tensor("w", raw, raw_dtype=kind))

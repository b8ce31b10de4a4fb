"""Tiny random stores, written with the layout alone: tests of everything above ``store`` use them.

No conversion and no published checkpoint is involved, so that a fault there shows only there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import xxhash

from flashmoe import quant
from flashmoe.quant import FLOATS, Affine, Array, Expert, Format, Matrix, Plain
from flashmoe.shape import AttentionShape, ExpertsShape, ModelShape, RecurrentShape
from flashmoe.store.layout import (
    MANIFEST,
    TRUNK,
    RecordLayout,
    TrunkTensor,
    layer_file,
    layer_header,
    trunk_header,
)
from flashmoe.store.manifest import LayerEntry, Manifest

HYBRID = ModelShape(
    family="qwen3_5_moe",
    hidden=64,
    vocabulary=96,
    mixers=("recurrent", "recurrent", "attention", "recurrent"),
    attention=AttentionShape(4, 2, 32, 16, 1e4, gated=True, qk_norm=True),
    recurrent=RecurrentShape(2, 4, 16, 16, 4),
    experts=ExpertsShape(8, 3, 32, "softmax", renormalize=True, shared_intermediate=32),
    norm_eps=1e-6,
    norm_offset=1,
    tied_head=False,
    max_context_tokens=512,
)
"""Both mixers, a shared expert, an untied head."""

DENSE = replace(
    HYBRID,
    family="llama",
    mixers=("attention", "attention"),
    attention=AttentionShape(4, 2, 16, 16, 1e4, gated=False, qk_norm=False),
    recurrent=None,
    experts=ExpertsShape(4, 4, 32, "all", renormalize=False, shared_intermediate=0),
    norm_offset=0,
    tied_head=True,
)
"""Plain attention, slices of a dense network, a tied head."""


def trunk_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Every trunk tensor of a model with its shape."""
    hidden = shape.hidden
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (shape.vocabulary, hidden)}
    for index, mixer in enumerate(shape.mixers):
        name = f"layers.{index}"
        shapes[f"{name}.input_layernorm.weight"] = (hidden,)
        shapes[f"{name}.post_attention_layernorm.weight"] = (hidden,)
        shapes |= _attention(shape, name) if mixer == "attention" else _recurrent(shape, name)
        if shape.experts.router == "softmax":
            shapes[f"{name}.mlp.gate.weight"] = (shape.experts.count, hidden)
        if width := shape.experts.shared_intermediate:
            shared = f"{name}.mlp.shared_expert"
            shapes[f"{shared}.gate_proj.weight"] = (width, hidden)
            shapes[f"{shared}.up_proj.weight"] = (width, hidden)
            shapes[f"{shared}.down_proj.weight"] = (hidden, width)
            shapes[f"{shared}_gate.weight"] = (1, hidden)
    shapes["norm.weight"] = (hidden,)
    if not shape.tied_head:
        shapes["lm_head.weight"] = (shape.vocabulary, hidden)
    return shapes


def _attention(shape: ModelShape, name: str) -> dict[str, tuple[int, ...]]:
    assert shape.attention is not None
    a, hidden, name = shape.attention, shape.hidden, f"{name}.self_attn"
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.q_proj.weight": (a.heads * a.head_dim * (2 if a.gated else 1), hidden),
        f"{name}.k_proj.weight": (a.kv_heads * a.head_dim, hidden),
        f"{name}.v_proj.weight": (a.kv_heads * a.head_dim, hidden),
        f"{name}.o_proj.weight": (hidden, a.heads * a.head_dim),
    }
    if a.qk_norm:
        shapes |= {f"{name}.q_norm.weight": (a.head_dim,), f"{name}.k_norm.weight": (a.head_dim,)}
    return shapes


def _recurrent(shape: ModelShape, name: str) -> dict[str, tuple[int, ...]]:
    assert shape.recurrent is not None
    r, hidden, name = shape.recurrent, shape.hidden, f"{name}.linear_attn"
    values = r.value_heads * r.value_dim
    return {
        f"{name}.in_proj_qkv.weight": (r.conv_channels, hidden),
        f"{name}.in_proj_z.weight": (values, hidden),
        f"{name}.in_proj_b.weight": (r.value_heads, hidden),
        f"{name}.in_proj_a.weight": (r.value_heads, hidden),
        f"{name}.conv1d.weight": (r.conv_channels, r.conv_kernel),
        f"{name}.A_log": (r.value_heads,),
        f"{name}.dt_bias": (r.value_heads,),
        f"{name}.norm.weight": (r.value_dim,),
        f"{name}.out_proj.weight": (hidden, values),
    }


def write_store(path: Path, shape: ModelShape = HYBRID, form: Format = Affine(4, 32)) -> Path:
    """A complete store of random weights; ``form`` is that of every matrix. Returns ``path``."""
    path.mkdir(parents=True)
    rng = np.random.default_rng(11)
    layout = RecordLayout(form, form, form, shape.hidden, shape.experts.intermediate)
    layers = []
    for index in range(shape.layers):
        records = [layout.encode(_expert(rng, layout)) for _ in range(shape.experts.count)]
        header = layer_header(layout, len(records))
        content = header + b"".join(record.tobytes() for record in records)
        (path / layer_file(index)).write_bytes(content)
        checksums = tuple(xxhash.xxh3_64_hexdigest(record.data) for record in records)
        layers.append(LayerEntry(layer_file(index), layout, len(header), checksums))
    trunk, checksums_by_name = _write_trunk(path, shape, form, rng)
    manifest = Manifest(shape, tuple(layers), trunk, checksums_by_name, {}, {}, {})
    (path / MANIFEST).write_text(manifest.to_json())
    return path


def _write_trunk(
    path: Path, shape: ModelShape, form: Format, rng: np.random.Generator
) -> tuple[tuple[TrunkTensor, ...], dict[str, str]]:
    tensors, content = [], {}
    for name, extent in trunk_shapes(shape).items():
        matrix = len(extent) == 2 and "conv1d" not in name
        tensor = TrunkTensor(name, form if matrix else Plain("F32"), extent)
        stored = _matrix(rng, tensor.form, extent) if matrix else _vector(rng, name, extent)
        tensors.append(tensor)
        for (part, _), array in zip(tensor.named_parts(), stored.arrays(), strict=True):
            content[part] = array.tobytes()
    header, extents = trunk_header(tensors)
    data = bytearray(max(offset + nbytes for offset, nbytes in extents.values()))
    data[: len(header)] = header
    for part, (offset, nbytes) in extents.items():
        data[offset : offset + nbytes] = content[part]
    (path / TRUNK).write_bytes(data)
    return tuple(tensors), {part: xxhash.xxh3_64_hexdigest(raw) for part, raw in content.items()}


def _expert(rng: np.random.Generator, layout: RecordLayout) -> Expert:
    inward, outward = (layout.intermediate, layout.hidden), (layout.hidden, layout.intermediate)
    return Expert(
        _matrix(rng, layout.gate, inward),
        _matrix(rng, layout.up, inward),
        _matrix(rng, layout.down, outward),
    )


def _matrix(rng: np.random.Generator, form: Format, extent: tuple[int, ...]) -> Matrix:
    weights: Array = rng.standard_normal(extent).astype(np.float32) / np.sqrt(extent[1])
    if isinstance(form, Affine):
        return quant.quantize(weights, form)
    return Matrix(form, (extent[0], extent[1]), weights.astype(FLOATS[form.dtype]))


def _vector(rng: np.random.Generator, name: str, extent: tuple[int, ...]) -> Matrix:
    spread = 0.5 if "conv1d" in name else 0.1
    values = (rng.standard_normal(extent) * spread).astype(np.float32)
    if name.endswith("norm.weight") and ("linear_attn" in name):
        values += 1
    return Matrix(Plain("F32"), (extent[0], values.size // extent[0]), values)

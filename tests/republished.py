"""The checkpoints of ``published`` as others pass them on: mlx-lm's layout, and llama.cpp's GGUF.

Owns their names, the changes that they make to the weights, and their quantised types; the codes
are the package's own (``quant``, ``gguf.quants``), whose tests are elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, quants

from flashmoe.quant import Affine, Array, quantize
from tests.published import CODES, Published

ONE_PLUS = ("input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "model.norm")


def as_mlx(
    published: Published, bits: int | None = 4, group: int = 64, router_bits: int = 8
) -> Published:
    """A Qwen3.5-MoE (fused) in mlx-lm's layout: its names, 1 + w, conv (C, 4, 1), affine weights.

    ``bits`` None leaves the weights as they are. Every down_proj of layer 0 has 8 bits, by an
    override of the config, as mixed recipes have it.
    """
    tensors: dict[str, Array] = {}
    for name, array in published.tensors.items():
        if "visual" in name or name.startswith("mtp."):
            continue
        ours = name.replace("model.language_model.", "language_model.model.")
        ours = ours.replace("lm_head", "language_model.lm_head") if "lm_head" in name else ours
        if name.endswith("experts.gate_up_proj"):
            at, half = ours.replace("experts.gate_up_proj", "switch_mlp."), array.shape[1] // 2
            tensors[f"{at}gate_proj.weight"] = array[:, :half]
            tensors[f"{at}up_proj.weight"] = array[:, half:]
        elif name.endswith("experts.down_proj"):
            tensors[ours.replace("experts.down_proj", "switch_mlp.down_proj.weight")] = array
        elif name.endswith("conv1d.weight"):
            tensors[ours] = array.swapaxes(1, 2)
        elif any(name.endswith(f"{norm}.weight") for norm in (*ONE_PLUS, "language_model.norm")):
            tensors[ours] = (array.astype(np.float32) + 1).astype(array.dtype)
        else:
            tensors[ours] = array
    config = dict(published.config)
    if bits is not None:
        tensors, settings = _quantized(tensors, bits, group, router_bits)
        config |= {"quantization": settings, "quantization_config": settings}
    return Published(config, tensors, published.texts)


def _quantized(
    tensors: Mapping[str, Array], bits: int, group: int, router_bits: int
) -> tuple[dict[str, Array], dict[str, Any]]:
    settings: dict[str, Any] = {"group_size": group, "bits": bits, "mode": "affine"}
    result: dict[str, Array] = {}
    for name, array in tensors.items():
        module = name.removesuffix(".weight")
        if array.ndim < 2 or "conv1d" in name:
            result[name] = array
            continue
        chosen = bits
        if module.endswith(("mlp.gate", "shared_expert_gate")):
            chosen = router_bits
        elif "layers.0." in name and "down_proj" in name:
            chosen = 8
        if chosen != bits:
            settings[module] = {"group_size": group, "bits": chosen}
        kind = CODES[array.dtype]
        form = Affine(chosen, group, kind)  # type: ignore[arg-type]
        stored = quantize(array.reshape(-1, array.shape[-1]), form)
        for part, values in zip(("weight", "scales", "biases"), stored.arrays(), strict=True):
            result[f"{module}.{part}"] = values.reshape(*array.shape[:-1], -1)
    return result, settings


GGUF_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(published: Published, path: Path, kind: str = "Q4_0", **fields: Any) -> Path:
    """A Llama as a GGUF file: matrices of ``kind``, vectors F32, embedding Q8_0 (F16 if plain).

    q and k are permuted as llama.cpp's converter does; ``fields`` are further llama keys.
    """
    config = published.config
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    for key, value in fields.items():
        writer.add_key_value(*_field(key, value))
    for name, array in published.tensors.items():
        values = array.astype(np.float32)
        if name.endswith("q_proj.weight"):
            values = _permuted(values, heads)
        elif name.endswith("k_proj.weight"):
            values = _permuted(values, kv)
        chosen = "F32" if values.ndim == 1 else kind
        if "embed_tokens" in name:
            chosen = "Q8_0" if kind.startswith("Q") else "F16"
        number = GGMLQuantizationType[chosen]
        writer.add_tensor(_gguf_name(name), quants.quantize(values, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _field(key: str, value: Any) -> tuple[str, Any, Any]:
    kinds = {
        str: GGUFValueType.STRING,
        int: GGUFValueType.UINT32,
        float: GGUFValueType.FLOAT32,
        bool: GGUFValueType.BOOL,
    }
    return f"llama.{key}", value, kinds[type(value)]


def _gguf_name(name: str) -> str:
    name = name.removeprefix("model.").removesuffix(".weight")
    if not name.startswith("layers."):
        return f"{GGUF_NAMES[name]}.weight"
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{GGUF_NAMES[rest]}.weight"


def _permuted(weights: Array, heads: int) -> Array:
    """llama.cpp: row ``half * d/2 + i`` of a head becomes row ``2 i + half``."""
    halves = weights.reshape(heads, 2, -1, weights.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weights.shape)

"""Tiny random published checkpoints of every family, written with numpy alone.

Owns the names, shapes and files as the publishers write them: HF safetensors (fused or one by
one, one file or shards); ``republished`` has MLX's and GGUF's form of the same weights. It shares
no code with the package, so that a mistake there cannot agree with itself here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

DTYPES = {"BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
CODES = {**{dtype: name for name, dtype in DTYPES.items()}, np.dtype("<u4"): "U32"}
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 256 + len(SPECIALS) + 13
"""Every byte, three special tokens, and padding as Qwen's embedding has it."""


@dataclass
class Published:
    """A checkpoint in memory: HF names, before any layout of files."""

    config: dict[str, Any]
    tensors: dict[str, Array] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)

    def write(self, directory: Path, shards: int = 1, by: str = "pt") -> Path:
        """Write config, text files and the tensors in so many files; the directory."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self.config, indent=2))
        for name, text in self.texts.items():
            (directory / name).write_bytes(text)
        if shards == 1:
            write_safetensors(directory / "model.safetensors", self.tensors, by)
            return directory
        weight_map: dict[str, str] = {}
        names = list(self.tensors)
        for shard in range(shards):
            file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
            held = {name: self.tensors[name] for name in names[shard::shards]}
            write_safetensors(directory / file, held, by)
            weight_map |= dict.fromkeys(held, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        return directory


def write_safetensors(path: Path, tensors: Mapping[str, Array], by: str = "pt") -> None:
    """A safetensors file: length of the header, header, data."""
    header: dict[str, Any] = {"__metadata__": {"format": by}}
    offset = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())


class _Weights:
    """Draws tensors under a prefix; norms and decays differ from channel to channel."""

    def __init__(self, published: Published, prefix: str, dtype: str, seed: int) -> None:
        self.tensors = published.tensors
        self.prefix = prefix
        self.dtype = DTYPES[dtype]
        self._random = np.random.default_rng(seed)

    def add(self, name: str, *shape: int) -> None:
        """Weights of a trained one's size."""
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.3
        values = self._random.standard_normal(shape) * scale
        self.tensors[self.prefix + name] = values.astype(self.dtype)

    def add_float32(self, name: str, *shape: int) -> None:
        """As A_log is published."""
        values = self._random.uniform(-1, 1, shape)
        self.tensors[self.prefix + name] = values.astype(np.float32)


def texts() -> dict[str, bytes]:
    """A byte-level tokenizer without merges, a ChatML template, and generation defaults."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    symbols |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    added = [
        {
            "id": 256 + index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, token in enumerate(SPECIALS)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": False},
        "post_processor": None,
        "decoder": {**level, "use_regex": False},
        "model": {
            "type": "BPE",
            "vocab": {symbols[byte]: byte for byte in range(256)},
            "merges": [],
        },
    }
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    end = 256 + SPECIALS.index("<|im_end|>")
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return {
        "tokenizer.json": json.dumps(tokenizer).encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
        "chat_template.jinja": template.encode(),
        "generation_config.json": json.dumps({"eos_token_id": [end], "temperature": 0.7}).encode(),
    }


DELTA: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "full_attention_interval": 4,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 32,
    "max_position_embeddings": 512,
    "moe_intermediate_size": 64,
    "num_attention_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 128,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": VOCABULARY,
}
PLAIN: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 256,
    "eos_token_id": 258,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.57.1",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}


def qwen3_5_moe(
    *, fused: bool = True, dtype: str = "BF16", seed: int = 0, **changes: Any
) -> Published:
    """Qwen3.5-MoE with its vision tower and MTP tensors; ``changes`` go into text_config."""
    text = {
        **DELTA,
        "attn_output_gate": True,
        "dtype": "bfloat16",
        "eos_token_id": 256,
        "mamba_ssm_dtype": "float32",
        "mlp_only_layers": [],
        "model_type": "qwen3_5_moe_text",
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000000,
            "partial_rotary_factor": 0.25,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
        **changes,
    }
    config = {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "image_token_id": 257,
        "model_type": "qwen3_5_moe",
        "text_config": text,
        "tie_word_embeddings": False,
        "transformers_version": "4.57.0.dev0",
        "vision_config": {"depth": 1, "hidden_size": 32, "model_type": "qwen3_5_moe"},
        "video_token_id": 257,
        "vision_end_token_id": 257,
        "vision_start_token_id": 257,
    }
    published = Published(config, texts=texts())
    weights = _Weights(published, "model.language_model.", dtype, seed)
    _ends(weights, text)
    for layer in range(text["num_hidden_layers"]):
        _hybrid_layer(weights, text, layer, split=True)
        _shared(weights, text, layer)
        _experts(weights, f"layers.{layer}.mlp", text, fused=fused)
    other = _Weights(published, "", dtype, seed + 1)
    other.add("model.visual.patch_embed.proj.weight", 32, 3, 2, 4, 4)
    other.add("model.visual.blocks.0.norm1.bias", 32)
    other.add("mtp.fc.weight", 64, 128)
    other.add("mtp.layers.0.mlp.experts.gate_up_proj", 8, 128, 64)
    return published


def qwen3_next(
    *, fused: bool = False, dtype: str = "BF16", seed: int = 0, **changes: Any
) -> Published:
    """Qwen3-Next, its delta-net projections grouped by key head."""
    config = {
        **DELTA,
        "architectures": ["Qwen3NextForCausalLM"],
        "decoder_sparse_step": 1,
        "intermediate_size": 128,
        "mlp_only_layers": [],
        "model_type": "qwen3_next",
        "norm_topk_prob": True,
        "output_router_logits": False,
        "partial_rotary_factor": 0.25,
        "rope_scaling": None,
        "rope_theta": 10000000,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.57.0.dev0",
        "use_sliding_window": False,
        **changes,
    }
    published = Published(config, texts=texts())
    weights = _Weights(published, "model.", dtype, seed)
    _ends(weights, config)
    for layer in range(config["num_hidden_layers"]):
        _hybrid_layer(weights, config, layer, split=False)
        _shared(weights, config, layer)
        _experts(weights, f"layers.{layer}.mlp", config, fused=fused)
    return published


def qwen3_moe(
    *, fused: bool = False, dtype: str = "BF16", seed: int = 0, **changes: Any
) -> Published:
    """Qwen3-MoE."""
    config = {
        **PLAIN,
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "head_dim": 32,
        "max_window_layers": 3,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "output_router_logits": False,
        "rope_scaling": None,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "use_sliding_window": False,
        **changes,
    }
    published = Published(config, texts=texts())
    weights = _Weights(published, "model.", dtype, seed)
    _ends(weights, config)
    for layer in range(config["num_hidden_layers"]):
        _attention(weights, config, layer, gated=False, qk_norm=True)
        _experts(weights, f"layers.{layer}.mlp", config, fused=fused)
    return published


def mixtral(
    *, fused: bool = False, dtype: str = "BF16", seed: int = 0, **changes: Any
) -> Published:
    """Mixtral: w1, w3, w2 one by one under block_sparse_moe, or fused under mlp."""
    config = {
        **PLAIN,
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_experts_per_tok": 2,
        "num_local_experts": 4,
        "output_router_logits": False,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.02,
        "sliding_window": None,
        **changes,
    }
    published = Published(config, texts=texts())
    weights = _Weights(published, "model.", dtype, seed)
    _ends(weights, config)
    sizes = {
        "num_experts": config["num_local_experts"],
        "hidden_size": config["hidden_size"],
        "moe_intermediate_size": config["intermediate_size"],
    }
    for layer in range(config["num_hidden_layers"]):
        _attention(weights, config, layer, gated=False, qk_norm=False)
        block = "mlp" if fused else "block_sparse_moe"
        _experts(weights, f"layers.{layer}.{block}", sizes, fused=fused, names=("w1", "w3", "w2"))
    return published


def llama(*, dtype: str = "BF16", seed: int = 0, **changes: Any) -> Published:
    """Llama: dense, its head tied as SmolLM2's."""
    config = {
        **PLAIN,
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "intermediate_size": 512,
        "is_llama_config": True,
        "mlp_bias": False,
        "model_type": "llama",
        "pretraining_tp": 1,
        "rope_interleaved": False,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "transformers.js_config": {"dtype": "q4"},
        **changes,
    }
    published = Published(config, texts=texts())
    weights = _Weights(published, "model.", dtype, seed)
    _ends(weights, config)
    hidden, width = config["hidden_size"], config["intermediate_size"]
    for layer in range(config["num_hidden_layers"]):
        _attention(weights, config, layer, gated=False, qk_norm=False)
        weights.add(f"layers.{layer}.mlp.gate_proj.weight", width, hidden)
        weights.add(f"layers.{layer}.mlp.up_proj.weight", width, hidden)
        weights.add(f"layers.{layer}.mlp.down_proj.weight", hidden, width)
    return published


FAMILIES = {
    "qwen3_5_moe": qwen3_5_moe,
    "qwen3_next": qwen3_next,
    "qwen3_moe": qwen3_moe,
    "mixtral": mixtral,
    "llama": llama,
}


def _ends(weights: _Weights, config: Mapping[str, Any]) -> None:
    vocabulary, hidden = config["vocab_size"], config["hidden_size"]
    weights.add("embed_tokens.weight", vocabulary, hidden)
    weights.add("norm.weight", hidden)
    if not config["tie_word_embeddings"]:
        prefix, weights.prefix = weights.prefix, ""
        weights.add("lm_head.weight", vocabulary, hidden)
        weights.prefix = prefix


def _attention(
    weights: _Weights, config: Mapping[str, Any], layer: int, *, gated: bool, qk_norm: bool
) -> None:
    hidden, heads, kv = (
        config[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    head_dim = config.get("head_dim") or hidden // heads
    at = f"layers.{layer}."
    weights.add(f"{at}input_layernorm.weight", hidden)
    weights.add(f"{at}post_attention_layernorm.weight", hidden)
    weights.add(f"{at}self_attn.q_proj.weight", heads * head_dim * (2 if gated else 1), hidden)
    weights.add(f"{at}self_attn.k_proj.weight", kv * head_dim, hidden)
    weights.add(f"{at}self_attn.v_proj.weight", kv * head_dim, hidden)
    weights.add(f"{at}self_attn.o_proj.weight", hidden, heads * head_dim)
    if qk_norm:
        weights.add(f"{at}self_attn.q_norm.weight", head_dim)
        weights.add(f"{at}self_attn.k_norm.weight", head_dim)


def _hybrid_layer(weights: _Weights, config: Mapping[str, Any], layer: int, *, split: bool) -> None:
    if (layer + 1) % config["full_attention_interval"] == 0:
        _attention(weights, config, layer, gated=True, qk_norm=True)
        return
    hidden = config["hidden_size"]
    key_heads, value_heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    keys = key_heads * config["linear_key_head_dim"]
    values = value_heads * config["linear_value_head_dim"]
    at = f"layers.{layer}."
    weights.add(f"{at}input_layernorm.weight", hidden)
    weights.add(f"{at}post_attention_layernorm.weight", hidden)
    at += "linear_attn."
    if split:
        weights.add(f"{at}in_proj_qkv.weight", 2 * keys + values, hidden)
        weights.add(f"{at}in_proj_z.weight", values, hidden)
        weights.add(f"{at}in_proj_b.weight", value_heads, hidden)
        weights.add(f"{at}in_proj_a.weight", value_heads, hidden)
    else:
        weights.add(f"{at}in_proj_qkvz.weight", 2 * keys + 2 * values, hidden)
        weights.add(f"{at}in_proj_ba.weight", 2 * value_heads, hidden)
    weights.add(f"{at}conv1d.weight", 2 * keys + values, 1, config["linear_conv_kernel_dim"])
    weights.add_float32(f"{at}A_log", value_heads)
    weights.add(f"{at}dt_bias", value_heads)
    weights.add(f"{at}norm.weight", config["linear_value_head_dim"])
    weights.add(f"{at}out_proj.weight", hidden, values)


def _shared(weights: _Weights, config: Mapping[str, Any], layer: int) -> None:
    hidden, width = config["hidden_size"], config["shared_expert_intermediate_size"]
    at = f"layers.{layer}.mlp.shared_expert"
    weights.add(f"{at}.gate_proj.weight", width, hidden)
    weights.add(f"{at}.up_proj.weight", width, hidden)
    weights.add(f"{at}.down_proj.weight", hidden, width)
    weights.add(f"{at}_gate.weight", 1, hidden)


def _experts(
    weights: _Weights,
    block: str,
    sizes: Mapping[str, Any],
    *,
    fused: bool,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> None:
    count, hidden, width = (
        sizes[key] for key in ("num_experts", "hidden_size", "moe_intermediate_size")
    )
    weights.add(f"{block}.gate.weight", count, hidden)
    if fused:
        weights.add(f"{block}.experts.gate_up_proj", count, 2 * width, hidden)
        weights.add(f"{block}.experts.down_proj", count, hidden, width)
        return
    for expert in range(count):
        at = f"{block}.experts.{expert}."
        weights.add(f"{at}{names[0]}.weight", width, hidden)
        weights.add(f"{at}{names[1]}.weight", width, hidden)
        weights.add(f"{at}{names[2]}.weight", hidden, width)

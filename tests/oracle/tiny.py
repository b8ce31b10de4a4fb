"""Tiny random checkpoints of every family, written by transformers' own ``save_pretrained``.

Owns the shapes and the random weights. They are chosen so that a mistake shows: no two
dimensions of a model agree by chance, weights are as large as trained ones, norms and decays
differ from channel to channel, and the logits have a standard deviation of about 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "num_position_embeddings": 16,
}
MIXED = ["full_attention", "linear_attention", "linear_attention", "full_attention"]


@dataclass(frozen=True)
class Case:
    """A model to write: its family and the changes to the family's config above.

    ``fused`` writes the experts of a layer as one tensor; ``bare`` the text model of a Qwen3.5
    alone, without the vision tower that the published ones have; ``sharded`` several files and
    their index.
    """

    family: str
    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    slices: int | None = None
    fused: bool = False
    bare: bool = False
    sharded: bool = False

    @property
    def id(self) -> str:
        """The name of the case in a report."""
        return f"{self.family}-{self.name}"

    @property
    def causal(self) -> str:
        """The class that computes its logits."""
        return f"{FAMILIES[self.family][0]}ForCausalLM"


def _rope(theta: float, factor: float | None = None, **more: Any) -> dict[str, Any]:
    partial = {} if factor is None else {"partial_rotary_factor": factor}
    return {"rope_type": "default", "rope_theta": theta, **partial, **more}


_DELTA = {
    "hidden_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 160,
    "vocab_size": 160,
    "max_position_embeddings": 512,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_5_moe": ("Qwen3_5Moe", _DELTA),
    "qwen3_next": ("Qwen3Next", _DELTA | {"intermediate_size": 128}),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "hidden_size": 96,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 64,
            "vocab_size": 160,
            "max_position_embeddings": 512,
        },
    ),
    "mixtral": (
        "Mixtral",
        {
            "hidden_size": 128,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "vocab_size": 160,
            "max_position_embeddings": 512,
            "sliding_window": None,
        },
    ),
    "llama": (
        "Llama",
        {
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "vocab_size": 160,
            "max_position_embeddings": 512,
        },
    ),
}
EVEN = {"linear_num_key_heads": 4, "linear_num_value_heads": 4}
MROPE = {"mrope_section": [2, 1, 1], "mrope_interleaved": True}

CASES = (
    Case("qwen3_5_moe", "plain", {"rope_parameters": _rope(1e7, 0.25, **MROPE)}),
    Case("qwen3_5_moe", "fused", {"rope_parameters": _rope(1e4, 0.5)}, fused=True),
    Case(
        "qwen3_5_moe",
        "equal-heads-tied",
        EVEN
        | {
            "layer_types": MIXED,
            "num_hidden_layers": 4,
            "num_key_value_heads": 6,
            "rope_parameters": _rope(1e6, 1.0),
            "tie_word_embeddings": True,
            "linear_conv_kernel_dim": 3,
        },
    ),
    Case(
        "qwen3_5_moe",
        "bfloat16",
        {
            "linear_num_value_heads": 8,
            "num_hidden_layers": 4,
            "num_experts": 8,
            "num_experts_per_tok": 1,
            "rope_parameters": _rope(1e7, 0.25),
        },
        dtype="bfloat16",
        bare=True,
    ),
    Case("qwen3_next", "sharded", {"rope_parameters": _rope(1e7, 0.25)}, sharded=True),
    Case(
        "qwen3_next",
        "equal-heads-unnormalised",
        EVEN
        | {
            "layer_types": MIXED,
            "num_hidden_layers": 4,
            "norm_topk_prob": False,
            "rope_parameters": _rope(1e5, 0.5),
            "rms_norm_eps": 1e-5,
        },
    ),
    Case(
        "qwen3_next",
        "bfloat16-tied",
        {
            "num_hidden_layers": 4,
            "linear_num_value_heads": 8,
            "tie_word_embeddings": True,
            "rope_parameters": _rope(1e4, 1.0),
        },
        dtype="bfloat16",
    ),
    Case("qwen3_moe", "normalised", {"norm_topk_prob": True, "rope_parameters": _rope(1e6)}),
    Case(
        "qwen3_moe",
        "unnormalised-tied",
        {
            "norm_topk_prob": False,
            "tie_word_embeddings": True,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "rope_parameters": _rope(1e4),
        },
    ),
    Case("qwen3_moe", "bfloat16", {"norm_topk_prob": True}, dtype="bfloat16"),
    Case("mixtral", "plain", {"rope_parameters": _rope(1e6), "rms_norm_eps": 1e-5}),
    Case(
        "mixtral",
        "wide-heads-tied",
        {
            "head_dim": 32,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "num_experts_per_tok": 3,
            "tie_word_embeddings": True,
        },
    ),
    Case("mixtral", "bfloat16-sharded", dtype="bfloat16", sharded=True),
    Case("mixtral", "float16", {"num_experts_per_tok": 1}, dtype="float16"),
    Case("llama", "one-slice", {"rope_parameters": _rope(1e4)}, slices=1),
    Case("llama", "four-slices-tied", {"tie_word_embeddings": True, "head_dim": 32}, slices=4),
    Case("llama", "eight-slices-bfloat16", {"rms_norm_eps": 1e-5}, dtype="bfloat16", slices=8),
)


def write(case: Case, directory: Path) -> Path:
    """Make the case's checkpoint in a directory, and return the directory."""
    prefix, settings = FAMILIES[case.family]
    settings = settings | case.changes
    torch.manual_seed(sum(case.id.encode()))
    if case.family == "qwen3_5_moe" and not case.bare:
        tied = {"tie_word_embeddings": settings.get("tie_word_embeddings", False)}
        vision = VISION | {"out_hidden_size": settings["hidden_size"]}
        config = getattr(transformers, f"{prefix}Config")(
            text_config=settings, vision_config=vision, **tied
        )
        made = getattr(transformers, f"{prefix}ForConditionalGeneration")
    else:
        text = f"{prefix}TextConfig" if case.family == "qwen3_5_moe" else f"{prefix}Config"
        config = getattr(transformers, text)(**settings)
        made = getattr(transformers, f"{prefix}ForCausalLM")
    model = made(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_random(name, parameter, case))
    model.to(getattr(torch, case.dtype)).save_pretrained(
        directory,
        save_original_format=not case.fused,
        max_shard_size="1MB" if case.sharded else "50GB",
    )
    return directory


def _random(name: str, parameter: torch.Tensor, case: Case) -> torch.Tensor:
    """Random numbers of the size that a trained parameter of this name has."""
    noise = torch.randn(parameter.shape)
    if "norm" in name:
        around_zero = case.family in ("qwen3_5_moe", "qwen3_next") and "linear_attn" not in name
        return 0.3 * noise + (0.0 if around_zero else 1.0)
    if name.endswith("A_log"):
        return torch.log(torch.empty(parameter.shape).uniform_(0.02, 4.0))
    if name.endswith(("dt_bias", "conv1d.weight")):
        return 0.7 * noise
    if name.endswith("mlp.gate.weight"):
        return noise * 2 / math.sqrt(parameter.shape[-1])
    return noise / math.sqrt(parameter.shape[-1])

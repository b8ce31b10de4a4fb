"""Llama, a dense decoder: config or GGUF metadata, and tensors, to a recipe of slices.

Source: transformers 5.23 ``models/llama``; for GGUF, llama.cpp ``convert_hf_to_gguf.py``
(``LlamaModel.permute``) and ggml's docs/gguf.md.
"""

from __future__ import annotations

import numpy as np

from flashmoe.errors import CheckpointError
from flashmoe.quant import Array
from flashmoe.shape import AttentionShape, ModelShape
from flashmoe.store.checkpoint import Checkpoint
from flashmoe.store.families import decoder
from flashmoe.store.families.draft import Draft
from flashmoe.store.families.settings import Settings
from flashmoe.store.families.slices import slice_shape, take_slices
from flashmoe.store.recipe import Recipe

DEFAULT_THETA = 10000.0
"""Both transformers' and llama.cpp's, for the older files that do not say it."""


def recipe(checkpoint: Checkpoint, slices: int | None, group: int) -> Recipe:
    """The recipe of a Llama checkpoint in safetensors.

    Raises:
        CheckpointError: a key or tensor that is missing, malformed or not implemented.
        ConversionError: the slices do not hold whole groups.
        InputError: dimensions that contradict each other.
    """
    settings = decoder.open_settings(checkpoint)
    experts = slice_shape(settings.integer("intermediate_size"), slices)
    shape = decoder.read_shape(
        settings, experts, family="llama", qk_norm=False, theta=DEFAULT_THETA
    )

    def feed_forward(draft: Draft, layer: int) -> None:
        at = f"{draft.prefix}layers.{layer}.mlp."
        names = (f"{at}gate_proj.weight", f"{at}up_proj.weight", f"{at}down_proj.weight")
        take_slices(draft, names, shape.hidden, experts, group)

    return decoder.assemble(checkpoint, shape, feed_forward)


def gguf_recipe(checkpoint: Checkpoint, slices: int | None, group: int) -> Recipe:
    """The recipe of a GGUF file of arch ``llama``.

    Raises:
        CheckpointError: a field or tensor that is missing, malformed or not implemented.
        ConversionError: the slices do not hold whole groups.
        InputError: dimensions that contradict each other.
    """
    shape = _gguf_shape(checkpoint, slices)
    draft = Draft(checkpoint, "", head="output.weight")
    hidden, attention = shape.hidden, shape.attention
    assert attention is not None
    draft.matrix("embed_tokens.weight", shape.vocabulary, hidden, source="token_embd.weight")
    draft.vector("norm.weight", hidden, source="output_norm.weight")
    if not shape.tied_head:
        draft.matrix("lm_head.weight", shape.vocabulary, hidden, source="output.weight")
    for layer in range(shape.layers):
        _gguf_layer(draft, layer, hidden, attention)
        at = f"blk.{layer}.ffn_"
        names = (f"{at}gate.weight", f"{at}up.weight", f"{at}down.weight")
        take_slices(draft, names, hidden, shape.experts, group)
    if "rope_freqs.weight" in checkpoint.tensors:
        raise CheckpointError(
            f"{checkpoint.path}: tensor rope_freqs.weight scales the rotary embedding, which is "
            "not implemented: convert another model"
        )
    return draft.finish(shape)


def _gguf_layer(draft: Draft, layer: int, hidden: int, shape: AttentionShape) -> None:
    ours, theirs = f"layers.{layer}", f"blk.{layer}"
    attention = f"{ours}.self_attn"
    width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for name, source in (("input", "attn"), ("post_attention", "ffn")):
        draft.vector(
            f"{ours}.{name}_layernorm.weight", hidden, source=f"{theirs}.{source}_norm.weight"
        )
    for name, source, rows, columns, heads in (
        ("q_proj", "attn_q", width, hidden, shape.heads),
        ("k_proj", "attn_k", kv_width, hidden, shape.kv_heads),
        ("v_proj", "attn_v", kv_width, hidden, 0),
        ("o_proj", "attn_output", hidden, width, 0),
    ):
        published = f"{theirs}.{source}.weight"
        draft.take(published, (rows, columns))  # before numbers from the file size an array
        order = halves(heads, shape.head_dim) if heads else None
        draft.matrix(f"{attention}.{name}.weight", rows, columns, source=published, order=order)


def halves(heads: int, head_dim: int) -> Array:
    """The row that llama.cpp gave each row of q or k.

    It rotates pairs (2i, 2i + 1) where we rotate (i, i + head_dim / 2), and so stores row
    ``half * head_dim / 2 + i`` of each head as row ``2 i + half``.
    """
    rows = np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2)
    return rows.swapaxes(1, 2).ravel()


def _gguf_shape(checkpoint: Checkpoint, slices: int | None) -> ModelShape:
    own = {
        key.removeprefix("llama."): value
        for key, value in checkpoint.fields.items()
        if key.startswith("llama.")
    }
    settings = Settings(own, f"{checkpoint.path}: llama")
    settings.fixed("expert_count", 0)
    settings.fixed("expert_used_count", 0)
    settings.fixed("rope.scaling.type", "none")
    settings.fixed("rope.scale_linear", 1.0)
    settings.fixed("attention.causal", True)
    experts = slice_shape(settings.integer("feed_forward_length"), slices)
    hidden = settings.integer("embedding_length")
    shape = ModelShape(
        family="llama",
        hidden=hidden,
        vocabulary=settings.integer("vocab_size", _vocabulary(checkpoint)),
        mixers=decoder.attention_only(settings, "block_count"),
        attention=_gguf_attention(settings, hidden),
        recurrent=None,
        experts=experts,
        norm_eps=settings.number("attention.layer_norm_rms_epsilon"),
        norm_offset=0,
        tied_head="output.weight" not in checkpoint.tensors,
        max_context_tokens=settings.integer("context_length"),
    )
    settings.finish()
    return shape


def _gguf_attention(settings: Settings, hidden: int) -> AttentionShape:
    heads = settings.integer("attention.head_count")
    head_dim = settings.integer("attention.key_length", hidden // max(heads, 1))
    settings.fixed("attention.value_length", head_dim)
    settings.fixed("rope.dimension_count", head_dim)
    return AttentionShape(
        heads=heads,
        kv_heads=settings.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        rope_dims=head_dim,
        rope_theta=settings.number("rope.freq_base", DEFAULT_THETA),
        gated=False,
        qk_norm=False,
    )


def _vocabulary(checkpoint: Checkpoint) -> int:
    """Rows of the embedding, for files that do not say the size of the vocabulary."""
    name = "token_embd.weight"
    return checkpoint.tensors[name].shape[0] if name in checkpoint.tensors else 1

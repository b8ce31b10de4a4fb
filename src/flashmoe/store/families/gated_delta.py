"""What Qwen3-Next and Qwen3.5 share: layers that are attention or gated delta net.

Owns the dimensions and tensors of the gated delta net, the order of the layers, the prefixes
under which these models are published, and the test that tells HF files from MLX files of them.
"""

from __future__ import annotations

import numpy as np

from flashmoe.errors import CheckpointError
from flashmoe.shape import AttentionShape, ExpertsShape, Mixer, ModelShape, RecurrentShape
from flashmoe.store.checkpoint import Checkpoint
from flashmoe.store.families.draft import Draft
from flashmoe.store.families.settings import Settings, read_quantization, read_rope
from flashmoe.store.recipe import Recipe

HEADS = {
    "model.language_model.": "lm_head.weight",
    "language_model.model.": "language_model.lm_head.weight",
    "model.": "lm_head.weight",
}
"""Prefix of the text model to name of its head: HF with vision, MLX, HF text only."""

KINDS: dict[str, Mixer] = {"full_attention": "attention", "linear_attention": "recurrent"}


def open_draft(checkpoint: Checkpoint) -> Draft:
    """A draft under the prefix that the embedding has.

    Raises:
        CheckpointError: there is no embedding under any known prefix.
    """
    for prefix, head in HEADS.items():
        if f"{prefix}embed_tokens.weight" in checkpoint.tensors:
            return Draft(checkpoint, prefix, head)
    tried = ", ".join(f"{prefix}embed_tokens.weight" for prefix in HEADS)
    raise CheckpointError(
        f"{checkpoint.path} has no embedding (none of {tried}): the download is incomplete"
    )


def read_mixers(settings: Settings) -> tuple[Mixer, ...]:
    """What each layer is: ``layer_types``, or else attention every ``full_attention_interval``."""
    layers = settings.integer("num_hidden_layers")
    interval = settings.integer("full_attention_interval", 4)
    if not 0 < layers <= 4096 or interval < 1:
        raise settings.refuse("num_hidden_layers", "a model has from 1 to 4096 layers")
    if not settings.has("layer_types"):
        return tuple(
            "recurrent" if (layer + 1) % interval else "attention" for layer in range(layers)
        )
    names = settings.get("layer_types")
    if not isinstance(names, list) or len(names) != layers:
        raise settings.refuse("layer_types", f"it must list {layers} layers")
    for name in names:
        if not isinstance(name, str) or name not in KINDS:
            raise settings.refuse("layer_types", f"{name!r} is not among {', '.join(KINDS)}")
    return tuple(KINDS[name] for name in names)


def read_attention(settings: Settings) -> AttentionShape:
    """Gated attention, a quarter of each head rotated unless the config says otherwise."""
    head_dim = settings.integer("head_dim", 256)
    theta, factor = read_rope(settings, theta=None, factor=0.25, partial=True)
    return AttentionShape(
        heads=settings.integer("num_attention_heads"),
        kv_heads=settings.integer("num_key_value_heads"),
        head_dim=head_dim,
        rope_dims=int(head_dim * factor),
        rope_theta=theta,
        gated=True,
        qk_norm=True,
    )


def read_recurrent(settings: Settings) -> RecurrentShape:
    """The gated delta net."""
    return RecurrentShape(
        key_heads=settings.integer("linear_num_key_heads"),
        value_heads=settings.integer("linear_num_value_heads"),
        key_dim=settings.integer("linear_key_head_dim"),
        value_dim=settings.integer("linear_value_head_dim"),
        conv_kernel=settings.integer("linear_conv_kernel_dim"),
    )


def read_shape(
    settings: Settings, draft: Draft, *, family: str, renormalize: bool, tied: bool
) -> ModelShape:
    """The shape of either family; every key of the config is then accounted for."""
    settings.fixed("mlp_only_layers", [])
    settings.fixed("decoder_sparse_step", 1)
    settings.fixed("use_sliding_window", False)
    settings.ignore(("sliding_window", "max_window_layers", "intermediate_size"))
    read_quantization(settings, draft.checkpoint.kind)
    mixers = read_mixers(settings)
    attention, recurrent = read_attention(settings), read_recurrent(settings)
    shape = ModelShape(
        family=family,
        hidden=settings.integer("hidden_size"),
        vocabulary=settings.integer("vocab_size"),
        mixers=mixers,
        attention=attention if "attention" in mixers else None,
        recurrent=recurrent if "recurrent" in mixers else None,
        experts=ExpertsShape(
            count=settings.integer("num_experts"),
            top_k=settings.integer("num_experts_per_tok"),
            intermediate=settings.integer("moe_intermediate_size"),
            router="softmax",
            renormalize=renormalize,
            shared_intermediate=settings.integer("shared_expert_intermediate_size"),
        ),
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        norm_offset=_norm_offset(draft, mixers, recurrent),
        tied_head=tied,
        max_context_tokens=settings.integer("max_position_embeddings"),
    )
    settings.finish()
    return shape


def _norm_offset(draft: Draft, mixers: tuple[Mixer, ...], recurrent: RecurrentShape) -> int:
    """1 where norms are published as w, 0 where as 1 + w; mlx-lm's own test, the conv's layout.

    HF's conv is (channels, 1, kernel), MLX's (channels, kernel, 1).
    """
    checkpoint = draft.checkpoint
    if "recurrent" not in mixers:
        return 0 if checkpoint.kind == "mlx" else 1
    if recurrent.conv_kernel == 1:
        raise CheckpointError(
            f"{checkpoint.path / 'config.json'}: linear_conv_kernel_dim is 1, which hides whether "
            "norms are stored as w or 1 + w: convert another model"
        )
    name = f"{draft.prefix}layers.{mixers.index('recurrent')}.linear_attn.conv1d.weight"
    shape = checkpoint.tensors[name].shape if name in checkpoint.tensors else ()
    return int(shape[-1:] != (1,))


def assemble(draft: Draft, shape: ModelShape) -> Recipe:
    """Take every tensor of the model, and skip vision and multi-token prediction."""
    draft.ends(shape.vocabulary, shape.hidden, tied=shape.tied_head)
    for layer, mixer in enumerate(shape.mixers):
        draft.norms(layer, shape.hidden)
        if mixer == "attention" and shape.attention is not None:
            draft.attention(layer, shape.hidden, shape.attention)
        elif shape.recurrent is not None:
            _delta_net(draft, layer, shape.hidden, shape.recurrent, shape.norm_offset)
        draft.shared_expert(layer, shape.hidden, shape.experts.shared_intermediate)
        draft.routed_experts(layer, shape.hidden, shape.experts)
    draft.skip("vision is not used for text", "model.visual.", "visual.", "vision_tower.")
    draft.skip("multi-token prediction is not used", "mtp.", "model.mtp.", "language_model.mtp.")
    return draft.finish(shape)


def _delta_net(draft: Draft, layer: int, hidden: int, shape: RecurrentShape, offset: int) -> None:
    block = f"layers.{layer}.linear_attn"
    heads, channels = shape.value_heads, shape.conv_channels
    width = heads * shape.value_dim
    if draft.has(f"{block}.in_proj_qkvz.weight"):
        _interleaved_projections(draft, block, hidden, shape)
    else:
        draft.matrix(f"{block}.in_proj_qkv.weight", channels, hidden)
        draft.matrix(f"{block}.in_proj_z.weight", width, hidden)
        draft.matrix(f"{block}.in_proj_b.weight", heads, hidden)
        draft.matrix(f"{block}.in_proj_a.weight", heads, hidden)
    draft.matrix(f"{block}.out_proj.weight", hidden, width)
    kernel = shape.conv_kernel
    draft.vector(
        f"{block}.conv1d.weight",
        channels,
        kernel,
        published_shape=(channels, 1, kernel) if offset else (channels, kernel, 1),
    )
    draft.vector(f"{block}.A_log", heads)
    draft.vector(f"{block}.dt_bias", heads)
    draft.vector(f"{block}.norm.weight", shape.value_dim)


def _interleaved_projections(draft: Draft, block: str, hidden: int, shape: RecurrentShape) -> None:
    """Qwen3-Next's fused projections, grouped by key head, taken apart by their rows (SPEC 1.5).

    in_proj_qkvz has per key head q, k, then v and z of its value heads; in_proj_ba has b, then a.
    """
    ratio = shape.value_heads // shape.key_heads
    key, value = shape.key_dim, ratio * shape.value_dim
    fused, total = f"{draft.prefix}{block}.in_proj_qkvz.weight", shape.key_heads * 2 * (key + value)
    draft.take(fused, (total, hidden))  # before numbers from the config size an array
    heads = np.arange(total).reshape(shape.key_heads, -1)
    q, k, v, z = (part.ravel() for part in np.split(heads, [key, 2 * key, 2 * key + value], axis=1))
    for name, order in (("in_proj_qkv", np.concatenate([q, k, v])), ("in_proj_z", z)):
        target = f"{block}.{name}.weight"
        draft.matrix(target, len(order), hidden, source=fused, published_rows=total, order=order)
    fused, total = f"{draft.prefix}{block}.in_proj_ba.weight", 2 * shape.value_heads
    draft.take(fused, (total, hidden))
    halves = np.arange(total).reshape(shape.key_heads, 2, ratio)
    for half, name in enumerate(("in_proj_b", "in_proj_a")):
        order, target = halves[:, half].ravel(), f"{block}.{name}.weight"
        draft.matrix(target, len(order), hidden, source=fused, published_rows=total, order=order)

"""What Qwen3-MoE, Mixtral and Llama share: plain grouped-query attention in every layer.

Owns the reading of the common keys and the skeleton of the recipe; the feed-forward part is
the family's.
"""

from __future__ import annotations

from collections.abc import Callable

from flashmoe.shape import AttentionShape, ExpertsShape, Mixer, ModelShape
from flashmoe.store.checkpoint import Checkpoint
from flashmoe.store.families.draft import Draft
from flashmoe.store.families.settings import Settings, read_quantization, read_rope
from flashmoe.store.recipe import Recipe


def open_settings(checkpoint: Checkpoint) -> Settings:
    """The config, its quantisation accounted for."""
    settings = Settings(checkpoint.config, f"{checkpoint.path / 'config.json'}")
    read_quantization(settings, checkpoint.kind)
    return settings


def attention_only(settings: Settings, key: str) -> tuple[Mixer, ...]:
    """As many layers of attention as the key says."""
    layers = settings.integer(key)
    if not 0 < layers <= 4096:
        raise settings.refuse(key, "a model has from 1 to 4096 layers")
    return tuple("attention" for _ in range(layers))


def read_shape(
    settings: Settings,
    experts: ExpertsShape,
    *,
    family: str,
    qk_norm: bool,
    theta: float | None = None,
    eps: float = 1e-6,
) -> ModelShape:
    """The shape; every key of the config is then accounted for.

    ``theta`` and ``eps`` are the family's own defaults.
    """
    hidden, heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    rope_theta, _ = read_rope(settings, theta=theta, factor=1.0, partial=False)
    head_dim = settings.integer("head_dim", hidden // max(heads, 1))
    attention = AttentionShape(
        heads=heads,
        kv_heads=settings.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        rope_dims=head_dim,
        rope_theta=rope_theta,
        gated=False,
        qk_norm=qk_norm,
    )
    shape = ModelShape(
        family=family,
        hidden=hidden,
        vocabulary=settings.integer("vocab_size"),
        mixers=attention_only(settings, "num_hidden_layers"),
        attention=attention,
        recurrent=None,
        experts=experts,
        norm_eps=settings.number("rms_norm_eps", eps),
        norm_offset=0,
        tied_head=settings.boolean("tie_word_embeddings", False),
        max_context_tokens=settings.integer("max_position_embeddings"),
    )
    settings.finish()
    return shape


def assemble(
    checkpoint: Checkpoint, shape: ModelShape, feed_forward: Callable[[Draft, int], None]
) -> Recipe:
    """Take every tensor; ``feed_forward(draft, layer)`` takes the experts or slices."""
    draft = Draft(checkpoint, "model.")
    draft.ends(shape.vocabulary, shape.hidden, tied=shape.tied_head)
    for layer in range(shape.layers):
        draft.norms(layer, shape.hidden)
        assert shape.attention is not None
        draft.attention(layer, shape.hidden, shape.attention)
        feed_forward(draft, layer)
    return draft.finish(shape)

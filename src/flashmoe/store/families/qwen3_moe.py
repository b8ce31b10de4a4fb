"""Qwen3-MoE: config and tensors to a recipe.

Source: transformers 5.23 ``models/qwen3_moe``; the published config of Qwen3-30B-A3B.
"""

from __future__ import annotations

from flashmoe.shape import ExpertsShape
from flashmoe.store.checkpoint import Checkpoint
from flashmoe.store.families import decoder
from flashmoe.store.families.draft import Draft
from flashmoe.store.families.settings import Settings
from flashmoe.store.recipe import Recipe


def recipe(checkpoint: Checkpoint) -> Recipe:
    """The recipe of a Qwen3-MoE checkpoint.

    Raises:
        CheckpointError: a key or tensor that is missing, malformed or not implemented.
        InputError: dimensions that contradict each other.
    """
    settings = decoder.open_settings(checkpoint)
    settings.fixed("mlp_only_layers", [])
    settings.fixed("decoder_sparse_step", 1)
    settings.fixed("use_sliding_window", False)
    # A window is used only with use_sliding_window; the dense width only by mlp_only_layers.
    settings.ignore(("sliding_window", "max_window_layers", "intermediate_size"))
    experts = ExpertsShape(
        count=_count(settings),
        top_k=settings.integer("num_experts_per_tok"),
        intermediate=settings.integer("moe_intermediate_size"),
        router="softmax",
        renormalize=settings.boolean("norm_topk_prob", False),
        shared_intermediate=0,
    )
    shape = decoder.read_shape(settings, experts, family="qwen3_moe", qk_norm=True)

    def feed_forward(draft: Draft, layer: int) -> None:
        draft.routed_experts(layer, shape.hidden, experts)

    return decoder.assemble(checkpoint, shape, feed_forward)


def _count(settings: Settings) -> int:
    """``num_experts`` in transformers 4, ``num_local_experts`` in 5."""
    new, old = "num_local_experts", "num_experts"
    if not settings.has(new):
        return settings.integer(old)
    if settings.has(old):
        settings.fixed(old, settings.integer(new))
    return settings.integer(new)

"""Mixtral: config and tensors to a recipe.

Published one by one as w1 (gate), w3 (up), w2 (down) under ``block_sparse_moe``; transformers 5
keeps them fused under ``mlp``, and both may be saved. Source: transformers 5.23
``models/mixtral`` and ``conversion_mapping.py``; the published config of Mixtral-8x7B.
"""

from __future__ import annotations

from flashmoe.shape import ExpertsShape
from flashmoe.store.checkpoint import Checkpoint
from flashmoe.store.families import decoder
from flashmoe.store.families.draft import Draft
from flashmoe.store.recipe import Recipe


def recipe(checkpoint: Checkpoint) -> Recipe:
    """The recipe of a Mixtral checkpoint.

    Raises:
        CheckpointError: a key or tensor that is missing, malformed or not implemented.
        InputError: dimensions that contradict each other.
    """
    settings = decoder.open_settings(checkpoint)
    settings.fixed("sliding_window")
    experts = ExpertsShape(
        count=settings.integer("num_local_experts"),
        top_k=settings.integer("num_experts_per_tok"),
        intermediate=settings.integer("intermediate_size"),
        router="softmax",
        renormalize=True,
        shared_intermediate=0,
    )
    shape = decoder.read_shape(settings, experts, family="mixtral", qk_norm=False, eps=1e-5)

    def feed_forward(draft: Draft, layer: int) -> None:
        block = "mlp" if draft.has(f"layers.{layer}.mlp.gate.weight") else "block_sparse_moe"
        draft.routed_experts(layer, shape.hidden, experts, block=block, names=("w1", "w3", "w2"))

    return decoder.assemble(checkpoint, shape, feed_forward)

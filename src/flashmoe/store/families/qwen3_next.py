"""Qwen3-Next: config and tensors to a recipe.

Its delta net has fused projections, grouped by key head; ``gated_delta`` takes them apart.
Source: transformers 5.23 ``models/qwen3_next``; the published config of Qwen3-Next-80B-A3B.
"""

from __future__ import annotations

from flashmoe.store.checkpoint import Checkpoint
from flashmoe.store.families import gated_delta
from flashmoe.store.families.settings import Settings
from flashmoe.store.recipe import Recipe


def recipe(checkpoint: Checkpoint) -> Recipe:
    """The recipe of a Qwen3-Next checkpoint.

    Raises:
        CheckpointError: a key or tensor that is missing, malformed or not implemented.
        InputError: dimensions that contradict each other.
    """
    settings = Settings(checkpoint.config, f"{checkpoint.path / 'config.json'}")
    draft = gated_delta.open_draft(checkpoint)
    shape = gated_delta.read_shape(
        settings,
        draft,
        family="qwen3_next",
        renormalize=settings.boolean("norm_topk_prob", True),
        tied=settings.boolean("tie_word_embeddings", False),
    )
    return gated_delta.assemble(draft, shape)

"""Qwen3.5-MoE, and Qwen3.6-35B-A3B, which shares its type: config and tensors to a recipe.

The config is nested under ``text_config``, or flat where the text model was saved alone.
Source: transformers 5.23 ``models/qwen3_5_moe``; the published config of Qwen3.5-397B-A17B.
"""

from __future__ import annotations

from flashmoe.shape import ModelShape
from flashmoe.store.checkpoint import Checkpoint
from flashmoe.store.families import gated_delta
from flashmoe.store.families.draft import Draft
from flashmoe.store.families.settings import Settings, read_quantization
from flashmoe.store.recipe import Recipe

TEXT = "text_config"
TIED = "tie_word_embeddings"


def recipe(checkpoint: Checkpoint) -> Recipe:
    """The recipe of a Qwen3.5-MoE checkpoint.

    Raises:
        CheckpointError: a key or tensor that is missing, malformed or not implemented.
        InputError: dimensions that contradict each other.
    """
    outer = Settings(checkpoint.config, f"{checkpoint.path / 'config.json'}")
    draft = gated_delta.open_draft(checkpoint)
    text = outer.section(TEXT) if outer.has(TEXT) else outer
    shape = _shape(text, draft, tied=_tied(outer, text, draft))
    read_quantization(outer, checkpoint.kind)
    outer.finish()
    return gated_delta.assemble(draft, shape)


def _tied(outer: Settings, text: Settings, draft: Draft) -> bool:
    """Both levels may say it. Where they differ, a head of its own in the file decides."""
    levels = [level for level in (outer, text) if level.has(TIED)]
    stated = {level.boolean(TIED, False) for level in levels}
    if len(stated) == 2:
        return draft.head not in draft.checkpoint.tensors
    return stated == {True}


def _shape(settings: Settings, draft: Draft, *, tied: bool) -> ModelShape:
    settings.fixed("attn_output_gate", True)
    settings.fixed("output_gate_type", "swish", "silu")  # of the delta net; attention's is sigmoid
    settings.fixed("norm_topk_prob", True)
    return gated_delta.read_shape(
        settings, draft, family="qwen3_5_moe", renormalize=True, tied=tied
    )

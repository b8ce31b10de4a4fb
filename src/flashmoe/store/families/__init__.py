"""Which family a checkpoint is of, and with that its shape and recipe.

Owns the choice by ``model_type`` (or GGUF's architecture); one module a family owns the rest.
Invariant: a recipe comes only from a checkpoint in which every config key and every tensor is
accounted for.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable

from flashmoe.errors import CheckpointError, ConversionError, InputError
from flashmoe.store.checkpoint import Checkpoint
from flashmoe.store.families import llama, mixtral, qwen3_5_moe, qwen3_moe, qwen3_next
from flashmoe.store.recipe import Recipe

SPARSE: dict[str, Callable[[Checkpoint], Recipe]] = {
    "qwen3_5_moe": qwen3_5_moe.recipe,
    "qwen3_5_moe_text": qwen3_5_moe.recipe,
    "qwen3_next": qwen3_next.recipe,
    "qwen3_moe": qwen3_moe.recipe,
    "mixtral": mixtral.recipe,
}
DENSE: dict[str, Callable[[Checkpoint, int | None, int], Recipe]] = {"llama": llama.recipe}


def recipe_of(checkpoint: Checkpoint, slices: int | None = None, group: int = 1) -> Recipe:
    """The shape of the model and what its store is made of.

    ``slices`` is for dense models (None: 8); ``group`` is the group size that plain weights will
    be quantised with, 1 for none, and slices must hold whole groups.

    Raises:
        CheckpointError: the family is not known, or a key or tensor is missing, malformed, or
            means something that is not implemented.
        ConversionError: slices of a model that has experts, or that cut a group.
    """
    try:
        return _recipe(checkpoint, slices, group)
    except InputError as error:
        config = checkpoint.path / "config.json" if checkpoint.config else checkpoint.path
        raise CheckpointError(
            f"{config}: the model's dimensions do not agree: {error}; take the config "
            "that was published with these weights"
        ) from error


def _recipe(checkpoint: Checkpoint, slices: int | None, group: int) -> Recipe:
    if checkpoint.kind == "gguf":
        family = checkpoint.fields.get("general.architecture")
        if family == "llama":
            return llama.gguf_recipe(checkpoint, slices, group)
        raise _unknown(checkpoint, "general.architecture", family, ["llama"])
    family = checkpoint.config.get("model_type")
    if isinstance(family, str) and family in DENSE:
        return DENSE[family](checkpoint, slices, group)
    if not isinstance(family, str) or family not in SPARSE:
        raise _unknown(checkpoint, "model_type", family, [*SPARSE, *DENSE])
    if slices is not None:
        raise ConversionError(
            f"{checkpoint.path} is of family {family}, which has experts of its own: leave out "
            "--slices, which is for dense models"
        )
    return SPARSE[family](checkpoint)


def _unknown(checkpoint: Checkpoint, key: str, value: object, known: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.path}: {key} {reprlib.repr(value)} is not supported; supported are "
        f"{', '.join(known)}"
    )

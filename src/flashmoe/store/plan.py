"""What was asked for, against what the checkpoint is: options resolved, contradictions refused.

Owns the defaults of a conversion and the rule that a quantised source is repacked as it is. What
follows from the options is ``conversion``'s business.
"""

from __future__ import annotations

from dataclasses import replace

from flashmoe.errors import ConversionError, InputError
from flashmoe.quant import AFFINE_BITS, GROUPS
from flashmoe.store.checkpoint import Checkpoint
from flashmoe.store.conversion import PLAIN_BITS, Conversion, Options
from flashmoe.store.families import recipe_of

DEFAULT_BITS = 4
DEFAULT_GROUP = 64


def plan(
    checkpoint: Checkpoint,
    *,
    bits: int | None = None,
    group: int | None = None,
    trunk_bits: int | None = None,
    slices: int | None = None,
) -> Conversion:
    """Plan the conversion of an open checkpoint.

    ``bits`` 16 keeps the published type; None is 4, or 16 for an unquantised GGUF file, whose
    maker chose its types. ``trunk_bits`` None is ``bits``, but not below 4.

    Raises:
        CheckpointError: the checkpoint is not supported, incomplete or contradictory.
        ConversionError: the options do not fit this checkpoint.
        InputError: an option has a value that is never possible.
    """
    asked = {"--bits": bits, "--group": group, "--trunk-bits": trunk_bits}
    options = _resolve(bits, group, trunk_bits, whole=checkpoint.kind == "gguf")
    needs_groups = options.bits != PLAIN_BITS
    recipe = recipe_of(checkpoint, slices, (options.group or 1) if needs_groups else 1)
    if recipe.quantized:
        given = [name for name, value in asked.items() if value is not None]
        if given:
            raise ConversionError(
                f"{checkpoint.path} is quantised already and its weights are repacked as they "
                f"are: leave out {' and '.join(given)}, or convert the unquantised model"
            )
        options = Options()
    experts = recipe.shape.experts
    slices = experts.count if experts.router == "all" else None
    return Conversion(checkpoint, recipe, replace(options, slices=slices))


def _resolve(bits: int | None, group: int | None, trunk_bits: int | None, whole: bool) -> Options:
    choices = (*AFFINE_BITS, PLAIN_BITS)
    for name, value in (("--bits", bits), ("--trunk-bits", trunk_bits)):
        if value is not None and value not in choices:
            raise InputError(f"{name} is {value}; it must be one of {choices}")
    if group is not None and group not in GROUPS:
        raise InputError(f"--group is {group}; it must be one of {GROUPS}")
    if bits is None:
        bits = PLAIN_BITS if whole and trunk_bits is None and group is None else DEFAULT_BITS
    if trunk_bits is None:
        trunk_bits = max(bits, DEFAULT_BITS)
    if bits == trunk_bits == PLAIN_BITS:
        if group is not None:
            raise InputError(f"--group {group} has no effect at 16 bits: leave it out")
        return Options(bits, None, trunk_bits)
    return Options(bits, DEFAULT_GROUP if group is None else group, trunk_bits)

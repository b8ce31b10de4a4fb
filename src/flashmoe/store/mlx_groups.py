"""MLX's affine quantisation as it is published: the config's section and the triples of tensors.

Owns the reading of ``quantization`` in config.json, and which weights have scales and biases
beside them. Reads no tensor.

Invariant: every format given out agrees with the config and with the shapes of all three tensors.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashmoe.errors import CheckpointError
from flashmoe.quant import AFFINE_BITS, FLOATS, GROUPS, Affine
from flashmoe.store.published_files import ACCEPTED, AGAIN, CONFIG
from flashmoe.store.safetensors_header import Location


@dataclass(frozen=True)
class Quantization:
    """MLX's ``quantization``: (bits, group) by default and by module; None is unquantised."""

    default: tuple[int, int]
    modules: dict[str, tuple[int, int] | None]


def read_quantization(config: dict[str, Any], path: Path) -> Quantization | None:
    """MLX's section of the config at ``path``; None where there is none.

    Raises:
        CheckpointError: the section is malformed, or the quantisation is not MLX's affine one.
    """
    text = config.get("text_config")
    nested = text.get("quantization_config") if isinstance(text, dict) else None
    section = config.get("quantization")
    if section is None:
        section = config.get("quantization_config") or nested
        if section is None:
            return None
        if isinstance(section, dict) and "quant_method" in section:
            raise CheckpointError(
                f"{path}: quant_method {reprlib.repr(section['quant_method'])} is not supported; "
                f"{ACCEPTED}"
            )
    if not isinstance(section, dict):
        raise CheckpointError(
            f"{path}: quantization is {reprlib.repr(section)}, not an object; {ACCEPTED}"
        )
    own = {key: section[key] for key in ("bits", "group_size", "mode") if key in section}
    default = _bits_and_group(own, f"{path}: quantization")
    modules: dict[str, tuple[int, int] | None] = {}
    for name, value in section.items():
        if name not in own:
            label = f"{path}: quantization of {name!r}"
            chosen = default if value is True else None
            modules[name] = chosen if isinstance(value, bool) else _bits_and_group(value, label)
    return Quantization(default, modules)


def group_tensors(
    at: dict[str, Location], quantization: Quantization, path: Path
) -> dict[str, Affine]:
    """The affine format of every weight that has scales, checked against the config.

    Raises:
        CheckpointError: tensors contradict each other or the config in the directory ``path``.
    """
    grouped: dict[str, Affine] = {}
    for name in at:
        if name.endswith(".scales"):
            module = name.removesuffix(".scales")
            stated = quantization.modules.get(module, quantization.default)
            if stated is None:
                raise CheckpointError(
                    f"{path / CONFIG} says that {module!r} is not quantised, but {at[name].path} "
                    f"holds {name!r}: download both again"
                )
            grouped[f"{module}.weight"] = _affine(at, module, *stated)
    for module, stated in quantization.modules.items():
        name = f"{module}.weight"
        if stated is not None and name in at and name not in grouped:
            raise CheckpointError(
                f"{path / CONFIG} says that {module!r} has {stated[0]} bits, but {at[name].path} "
                f"holds no '{module}.scales': download both again"
            )
    return grouped


def _bits_and_group(settings: object, label: str) -> tuple[int, int]:
    if not isinstance(settings, dict) or not settings.keys() <= {"bits", "group_size", "mode"}:
        raise CheckpointError(
            f"{label} is {reprlib.repr(settings)}; known are bits, group_size and mode"
        )
    bits, group = settings.get("bits"), settings.get("group_size")
    mode = settings.get("mode", "affine")
    if mode != "affine":
        raise CheckpointError(
            f"{label} has mode {reprlib.repr(mode)}; only MLX's affine mode is accepted"
        )
    if type(bits) is not int or bits not in AFFINE_BITS:
        raise CheckpointError(f"{label} has bits {reprlib.repr(bits)}; accepted are {AFFINE_BITS}")
    if type(group) is not int or group not in GROUPS:
        raise CheckpointError(
            f"{label} has group_size {reprlib.repr(group)}; accepted are {GROUPS}"
        )
    return bits, group


def _affine(at: dict[str, Location], module: str, bits: int, group: int) -> Affine:
    weight, scales, biases = (at.get(f"{module}.{part}") for part in ("weight", "scales", "biases"))
    label = f"tensor '{module}.weight'"
    assert scales is not None
    if weight is None or biases is None or weight.dtype != "U32":
        raise CheckpointError(
            f"{scales.path}: {label} has scales, but is not U32 with biases beside it; {ACCEPTED}"
        )
    if scales.dtype not in FLOATS or (biases.dtype, biases.shape) != (scales.dtype, scales.shape):
        raise CheckpointError(
            f"{scales.path}: {label} has scales {scales.dtype} {scales.shape} and biases "
            f"{biases.dtype} {biases.shape}; they must agree, in BF16, F16 or F32"
        )
    if len(weight.shape) < 2 or weight.shape[:-1] != scales.shape[:-1] or not scales.shape[-1]:
        raise CheckpointError(
            f"{weight.path}: {label} has words {weight.shape} but scales {scales.shape}; {AGAIN}"
        )
    inputs = scales.shape[-1] * group
    if weight.shape[-1] * 32 != bits * inputs:
        raise CheckpointError(
            f"{weight.path}: {label} has {weight.shape[-1] * 32 / inputs:g} bits by its shape "
            f"({inputs} inputs in groups of {group}), but {bits} by {CONFIG}: correct "
            "'quantization' there, or download both again"
        )
    return Affine(bits, group, scales.dtype)  # type: ignore[arg-type]

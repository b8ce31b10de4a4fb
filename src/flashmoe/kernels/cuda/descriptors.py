"""Weights as kernels see them: addresses, shape and format (``Matrix`` in source/matrix.cuh).

Owns the layout of these structures, which the sources repeat. An expert's matrices are described
once a layer, by offsets into its record; where a record lies is the kernel's argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flashmoe.errors import InputError
from flashmoe.kernels.cuda.device import Device, DeviceArray
from flashmoe.quant import Affine, Array, Format, Matrix

CHUNK = 32
"""Inputs that are multiplied together (source/fixed.cuh): columns come in multiples of it."""

TYPES = {"F32": 0, "F16": 1, "BF16": 2}

MATRIX = np.dtype(
    [
        ("weight", "<u8"),
        ("scales", "<u8"),
        ("biases", "<u8"),
        ("rows", "<i4"),
        ("columns", "<i4"),
        ("bits", "<i4"),
        ("group", "<i4"),
        ("type", "<i4"),
        ("first", "<i4"),
    ]
)

MOST_MATRICES = 6
MATRICES = np.dtype([("all", MATRIX, MOST_MATRICES), ("count", "<i4"), ("unused", "<i4")])

EXPERTS = np.dtype(
    [
        ("arena", "<u8"),
        ("slot_bytes", "<i8"),
        *((name, MATRIX) for name in ("gate", "up", "down")),
        *((f"shared_{name}", MATRIX) for name in ("gate", "up", "down")),
    ]
)


Placed = tuple[Format, tuple[int, int], tuple[int, ...]]
"""Format and shape of a matrix, and where its arrays begin: addresses, or places in a record."""


def described(form: Format, shape: tuple[int, int], places: Sequence[int], first: int = 0) -> Array:
    """One matrix whose arrays begin at ``places``: addresses, or offsets into a record.

    Raises:
        InputError: its inputs do not divide into chunks.
    """
    if shape[1] % CHUNK:
        raise InputError(
            f"a matrix of {shape[1]} inputs: the GPU's kernels want a multiple of {CHUNK}; "
            "run this model with --kernels cpu"
        )
    made = np.zeros((), MATRIX)
    for name, place in zip(("weight", "scales", "biases"), places, strict=False):
        made[name] = place
    made["rows"], made["columns"], made["first"] = *shape, first
    if isinstance(form, Affine):
        made["bits"], made["group"], made["type"] = form.bits, form.group, TYPES[form.scales]
    else:
        made["type"] = TYPES[form.dtype]
    return made


def described_experts(arena: int, slot_bytes: int, record: Sequence[Placed]) -> Array:
    """A layer's experts in slots of so many bytes from an address on, by gate, up and down of every
    record; no shared one."""
    made = np.zeros((), EXPERTS)
    made["arena"], made["slot_bytes"] = arena, slot_bytes
    for name, placed in zip(("gate", "up", "down"), record, strict=True):
        made[name] = described(*placed)
    return made


@dataclass(frozen=True, eq=False)
class Resident:
    """A matrix in the device's memory; ``arrays`` as :func:`flashmoe.quant.parts` orders them."""

    form: Format
    shape: tuple[int, int]
    arrays: tuple[DeviceArray, ...]
    places: tuple[int, ...]

    def described(self, first: int = 0) -> Array:
        """As kernels take it."""
        return described(self.form, self.shape, self.places, first)


def resident(device: Device, weights: Matrix) -> Resident:
    """A copy of a matrix in the device's memory."""
    arrays = tuple(device.upload(_plain(array)) for array in weights.arrays())
    places = tuple(device.address(array) for array in arrays)
    return Resident(weights.form, weights.shape, arrays, places)


def _plain(array: Array) -> Array:
    """16-bit floats as their bit patterns: not every library knows them all."""
    array = np.ascontiguousarray(array)
    return array.view(np.uint16) if array.dtype.itemsize == 2 else array


def uploaded(device: Device, *described: Array) -> DeviceArray:
    """Structures one after the other in the device's memory, as bytes."""
    return device.upload(np.frombuffer(b"".join(each.tobytes() for each in described), np.uint8))

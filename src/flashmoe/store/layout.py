"""Where the bytes of a store are: records, headers, offsets, alignment, checksums.

Owns the layout that docs/FORMAT.md specifies and does no I/O: everything here is a pure function
of dimensions and formats, so that writer, reader and verifier cannot disagree.

Invariant: the header of a file is determined by the manifest alone, and every record begins at
a multiple of :data:`ALIGNMENT` and is a multiple of it long: one record is one direct read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flashmoe.quant import Array, Expert, Format, Matrix, Part, parts

VERSION = 1
ALIGNMENT = 4096
"""Direct reads want offsets, sizes and addresses to be multiples of the page."""

MANIFEST = "manifest.json"
JOURNAL = "convert.journal"
TRUNK = "trunk.safetensors"
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def layer_file(layer: int) -> str:
    """Name of the file that holds the experts of a layer."""
    return f"layer-{layer:03d}.safetensors"


def align(nbytes: int) -> int:
    """The next multiple of :data:`ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Field:
    """One array inside a record: safetensors name, dtype and shape, and its byte offset."""

    name: str
    part: Part
    offset: int

    def view(self, record: Array) -> Array:
        """This array inside the bytes of a record; shares memory."""
        raw = record[self.offset : self.offset + self.part.nbytes]
        return raw.view(self.part.numpy_dtype).reshape(self.part.shape)


@dataclass(frozen=True)
class RecordLayout:
    """How one expert lies in its record: gate, up, down, each weight, scales, biases.

    gate and up are (intermediate, hidden); down is (hidden, intermediate). Padding to the
    alignment follows the last array only, so the arrays of a record are contiguous.
    """

    gate: Format
    up: Format
    down: Format
    hidden: int
    intermediate: int

    @cached_property
    def matrices(self) -> tuple[tuple[Format, tuple[int, int], tuple[Field, ...]], ...]:
        """Format, shape and arrays of gate, up and down."""
        inward, outward = (self.intermediate, self.hidden), (self.hidden, self.intermediate)
        forms = (self.gate, self.up, self.down)
        laid: list[tuple[Format, tuple[int, int], tuple[Field, ...]]] = []
        offset = 0
        for name, form, shape in zip(PROJECTIONS, forms, (inward, inward, outward), strict=True):
            fields = []
            for part in parts(form, shape):
                fields.append(Field(f"{name}.{part.suffix}", part, offset))
                offset += part.nbytes
            laid.append((form, shape, tuple(fields)))
        return tuple(laid)

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """Every array of the record in order."""
        return tuple(field for _, _, fields in self.matrices for field in fields)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the arrays, without padding."""
        return sum(field.part.nbytes for field in self.fields)

    @cached_property
    def record_bytes(self) -> int:
        """Bytes of the record on disk, padding included."""
        return align(self.nbytes)

    def expert(self, record: Array) -> Expert:
        """The expert inside the uint8 bytes of a record, as views that share its memory."""
        gate, up, down = (
            Matrix(form, shape, *(field.view(record) for field in fields))
            for form, shape, fields in self.matrices
        )
        return Expert(gate, up, down)

    def encode(self, expert: Expert) -> Array:
        """The padded uint8 record that holds an expert; inverse of :meth:`expert`.

        Raises:
            ValueError: the expert's arrays are not of this layout.
        """
        record = np.zeros(self.record_bytes, np.uint8)
        triples: tuple[Matrix, ...] = (expert.gate, expert.up, expert.down)
        arrays = [array for stored in triples for array in stored.arrays()]
        for field, array in zip(self.fields, arrays, strict=True):
            if array.shape != field.part.shape or array.dtype != field.part.numpy_dtype:
                raise ValueError(f"{field.name} is {array.dtype}{array.shape}, not {field.part}")
            field.view(record)[...] = array
        return record


@dataclass(frozen=True)
class TrunkTensor:
    """One resident tensor: the checkpoint's own name, how it is stored, and its shape."""

    name: str
    form: Format
    shape: tuple[int, ...]

    def named_parts(self) -> tuple[tuple[str, Part], ...]:
        """Its arrays under their names in the file: MLX's, ``x.weight x.scales x.biases``."""
        stem = self.name.removesuffix(".weight")
        return tuple(
            (self.name if part.suffix == "weight" else f"{stem}.{part.suffix}", part)
            for part in parts(self.form, self.shape)
        )


def header(entries: Iterable[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """A safetensors header whose data begins at a multiple of the alignment.

    ``entries`` are (name, dtype, shape, nbytes) in file order.
    """
    table: dict[str, object] = {}
    offset = 0
    for name, dtype, shape, nbytes in entries:
        extent = [offset, offset + nbytes]
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": extent}
        offset += nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    length = align(8 + len(text)) - 8
    return length.to_bytes(8, "little") + text.ljust(length)


def layer_header(layout: RecordLayout, count: int) -> bytes:
    """The header of a layer file of ``count`` records; the first record follows it."""
    return records_header(layout, range(count))


def records_header(layout: RecordLayout, experts: Iterable[int]) -> bytes:
    """The header of a file that holds the records of some experts of a layer, in that order."""
    padding = layout.record_bytes - layout.nbytes
    entries: list[tuple[str, str, tuple[int, ...], int]] = []
    for expert in experts:
        entries += [
            (
                f"experts.{expert}.{field.name}",
                field.part.dtype,
                field.part.shape,
                field.part.nbytes,
            )
            for field in layout.fields
        ]
        if padding:
            entries.append((f"experts.{expert}.padding", "U8", (padding,), padding))
    return header(entries)


def trunk_header(tensors: Iterable[TrunkTensor]) -> tuple[bytes, Mapping[str, tuple[int, int]]]:
    """The trunk's header, and (absolute offset, nbytes) of every part by name.

    Parts lie in order of falling element size, so that each is aligned to its own.
    """
    named = [pair for tensor in tensors for pair in tensor.named_parts()]
    named.sort(key=lambda pair: -pair[1].numpy_dtype.itemsize)
    start = header((name, part.dtype, part.shape, part.nbytes) for name, part in named)
    extents: dict[str, tuple[int, int]] = {}
    offset = len(start)
    for name, part in named:
        extents[name] = (offset, part.nbytes)
        offset += part.nbytes
    return start, extents

"""The header of one GGUF file: its metadata as plain values, and where its tensors lie.

Owns the bounded walk through the header. Reads no tensor, and does not interpret a metadata key
beyond alignment and splits.

The ``gguf`` package gives the numbers of the types and the sizes of the blocks, and is the oracle
of the tests. Its GGUFReader is not used: an array length of 2**60 makes it loop until memory is
gone, and on honest files it keeps 1 KiB for each array element (160 MiB for a vocabulary of
49,152), which a conversion that promises its peak memory cannot spend.

Format: ggml's docs/gguf.md, versions 2 and 3, little-endian.

Invariant: no number in the file is acted on before it has been compared with the file's size and
with a fixed limit.
"""

from __future__ import annotations

import hashlib
import math
import reprlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from flashmoe.errors import CheckpointError
from flashmoe.store.published_files import AGAIN, OpenFiles, refuse_overlaps

HEADER_LIMIT_BYTES = 64 << 20
"""A vocabulary of 250,000 with its merges takes 12 MB."""
ELEMENTS_LIMIT = 1 << 22
KEYS_LIMIT = 1 << 16
TENSORS_LIMIT = 1 << 18
KEY_LIMIT_BYTES = (1 << 16) - 1
NAME_LIMIT_BYTES = 1024
DIMENSIONS_LIMIT = 4
ALIGNMENT_LIMIT = 1 << 20
WINDOW_BYTES = 1 << 20

_TYPE_NAMES: dict[int, str] = {int(kind): kind.name for kind in GGML_QUANT_SIZES}
_SCALARS: dict[int, np.dtype[Any]] = {
    GGUFValueType.UINT8: np.dtype("u1"),
    GGUFValueType.INT8: np.dtype("i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.BOOL: np.dtype(np.bool_),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Tensor:
    """``kind`` is ggml's number of the type; shape in numpy's order; offset in the file."""

    kind: int
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """Metadata by key, tensors by name in the file's order, the file's name, size and digest."""

    fields: dict[str, Any]
    tensors: dict[str, Tensor]
    identity: str


def read_header(files: OpenFiles, path: Path) -> Header:
    """Walk the header of a GGUF file and check it.

    Raises:
        CheckpointError: the header is malformed, of an unknown version, or one of a split.
    """
    walk = _Walk(files, path)
    tensor_count, key_count = _preamble(walk)
    fields = _fields(walk, key_count)
    tensors = _tensors(walk, tensor_count, _alignment(walk, fields))
    digest = hashlib.sha256(walk.read[: walk.position]).hexdigest()
    return Header(fields, tensors, f"{path.name} {walk.size} {digest}")


def type_name(kind: int) -> str:
    """ggml's name of a tensor's type, or its number."""
    return _TYPE_NAMES.get(kind, f"number {kind}")


class _Walk:
    """The header in order. Every step is checked against the file's size and the limit."""

    def __init__(self, files: OpenFiles, path: Path) -> None:
        self._files = files
        self.path = path
        self.size = files.size(path)
        self.position = 0
        self.read = bytearray()
        self.elements = 0

    def refuse(self, detail: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {detail}; {AGAIN}")

    def take(self, nbytes: int) -> bytearray:
        """The next bytes of the header."""
        start, stop = self.position, self.position + nbytes
        if stop > self.size:
            raise self.refuse(f"the header claims {nbytes} bytes at {start} of {self.size}")
        if stop > HEADER_LIMIT_BYTES:
            raise self.refuse(f"the header is longer than {HEADER_LIMIT_BYTES} bytes")
        if stop > len(self.read):
            begin = len(self.read)
            end = min(self.size, max(stop, begin + WINDOW_BYTES))
            self.read += self._files.read(self.path, begin, end - begin, "the header").data
        self.position = stop
        return self.read[start:stop]

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8))[0])

    def count(self, what: str, limit: int) -> int:
        number = self.u64()
        if number > limit:
            raise self.refuse(f"{number} {what} are claimed, more than {limit}")
        return number

    def text(self, what: str, limit: int = HEADER_LIMIT_BYTES) -> str:
        length = self.count(f"bytes of {what}", limit)
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise self.refuse(f"{what} at byte {self.position - length} is not UTF-8") from None

    def value(self, key: str) -> Any:
        """One metadata value: str, int, float, bool, or a list of one of them."""
        kind = self.u32()
        if kind != GGUFValueType.ARRAY:
            return self._items(kind, 1, key)[0]
        kind = self.u32()
        count = self.count(f"elements of {key}", ELEMENTS_LIMIT)
        self.elements += count
        if self.elements > ELEMENTS_LIMIT:
            raise self.refuse(f"the metadata has more than {ELEMENTS_LIMIT} array elements")
        return self._items(kind, count, key)

    def _items(self, kind: int, count: int, key: str) -> list[Any]:
        if kind == GGUFValueType.STRING:
            return [self.text(key) for _ in range(count)]
        if kind not in _SCALARS:
            raise self.refuse(f"{key} is of type {kind}, which GGUF does not define here")
        dtype = _SCALARS[kind]
        items: list[Any] = np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
        return items


def _preamble(walk: _Walk) -> tuple[int, int]:
    """Check magic and version; the numbers of tensors and of metadata keys."""
    if walk.size < 4 or walk.take(4) != b"GGUF":
        raise CheckpointError(f"{walk.path} is not a GGUF file: give a .gguf, or a directory")
    version = walk.u32()
    if version not in (2, 3):
        kind = "big-endian" if version & 0xFFFF == 0 else f"GGUF version {version}"
        raise CheckpointError(
            f"{walk.path} is {kind}; little-endian versions 2 and 3 are accepted: convert it"
        )
    return walk.count("tensors", TENSORS_LIMIT), walk.count("metadata keys", KEYS_LIMIT)


def _fields(walk: _Walk, count: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for _ in range(count):
        key = walk.text("a metadata key", KEY_LIMIT_BYTES)
        if key in fields:
            raise walk.refuse(f"metadata key {reprlib.repr(key)} occurs twice")
        fields[key] = walk.value(reprlib.repr(key))
    if fields.get("split.count", 1) not in (0, 1):
        raise CheckpointError(
            f"{walk.path} is one part of a split GGUF: join the parts with llama-gguf-split --merge"
        )
    return fields


def _alignment(walk: _Walk, fields: dict[str, Any]) -> int:
    alignment = fields.get("general.alignment", 32)
    sane = type(alignment) is int and 8 <= alignment <= ALIGNMENT_LIMIT
    if not sane or alignment & (alignment - 1):
        raise walk.refuse(
            f"general.alignment is {reprlib.repr(alignment)}, not a power of two from 8"
        )
    return int(alignment)


def _tensors(walk: _Walk, count: int, alignment: int) -> dict[str, Tensor]:
    found: dict[str, tuple[int, tuple[int, ...], int]] = {}
    for _ in range(count):
        name = walk.text("a tensor's name", NAME_LIMIT_BYTES)
        if name in found:
            raise walk.refuse(f"tensor {name!r} occurs twice")
        dimensions = walk.u32()
        if not 1 <= dimensions <= DIMENSIONS_LIMIT:
            raise walk.refuse(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(reversed([walk.u64() for _ in range(dimensions)]))
        found[name] = (walk.u32(), shape, walk.u64())
    data_start = -(-walk.position // alignment) * alignment
    tensors = {
        name: Tensor(kind, shape, data_start + offset, _nbytes(walk, name, kind, shape))
        for name, (kind, shape, offset) in found.items()
    }
    for name, tensor in tensors.items():
        if tensor.offset + tensor.nbytes > walk.size or tensor.offset % alignment:
            raise walk.refuse(
                f"tensor {name!r} lies at byte {tensor.offset} with {tensor.nbytes} bytes: "
                f"not aligned to {alignment}, or past the file's {walk.size}"
            )
    refuse_overlaps(((t.offset, t.nbytes, name) for name, t in tensors.items()), str(walk.path))
    return tensors


def _nbytes(walk: _Walk, name: str, kind: int, shape: tuple[int, ...]) -> int:
    """Size of the tensor's data; 0 for a type that this version cannot size."""
    if not all(shape):
        raise walk.refuse(f"tensor {name!r} has shape {shape}")
    if kind not in _TYPE_NAMES:
        return 0
    elements, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    if shape[-1] % elements:
        raise walk.refuse(f"tensor {name!r} of {type_name(kind)} has rows of {shape[-1]} inputs")
    return math.prod(shape) // int(elements) * int(nbytes)

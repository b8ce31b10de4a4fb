"""The header of one safetensors file: its tensors by name, each with type, shape and place.

Owns the header parser and the element types. Does not read the tensors' data.

The header is parsed here and not by the safetensors library because that library maps a shard
whole: the pages read stay in the process, and a conversion could not promise its peak memory.
A general JSON parser would turn a hostile header of 100 MB into gigabytes of lists, so members
are cut out one at a time and each is small.

Invariant: nothing is allocated from a number in a file before the number has been compared with
the file's size, and whatever the bytes are, only :class:`CheckpointError` leaves this module.
"""

from __future__ import annotations

import hashlib
import math
import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from flashmoe.errors import CheckpointError
from flashmoe.store.published_files import AGAIN, OpenFiles, decode, parse_object, refuse_overlaps

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
"""Element types by their safetensors names; a tensor of another type cannot be read."""

HEADER_LIMIT_BYTES = 100_000_000
"""The safetensors library's own limit on a header."""
MEMBER_LIMIT_CHARACTERS = 4096
"""A tensor's name, and its entry in a header, each stay below this by far."""
DIMENSIONS_LIMIT = 8
ELEMENTS_LIMIT = 1 << 48
"""Bounds the dimensions even of tensors that are empty or of a type without a known size."""

# Possessive quantifiers keep no backtracking state: a string of 100 MB matches in constant memory.
_BLANK = r"[ \t\n\r]*+"
_STRING = r'"[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+"'
_PAIR = rf"{_BLANK}({_STRING}){_BLANK}:{_BLANK}({_STRING}){_BLANK}"
_START = re.compile(rf"{_BLANK}\{{{_BLANK}(\}})?+")
_KEY = re.compile(rf"{_BLANK}({_STRING}){_BLANK}:{_BLANK}")
_STRINGS = re.compile(rf"\{{(?:{_PAIR}(?:,{_PAIR})*+|{_BLANK})\}}")
_METADATA_PAIR = re.compile(_PAIR)
_NEXT = re.compile(rf"{_BLANK}([,}}])")
_END = re.compile(rf"{_BLANK}\Z")


@dataclass(frozen=True, slots=True)
class Location:
    """Where a tensor's bytes lie: ``offset`` counts from the start of the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """One file's tensors by name, the ``format`` its metadata names, and its SHA-256."""

    tensors: dict[str, Location]
    written_by: str
    digest: str


def read_header(files: OpenFiles, path: Path) -> Header:
    """Parse and check the header of one safetensors file.

    Raises:
        CheckpointError: the header does not describe this file.
    """
    size = files.size(path)
    if size < 8:
        raise CheckpointError(f"{path} has {size} bytes, too few for safetensors; {AGAIN}")
    length = int.from_bytes(files.read(path, 0, 8, "the header's length").tobytes(), "little")
    if not 0 < length <= min(HEADER_LIMIT_BYTES, size - 8):
        raise CheckpointError(
            f"{path} claims a header of {length} bytes; it may have from 1 to "
            f"{min(HEADER_LIMIT_BYTES, size - 8)}: not safetensors, or cut short; {AGAIN}"
        )
    raw = files.read(path, 8, length, "the header").tobytes()
    tensors: dict[str, Location] = {}
    written_by = ""
    for name, value in _members(decode(raw, f"{path}: the header"), str(path)):
        if name == "__metadata__":
            written_by = _written_by(value)
        elif name in tensors:
            raise CheckpointError(f"{path}: tensor {name!r} occurs twice in the header; {AGAIN}")
        else:
            tensors[name] = _location(path, name, value, 8 + length, size)
    refuse_overlaps(((at.offset, at.nbytes, name) for name, at in tensors.items()), str(path))
    return Header(tensors, written_by, hashlib.sha256(raw).hexdigest())


def _members(text: str, label: str) -> Iterator[tuple[str, str]]:
    """The header's members as (name, JSON text of the value), in order, one at a time."""

    def malformed(position: int) -> CheckpointError:
        return CheckpointError(f"{label}: the header is malformed at byte {8 + position}; {AGAIN}")

    start = _START.match(text)
    if not start:
        raise malformed(0)
    position, closed = start.end(), start[1] is not None
    while not closed:
        key = _KEY.match(text, position)
        if not key:
            raise malformed(position)
        name = _name(key[1], label)
        if name == "__metadata__":
            strings = _STRINGS.match(text, key.end())
            stop = strings.end() if strings else 0
        else:
            stop = text.find("}", key.end(), key.end() + MEMBER_LIMIT_CHARACTERS) + 1
        after = _NEXT.match(text, stop)
        if not stop or not after:
            raise malformed(key.end())
        yield name, text[key.end() : stop]
        position, closed = after.end(), after[1] == "}"
    if not _END.match(text, position):
        raise malformed(position)


def _name(quoted: str, label: str) -> str:
    if len(quoted) > MEMBER_LIMIT_CHARACTERS:
        raise CheckpointError(f"{label}: a tensor's name has {len(quoted)} characters; {AGAIN}")
    return next(iter(parse_object(f"{{{quoted}:0}}", f"{label}: a tensor's name")))


def _written_by(metadata: str) -> str:
    for pair in _METADATA_PAIR.finditer(metadata, 1):
        if pair[1] == '"format"':
            return pair[2].strip('"')[:16]
    return ""


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


def _location(path: Path, name: str, text: str, data_start: int, size: int) -> Location:
    label = f"{path}: tensor {name!r}"
    entry = parse_object(text, label)
    if entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{label} has entries {reprlib.repr(sorted(entry))}; {AGAIN}")
    dtype, shape, extent = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise CheckpointError(f"{label} has dtype {reprlib.repr(dtype)}; {AGAIN}")
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise CheckpointError(f"{label} has shape {reprlib.repr(shape)}; {AGAIN}")
    if len(shape) > DIMENSIONS_LIMIT or math.prod(n or 1 for n in shape) > ELEMENTS_LIMIT:
        raise CheckpointError(f"{label} has the unlikely shape {reprlib.repr(shape)}; {AGAIN}")
    if not isinstance(extent, list) or len(extent) != 2 or not all(map(_is_size, extent)):
        raise CheckpointError(f"{label} has data_offsets {reprlib.repr(extent)}; {AGAIN}")
    begin, end = extent
    if not begin <= end <= size - data_start:
        raise CheckpointError(
            f"{label} lies at {reprlib.repr(extent)} of {size - data_start} bytes of data: "
            f"the file is cut short or damaged; {AGAIN}"
        )
    if dtype in DTYPES and math.prod(shape) * DTYPES[dtype].itemsize != end - begin:
        raise CheckpointError(
            f"{label} of {dtype} and shape {reprlib.repr(shape)} does not fill its "
            f"{end - begin} bytes; {AGAIN}"
        )
    return Location(path, dtype, tuple(shape), data_start + begin, end - begin)

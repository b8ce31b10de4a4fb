"""One kept piece as bytes, the same in memory and in a file: a head, arrays, a checksum.

Owns the layout (docs/FORMAT.md, "The prefix cache"). Says nothing of what the arrays mean.

Invariant: bytes that were cut short or changed anywhere are refused by :func:`decoded`.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xxhash

from flashmoe.quant import Array
from flashmoe.store.safetensors_header import DTYPES

MAGIC = b"fmprefix"
VERSION = 1
ALIGNMENT = 64
START_BYTES = 16
CHECKSUM_BYTES = 8
HEAD_LIMIT_BYTES = 4 << 20
"""More than the head of any context has (24 bytes for every 64 tokens)."""

_NAMES = {kind: name for name, kind in DTYPES.items()}


@dataclass(frozen=True)
class Head:
    """What a piece is: ``kind`` block or state, of a timeline with ``position`` tokens.

    ``blocks`` names the blocks that a state goes with, in order, ``path`` has the short digests of
    its tokens (:func:`flashmoe.prefix.keys.path`) one after the other.
    """

    kind: str
    model: str
    position: int
    blocks: tuple[str, ...] = ()
    path: str = ""


@dataclass(frozen=True)
class Layout:
    """Where everything lies in the bytes of a piece."""

    start: bytes
    places: dict[str, tuple[int, np.dtype[Any], tuple[int, ...]]]
    nbytes: int


def layout(head: Head, arrays: Mapping[str, Array]) -> Layout:
    """The beginning of a piece with these arrays, their offsets, and its size in all."""
    extents = [(name, _NAMES[a.dtype], list(a.shape)) for name, a in arrays.items()]
    text = json.dumps({**asdict(head), "arrays": extents}, separators=(",", ":")).encode()
    text += b" " * (-(START_BYTES + len(text)) % ALIGNMENT)
    places, offset = {}, START_BYTES + len(text)
    for name, array in arrays.items():
        places[name] = offset, array.dtype, array.shape
        offset += array.nbytes + -array.nbytes % ALIGNMENT
    start = MAGIC + struct.pack("<II", VERSION, len(text)) + text
    return Layout(start, places, offset + CHECKSUM_BYTES)


def encode(plan: Layout, arrays: Mapping[str, Array], out: Array) -> None:
    """Fill ``out`` (nbytes,) uint8 with a piece."""
    out[: len(plan.start)] = np.frombuffer(plan.start, np.uint8)
    end = len(plan.start)
    for name, array in arrays.items():
        offset, dtype, shape = plan.places[name]
        out[end:offset] = 0
        end = offset + array.nbytes
        out[offset:end].view(dtype).reshape(shape)[...] = array
    out[end:-CHECKSUM_BYTES] = 0
    checksum = xxhash.xxh3_64_intdigest(out[:-CHECKSUM_BYTES].data)
    out[-CHECKSUM_BYTES:] = np.frombuffer(struct.pack("<Q", checksum), np.uint8)


def content(piece: Array) -> str:
    """A name for what a piece holds: two with the same name are the same."""
    return xxhash.xxh3_128_hexdigest(piece[:-CHECKSUM_BYTES].data)


def decoded(piece: Array) -> tuple[Head, dict[str, Array]]:
    """The head and the arrays, as views, of the bytes that :func:`encode` wrote.

    Raises:
        ValueError: damaged, cut short, or of another version; says what is wrong.
    """
    if len(piece) < START_BYTES + CHECKSUM_BYTES:
        raise ValueError("it is cut short")
    (wanted,) = struct.unpack("<Q", piece[-CHECKSUM_BYTES:].tobytes())
    if xxhash.xxh3_64_intdigest(piece[:-CHECKSUM_BYTES].data) != wanted:
        raise ValueError("it does not match its checksum")
    size = head_bytes(piece[:START_BYTES].tobytes())
    found, extents = _parsed(piece[START_BYTES : START_BYTES + size].tobytes())
    arrays, offset = {}, START_BYTES + size
    for name, kind, shape in extents:
        dtype = DTYPES[kind]
        nbytes = math.prod(shape) * dtype.itemsize
        if offset + nbytes > len(piece) - CHECKSUM_BYTES:
            raise ValueError("its arrays do not lie in it")
        arrays[name] = piece[offset : offset + nbytes].view(dtype).reshape(shape)
        offset += nbytes + -nbytes % ALIGNMENT
    return found, arrays


def head_bytes(start: bytes) -> int:
    """How long the head is that follows the first :data:`START_BYTES`.

    Raises:
        ValueError: this is no piece, or one of another version.
    """
    if len(start) < START_BYTES or not start.startswith(MAGIC):
        raise ValueError("it is no part of a prefix cache")
    version, size = struct.unpack("<II", start[len(MAGIC) :])
    if version != VERSION:
        raise ValueError(f"it is of version {version}, this program's is {VERSION}")
    if size > HEAD_LIMIT_BYTES:
        raise ValueError("its head is too long")
    return int(size)


def head(text: bytes) -> Head:
    """The head in a text of so many bytes, without a look at the rest of the piece.

    Raises:
        ValueError: it is none.
    """
    return _parsed(text)[0]


def size(text: bytes) -> int:
    """The bytes of a whole piece whose head is in this text.

    Raises:
        ValueError: it is none.
    """
    arrays = [math.prod(shape) * DTYPES[kind].itemsize for _, kind, shape in _parsed(text)[1]]
    padded = sum(nbytes + -nbytes % ALIGNMENT for nbytes in arrays)
    return START_BYTES + len(text) + padded + CHECKSUM_BYTES


def head_of(piece: Array) -> Head:
    """The head of a piece, unchecked.

    Raises:
        ValueError: it has none.
    """
    size = head_bytes(piece[:START_BYTES].tobytes())
    return head(piece[START_BYTES : START_BYTES + size].tobytes())


def _parsed(text: bytes) -> tuple[Head, list[tuple[str, str, tuple[int, ...]]]]:
    try:
        given = json.loads(text)
        extents = [
            (str(n), str(kind), tuple(map(int, shape))) for n, kind, shape in given["arrays"]
        ]
        found = Head(
            kind=str(given["kind"]),
            model=str(given["model"]),
            position=int(given["position"]),
            blocks=tuple(map(str, given["blocks"])),
            path=str(given["path"]),
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"its head is malformed ({error})") from None
    if any(kind not in DTYPES or min(shape, default=0) < 0 for _, kind, shape in extents):
        raise ValueError("its head names arrays that cannot be")
    return found, extents

"""Files that others made, read within bounds: bytes, UTF-8 text and strict JSON.

Owns the limited set of open descriptors, exact range reads, and the checks and words of refusal
that every published format needs. Does not parse any of the formats.

Invariant: a read takes only the bytes that it was asked for, and whatever they are, only
:class:`CheckpointError` leaves this module.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
import stat
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flashmoe.errors import CheckpointError

CHUNK_BYTES = 8 << 20

CONFIG = "config.json"
ACCEPTED = (
    "accepted are safetensors in BF16, F16 or F32, MLX affine safetensors, "
    "and GGUF in F32, F16, BF16, Q8_0, Q4_0 or Q4_1"
)
"""What a refusal of another format ends with."""
AGAIN = "download it again"
"""The mend for what no intact file has."""


class OpenFiles:
    """Read-only descriptors, opened once each, the longest unused closed beyond ``limit``.

    For one thread at a time.
    """

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._descriptors: OrderedDict[Path, int] = OrderedDict()

    def size(self, path: Path) -> int:
        """Size of the file in bytes."""
        return os.fstat(self._descriptor(path)).st_size

    def read(self, path: Path, offset: int, nbytes: int, what: str) -> npt.NDArray[np.uint8]:
        """Exactly ``nbytes`` from ``offset``, as a fresh writable array.

        Raises:
            CheckpointError: the file cannot be read, or ends early; the message names ``what``.
        """
        descriptor = self._descriptor(path)
        target = np.empty(nbytes, np.uint8)
        got = 0
        while got < nbytes:
            try:
                window = target[got : got + CHUNK_BYTES].data
                count = os.preadv(descriptor, [window], offset + got)
            except OSError as error:
                raise CheckpointError(
                    f"{path}: reading {what} failed: {error.strerror}; check the disk"
                ) from error
            if not count:
                raise CheckpointError(f"{path} ends at byte {offset + got}, inside {what}; {AGAIN}")
            got += count
        return target

    def close(self) -> None:
        """Close every descriptor; a later read opens its file again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _descriptor(self, path: Path) -> int:
        if path in self._descriptors:
            self._descriptors.move_to_end(path)
            return self._descriptors[path]
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
                raise CheckpointError(f"{path} is not a regular file; {AGAIN}")
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be opened: {error.strerror}; {AGAIN}") from error
        if len(self._descriptors) >= self._limit:
            os.close(self._descriptors.popitem(last=False)[1])
        self._descriptors[path] = descriptor
        return descriptor


def read_text(files: OpenFiles, path: Path, limit_bytes: int) -> str:
    """A small UTF-8 file as text.

    Raises:
        CheckpointError: it is missing, larger than the limit, or not UTF-8.
    """
    size = files.size(path)
    if size > limit_bytes:
        raise CheckpointError(f"{path} has {size} bytes, more than {limit_bytes}; {AGAIN}")
    return decode(files.read(path, 0, size, "the text").tobytes(), str(path))


def decode(raw: bytes, label: str) -> str:
    """UTF-8 bytes as text.

    Raises:
        CheckpointError: they are not UTF-8; the message begins with ``label``.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{label} is not UTF-8 at byte {error.start}; {AGAIN}") from error


def parse_object(text: str, label: str) -> dict[str, Any]:
    """Strict JSON object: no repeated key, no NaN or infinity, no lone surrogate, bounded depth.

    Raises:
        CheckpointError: the text is anything else; the message begins with ``label``.
    """
    try:
        value = _JSON.decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise CheckpointError(f"{label} is nested too deeply; {AGAIN}") from None
    except ValueError as error:  # JSONDecodeError and UnicodeEncodeError are ValueErrors
        raise CheckpointError(f"{label} is not valid JSON: {error}; {AGAIN}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{label} is not a JSON object; {AGAIN}")
    return value


def refuse_overlaps(extents: Iterable[tuple[int, int, str]], label: str) -> None:
    """Check that no two (offset, nbytes, name) share a byte.

    Raises:
        CheckpointError: two of them do; the message names both.
    """
    reached, owner = 0, ""
    for offset, nbytes, name in sorted(extent for extent in extents if extent[1]):
        if offset < reached:
            raise CheckpointError(f"{label}: tensors {owner!r} and {name!r} overlap; {AGAIN}")
        reached, owner = offset + nbytes, name


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"key {reprlib.repr(name)} occurs twice")
        members[name] = value
    return members


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{reprlib.repr(digits)} is not a finite number")
    return number


_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)

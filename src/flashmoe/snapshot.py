"""A timeline at rest: its tokens and state, in memory or in one checksummed file.

Owns the file: safetensors, each state array under ``layer.name``, the tokens under ``ids``, and
under ``about`` a JSON text that names the model and the checksum of everything else. A file that
is cut short, changed or of another model is refused, never used.

Invariant: writing and reading keep one array more in memory than the state itself, however long
the context is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from flashmoe.errors import CheckpointError, SessionError
from flashmoe.options import KV_KINDS
from flashmoe.quant import Array
from flashmoe.store.layout import header
from flashmoe.store.published_files import OpenFiles
from flashmoe.store.safetensors_header import DTYPES, Location, read_header
from flashmoe.store.writer import PartialFile

FORMAT = "flashmoe-session-2"
ABOUT_LIMIT_BYTES = 4096
_NAMES = {kind: name for name, kind in DTYPES.items()}


@dataclass(frozen=True)
class Snapshot:
    """Tokens of a timeline, the state after ``position`` of them, and the model it is valid for.

    The arrays are copies that belong to the caller; the engine's budget does not count them.
    """

    model: str
    ids: tuple[int, ...] = field(repr=False)
    position: int
    arrays: Mapping[str, Array] = field(repr=False)


def save(path: Path, snapshot: Snapshot) -> None:
    """Write a snapshot, whose arrays may be views of a live state; the file appears whole.

    Raises:
        SessionError: the system refuses; names what it says.
    """
    tensors = {**snapshot.arrays, "ids": np.array(snapshot.ids, np.int64)}
    about = {
        "format": FORMAT,
        "model": snapshot.model,
        "position": snapshot.position,
        "checksum": _checksum(snapshot.model, snapshot.position, tensors),
    }
    text = json.dumps(about).encode()
    entries = [("about", "U8", (len(text),), len(text))]
    entries += [(n, _NAMES[a.dtype], a.shape, a.nbytes) for n, a in tensors.items()]
    start = header(entries)
    path = destination(path)
    try:
        with PartialFile(path.parent, path.name) as file:
            file.write(start + text, 0)
            offset = len(start) + len(text)
            for array in tensors.values():
                file.write(_octets(array), offset)
                offset += array.nbytes
    except OSError as error:
        raise SessionError(
            f"{path} cannot be written: {error.strerror}; the session itself goes on"
        ) from error


def destination(path: Path) -> Path:
    """Where a session may be saved: behind a link its target; never over a device or directory.

    Raises:
        SessionError: it is something else than a file, or its directory cannot be written.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise SessionError(f"{path} is not a file: choose another place to save the session")
    if not os.access(target.parent, os.W_OK):
        raise SessionError(f"{path} cannot be written: {target.parent} is missing or read-only")
    return target


@contextmanager
def opened(path: Path, model: str) -> Iterator[Snapshot]:
    """A snapshot whose arrays are read from a file that :func:`save` wrote, one by one, on use.

    Raises:
        SessionError: missing, damaged, or saved from another store, dtype or number of experts.
    """
    files = OpenFiles(limit=1)
    try:
        yield _read(files, path, model)
    except CheckpointError as error:
        raise SessionError(f"{path} is not a whole saved session: {error}") from error
    finally:
        files.close()


def _read(files: OpenFiles, path: Path, model: str) -> Snapshot:
    places = read_header(files, path).tensors
    about = _about(files, places.pop("about", None), path)
    if about.get("format") != FORMAT or "ids" not in places:
        raise SessionError(f"{path} was not saved by this version: start the session anew")
    check_model(str(path), str(about.get("model")), model)
    stored = _Stored(files, places)
    position, ids = about.get("position"), stored["ids"].tolist()
    if about.get("checksum") != _checksum(model, position, stored):
        raise SessionError(f"{path} is damaged: start the session anew, or restore the file")
    assert isinstance(position, int)  # as the checksum vouches for
    del places["ids"]
    return Snapshot(model, tuple(ids), position, stored)


def check_model(name: str, saved: str, own: str) -> None:
    """Refuse a timeline that is not valid for the model ``own`` (``Engine.key``).

    Raises:
        SessionError: it belongs to another model, or holds keys and values in another form.
    """
    if saved == own:
        return
    (model, _, kind), (own_model, _, own_kind) = saved.partition("-"), own.partition("-")
    if model == own_model and kind in KV_KINDS:
        raise SessionError(
            f"{name} holds keys and values as {kind} and this engine as {own_kind}: open it with "
            f"--kv {kind} (Budget.kv)"
        )
    raise SessionError(
        f"{name} belongs to another store, dtype or number of experts a token: open it with the "
        "same ones"
    )


def _about(files: OpenFiles, place: Location | None, path: Path) -> dict[str, Any]:
    if place is None or place.nbytes > ABOUT_LIMIT_BYTES:
        return {}
    try:
        about = json.loads(files.read(path, place.offset, place.nbytes, "about").tobytes())
    except (ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


class _Stored(Mapping[str, Array]):
    """Arrays of an open file; each is read anew whenever it is asked for."""

    def __init__(self, files: OpenFiles, places: dict[str, Location]) -> None:
        self._files = files
        self._places = places

    def __getitem__(self, name: str) -> Array:
        place = self._places[name]
        if place.dtype not in DTYPES:
            raise SessionError(f"{place.path}: {name} is of the unknown type {place.dtype}")
        raw = self._files.read(place.path, place.offset, place.nbytes, name)
        return raw.view(DTYPES[place.dtype]).reshape(place.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _checksum(model: str, position: object, tensors: Mapping[str, Array]) -> str:
    digest = xxhash.xxh3_64(json.dumps([model, position]).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(_octets(array))
        del array  # before the next one is read
    return digest.hexdigest()


def _octets(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def copied(model: str, ids: Sequence[int], position: int, arrays: Mapping[str, Array]) -> Snapshot:
    """A snapshot in memory that owns its arrays."""
    kept = {name: array.copy() for name, array in arrays.items()}
    return Snapshot(model, tuple(ids), position, kept)

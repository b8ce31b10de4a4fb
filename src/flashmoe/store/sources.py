"""Which files hold the records of a store: its own, and those in other directories.

Owns the look into the directories that ``--store-dir`` names, and the refusal of what does not
belong to the store. A directory holds a part that ``spread`` wrote, a copy of the store, or
copies of some of its layer files.

Invariant: when :func:`gather` returns, every record of every layer is in at least one file that
is there and of the right size. What is in the records is checked whenever they are read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from flashmoe.errors import InputError, ReadError, StoreError
from flashmoe.quant import Array
from flashmoe.store.layout import MANIFEST
from flashmoe.store.manifest import Manifest
from flashmoe.store.parts import MAX_PARTS, PART, PART_LIMIT_BYTES, SPREAD_JOURNAL, Part, Source
from flashmoe.store.parts import whole as whole_file

Sources = tuple[tuple[Source, ...], ...]
"""By layer."""


def gather(path: Path, manifest: Manifest, directories: Sequence[Path] = ()) -> Sources:
    """Every file with records of a store at ``path``, by layer; its own come first.

    Raises:
        InputError: a directory is named twice, or too many are.
        StoreError: a file is missing or of the wrong size, a directory belongs to another store
            or to none, or is unfinished.
    """
    _refuse_repeated(path, directories)
    try:
        found = _find(path, manifest, directories)
    except OSError as error:
        raise StoreError(
            f"{error.filename} cannot be looked at: {error.strerror}; mend that, or leave its "
            "--store-dir out"
        ) from error
    for sources, entry in zip(found, manifest.layers, strict=True):
        _refuse_gaps(path, entry.file, len(entry.checksums), sources)
    return tuple(tuple(sources) for sources in found)


def _find(path: Path, manifest: Manifest, directories: Sequence[Path]) -> list[list[Source]]:
    """The files that are there, by layer."""
    found: list[list[Source]] = []
    for entry in manifest.layers:
        own = whole_file(path, entry)
        here = not directories or own.path.exists()
        if here:
            _check_own(own)
        found.append([own] if here else [])
    for directory in directories:
        for sources, source in zip(found, _sources_in(path, directory, manifest), strict=True):
            if source is not None:
                sources.append(source)
    return found


def check_size(file: Path, wanted: int, mend: str) -> None:
    """See that a file has a size.

    Raises:
        StoreError: it has not, or is not there; ``mend`` says what to do.
    """
    try:
        found = file.stat().st_size
    except OSError as error:
        raise StoreError(f"{file} is missing: {mend}") from error
    if found != wanted:
        raise StoreError(
            f"{file} has {found:,} bytes instead of {wanted:,}: it was cut short or changed; {mend}"
        )


def read_exactly(descriptor: int, buffer: Array, offset: int, path: Path, name: str) -> None:
    """Fill a uint8 buffer from a file at an offset.

    Raises:
        ReadError: the system refuses, or the file ends first.
    """
    view = buffer.data
    done = 0
    while done < len(view):
        try:
            count = os.preadv(descriptor, [view[done:]], offset + done)
        except OSError as error:
            raise ReadError(f"{path}: reading {name} failed: {error.strerror}") from error
        if count == 0:
            raise ReadError(f"{path} ends inside {name}: convert the checkpoint again")
        done += count


def read_part(directory: Path, name: str = PART) -> Part | None:
    """What a directory says it is a part of; None where it says nothing.

    Raises:
        StoreError: it cannot be read, or is malformed.
    """
    file = directory / name
    try:
        with file.open("rb") as content:
            text = content.read(PART_LIMIT_BYTES + 1)[:PART_LIMIT_BYTES].decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{file} cannot be read: {error}; check its drive") from error
    return Part.from_json(text, str(file))


def _check_own(own: Source) -> None:
    mend = "copy it from the original store, or convert again"
    if not own.path.exists():
        mend += "; if it was spread over other directories, name them with --store-dir"
    check_size(own.path, own.nbytes, mend)


def _refuse_repeated(path: Path, directories: Sequence[Path]) -> None:
    seen = {path.resolve()}
    for directory in directories:
        if directory.resolve() in seen:
            raise InputError(
                f"--store-dir {directory} is given twice, or is the store itself: leave it out"
            )
        seen.add(directory.resolve())
    if len(directories) > MAX_PARTS:
        raise InputError(f"--store-dir is given {len(directories)} times; at most {MAX_PARTS}")


def _sources_in(path: Path, directory: Path, manifest: Manifest) -> list[Source | None]:
    """A directory's file of each layer."""
    if not directory.is_dir():
        raise StoreError(
            f"--store-dir {directory} is not a directory: mount its drive, or leave it out"
        )
    part = read_part(directory)
    if part is None:
        return _copies_in(path, directory, manifest)
    if part.store != manifest.checksum:
        raise StoreError(
            f"{directory} holds a part of another store ({PART} names {part.store}, {path} is "
            f"{manifest.checksum}): give the directories that `flashmoe spread {path}` wrote"
        )
    sources = [part.source(directory, entry) for entry in manifest.layers]
    for source in sources:
        check_size(
            source.path,
            source.nbytes,
            f"it belongs to {part} of {path}: run the same `flashmoe spread` again",
        )
    return list(sources)


def _copies_in(path: Path, directory: Path, manifest: Manifest) -> list[Source | None]:
    """Those layer files that somebody has copied to a directory."""
    if (directory / SPREAD_JOURNAL).exists():
        raise StoreError(
            f"{directory} is an unfinished part: run the same `flashmoe spread` again and it goes "
            "on where it stopped"
        )
    files = [whole_file(directory, entry) for entry in manifest.layers]
    copies = [source if source.path.exists() else None for source in files]
    there = [source for source in copies if source is not None]
    if not there:
        raise StoreError(
            f"{directory} has neither a {PART} nor a layer file of {path}: give a directory that "
            "`flashmoe spread` wrote, or a copy of the store"
        )
    for source in there:
        check_size(source.path, source.nbytes, f"copy it from {path} again, or leave it out")
    if not _is_copy(directory, manifest, there[0]):
        raise StoreError(
            f"{directory} holds layer files of another store than {path}: give a copy of this one"
        )
    return copies


def _is_copy(directory: Path, manifest: Manifest, source: Source) -> bool:
    """Whether files are of this store: by the manifest beside them, or else by a record."""
    beside = directory / MANIFEST
    if beside.exists():
        try:
            return beside.read_bytes() == manifest.to_json().encode()
        except OSError as error:
            raise StoreError(f"{beside} cannot be read: {error.strerror}") from error
    record = np.empty(source.entry.layout.record_bytes, np.uint8)
    try:
        with source.path.open("rb", buffering=0) as file:
            read_exactly(file.fileno(), record, source.data_offset, source.path, "expert 0")
    except OSError as error:
        raise StoreError(f"{source.path} cannot be read: {error.strerror}") from error
    return xxhash.xxh3_64_hexdigest(record.data) == source.entry.checksums[0]


def _refuse_gaps(path: Path, name: str, count: int, sources: Sequence[Source]) -> None:
    present = {expert for source in sources for expert in source.experts}
    absent = next((expert for expert in range(count) if expert not in present), None)
    if absent is None:
        return
    steps = sorted({source.step for source in sources if source.step > 1})
    if not steps:
        raise StoreError(
            f"{path / name} is missing, and no --store-dir has it: copy it from the original "
            "store, name the directory that has it, or convert again"
        )
    parts = " or ".join(f"stripe {absent % step} of {step}" for step in steps)
    raise StoreError(
        f"{parts} of {path} is missing (it has expert {absent} of {name}): name its directory "
        "with --store-dir, too, or run `flashmoe spread` on the original store again"
    )

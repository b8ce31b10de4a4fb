"""A store dealt out over several directories, or copied to each: parts, written to be used at once.

Owns the copying: each record is read once, compared with its checksum, and written to the parts
that have it. What a part is made of is ``parts``' business; what it needs to be read, ``sources``'.

Invariants: nothing is changed in a directory that is not a part of this store. A file of a part
appears whole or not at all, and part.json after all of them, so a part is complete or it does not
open. What an earlier run has written is read and compared before it is believed: the same command
goes on after a kill, and mends a damaged part.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import xxhash

from flashmoe.errors import ConversionError, InputError, ReadError, StoreError
from flashmoe.quant import Array
from flashmoe.store.convert import Progress, Watcher
from flashmoe.store.manifest import LayerEntry
from flashmoe.store.parts import MAX_PARTS, PART, SPREAD_JOURNAL, Part, Source, whole
from flashmoe.store.reader import Store
from flashmoe.store.sources import read_exactly, read_part
from flashmoe.store.writer import PARTIAL, PartialFile, sync_directory

try:
    import fcntl
except ImportError:  # not a POSIX system: two at once are the user's to avoid
    fcntl = None  # type: ignore[assignment]

SMALL_FILES_BYTES = 1 << 20
"""Set aside for part.json, directory and rounding to blocks."""

_IGNORED = {"lost+found", SPREAD_JOURNAL + PARTIAL}
_FULL = (errno.ENOSPC, errno.EDQUOT)


def spread(
    path: str | Path,
    directories: Sequence[str | Path],
    *,
    mirror: bool = False,
    progress: Watcher | None = None,
) -> tuple[Part, ...]:
    """Write one part of a store into each directory, or go on where an earlier run stopped.

    Expert e of every layer goes to directory ``e % n``; with ``mirror`` each gets all of them.
    Directories are made if need be. ``progress`` is called after every record. Returns the parts.

    Raises:
        StoreError: the store does not open, or a record of it is damaged.
        ConversionError: a directory holds something else, or its disk is full.
        InputError: no directory, too many, or one twice.
    """
    store = Store.open(path)
    places = [Path(directory) for directory in directories]
    if not 1 <= len({place.resolve() for place in places}) == len(places) <= MAX_PARTS:
        raise InputError(
            f"spreading takes from 1 to {MAX_PARTS} different directories: give each with "
            "--store-dir"
        )
    kind = "mirror" if mirror else "stripe"
    checksum = store.manifest.checksum
    parts = {place: Part(checksum, kind, index, len(places)) for index, place in enumerate(places)}
    with ExitStack() as stack:
        for directory, part in parts.items():
            stack.enter_context(_claimed(directory, part))
        _Spreading(store, parts, progress).all()
    return tuple(parts.values())


class _Spreading:
    """One run: every layer in turn, to the parts that do not have it yet."""

    def __init__(self, store: Store, parts: dict[Path, Part], progress: Watcher | None) -> None:
        self._store = store
        self._parts = parts
        self._watcher = progress
        self._first = _firsts(store)
        self._done_bytes = 0
        self._total_bytes = sum(source[0].nbytes for source in store.sources)

    def all(self) -> None:
        self._check_space()
        for directory, part in self._parts.items():
            if not (directory / PART).exists():
                with _writing(directory, SPREAD_JOURNAL) as file:
                    _write(file, part.to_json().encode(), 0)
        for layer, entry in enumerate(self._store.manifest.layers):
            self._layer(layer, entry)
        for directory in self._parts:
            if not (directory / PART).exists():
                _finish(directory)

    def _layer(self, layer: int, entry: LayerEntry) -> None:
        """Bring a layer's file into every part."""
        first = self._store.manifest.layers[self._first[layer]]
        missing = []
        for directory, part in self._parts.items():
            wanted = part.source(directory, entry)
            if _is_whole(wanted):
                continue
            if first is entry or not _linked(part.source(directory, first), wanted):
                missing.append(wanted)
        if missing:
            self._copy(whole(self._store.path, entry), missing)
        else:
            self._report(self._store.sources[layer][0].nbytes, entry.file)

    def _copy(self, source: Source, missing: list[Source]) -> None:
        """Write each file that is missing, reading every record once."""
        entry, record_bytes = source.entry, source.entry.layout.record_bytes
        record = np.empty(record_bytes, np.uint8)
        with ExitStack() as stack:
            descriptor = stack.enter_context(_reading(source.path))
            files = [
                (wanted, stack.enter_context(_writing(wanted.directory, wanted.name)))
                for wanted in missing
            ]
            for wanted, file in files:
                _write(file, wanted.header, 0)
            self._report(source.data_offset, source.name)
            for expert in source.experts:
                takers = [(wanted, file) for wanted, file in files if expert in wanted.experts]
                if takers:
                    _read(descriptor, record, source, expert)
                    if xxhash.xxh3_64_hexdigest(record.data) != entry.checksums[expert]:
                        raise ReadError(
                            f"{source.path}: expert {expert} is damaged: run `flashmoe verify "
                            f"{self._store.path}`, then convert the checkpoint again"
                        )
                for wanted, file in takers:
                    _write(file, record.data, wanted.offset(expert))
                self._report(record_bytes, source.name)

    def _check_space(self) -> None:
        """See that what is missing fits, where several directories share a disk all of it."""
        missing: defaultdict[int, int] = defaultdict(int)
        sharing: defaultdict[int, list[Path]] = defaultdict(list)
        for directory, part in self._parts.items():
            disk = directory.stat().st_dev
            sharing[disk].append(directory)
            missing[disk] += SMALL_FILES_BYTES
            for layer in set(self._first):
                wanted = part.source(directory, self._store.manifest.layers[layer])
                there = wanted.path.stat().st_size if wanted.path.exists() else 0
                missing[disk] += max(wanted.nbytes - there, 0)
        for disk, needed in missing.items():
            free = shutil.disk_usage(sharing[disk][0]).free
            if needed > free:
                names = " and ".join(map(str, sharing[disk]))
                raise ConversionError(
                    f"{names} needs {needed:,} bytes and its disk has {free:,} free: make room "
                    f"for {needed - free:,} more, or choose another disk"
                )

    def _report(self, nbytes: int, what: str) -> None:
        self._done_bytes += nbytes
        if self._watcher is not None:
            self._watcher(Progress(self._done_bytes, self._total_bytes, what))


def _finish(directory: Path) -> None:
    try:
        os.replace(directory / SPREAD_JOURNAL, directory / PART)
        sync_directory(directory)
    except OSError as error:
        raise _failure(directory / PART, error) from error


def _firsts(store: Store) -> list[int]:
    """For each layer the first one whose file is the same by a link: it is copied once."""
    seen: dict[tuple[object, ...], int] = {}
    firsts = []
    for layer, entry in enumerate(store.manifest.layers):
        status = (store.path / entry.file).stat()
        same = (status.st_dev, status.st_ino, entry.layout, entry.checksums)
        firsts.append(seen.setdefault(same, layer))
    return firsts


def _linked(first: Source, wanted: Source) -> bool:
    """Give a part's file another name; False where the file system cannot."""
    partial = wanted.directory / (wanted.name + PARTIAL)
    try:
        partial.unlink(missing_ok=True)
        os.link(first.path, partial)
        os.replace(partial, wanted.path)
        sync_directory(wanted.directory)
    except OSError:
        return False
    finally:
        with suppress(OSError):  # left over where both names were one file already
            partial.unlink()
    return True


def _is_whole(wanted: Source) -> bool:
    """Whether a file of a part is there, with the right bytes."""
    try:
        if wanted.path.stat().st_size != wanted.nbytes:
            return False
        with wanted.path.open("rb", buffering=0) as file:
            header = np.empty(wanted.data_offset, np.uint8)
            read_exactly(file.fileno(), header, 0, wanted.path, "header")
            if header.tobytes() != wanted.header:
                return False
            record = np.empty(wanted.entry.layout.record_bytes, np.uint8)
            for expert in wanted.experts:
                _read(file.fileno(), record, wanted, expert)
                if xxhash.xxh3_64_hexdigest(record.data) != wanted.entry.checksums[expert]:
                    return False
    except (OSError, ReadError):
        return False
    return True


def _read(descriptor: int, record: Array, source: Source, expert: int) -> None:
    read_exactly(descriptor, record, source.offset(expert), source.path, f"expert {expert}")


@contextmanager
def _reading(path: Path) -> Iterator[int]:
    """A descriptor of a file that is read once, so not to be kept in the page cache."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ReadError(f"{path} cannot be opened: {error.strerror}; mend that") from error
    try:
        yield descriptor
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


@contextmanager
def _writing(directory: Path, name: str) -> Iterator[PartialFile]:
    try:
        with PartialFile(directory, name) as file:
            yield file
    except OSError as error:
        raise _failure(directory / name, error) from error


def _write(file: PartialFile, data: bytes | memoryview, offset: int) -> None:
    """Write to one of several open files, naming it where that fails."""
    try:
        file.write(data, offset)
    except OSError as error:
        raise _failure(file.path, error) from error


def _failure(path: Path, error: OSError) -> ConversionError:
    again = "then run the same command again: it goes on where it stopped"
    if error.errno in _FULL:
        free = shutil.disk_usage(path.parent).free
        return ConversionError(
            f"{path}: the disk is full ({free:,} bytes are free): make room, {again}"
        )
    return ConversionError(f"{path} cannot be written: {error.strerror}; mend that, {again}")


@contextmanager
def _claimed(directory: Path, part: Part) -> Iterator[None]:
    """Take a directory for a part: a new or empty one, or one that has this part already.

    Raises:
        ConversionError: it holds something else, or another process is at work there.
    """
    made = False
    try:
        made = not directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
    except FileExistsError as error:
        raise ConversionError(f"{directory} is a file: choose another directory") from error
    except OSError as error:
        raise ConversionError(
            f"{directory} cannot be written: {error.strerror}; choose another directory"
        ) from error
    try:
        _lock(descriptor, directory)
        _refuse_foreign(directory, part)
        yield
    finally:
        os.close(descriptor)
        if made:
            with suppress(OSError):  # not empty: something has been achieved
                directory.rmdir()


def _lock(descriptor: int, directory: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConversionError(
            f"another `flashmoe spread` is writing to {directory}: wait for it"
        ) from error
    except OSError:  # a file system without locks: two at once are the user's to avoid
        return


def _refuse_foreign(directory: Path, part: Part) -> None:
    try:
        found = read_part(directory) or read_part(directory, SPREAD_JOURNAL)
    except StoreError as error:
        raise ConversionError(
            f"{directory} holds a part that cannot be told ({error}): remove it yourself, or "
            "choose another directory"
        ) from error
    if found is None and {path.name for path in directory.iterdir()} <= _IGNORED:
        return
    if found is None:
        raise ConversionError(
            f"{directory} is not empty and holds no part of a store; nothing there has been "
            "touched: choose another directory"
        )
    if found != part:
        raise ConversionError(
            f"{directory} holds {found} of store {found.store}, not {part} of {part.store}; "
            "nothing there has been touched: choose another directory, or remove it yourself"
        )

"""A store against its own checksums, and against the checkpoint that it was made from.

Owns the search for damage: every header, record, trunk part and text file; a manifest that was
changed does not open in the first place.
One flipped bit anywhere in a store is found, and named by file and record.

Invariant: nothing is repaired or written, and memory stays at one record or one chunk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from flashmoe.errors import ConversionError, InputError, ReadError, StoreError
from flashmoe.store.checkpoint import open_checkpoint
from flashmoe.store.conversion import THREADS, Conversion, in_order
from flashmoe.store.convert import Progress, Watcher, text_chunks
from flashmoe.store.layout import MANIFEST, TRUNK, trunk_header
from flashmoe.store.manifest import LayerEntry, Manifest
from flashmoe.store.parts import Source
from flashmoe.store.plan import plan
from flashmoe.store.reader import Store
from flashmoe.store.sources import read_exactly

CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: the file, what in it, and how."""

    file: str
    name: str
    detail: str


@dataclass(frozen=True)
class Report:
    """What was looked at, and what was found wrong."""

    records_checked: int
    bytes_checked: int
    faults: tuple[Fault, ...]


def verify(
    path: str | Path,
    *,
    against: Path | None = None,
    store_dirs: Sequence[Path] = (),
    progress: Watcher | None = None,
) -> Report:
    """Read a whole store and compare all of it with its manifest.

    What it has in the directories ``store_dirs`` is read and compared, too.

    With ``against`` every record and trunk part is also converted again from that checkpoint,
    with the store's own options, and its checksum compared.

    Raises:
        StoreError: the store does not open: missing, unfinished, malformed, of wrong size.
        CheckpointError: ``against`` cannot be read, or is not a supported checkpoint.
    """
    store = Store.open(path, store_dirs)
    check = _Check(store, progress, again=against is not None)
    check.trunk()
    for sources in store.sources:
        for source in sources:
            check.layer(source)
    check.texts()
    if against is not None:
        check.against(against)
    return Report(check.records, check.done_bytes, tuple(check.faults))


class _Check:
    """One run over one store; gathers faults."""

    def __init__(self, store: Store, progress: Watcher | None, again: bool) -> None:
        self.store = store
        self.faults: list[Fault] = []
        self.records = 0
        self.done_bytes = 0
        self._watcher = progress
        texts = (store.path / name for name in store.manifest.files)
        sizes = store.file_sizes()
        there = sizes[TRUNK] + sum(file.nbytes for files in store.sources for file in files)
        self._total_bytes = there + (sum(sizes.values()) if again else 0)
        self._total_bytes += sum(path.stat().st_size for path in texts if path.is_file())

    def trunk(self) -> None:
        """Header and every part of the trunk."""
        manifest = self.store.manifest
        header, extents = trunk_header(manifest.trunk)
        with self._reading(self.store.path / TRUNK) as read:
            self._header(TRUNK, read, header)
            for name, (offset, nbytes) in extents.items():
                digest = xxhash.xxh3_64()
                for start in range(0, nbytes, CHUNK_BYTES):
                    count = min(CHUNK_BYTES, nbytes - start)
                    digest.update(read(offset + start, count, name))
                    self._report(count, TRUNK)
                self._compare(TRUNK, name, manifest.trunk_checksums[name], digest.hexdigest())

    def layer(self, source: Source) -> None:
        """Header and every record, padding included, of one file of a layer."""
        entry, name = source.entry, source.name
        if source.directory != self.store.path:
            name = str(source.path)
        with self._reading(source.path) as read:
            self._header(name, read, source.header)
            for expert in source.experts:
                nbytes = entry.layout.record_bytes
                record = read(source.offset(expert), nbytes, f"expert {expert}")
                found = xxhash.xxh3_64_hexdigest(record)
                self._compare(name, f"expert {expert}", entry.checksums[expert], found)
                self.records += 1
                self._report(nbytes, name)

    def texts(self) -> None:
        """The text files."""
        for name, checksum in self.store.manifest.files.items():
            path = self.store.path / name
            digest = xxhash.xxh3_64()
            try:
                with path.open("rb") as file:
                    while chunk := file.read(CHUNK_BYTES):
                        digest.update(chunk)
                        self._report(len(chunk), name)
            except OSError as error:
                self._fault(name, "text", f"cannot be read: {error.strerror}")
            else:
                self._compare(name, "text", checksum, digest.hexdigest())

    def against(self, source: Path) -> None:
        """Everything again from the checkpoint."""
        with open_checkpoint(source) as checkpoint, ThreadPoolExecutor(THREADS) as pool:
            options = _options(self.store.manifest)
            try:
                conversion = plan(checkpoint, **options)
            except InputError as error:
                raise StoreError(
                    f"{self.store.path / MANIFEST}: conversion {options} is malformed: {error}; "
                    "convert the checkpoint again"
                ) from error
            except ConversionError as error:
                self._fault(MANIFEST, "conversion", f"is not one of this checkpoint: {error}")
                return
            if not self._same_plan(conversion):
                return
            self._trunk_again(pool, conversion)
            for layer, entry in enumerate(self.store.manifest.layers):
                self._layer_again(pool, conversion, layer, entry)
            self._texts_again(conversion)

    def _same_plan(self, conversion: Conversion) -> bool:
        manifest = self.store.manifest
        for name, ours, theirs in (
            ("shape", manifest.shape, conversion.recipe.shape),
            ("trunk", manifest.trunk, conversion.trunk),
            ("layouts", tuple(e.layout for e in manifest.layers), conversion.layouts),
        ):
            if ours != theirs:
                self._fault(MANIFEST, name, "is not what the checkpoint gives: another model")
                return False
        return True

    def _trunk_again(self, pool: ThreadPoolExecutor, conversion: Conversion) -> None:
        checksums = self.store.manifest.trunk_checksums
        digests = {name: xxhash.xxh3_64() for name in checksums}
        self._report(len(conversion.trunk_layout[0]), TRUNK)
        for parts in in_order(pool, conversion.trunk_arrays, conversion.trunk_blocks()):
            for name, _, data in parts:
                digests[name].update(data)
                self._report(data.nbytes, TRUNK)
        for name, digest in digests.items():
            self._compare(TRUNK, name, checksums[name], digest.hexdigest(), "the checkpoint gives")

    def _layer_again(
        self, pool: ThreadPoolExecutor, conversion: Conversion, layer: int, entry: LayerEntry
    ) -> None:
        def checksum(expert: int) -> str:
            return conversion.record(layer, expert)[1]

        self._report(entry.data_offset, entry.file)
        again = in_order(pool, checksum, range(len(entry.checksums)))
        for expert, found in enumerate(again):
            wanted = entry.checksums[expert]
            self._compare(entry.file, f"expert {expert}", wanted, found, "the checkpoint gives")
            self._report(entry.layout.record_bytes, entry.file)

    def _texts_again(self, conversion: Conversion) -> None:
        texts, files = conversion.checkpoint.text_files, self.store.manifest.files
        for name in sorted(texts.keys() | files.keys()):
            digest = xxhash.xxh3_64()
            for chunk in text_chunks(texts.get(name, b"")):
                digest.update(chunk)
            wanted = files.get(name, "nothing")
            self._compare(name, "text", wanted, digest.hexdigest(), "the checkpoint gives")

    def _header(
        self, file: str, read: Callable[[int, int, str], memoryview], wanted: bytes
    ) -> None:
        if read(0, len(wanted), "header") != wanted:
            self._fault(file, "header", "differs from the one that the manifest describes")
        self._report(len(wanted), file)

    def _compare(
        self, file: str, name: str, wanted: str, found: str, source: str = "the file has"
    ) -> None:
        if found != wanted:
            self._fault(file, name, f"checksum {wanted} is recorded, {source} {found}")

    def _fault(self, file: str, name: str, detail: str) -> None:
        self.faults.append(Fault(file, name, detail))

    def _report(self, nbytes: int, what: str) -> None:
        self.done_bytes += nbytes
        if self._watcher is not None:
            self._watcher(Progress(self.done_bytes, self._total_bytes, what))

    @contextmanager
    def _reading(self, path: Path) -> Iterator[Callable[[int, int, str], memoryview]]:
        """A function (offset, nbytes, what) that reads from one file of the store."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ReadError(f"{path} cannot be opened: {error.strerror}") from error

        def read(offset: int, nbytes: int, what: str) -> memoryview:
            buffer = np.empty(nbytes, np.uint8)
            read_exactly(descriptor, buffer, offset, path, what)
            return buffer.data

        try:
            yield read
            if hasattr(os, "posix_fadvise"):  # a whole store would push out everything else
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _options(manifest: Manifest) -> dict[str, int | None]:
    """The options that the store was made with.

    Raises:
        StoreError: the manifest does not say them.
    """
    options: dict[str, int | None] = {}
    if not isinstance(manifest.conversion, dict):
        raise StoreError(f"{MANIFEST}: conversion is not an object: convert the checkpoint again")
    for name in ("bits", "group", "trunk_bits", "slices"):
        value = manifest.conversion.get(name, "")
        if value is not None and type(value) is not int:
            raise StoreError(
                f"{MANIFEST}: conversion {name} is {value!r}, not a number: convert the "
                "checkpoint again"
            )
        options[name] = value
    return options

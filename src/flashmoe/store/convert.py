"""Checkpoint to store: file by file, resumable after a kill at any byte, bounded in memory.

Owns the order of events: trunk, layers, text files, manifest, end of the journal. What the bytes
are is ``conversion``'s business, and who may write where is ``workshop``'s.

Invariants: the store is a pure function of the checkpoint's bytes and the options; a directory
has a manifest only while everything that it lists is on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import xxhash

from flashmoe.errors import CheckpointError
from flashmoe.quant import Array
from flashmoe.store.checkpoint import TEXT_FILES, open_checkpoint
from flashmoe.store.conversion import THREADS, Conversion, in_order
from flashmoe.store.layout import MANIFEST, TRUNK, layer_file
from flashmoe.store.manifest import Manifest
from flashmoe.store.plan import plan
from flashmoe.store.workshop import Workshop, claim
from flashmoe.store.writer import PartialFile

COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Progress:
    """How far a conversion or a verification is; ``what`` is the file at work."""

    done_bytes: int
    total_bytes: int
    what: str


Watcher: TypeAlias = Callable[[Progress], None]


def convert(
    source: Path,
    destination: Path,
    *,
    bits: int | None = None,
    group: int | None = None,
    trunk_bits: int | None = None,
    slices: int | None = None,
    force: bool = False,
    progress: Watcher | None = None,
) -> Manifest:
    """Convert a published checkpoint into a store, or go on where an earlier run stopped.

    ``source`` is a directory or a .gguf file; ``destination`` a directory, made if need be. The
    options are those of :func:`flashmoe.store.plan.plan`. ``force`` starts over in a
    directory that holds a store, complete or not. ``progress`` is called after every record.

    Raises:
        CheckpointError: the source is not supported, incomplete or damaged.
        ConversionError: the destination is taken, the options do not fit, or the disk is full.
        InputError: an option has a value that is never possible.
    """
    with open_checkpoint(source) as checkpoint:
        conversion = plan(checkpoint, bits=bits, group=group, trunk_bits=trunk_bits, slices=slices)
        with claim(destination, conversion, force=force) as workshop:
            return _Run(conversion, workshop, progress).all()


class _Run:
    """One run over what a workshop does not have yet."""

    def __init__(
        self, conversion: Conversion, workshop: Workshop, progress: Watcher | None
    ) -> None:
        self._conversion = conversion
        self._workshop = workshop
        self._watcher = progress
        self._total_bytes = sum(workshop.sizes.values())
        self._done_bytes = self._total_bytes - workshop.missing_bytes

    def all(self) -> Manifest:
        """Write what is missing; the manifest of the complete store."""
        workshop, layers = self._workshop, range(len(self._conversion.layouts))
        with ThreadPoolExecutor(THREADS, thread_name_prefix="convert") as pool:
            if TRUNK not in workshop.finished:
                with workshop.writing(TRUNK) as file:
                    trunk = self._trunk(pool, file)
                workshop.record(TRUNK, trunk)
            for layer in layers:
                name = layer_file(layer)
                if name not in workshop.finished:
                    with workshop.writing(name) as file:
                        checksums = self._layer(pool, file, layer)
                    workshop.record(name, checksums)
        files = dict(self._texts())
        finished = workshop.finished
        manifest = self._conversion.manifest(
            finished[TRUNK], [finished[layer_file(layer)] for layer in layers], files
        )
        with workshop.writing(MANIFEST) as file:
            file.write(manifest.to_json().encode(), 0)
        workshop.complete()
        return manifest

    def _trunk(self, pool: ThreadPoolExecutor, file: PartialFile) -> dict[str, str]:
        header, extents = self._conversion.trunk_layout
        file.write(header, 0)
        self._report(len(header), TRUNK)
        digests = {name: xxhash.xxh3_64() for name in extents}
        blocks = self._conversion.trunk_blocks()
        for arrays in in_order(pool, self._conversion.trunk_arrays, blocks):
            for name, offset, data in arrays:
                digests[name].update(data)
                file.write(data, extents[name][0] + offset)
                self._report(data.nbytes, TRUNK)
        return {name: digest.hexdigest() for name, digest in digests.items()}

    def _layer(self, pool: ThreadPoolExecutor, file: PartialFile, layer: int) -> list[str]:
        header = self._conversion.layer_header(layer)
        file.write(header, 0)
        offset, checksums = len(header), []
        self._report(len(header), file.path.name)

        def make(expert: int) -> tuple[Array, str]:
            return self._conversion.record(layer, expert)

        for record, checksum in in_order(pool, make, range(self._conversion.experts)):
            file.write(record.data, offset)
            offset += record.nbytes
            checksums.append(checksum)
            self._report(record.nbytes, file.path.name)
        return checksums

    def _texts(self) -> Iterator[tuple[str, str]]:
        """Copy the text files; their names and checksums."""
        texts = self._conversion.checkpoint.text_files
        for name in [name for name in TEXT_FILES if name in texts]:
            digest, offset = xxhash.xxh3_64(), 0
            with self._workshop.writing(name) as file:
                for chunk in text_chunks(texts[name]):
                    digest.update(chunk)
                    file.write(chunk, offset)
                    offset += len(chunk)
            yield name, digest.hexdigest()

    def _report(self, nbytes: int, what: str) -> None:
        self._done_bytes += nbytes
        if self._watcher is not None:
            self._watcher(Progress(self._done_bytes, self._total_bytes, what))


def text_chunks(text: Path | bytes) -> Iterator[bytes]:
    """The bytes of a text file of a checkpoint, in small pieces.

    Raises:
        CheckpointError: it cannot be read.
    """
    if isinstance(text, bytes):
        yield text
        return
    try:
        with text.open("rb") as file:
            while chunk := file.read(COPY_BYTES):
                yield chunk
    except OSError as error:
        raise CheckpointError(f"{text} cannot be read: {error.strerror}; check the disk") from error

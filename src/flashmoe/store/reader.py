"""Open a store: check it, hand out the trunk and the addresses of the records.

Owns reading everything in a store but the experts; those are read by ``stream.streamer`` at the
addresses given here. A store that is unfinished, of another version or of the wrong size does
not open.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from flashmoe import quant
from flashmoe.arena import arena
from flashmoe.errors import InputError, ReadError, StoreError
from flashmoe.quant import Array, Matrix
from flashmoe.shape import ModelShape
from flashmoe.store.layout import (
    JOURNAL,
    MANIFEST,
    TRUNK,
    RecordLayout,
    TrunkTensor,
    trunk_header,
)
from flashmoe.store.manifest import Manifest
from flashmoe.store.parts import whole
from flashmoe.store.sources import Sources, check_size, gather, read_exactly

MANIFEST_LIMIT_BYTES = 256 << 20
"""A manifest of 200,000 records takes 5 MB; a larger file than this is not a manifest."""

CACHE_LINE_BYTES = 64
"""Parts of the trunk begin at multiples of this in memory, as vector loads like it."""


def locate(name: str | Path) -> Path:
    """The directory of a store: a path, or ``demo`` for the one that the package ships.

    A directory called ``demo`` in the working directory is reached as ``./demo``.
    """
    if not isinstance(name, str | Path):
        raise InputError(f"the store is {name!r}; it must be a path, or 'demo'")
    if str(name) == "demo":
        return Path(__file__).parents[1] / "demo"
    return Path(name)


@dataclass(frozen=True)
class RecordAddress:
    """Where one expert lies, and what it must hash to; ``label`` names it in errors."""

    layer: int
    expert: int
    path: Path
    offset: int
    nbytes: int
    checksum: str
    label: str


class Store:
    """A complete store. Immutable; holds no open files."""

    def __init__(self, path: Path, manifest: Manifest, sources: Sources | None = None) -> None:
        self.path = path
        self.manifest = manifest
        own = ((whole(path, entry),) for entry in manifest.layers)
        self.sources = tuple(own) if sources is None else sources
        """The files with records of each layer, by layer; an expert may be in several."""

    @classmethod
    def open(cls, name: str | Path, directories: Sequence[str | Path] = ()) -> Store:
        """Open a store and check that every file is there and of the right size.

        ``directories`` hold parts or copies of it; layer files that they supply may be missing.

        Raises:
            StoreError: missing, unfinished, another version, malformed, cut short, or a
                directory that does not belong to it.
            InputError: a directory is named twice.
        """
        path = locate(name)
        manifest = _read_manifest(path)
        sources = gather(path, manifest, [Path(directory) for directory in directories])
        store = cls(path, manifest, sources)
        mend = "copy it from the original store, or convert again"
        check_size(path / TRUNK, store.file_sizes()[TRUNK], mend)
        return store

    @property
    def directories(self) -> tuple[Path, ...]:
        """Where its records lie: its own directory, if it has any, and then the others."""
        return tuple(dict.fromkeys(file.directory for files in self.sources for file in files))

    def weight_files(self) -> set[Path]:
        """Every file with weights, wherever it is."""
        return {self.path / TRUNK, *(file.path for files in self.sources for file in files)}

    @cached_property
    def _extents(self) -> Mapping[str, tuple[int, int]]:
        """(offset in its file, nbytes) of every part of the trunk, by name."""
        return trunk_header(self.manifest.trunk)[1]

    @property
    def shape(self) -> ModelShape:
        """The model's dimensions."""
        return self.manifest.shape

    def layout(self, layer: int) -> RecordLayout:
        """How the records of a layer lie."""
        return self.manifest.layers[layer].layout

    def record(self, layer: int, expert: int) -> RecordAddress:
        """The address of one expert; of several copies, that of the first."""
        entry = self.manifest.layers[layer]
        source = next(file for file in self.sources[layer] if expert in file.experts)
        return RecordAddress(
            layer=layer,
            expert=expert,
            path=source.path,
            offset=source.offset(expert),
            nbytes=entry.layout.record_bytes,
            checksum=entry.checksums[expert],
            label=f"expert {expert} of layer {layer}",
        )

    def file_sizes(self) -> dict[str, int]:
        """Size in bytes that each weight file must have where the store is in one piece."""
        sizes = {entry.file: entry.offset(len(entry.checksums)) for entry in self.manifest.layers}
        header, extents = trunk_header(self.manifest.trunk)
        sizes[TRUNK] = max((o + n for o, n in extents.values()), default=len(header))
        return sizes

    def text(self, name: str) -> str | None:
        """A text file of the store, checked against its checksum; None if it has none.

        Raises:
            StoreError: missing or changed.
        """
        wanted = self.manifest.files.get(name)
        if wanted is None:
            return None
        try:
            content = (self.path / name).read_bytes()
            text = content.decode()
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{self.path / name} cannot be read: {error}") from error
        if xxhash.xxh3_64_hexdigest(content) != wanted:
            raise StoreError(
                f"{self.path / name} does not match its checksum: it was changed after "
                "conversion; restore it, or convert again"
            )
        return text

    def trunk(self, only: Container[str] | None = None) -> dict[str, Matrix]:
        """Read every resident tensor, or those of these names, checked against its checksum.

        A tensor that is not a matrix has its one array in ``Matrix.weight``, of its own shape.

        Raises:
            ReadError: cut short or damaged; names file and tensor.
        """
        extents = self._extents
        wanted = [one for one in self.manifest.trunk if only is None or one.name in only]
        parts = [name for tensor in wanted for name, _ in tensor.named_parts()]
        memory = _trunk_memory({name: extents[name] for name in parts})
        with open(self.path / TRUNK, "rb", buffering=0) as file:
            tensors = {}
            for tensor in wanted:
                tensors[tensor.name] = self._read_tensor(file.fileno(), tensor, extents, memory)
                _forget_pages(file.fileno())
        return tensors

    def tensors(self) -> Mapping[str, Matrix]:
        """The same, each read whenever it is looked up, and kept by nobody."""
        return _Tensors(self)

    def _read_tensor(
        self,
        descriptor: int,
        tensor: TrunkTensor,
        extents: Mapping[str, tuple[int, int]],
        memory: Mapping[str, Array],
    ) -> Matrix:
        arrays: dict[str, Array] = {}
        for name, part in tensor.named_parts():
            offset, _ = extents[name]
            raw = memory[name]
            read_exactly(descriptor, raw, offset, self.path / TRUNK, name)
            found = xxhash.xxh3_64_hexdigest(raw.data)
            if found != self.manifest.trunk_checksums[name]:
                raise ReadError(
                    f"{self.path / TRUNK}: {name} does not match its checksum (found {found}); "
                    "the file is damaged: convert the checkpoint again"
                )
            arrays[part.suffix] = raw.view(part.numpy_dtype).reshape(part.shape)
        rows = tensor.shape[0]
        columns = int(np.prod(tensor.shape[1:], dtype=np.int64))
        return quant.matrix(tensor.form, (rows, columns), arrays)


class _Tensors(Mapping[str, Matrix]):
    def __init__(self, store: Store) -> None:
        self._store = store
        self._names = {tensor.name: None for tensor in store.manifest.trunk}

    def __getitem__(self, name: str) -> Matrix:
        if name not in self._names:
            raise KeyError(name)
        return self._store.trunk((name,))[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _trunk_memory(extents: Mapping[str, tuple[int, int]]) -> dict[str, Array]:
    """A place in one arena for every part of the trunk."""
    places, end = {}, 0
    for name, (_, nbytes) in extents.items():
        places[name] = (end, nbytes)
        end += -(-nbytes // CACHE_LINE_BYTES) * CACHE_LINE_BYTES
    whole = np.frombuffer(arena(end), np.uint8)
    return {name: whole[start : start + nbytes] for name, (start, nbytes) in places.items()}


def _forget_pages(descriptor: int) -> None:
    """Let the page cache drop a file, so that what was read does not lie in memory twice."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _read_manifest(path: Path) -> Manifest:
    manifest = path / MANIFEST
    if not path.is_dir():
        raise StoreError(f"{path} is not a directory; a store is what `flashmoe convert` makes")
    if not manifest.exists():
        if (path / JOURNAL).exists():
            raise StoreError(
                f"{path} is an unfinished store: run the same `flashmoe convert SRC {path}` "
                "again and it goes on where it stopped"
            )
        raise StoreError(
            f"{path} is not a store: it has no {MANIFEST}; make one with "
            f"`flashmoe convert {path} STORE`"
        )
    try:
        if manifest.stat().st_size > MANIFEST_LIMIT_BYTES:
            raise StoreError(f"{manifest} is larger than any manifest; convert again")
        return Manifest.from_json(manifest.read_text(encoding="utf-8"), str(manifest))
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{manifest} cannot be read: {error}") from error


__all__ = ["RecordAddress", "Store", "locate", "read_exactly"]

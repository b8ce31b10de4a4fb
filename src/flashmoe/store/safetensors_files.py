"""Published safetensors files, HF's or MLX's: which shards there are, and reads of their tensors.

Owns the shard index and the reading of rows, MLX's weight, scales and biases as one tensor. Does
not know what a tensor is for: ``families`` gives names their meaning.

Invariant: a tensor is read from a file beside the index and from nowhere else, and in the format
that its header and the config agree on.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from flashmoe.errors import CheckpointError
from flashmoe.quant import FLOATS, Affine, Array, Format, Matrix, Plain
from flashmoe.store.mlx_groups import Quantization, group_tensors
from flashmoe.store.published_files import (
    ACCEPTED,
    AGAIN,
    CONFIG,
    OpenFiles,
    parse_object,
    read_text,
)
from flashmoe.store.safetensors_header import DTYPES, Header, Location, read_header

INDEX = "model.safetensors.index.json"
INDEX_LIMIT_BYTES = 32 << 20
"""The index of 150,000 tensors, the most published so far, takes 15 MB."""
_SHARD = re.compile(r"[\w .+=@-]{0,200}\.safetensors", re.ASCII)


@dataclass(frozen=True)
class Shards:
    """All tensors of a checkpoint; ``identity`` lists file names, sizes and header digests."""

    tensors: dict[str, Location]
    written_by: str
    identity: tuple[str, ...]


class ShardTensors:
    """The tensors of safetensors shards, MLX's weight, scales and biases joined into one."""

    def __init__(
        self, files: OpenFiles, path: Path, shards: Shards, quantization: Quantization | None
    ) -> None:
        self._files = files
        self._path = path
        self._at = shards.tensors
        self.identity = shards.identity
        self._affine: dict[str, Affine] = {}
        parts: set[str] = set()
        if quantization is not None:
            self._affine = group_tensors(self._at, quantization, path)
            parts = {
                f"{name.removesuffix('weight')}{part}"
                for name in self._affine
                for part in ("scales", "biases")
            }
        self._names = tuple(name for name in self._at if name not in parts)

    def names(self) -> Collection[str]:
        return self._names

    def form(self, name: str) -> Format:
        if name in self._affine:
            return self._affine[name]
        dtype = self._at[name].dtype
        if dtype not in FLOATS:
            raise CheckpointError(
                f"{self._at[name].path}: tensor {name!r} is of type {dtype}; {ACCEPTED} "
                f"(for MLX, {CONFIG} must have 'quantization')"
            )
        return Plain(dtype)  # type: ignore[arg-type]

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._at[name].shape
        if name in self._affine:
            return (*shape[:-1], shape[-1] * 32 // self._affine[name].bits)
        return shape

    def rows(self, name: str, start: int, stop: int) -> Matrix:
        form = self.form(name)
        shape = (stop - start, self.shape(name)[-1] if self.shape(name) else 1)
        weight = self._read(name, start, stop)
        if isinstance(form, Plain):
            return Matrix(form, shape, weight)
        stem = name.removesuffix("weight")
        scales, biases = (self._read(stem + part, start, stop) for part in ("scales", "biases"))
        return Matrix(form, shape, weight, scales, biases)

    def values(self, name: str) -> Array:
        location = self._at[name]
        if name in self._affine or location.dtype not in DTYPES:
            what = "quantised" if name in self._affine else f"of type {location.dtype}"
            raise CheckpointError(
                f"{location.path}: tensor {name!r} is {what} where plain numbers are expected; "
                f"{ACCEPTED}"
            )
        raw = self._files.read(location.path, location.offset, location.nbytes, repr(name))
        return raw.view(DTYPES[location.dtype]).reshape(location.shape)

    def _read(self, name: str, start: int, stop: int) -> Array:
        location = self._at[name]
        dtype = DTYPES[location.dtype]
        columns = location.shape[-1] if location.shape else 1
        row_bytes = columns * dtype.itemsize
        offset, nbytes = location.offset + start * row_bytes, (stop - start) * row_bytes
        raw = self._files.read(location.path, offset, nbytes, f"tensor {name!r}")
        return raw.view(dtype).reshape(stop - start, columns)


def open_shards(files: OpenFiles, directory: Path) -> Shards:
    """Find the safetensors files of a checkpoint directory and read their headers.

    The index decides where there is one; else ``model.safetensors``; else every
    ``*.safetensors``.

    Raises:
        CheckpointError: a file is missing or malformed, or files contradict each other.
    """
    index = directory / INDEX
    wanted = _weight_map(files, index) if index.is_file() else None
    names = sorted(set(wanted.values())) if wanted is not None else _unindexed(directory)
    for name in names:
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory / name} is missing: download this file")
    headers = {name: read_header(files, directory / name) for name in names}
    identity = tuple(f"{n} {files.size(directory / n)} {headers[n].digest}" for n in names)
    written_by = {header.written_by for header in headers.values()}
    tensors = _merge(directory, headers) if wanted is None else _select(directory, headers, wanted)
    return Shards(tensors, written_by.pop() if len(written_by) == 1 else "", identity)


def _weight_map(files: OpenFiles, index: Path) -> dict[str, str]:
    mapping = parse_object(read_text(files, index, INDEX_LIMIT_BYTES), str(index)).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise CheckpointError(f"{index} has no weight_map of tensors to files; {AGAIN}")
    for name, shard in mapping.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise CheckpointError(
                f"{index}: tensor {reprlib.repr(name)} is said to be in {reprlib.repr(shard)}, "
                f"which is not a plain *.safetensors name beside the index; {AGAIN}"
            )
    return mapping


def _unindexed(directory: Path) -> list[str]:
    if (directory / "model.safetensors").is_file():
        return ["model.safetensors"]
    names = sorted(path.name for path in directory.glob("*.safetensors"))
    numbered = [match for name in names if (match := re.search(r"-(\d+)-of-(\d+)\.", name))]
    if numbered and int(numbered[0][2]) != len(numbered):
        raise CheckpointError(
            f"{directory} holds {len(numbered)} of the {int(numbered[0][2])} files of "
            f"{numbered[0].string}: download the others"
        )
    if not names:
        raise CheckpointError(
            f"{directory} holds no *.safetensors: give a directory of safetensors, or a .gguf file"
        )
    return names


def _merge(directory: Path, headers: dict[str, Header]) -> dict[str, Location]:
    merged: dict[str, Location] = {}
    for file, header in headers.items():
        for name, location in header.tensors.items():
            if name in merged:
                raise CheckpointError(
                    f"{directory}: tensor {name!r} is in {merged[name].path.name} and in {file}: "
                    f"remove the file that does not belong, or add {INDEX}"
                )
            merged[name] = location
    return merged


def _select(
    directory: Path, headers: dict[str, Header], wanted: dict[str, str]
) -> dict[str, Location]:
    for name, shard in wanted.items():
        if name not in headers[shard].tensors:
            raise CheckpointError(
                f"{directory / shard} lacks tensor {name!r}, which {INDEX} says it holds: "
                "download both again"
            )
    return {name: headers[shard].tensors[name] for name, shard in wanted.items()}

"""Read-only view of a published checkpoint: names, shapes, formats, exact ranges, text files.

Owns opening a checkpoint of any accepted kind, and the one face that all kinds show. Does not
know what a tensor is for (``families`` does) and rounds nothing: every value comes out as it was
published.

Invariant: a :class:`Checkpoint` that opened is consistent with its headers, its index and its
config; whatever is on disk, only :class:`CheckpointError` leaves this module.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeAlias

from flashmoe.errors import CheckpointError, InputError
from flashmoe.quant import Array, Format, Matrix
from flashmoe.store.gguf_file import GgufFile
from flashmoe.store.layout import MANIFEST
from flashmoe.store.mlx_groups import read_quantization
from flashmoe.store.published_files import AGAIN, CONFIG, OpenFiles, parse_object, read_text
from flashmoe.store.safetensors_files import ShardTensors, open_shards
from flashmoe.store.text_files import TEXT_FILES, TEXT_LIMIT_BYTES, text_beside, text_of_fields

__all__ = ["TEXT_FILES", "Checkpoint", "PublishedTensor", "open_checkpoint"]

Kind: TypeAlias = Literal["safetensors", "mlx", "gguf"]


@dataclass(frozen=True)
class PublishedTensor:
    """One tensor as published; ``shape`` counts weights, (.., out, in), whatever their packing."""

    name: str
    form: Format
    shape: tuple[int, ...]


class _Source(Protocol):
    """What a kind of checkpoint offers; ``start`` and ``stop`` have been checked by the caller."""

    @property
    def identity(self) -> tuple[str, ...]: ...
    def names(self) -> Collection[str]: ...
    def form(self, name: str) -> Format: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def rows(self, name: str, start: int, stop: int) -> Matrix: ...
    def values(self, name: str) -> Array: ...


class _Tensors(Mapping[str, PublishedTensor]):
    """The tensors by name. Names are free; a tensor is examined when it is asked for.

    So a tensor of a type that cannot be stored is an error only to those who want it.
    """

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._names = dict.fromkeys(source.names())

    def __getitem__(self, name: str) -> PublishedTensor:
        if name not in self._names:
            raise KeyError(name)
        return PublishedTensor(name, self._source.form(name), self._source.shape(name))

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Checkpoint:
    """A published checkpoint, open for reading by one thread; closes its files on exit.

    ``config`` is config.json ({} for GGUF), ``fields`` GGUF's metadata ({} otherwise).
    ``tensors`` raises CheckpointError for a tensor of a type that is not accepted, when that
    tensor is looked up. ``kind`` is "mlx" for what MLX wrote, quantised or not.
    """

    def __init__(
        self,
        path: Path,
        kind: Kind,
        source: _Source,
        files: OpenFiles,
        config: dict[str, Any],
        fields: dict[str, Any],
    ) -> None:
        self.path = path
        self.kind: Kind = kind
        self.config = config
        self.fields = fields
        self.tensors: Mapping[str, PublishedTensor] = _Tensors(source)
        self._source = source
        self._files = files
        if not self.tensors:
            raise CheckpointError(f"{path} holds no tensors; {AGAIN}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        self._files.close()

    def rows(self, name: str, start: int, stop: int) -> Matrix:
        """Rows ``start`` to ``stop`` of the tensor seen as (product of the leading dims, in).

        A vector of n counts as (1, n). Only these rows are read from disk, and nothing is
        rounded: the matrix is in the tensor's own format.

        Raises:
            CheckpointError: there is no such tensor, its type is not accepted, or a read failed.
            InputError: the rows are not among the tensor's.
        """
        self._require(name)
        rows = math.prod(self._source.shape(name)[:-1])
        if not 0 <= start <= stop <= rows:
            raise InputError(f"rows {start} to {stop} of tensor {name!r}: it has {rows}")
        return self._source.rows(name, start, stop)

    def values(self, name: str) -> Array:
        """A whole small tensor, unquantised, in its own type and shape.

        Raises:
            CheckpointError: there is no such tensor, it is quantised, or a read failed.
        """
        self._require(name)
        return self._source.values(name)

    @cached_property
    def text_files(self) -> Mapping[str, Path | bytes]:
        """Tokenizer, its config, chat template and generation config, where they are present.

        A path for a file that is there as it is; bytes for one made from something else: a
        template kept in tokenizer_config.json, or all of them from GGUF's metadata.

        Raises:
            CheckpointError: tokenizer_config.json or the vocabulary is malformed.
        """
        if self.kind == "gguf":
            return text_of_fields(self.fields, self.path)
        return text_beside(self._files, self.path)

    def fingerprint(self) -> str:
        """Hex SHA-256 of the config and of the files' names, sizes and headers.

        Tells whether an interrupted conversion meets the same checkpoint; blind to a change of
        weights that keeps their shapes.
        """
        config = json.dumps(self.config, sort_keys=True)
        return hashlib.sha256("\n".join((config, *self._source.identity)).encode()).hexdigest()

    def _require(self, name: str) -> None:
        if name not in self.tensors:
            raise CheckpointError(
                f"{self.path} has no tensor {name!r}: it is incomplete, or of another family than "
                f"its config says; {AGAIN}"
            )


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a .gguf file, or a directory of safetensors (HF or MLX) or of one .gguf file.

    Raises:
        CheckpointError: there is no checkpoint there, or it is malformed or not supported.
    """
    files = OpenFiles()
    try:
        return _open(path, files)
    except OSError as error:
        files.close()
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check the path") from error
    except BaseException:
        files.close()
        raise


def _open(path: Path, files: OpenFiles) -> Checkpoint:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: check the path")
    if not path.is_dir():
        if path.suffix == ".safetensors":
            raise CheckpointError(f"{path} is one file: give the directory that holds {CONFIG}")
        return _open_gguf(path, path, files)
    ggufs = sorted(path.glob("*.gguf"))
    if ggufs and not (path / CONFIG).is_file():
        if len(ggufs) > 1:
            names = ", ".join(file.name for file in ggufs[:8])
            raise CheckpointError(f"{path} holds several GGUF files: give one of {names}")
        return _open_gguf(path, ggufs[0], files)
    if not (path / CONFIG).is_file():
        if (path / MANIFEST).is_file():
            raise CheckpointError(f"{path} is a store already: run it as it is")
        raise CheckpointError(
            f"{path} is not a checkpoint: it has no {CONFIG} and no .gguf file; give the directory "
            "that was published"
        )
    config = parse_object(read_text(files, path / CONFIG, TEXT_LIMIT_BYTES), str(path / CONFIG))
    quantization = read_quantization(config, path / CONFIG)
    shards = open_shards(files, path)
    mlx = quantization is not None or shards.written_by == "mlx"
    source = ShardTensors(files, path, shards, quantization)
    return Checkpoint(path, "mlx" if mlx else "safetensors", source, files, config, {})


def _open_gguf(path: Path, file: Path, files: OpenFiles) -> Checkpoint:
    source = GgufFile(files, file)
    return Checkpoint(path, "gguf", source, files, {}, source.fields)

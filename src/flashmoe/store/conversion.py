"""One conversion: recipe and options to formats, layouts, records and blocks of the trunk.

Owns what the bytes of the store will be, as a function of the checkpoint and the options. It is
made by ``plan`` and writes nothing: ``convert`` stores the bytes, ``verify`` compares them.

Invariant: memory stays bounded whatever the model's size: weights pass in blocks of rows of at
most :data:`BLOCK_BYTES` of source (or one row), and at most :data:`IN_FLIGHT` records exist.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import xxhash

from flashmoe.errors import CheckpointError, ConversionError, InputError
from flashmoe.quant import FLOATS, Affine, Array, Format, Matrix, quantize
from flashmoe.store.checkpoint import Checkpoint
from flashmoe.store.layout import (
    PROJECTIONS,
    TRUNK,
    RecordLayout,
    TrunkTensor,
    layer_file,
    layer_header,
    trunk_header,
)
from flashmoe.store.manifest import LayerEntry, Manifest
from flashmoe.store.recipe import Recipe, TrunkSource

BLOCK_BYTES = 1 << 20
"""Source bytes a block. Its float32 copies and codes take about 12 times as much for a moment, and
at this size they stay near the core: 850 MB/s from memory on 2 cores; 64 KiB 440, 4 MiB 490."""
THREADS = 2
IN_FLIGHT = 3
PLAIN_BITS = 16
"""Stands for the published type, whatever its width."""
ROUTER_BITS = 8
"""The router and the shared expert's gate are never stored with fewer."""
GATHER_GAP = 8
"""Published rows that lie this close are read in one piece, the ones between thrown away."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Options:
    """What was asked for, resolved; all None for a source that is repacked as it is.

    ``group`` is None where nothing is quantised, ``slices`` where the model has experts.
    """

    bits: int | None = None
    group: int | None = None
    trunk_bits: int | None = None
    slices: int | None = None

    def describe(self) -> dict[str, int | None]:
        """The options as a JSON object."""
        return {
            "bits": self.bits,
            "group": self.group,
            "trunk_bits": self.trunk_bits,
            "slices": self.slices,
        }


@dataclass(frozen=True)
class TrunkBlock:
    """Rows ``start`` to ``stop`` of one trunk tensor."""

    tensor: int
    start: int
    stop: int


class Conversion:
    """A plan; see :func:`flashmoe.store.plan.plan`. Safe to use from several threads."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, options: Options) -> None:
        self.checkpoint = checkpoint
        self.recipe = recipe
        self.options = options
        self._reading = threading.Lock()  # a Checkpoint serves one thread at a time
        self.layouts = tuple(self._layout(layer) for layer in range(len(recipe.layers)))
        self.trunk = tuple(self._trunk_tensor(source) for source in recipe.trunk)

    @cached_property
    def trunk_layout(self) -> tuple[bytes, Mapping[str, tuple[int, int]]]:
        """The trunk's header, and (offset, nbytes) of each of its parts."""
        return trunk_header(self.trunk)

    @property
    def experts(self) -> int:
        """Records in each layer file."""
        return self.recipe.shape.experts.count

    def layer_header(self, layer: int) -> bytes:
        """The header of a layer file."""
        return layer_header(self.layouts[layer], self.experts)

    def file_bytes(self) -> dict[str, int]:
        """Size of every weight file, in the order in which they are written."""
        header, extents = self.trunk_layout
        sizes = {TRUNK: max((at + nbytes for at, nbytes in extents.values()), default=len(header))}
        for layer, layout in enumerate(self.layouts):
            records = self.experts * layout.record_bytes
            sizes[layer_file(layer)] = len(self.layer_header(layer)) + records
        return sizes

    def record(self, layer: int, expert: int) -> tuple[Array, str]:
        """The padded bytes of one record, and their checksum.

        Raises:
            CheckpointError: the source cannot be read, or a weight is not finite.
        """
        layout = self.layouts[layer]
        record = np.zeros(layout.record_bytes, np.uint8)
        views = {field.name: field.view(record) for field in layout.fields}
        forms = (layout.gate, layout.up, layout.down)
        projections = self.recipe.layers[layer].projections()
        for name, source, form in zip(PROJECTIONS, projections, forms, strict=True):
            tensor, first = source.tensor(expert), source.start(expert)
            with self._reading:
                columns = self.checkpoint.tensors[tensor].shape[-1]
            for start, stop in row_blocks(source.rows, _row_bytes(source.form, columns)):
                with self._reading:
                    rows = self.checkpoint.rows(tensor, first + start, first + stop)
                inputs = source.inputs(expert)
                stored = _store(rows if inputs is None else rows.columns(*inputs), form, tensor)
                for suffix, array in _by_suffix(stored):
                    views[f"{name}.{suffix}"][start:stop] = array
        return record, xxhash.xxh3_64_hexdigest(record.data)

    def trunk_blocks(self) -> Iterator[TrunkBlock]:
        """The trunk in pieces, tensor by tensor and from the first row on."""
        for index, source in enumerate(self.recipe.trunk):
            rows = source.shape[0]
            if source.role == "vector":
                yield TrunkBlock(index, 0, rows)
            else:
                for start, stop in row_blocks(rows, _row_bytes(source.form, source.shape[1])):
                    yield TrunkBlock(index, start, stop)

    def trunk_arrays(self, block: TrunkBlock) -> list[tuple[str, int, memoryview]]:
        """The parts of a block: name in the file, byte offset within the part, bytes.

        Raises:
            CheckpointError: the source cannot be read, or a weight is not finite.
        """
        source, tensor = self.recipe.trunk[block.tensor], self.trunk[block.tensor]
        with self._reading:
            rows = self._published(source, block)
        stored = rows if source.role == "vector" else _store(rows, tensor.form, source.source)
        named = zip(tensor.named_parts(), stored.arrays(), strict=True)
        return [
            (name, block.start * part.nbytes // tensor.shape[0], _octets(array))
            for (name, part), array in named
        ]

    def manifest(
        self,
        trunk_checksums: Mapping[str, str],
        layer_checksums: Sequence[Sequence[str]],
        files: Mapping[str, str],
    ) -> Manifest:
        """The manifest of the store."""
        layers = tuple(
            LayerEntry(layer_file(layer), layout, len(self.layer_header(layer)), tuple(checksums))
            for layer, (layout, checksums) in enumerate(
                zip(self.layouts, layer_checksums, strict=True)
            )
        )
        source = {
            "family": self.recipe.shape.family,
            "kind": self.checkpoint.kind,
            "architectures": _architectures(self.checkpoint),
        }
        conversion = self.options.describe()
        return Manifest(
            self.recipe.shape, layers, self.trunk, trunk_checksums, files, conversion, source
        )

    def _layout(self, layer: int) -> RecordLayout:
        shape, options = self.recipe.shape, self.options
        gate, up, down = (
            _target_form(projection.form, options.bits, options.group)
            for projection in self.recipe.layers[layer].projections()
        )
        layout = RecordLayout(gate, up, down, shape.hidden, shape.experts.intermediate)
        with _naming(f"the experts of layer {layer}"):
            assert layout.fields
        return layout

    def _trunk_tensor(self, source: TrunkSource) -> TrunkTensor:
        form, bits = source.form, self.options.trunk_bits
        if source.role != "vector" and bits is not None:
            bits = bits if source.role == "matrix" else max(bits, ROUTER_BITS)
            form = _target_form(form, bits, self.options.group)
        tensor = TrunkTensor(source.target, form, source.shape)
        with _naming(f"tensor {source.source}"):
            tensor.named_parts()
        return tensor

    def _published(self, source: TrunkSource, block: TrunkBlock) -> Matrix:
        if source.role == "vector":
            values = self.checkpoint.values(source.source).reshape(source.shape)
            return Matrix(source.form, (source.shape[0], values[0].size), values)
        if source.order is None:
            return self.checkpoint.rows(source.source, block.start, block.stop)
        return gather(self.checkpoint, source.source, source.order[block.start : block.stop])


def row_blocks(rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Borders of blocks of rows, each of :data:`BLOCK_BYTES` at most, or one row."""
    step = max(1, BLOCK_BYTES // max(row_bytes, 1))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def gather(checkpoint: Checkpoint, name: str, order: Array) -> Matrix:
    """Rows of a tensor in any order; neighbours are read together."""
    ordered = np.sort(order)
    borders = np.flatnonzero(np.diff(ordered) > GATHER_GAP) + 1
    pieces = []
    for run in np.split(ordered, borders):
        read = checkpoint.rows(name, int(run[0]), int(run[-1]) + 1)
        pieces.append(read.rows(run - run[0]).arrays())
    rank = np.argsort(np.argsort(order, kind="stable"), kind="stable")
    weight, *others = (np.concatenate(column)[rank] for column in zip(*pieces, strict=True))
    scales, biases = others or (None, None)
    return Matrix(read.form, (len(order), read.shape[1]), weight, scales, biases)


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Iterator[_Result]:
    """Results of ``work`` in the order of the items, :data:`IN_FLIGHT` of them at a time."""
    pending: deque[Future[_Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) == IN_FLIGHT:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _target_form(published: Format, bits: int | None, group: int | None) -> Format:
    if isinstance(published, Affine) or bits is None or bits == PLAIN_BITS:
        return published
    assert group is not None
    return Affine(bits, group, published.dtype)


def _store(rows: Matrix, form: Format, tensor: str) -> Matrix:
    """The rows in the store's format."""
    if rows.form == form:
        return rows
    assert isinstance(form, Affine)
    try:
        return quantize(rows.weight, form)
    except InputError as error:
        raise CheckpointError(f"tensor {tensor}: {error}; download it again") from error


def _by_suffix(stored: Matrix) -> Iterator[tuple[str, Array]]:
    return zip(("weight", "scales", "biases"), stored.arrays(), strict=False)


def _octets(array: Array) -> memoryview:
    """The array's bytes; of any element type, which memoryview itself does not take."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _row_bytes(form: Format, columns: int) -> int:
    if isinstance(form, Affine):
        return columns * form.bits // 8
    return columns * FLOATS[form.dtype].itemsize


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Makes an InputError about a format say what it is about."""
    try:
        yield
    except InputError as error:
        raise ConversionError(f"{what}: {error}") from error


def _architectures(checkpoint: Checkpoint) -> list[str]:
    stated: Any = checkpoint.config.get("architectures")
    if not isinstance(stated, list):
        return []
    return [name for name in stated if isinstance(name, str)]

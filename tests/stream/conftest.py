"""A tiny complete store of random records, and a disk whose timing the test decides."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import xxhash

from flashmoe.errors import ReadError
from flashmoe.quant import Affine, Array, Expert, Plain
from flashmoe.shape import AttentionShape, ExpertsShape, Mixer, ModelShape, RecurrentShape
from flashmoe.store.layout import (
    MANIFEST,
    TRUNK,
    RecordLayout,
    TrunkTensor,
    layer_file,
    layer_header,
    trunk_header,
)
from flashmoe.store.manifest import LayerEntry, Manifest
from flashmoe.store.reader import Store
from flashmoe.stream.direct import Urgency

LAYERS, EXPERTS, TOP_K = 4, 8, 2


@dataclass(frozen=True)
class TinyStore:
    """An open store and what its records must be: ``records[layer][expert]``, uint8."""

    store: Store
    records: list[Array] = field(repr=False)

    def damage(self, layer: int, expert: int) -> None:
        """Flip one bit of a record; a second call puts it back."""
        address = self.store.record(layer, expert)
        with open(address.path, "r+b") as file:
            file.seek(address.offset + 5)
            byte = file.read(1)[0]
            file.seek(address.offset + 5)
            file.write(bytes([byte ^ 16]))


def shape_of(mixers: tuple[Mixer, ...]) -> ModelShape:
    """The dimensions of the tiny model."""
    return ModelShape(
        family="qwen3_5_moe",
        hidden=64,
        vocabulary=96,
        mixers=mixers,
        attention=AttentionShape(4, 2, 16, 8, 1e4, gated=True, qk_norm=True),
        recurrent=RecurrentShape(2, 4, 16, 16, 4),
        experts=ExpertsShape(EXPERTS, TOP_K, 96, "softmax", True, 32),
        norm_eps=1e-6,
        norm_offset=1,
        tied_head=True,
        max_context_tokens=8192,
    )


def write_store(path: Path) -> TinyStore:
    """Write a store whose layers differ in record size, with records of random bytes."""
    shape = shape_of(("recurrent", "recurrent", "recurrent", "attention"))
    random = np.random.default_rng(20)
    entries, records = [], []
    for layer in range(LAYERS):
        down = Plain("BF16") if layer == 2 else Affine(4, 32)
        layout = RecordLayout(Affine(4, 64), Affine(4, 64), down, 64, 96)
        header = layer_header(layout, EXPERTS)
        body = random.integers(0, 256, (EXPERTS, layout.record_bytes), dtype=np.uint8)
        body[:, layout.nbytes :] = 0
        (path / layer_file(layer)).write_bytes(header + body.tobytes())
        sums = tuple(xxhash.xxh3_64_hexdigest(record.data) for record in body)
        entries.append(LayerEntry(layer_file(layer), layout, len(header), sums))
        records.append(body)
    trunk = (
        TrunkTensor("embed_tokens.weight", Affine(4, 64), (96, 64)),
        TrunkTensor("norm.weight", Plain("BF16"), (64,)),
    )
    header, extents = trunk_header(trunk)
    (path / TRUNK).write_bytes(header + bytes(sum(nbytes for _, nbytes in extents.values())))
    sums_by_part = {
        name: xxhash.xxh3_64_hexdigest(bytes(nbytes)) for name, (_, nbytes) in extents.items()
    }
    manifest = Manifest(shape, tuple(entries), trunk, sums_by_part, {}, {}, {})
    (path / MANIFEST).write_text(manifest.to_json())
    return TinyStore(Store.open(path), records)


def record_of(expert: Expert) -> bytes:
    """The stored bytes of an expert, from its arrays, without the padding."""
    matrices = (expert.gate, expert.up, expert.down)
    return b"".join(array.tobytes() for matrix in matrices for array in matrix.arrays())


@dataclass
class _Read:
    label: str
    source: Path
    offset: int
    destination: Array
    state: str


class ScriptedReader:
    """In place of ``DirectReader``: reads start, progress and end whenever ``dice`` says.

    Every byte of a destination is spoilt when its read is submitted and again when it starts,
    and the bytes arrive only at the end, so that whoever uses a slot at a wrong time sees it.
    ``failing`` is the chance that a read fails.
    """

    def __init__(self, dice: random.Random, failing: float = 0.0) -> None:
        self.dice = dice
        self.failing = failing
        self.reads: dict[int, _Read] = {}
        self.order: list[int] = []  # of finishing
        self.calls: list[tuple[str, str]] = []
        self.bytes_read = 0
        self._paths: list[Path] = []
        self._tables: dict[int, tuple[int, int, Callable[[int], str]]] = {}
        self._last = 0

    def open(self, path: Path, *, direct: bool) -> int:
        self._paths.append(path)
        return len(self._paths) - 1

    def describe(
        self,
        file: int,
        begin_bytes: int,
        record_bytes: int,
        checksums: Sequence[int],
        label: Callable[[int], str],
    ) -> None:
        self._tables[file] = begin_bytes, record_bytes, label

    def into(self, arena: Array, slot_bytes: int) -> None:
        self._slots = arena.reshape(-1, slot_bytes)

    def submit_records(
        self, file: int, records: Sequence[int], slots: Sequence[int], urgency: Urgency
    ) -> range:
        call = ("demand", "hint", "guess")[urgency]
        tickets = [self._record(file, *read, call) for read in zip(records, slots, strict=True)]
        return range(tickets[0], tickets[-1] + 1)

    def submit_idle(self, file: int, record: int, slot: int) -> int:
        return self._record(file, record, slot, "idle")

    def _record(self, file: int, record: int, slot: int, call: str) -> int:
        begin, size, label = self._tables[file]
        destination = self._slots[slot, :size]
        return self._submit(file, begin + record * size, destination, label(record), call)

    def _submit(self, file: int, offset: int, destination: Array, label: str, call: str) -> int:
        for read in self.reads.values():
            assert not np.shares_memory(read.destination, destination), "a slot is read into twice"
        destination[:] = 0xEE
        self._last += 1
        self.reads[self._last] = _Read(label, self._paths[file], offset, destination, "queued")
        self.calls.append((call, label))
        self._progress()
        return self._last

    def promote_all(self, tickets: Sequence[int]) -> None:
        self.calls += [("promote", self.reads[ticket].label) for ticket in tickets]

    def cancel(self, ticket: int) -> bool:
        self._progress()
        if self.reads[ticket].state != "queued":
            return False
        self.calls.append(("cancel", self.reads.pop(ticket).label))
        return True

    def collect(
        self, tickets: Sequence[int], *, block: bool
    ) -> tuple[list[int], list[tuple[int, ReadError]]]:
        assert all(ticket in self.reads for ticket in tickets)
        self._progress()
        while block and not any(ticket in tickets for ticket in self.order):
            self._advance(self.dice.choice(list(self.reads)))
        ended = [(each, self._landed(each)) for each in self.order.copy() if each in tickets]
        good = [ticket for ticket, error in ended if error is None]
        return good, [(ticket, error) for ticket, error in ended if error is not None]

    def done(self, ticket: int) -> bool:
        self._progress()
        return ticket in self.order

    def wait(self, ticket: int) -> None:
        for _, error in self.collect([ticket], block=True)[1]:
            raise error

    def _landed(self, ticket: int) -> ReadError | None:
        self.order.remove(ticket)
        read = self.reads.pop(ticket)
        failed = ReadError(f"{read.source}: {read.label} failed")
        return failed if read.state == "bad" else None

    def drain(self) -> None:
        for ticket in list(self.reads):
            while self.reads[ticket].state == "started":
                self._advance(ticket)
        self.reads.clear()
        self.order.clear()

    def close(self) -> None:
        self.drain()

    def _progress(self) -> None:
        """Time passes: some reads get further."""
        for ticket in list(self.reads):
            if self.dice.random() < 0.4:
                self._advance(ticket)

    def _advance(self, ticket: int) -> None:
        read = self.reads[ticket]
        if read.state == "queued":
            read.state = "started"
            read.destination[:] = 0xDD
        elif read.state == "started":
            read.state = "bad" if self.dice.random() < self.failing else "good"
            if read.state == "good":
                with open(read.source, "rb") as file:
                    file.seek(read.offset)
                    data = file.read(read.destination.nbytes)
                read.destination[:] = np.frombuffer(data, np.uint8)
            self.bytes_read += read.destination.nbytes
            self.order.append(ticket)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStore:
    """A store that no test changes."""
    return write_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def own(tmp_path: Path) -> TinyStore:
    """A store that the test may damage."""
    return write_store(tmp_path)

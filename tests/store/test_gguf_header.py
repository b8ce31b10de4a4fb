"""GGUF headers, honest and hostile; gguf's own reader is the oracle for the honest ones."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from flashmoe.errors import CheckpointError
from flashmoe.store import gguf_header
from flashmoe.store.gguf_file import GgufFile
from flashmoe.store.published_files import OpenFiles
from tests.store.small_checkpoints import write_gguf


def test_fields_equal_gguf_own_reader(tmp_path: Path, files: OpenFiles) -> None:
    def fill(writer: GGUFWriter) -> None:
        writer.add_string("general.name", "na\u00efve \U0001f600")
        writer.add_uint8("u8", 200)
        writer.add_int8("i8", -100)
        writer.add_uint16("u16", 60_000)
        writer.add_int16("i16", -30_000)
        writer.add_uint32("u32", 1 << 31)
        writer.add_int32("i32", -(1 << 31))
        writer.add_uint64("u64", 1 << 63)
        writer.add_int64("i64", -(1 << 63))
        writer.add_float32("f32", 1e-5)
        writer.add_float64("f64", 1e-5)
        writer.add_bool("yes", True)
        writer.add_array("tokens", ["a", "", "\u0120b"])
        writer.add_array("scores", [0.5, -1e9])
        writer.add_array("types", [1, 3, -1])
        writer.add_array("flags", [True, False])
        writer.add_tensor("t", np.zeros(3, np.float32))

    path = write_gguf(tmp_path / "m.gguf", fill)
    expected = {
        key: field.contents()
        for key, field in GGUFReader(path).fields.items()
        if not key.startswith("GGUF.")
    }
    fields = GgufFile(files, path).fields
    assert fields == expected
    assert {key: type(value) for key, value in fields.items()} == {
        key: type(value) for key, value in expected.items()
    }
    assert [type(flag) for flag in fields["flags"]] == [bool, bool]


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_alignment_is_honoured(alignment: int, tmp_path: Path, files: OpenFiles) -> None:
    def fill(writer: GGUFWriter) -> None:
        writer.add_custom_alignment(alignment)
        writer.add_tensor("a", np.arange(3, dtype=np.float32))
        writer.add_tensor("b", np.arange(5, dtype=np.float32))

    file = GgufFile(files, write_gguf(tmp_path / "m.gguf", fill))
    assert file.values("b").tolist() == [0, 1, 2, 3, 4]


def test_one_part_of_a_split_is_refused(tmp_path: Path, files: OpenFiles) -> None:
    def fill(writer: GGUFWriter) -> None:
        writer.add_uint16("split.count", 3)
        writer.add_tensor("t", np.zeros(3, np.float32))

    with pytest.raises(CheckpointError, match="one part of a split GGUF"):
        GgufFile(files, write_gguf(tmp_path / "m.gguf", fill))


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def header(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + u32(version) + u64(tensors) + u64(keys)


def tensor(name: bytes = b"t", dims: tuple[int, ...] = (4,), kind: int = 0, at: int = 0) -> bytes:
    return string(name) + u32(len(dims)) + b"".join(map(u64, dims)) + u32(kind) + u64(at)


UINT8, UINT32, STRING, ARRAY = 0, 4, 8, 9
HUGE = 1 << 60
ALIGN = string(b"general.alignment")
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a GGUF file"),
    "magic alone": (b"GGUF", "claims 4 bytes"),
    "another format": (b"PK\3\4" + bytes(60), "not a GGUF file"),
    "version 1": (header(version=1), "GGUF version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "many tensors": (header(tensors=HUGE), "tensors are claimed"),
    "tensors not there": (header(tensors=1000), "claims 8 bytes"),
    "many keys": (header(keys=HUGE), "metadata keys are claimed"),
    "keys not there": (header(keys=1000), "claims 8 bytes"),
    "long key": (header(keys=1) + u64(HUGE), "bytes of a metadata key are claimed"),
    "long string": (header(keys=1) + string(b"k") + u32(STRING) + u64(HUGE), "bytes of 'k'"),
    "string not there": (header(keys=1) + string(b"k") + u32(STRING) + u64(9999), "claims 9999"),
    "long array": (
        header(keys=1) + string(b"k") + u32(ARRAY) + u32(UINT8) + u64(HUGE) + bytes(64),
        "elements of 'k' are claimed",
    ),
    "array not there": (
        header(keys=1) + string(b"k") + u32(ARRAY) + u32(UINT32) + u64(1 << 22) + bytes(64),
        "claims 16777216 bytes",
    ),
    "strings not there": (
        header(keys=1) + string(b"k") + u32(ARRAY) + u32(STRING) + u64(1 << 22) + bytes(64),
        "claims 8 bytes",
    ),
    "array of arrays": (
        header(keys=1) + string(b"k") + u32(ARRAY) + u32(ARRAY) + u64(1) + bytes(64),
        "'k' is of type 9",
    ),
    "unknown type": (header(keys=1) + string(b"k") + u32(77) + bytes(64), "'k' is of type 77"),
    "key not UTF-8": (header(keys=1) + string(b"\xff") + u32(UINT8) + b"\1", "not UTF-8"),
    "text not UTF-8": (header(keys=1) + string(b"k") + u32(STRING) + string(b"\xc3"), "not UTF-8"),
    "key twice": (header(keys=2) + (string(b"k") + u32(UINT8) + b"\1") * 2, "'k' occurs twice"),
    "alignment 0": (header(keys=1) + ALIGN + u32(UINT32) + u32(0), "alignment is 0"),
    "alignment 24": (header(keys=1) + ALIGN + u32(UINT32) + u32(24), "alignment is 24"),
    "alignment text": (
        header(keys=1) + ALIGN + u32(STRING) + string(b"x" * 999),
        "alignment is 'x",
    ),
    "alignment huge": (header(keys=1) + ALIGN + u32(UINT32) + u32(1 << 31), "alignment is"),
    "tensor twice": (header(tensors=2) + tensor() * 2 + bytes(99), "tensor 't' occurs twice"),
    "no dimensions": (header(tensors=1) + tensor(dims=()) + bytes(99), "has 0 dimensions"),
    "many dimensions": (header(tensors=1) + tensor(dims=(1,) * 5) + bytes(99), "has 5 dimensions"),
    "dimension 0": (header(tensors=1) + tensor(dims=(4, 0)) + bytes(99), "has shape (0, 4)"),
    "huge dimensions": (header(tensors=1) + tensor(dims=(1 << 63,) * 4) + bytes(99), "past the"),
    "half a block": (header(tensors=1) + tensor(dims=(16,), kind=2) + bytes(99), "rows of 16"),
    "past the end": (header(tensors=1) + tensor(dims=(4096,)) + bytes(99), "past the file's"),
    "offset huge": (header(tensors=1) + tensor(at=1 << 62) + bytes(99), "past the file's"),
    "offset crooked": (header(tensors=1) + tensor(at=4) + bytes(99), "not aligned"),
    "unknown type past the end": (
        header(tensors=1) + tensor(kind=999, at=1 << 40) + bytes(99),
        "past the file's",
    ),
    "overlap": (
        header(tensors=2) + tensor(b"a", (16,)) + tensor(b"b", (16,), at=32) + bytes(199),
        "'a' and 'b' overlap",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused_by_name(case: str, tmp_path: Path, files: OpenFiles) -> None:
    raw, message = HOSTILE[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError) as caught:
        GgufFile(files, path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_type_that_ggml_does_not_have_is_an_error_only_when_asked_for(
    tmp_path: Path, files: OpenFiles
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(header(tensors=1) + tensor(kind=999, dims=(1 << 63,) * 4) + bytes(99))
    file = GgufFile(files, path)
    with pytest.raises(CheckpointError, match="tensor 't' is of type number 999"):
        file.rows("t", 0, 1)


def test_array_elements_are_bounded_in_total(
    tmp_path: Path, files: OpenFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_header, "ELEMENTS_LIMIT", 100)

    def arrays(sizes: list[int]) -> Path:
        keys = (
            string(b"%d" % i) + u32(ARRAY) + u32(UINT8) + u64(size) + bytes(size)
            for i, size in enumerate(sizes)
        )
        path = tmp_path / "m.gguf"
        path.write_bytes(header(keys=len(sizes)) + b"".join(keys))
        return path

    assert len(GgufFile(files, arrays([60, 40])).fields) == 2
    with pytest.raises(CheckpointError, match="more than 100 array elements"):
        GgufFile(files, arrays([60, 41]))


def test_gguf_own_reader_does_not_come_back_from_a_hostile_count(tmp_path: Path) -> None:
    """Why the header is walked here: the same file is refused above at once."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(HOSTILE["long array"][0])
    program = f"from gguf import GGUFReader; print('loaded', flush=True); GGUFReader({str(path)!r})"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

    with (
        subprocess.Popen(
            [sys.executable, "-c", program], preexec_fn=limit, stdout=subprocess.PIPE, text=True
        ) as reader,
        pytest.raises(subprocess.TimeoutExpired),
    ):
        assert reader.stdout is not None
        try:
            assert reader.stdout.readline() == "loaded\n"
            reader.wait(timeout=0.7)
        finally:
            reader.kill()

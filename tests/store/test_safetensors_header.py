"""The header parser of safetensors files; the safetensors library is the oracle."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from flashmoe.errors import CheckpointError
from flashmoe.store.published_files import OpenFiles
from flashmoe.store.safetensors_header import DTYPES, read_header


def write(path: Path, header: dict[str, Any] | bytes, data: bytes = b"") -> Path:
    """A safetensors file of any header, sound or not."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), extent: Any = (0, 8)) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    return {"dtype": dtype, "shape": plain(shape), "data_offsets": plain(extent)}


def text(inner: str) -> bytes:
    return ('{"a":' + inner + "}").encode()


def test_header_equals_what_the_safetensors_library_wrote(tmp_path: Path, files: OpenFiles) -> None:
    tensors = {
        'w\u00e9 "x"': np.arange(12, dtype=np.float32).reshape(3, 4),
        "b": np.arange(4).astype(ml_dtypes.bfloat16),
        "ids": np.arange(6, dtype=np.int64).reshape(1, 2, 3),
        "scalar": np.array(7, np.uint8),
        "none": np.zeros((0, 4), np.float16),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"format": "mlx", "note": 'a "quoted" } brace, [list]'})
    header = read_header(files, path)
    assert header.written_by == "mlx"
    assert header.tensors.keys() == tensors.keys()
    for name, array in tensors.items():
        at = header.tensors[name]
        raw = files.read(at.path, at.offset, at.nbytes, name)
        read = raw.view(DTYPES[at.dtype]).reshape(at.shape)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


HEADERS: dict[str, tuple[bytes | dict[str, Any], str]] = {
    "empty": (b"", "claims a header of 0"),
    "not JSON": (b"hello", "malformed"),
    "a list": (b"[]", "malformed"),
    "byte order mark": (b"\xef\xbb\xbf{}", "malformed"),
    "not UTF-8": (b'{"\xff":1}', "not UTF-8"),
    "unfinished": (b'{"a":{"dtype":"F32"', "malformed"),
    "something behind": (b"{}x", "malformed"),
    "comma at the end": (b'{"a":' + json.dumps(entry()).encode() + b",}", "malformed"),
    "a number for an entry": (text("3"), "malformed"),
    "key twice": (b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), "occurs twice"),
    "field twice": (text('{"dtype":"F32","dtype":"F32"}'), "occurs twice"),
    "lone surrogate": (b'{"\\ud800":' + json.dumps(entry()).encode() + b"}", "not valid JSON"),
    "long name": ({"n" * 5000: entry()}, "5002 characters"),
    "nested": (text("[" * 3000 + "]" * 3000 + "}"), "malformed"),
    "nested within an entry": (text('{"dtype":' + "[" * 3000 + "}"), "nested too deeply"),
    "huge entry": (text('{"shape":[' + "1," * 9000 + "1]}"), "malformed"),
    "missing field": ({"a": {"dtype": "F32", "shape": [2]}}, "has entries"),
    "unknown field": ({"a": entry() | {"stride": 1}}, "has entries"),
    "dtype a number": ({"a": entry(dtype=3)}, "has dtype 3"),
    "negative dimension": ({"a": entry(shape=(-2,))}, "has shape"),
    "fractional dimension": ({"a": entry(shape=(2.0,))}, "has shape"),
    "boolean dimension": ({"a": entry(shape=(True, 2))}, "has shape"),
    "shape a number": ({"a": entry(shape=2)}, "has shape 2"),
    "NaN dimension": (text('{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}'), "finite"),
    "infinite dimension": (text('{"dtype":"F32","shape":[1e999],"data_offsets":[0,8]}'), "finite"),
    "nine dimensions": ({"a": entry(shape=(1,) * 8 + (2,))}, "unlikely shape"),
    "digits": (text('{"dtype":"F32","shape":[' + "9" * 4000 + '],"data_offsets":[0,8]}'), "shape"),
    "huge but empty": ({"a": entry(shape=(0, 1 << 62), extent=(0, 0))}, "unlikely shape"),
    "huge of unknown type": ({"a": entry(dtype="Q9", shape=(1 << 50,))}, "unlikely shape"),
    "too few bytes": ({"a": entry(shape=(1,))}, "does not fill"),
    "product too large": ({"a": entry(shape=(1 << 20, 1 << 20))}, "does not fill"),
    "offsets backwards": ({"a": entry(extent=(8, 0))}, "lies at"),
    "offsets negative": ({"a": entry(extent=(-8, 0))}, "data_offsets"),
    "offsets of three": ({"a": entry(extent=(0, 8, 8))}, "data_offsets"),
    "past the end": ({"a": entry(shape=(6,), extent=(0, 24))}, "cut short"),
    "overlap": ({"a": entry(), "b": entry(extent=(4, 12))}, "'a' and 'b' overlap"),
    "metadata of numbers": (b'{"__metadata__":{"a":1}}', "malformed"),
    "metadata nested": (b'{"__metadata__":{"a":{}}}', "malformed"),
    "metadata unfinished": (b'{"__metadata__":{"a":"b"', "malformed"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_malformed_header_is_refused_by_name(case: str, tmp_path: Path, files: OpenFiles) -> None:
    header, message = HEADERS[case]
    path = write(tmp_path / "bad.safetensors", header, bytes(16))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(files, path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 6000


@pytest.mark.parametrize("length", [9, 1 << 20, 100_000_001, 1 << 40, 1 << 63, (1 << 64) - 1])
def test_a_header_longer_than_the_file_is_not_allocated(
    length: int, tmp_path: Path, files: OpenFiles
) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}      ")
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=f"claims a header of {length} bytes"):
        read_header(files, path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "filler", [b'{"a":[' + b"[]," * 700_000, b'{"__metadata__":{' + b'"a":"b",' * 260_000]
)
def test_a_large_hostile_header_costs_a_few_times_its_size(
    filler: bytes, tmp_path: Path, files: OpenFiles
) -> None:
    path = write(tmp_path / "bad.safetensors", filler)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="malformed"):
        read_header(files, path)
    assert tracemalloc.get_traced_memory()[1] < 6 * len(filler)
    tracemalloc.stop()


def test_a_gap_between_tensors_is_read_around(tmp_path: Path, files: OpenFiles) -> None:
    data = np.arange(8, dtype=np.float32).tobytes()
    path = write(tmp_path / "gap.safetensors", {"a": entry(extent=(16, 24))}, data)
    at = read_header(files, path).tensors["a"]
    assert files.read(path, at.offset, at.nbytes, "a").view("<f4").tolist() == [4, 5]

"""Whatever the bytes: a checkpoint or a CheckpointError, at once and in bounded memory."""

from __future__ import annotations

import contextlib
import json
import math
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from flashmoe.errors import CheckpointError
from flashmoe.quant import Array
from flashmoe.store.checkpoint import Checkpoint, open_checkpoint

SECONDS = 1.0
"""Of processor time: on a loaded machine the clock of the wall runs on."""
MEMORY_BYTES = 16 << 20
"""The inputs have a few kilobytes; a GGUF is read in windows of one MiB."""

EXAMPLES = 120
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture(scope="module", autouse=True)
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for all examples: each writes every file that it opens."""
    return tmp_path_factory.mktemp("hostile")


def read_all(checkpoint: Checkpoint) -> int:
    """Ask for everything a conversion asks for; the number of tensors that could be read."""
    good = 0
    for name in checkpoint.tensors:
        try:
            tensor = checkpoint.tensors[name]
            rows = checkpoint.rows(name, 0, math.prod(tensor.shape[:-1]))
            good += 1
            assert rows.shape[1] == (tensor.shape[-1] if tensor.shape else 1)
        except CheckpointError:
            pass
        with contextlib.suppress(CheckpointError):
            checkpoint.values(name)
    with contextlib.suppress(CheckpointError):
        assert all(checkpoint.text_files.values())
    assert len(checkpoint.fingerprint()) == 64
    return good


def outcome(path: Path) -> int | str:
    """Tensors read, or the message; anything else, or too much of anything, fails the test."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    start = time.process_time()
    result: int | str
    try:
        with open_checkpoint(path) as checkpoint:
            result = read_all(checkpoint)
    except CheckpointError as error:
        result = str(error)
        assert str(path) in result
    assert time.process_time() - start < SECONDS
    assert tracemalloc.get_traced_memory()[1] - before < MEMORY_BYTES
    return result


ROWS: dict[str, Array] = {
    "m.weight": np.arange(32, dtype=np.uint32).reshape(4, 8),
    "m.scales": np.ones((4, 1), np.float16),
    "m.biases": np.ones((4, 1), np.float16),
    "norm": np.ones(6, np.float32),
}
SHARD = save(ROWS, metadata={"format": "mlx"})
HEADER = json.loads(SHARD[8 : 8 + int.from_bytes(SHARD[:8], "little")])
DATA = SHARD[8 + int.from_bytes(SHARD[:8], "little") :]
CONFIG = {"model_type": "qwen3_moe", "quantization": {"bits": 4, "group_size": 64}}
TOKENIZER = {"chat_template": [{"name": "default", "template": "x"}]}
INDEX = {"metadata": {}, "weight_map": dict.fromkeys(ROWS, "one.safetensors")}


def publish(
    folder: Path,
    shard: bytes = SHARD,
    config: bytes = json.dumps(CONFIG).encode(),
    index: bytes = json.dumps(INDEX).encode(),
    tokenizer: bytes = json.dumps(TOKENIZER).encode(),
) -> Path:
    (folder / "config.json").write_bytes(config)
    (folder / "tokenizer_config.json").write_bytes(tokenizer)
    (folder / "model.safetensors.index.json").write_bytes(index)
    (folder / "one.safetensors").write_bytes(shard)
    return folder


def gguf(folder: Path) -> bytes:
    writer = GGUFWriter(folder / "sound.gguf", "llama")
    writer.add_uint32("general.alignment", 32)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ab"])
    writer.add_array("tokenizer.ggml.merges", ["a b"])
    writer.add_array("scores", [0.5, 1.5])
    for name in ("Q4_0", "Q4_1", "Q8_0"):
        size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[name]
        raw = np.arange(2 * size, dtype=np.uint8).reshape(2, size)
        writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType[name])
    writer.add_tensor("norm", np.ones(6, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (folder / "sound.gguf").read_bytes()


def open_gguf(folder: Path, raw: bytes) -> int | str:
    (folder / "bad.gguf").write_bytes(raw)
    return outcome(folder / "bad.gguf")


def test_the_sound_checkpoints_open(folder: Path) -> None:
    assert outcome(publish(folder)) == 2
    assert open_gguf(folder, gguf(folder)) == 4


def test_a_shard_cut_anywhere_is_refused(folder: Path) -> None:
    for length in range(len(SHARD)):
        assert isinstance(outcome(publish(folder, SHARD[:length])), str), length


@pytest.mark.parametrize("file", ["config", "index"])
def test_json_cut_anywhere_is_refused(file: str, folder: Path) -> None:
    raw = json.dumps({"config": CONFIG, "index": INDEX}[file]).encode()
    for length in range(len(raw)):
        cut: Any = {file: raw[:length]}
        assert isinstance(outcome(publish(folder, **cut)), str), length


def test_a_gguf_cut_anywhere_is_refused(folder: Path) -> None:
    raw = gguf(folder)
    padding = 8  # the writer pads the last tensor, 24 bytes, to the alignment
    for length in range(len(raw) - padding):
        assert isinstance(open_gguf(folder, raw[:length]), str), length


@FUZZ
@given(raw=st.binary(max_size=400), sized=st.booleans())
def test_random_bytes(folder: Path, raw: bytes, sized: bool) -> None:
    framed = len(raw).to_bytes(8, "little") + raw if sized else raw
    assert isinstance(outcome(publish(folder, framed)), str)
    assert isinstance(open_gguf(folder, b"GGUF\3\0\0\0" + raw if sized else raw), (str, int))


def patches(unit: int) -> st.SearchStrategy[list[tuple[float, bytes]]]:
    """Places, as parts of the file's length, and what to write there."""
    edges = [0, 1, 7, 8, 31, 1 << 15, (1 << 31) - 1, 1 << 31, 1 << 40, 1 << 63, (1 << 64) - 1]
    numbers = st.sampled_from(edges) | st.integers(0, (1 << 64) - 1)
    written = numbers.map(
        lambda number: (number & ((1 << (8 * unit)) - 1)).to_bytes(unit, "little")
    )
    return st.lists(st.tuples(st.floats(0, 1, exclude_max=True), written), min_size=1, max_size=4)


def patch(raw: bytes, changes: list[tuple[float, bytes]], span: int) -> bytes:
    result = bytearray(raw)
    for part, written in changes:
        at = int(part * span)
        result[at : at + len(written)] = written
    return bytes(result[: len(raw)])


@FUZZ
@given(changes=patches(1) | patches(4) | patches(8))
def test_a_shard_with_changed_bytes(folder: Path, changes: list[tuple[float, bytes]]) -> None:
    outcome(publish(folder, patch(SHARD, changes, len(SHARD) - len(DATA))))


@FUZZ
@given(changes=patches(1) | patches(4) | patches(8))
def test_a_gguf_with_changed_bytes(folder: Path, changes: list[tuple[float, bytes]]) -> None:
    raw = gguf(folder)
    open_gguf(folder, patch(raw, changes, len(raw)))


NUMBERS = (
    st.integers() | st.sampled_from([-1, 0, 1, 1 << 31, 1 << 63, 1 << 64, 10**30]) | st.floats()
)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=8)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from places(tree[key], (*path, key))


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = tree.copy()
    copy[path[0]] = replaced(tree[path[0]], path[1:], value)
    return copy


def mutations(tree: Any) -> st.SearchStrategy[bytes]:
    """The JSON of the tree with one value anywhere in it replaced by any other."""
    one = st.tuples(st.sampled_from(list(places(tree))), VALUES)
    return one.map(lambda change: json.dumps(replaced(tree, *change)).encode())


@FUZZ
@given(header=mutations(HEADER), tail=st.sampled_from([0, 1, 64]))
def test_a_header_with_a_changed_value(folder: Path, header: bytes, tail: int) -> None:
    outcome(publish(folder, len(header).to_bytes(8, "little") + header + DATA + bytes(tail)))


@FUZZ
@given(
    config=mutations(CONFIG | {"quantization_config": {"quant_method": "fp8"}, "text_config": {}}),
    index=mutations(INDEX),
    tokenizer=mutations(TOKENIZER),
)
def test_json_files_with_changed_values(
    folder: Path, config: bytes, index: bytes, tokenizer: bytes
) -> None:
    outcome(publish(folder, config=config))
    outcome(publish(folder, index=index))
    outcome(publish(folder, tokenizer=tokenizer))


@FUZZ
@given(raw=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_json_files_of_random_bytes(folder: Path, raw: bytes) -> None:
    assert isinstance(outcome(publish(folder, config=raw)), str)
    assert isinstance(outcome(publish(folder, index=raw)), str)
    outcome(publish(folder, tokenizer=raw))


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


SIZES = st.sampled_from([0, 1, 3, 1 << 20, 1 << 32, 1 << 62, (1 << 64) - 1]) | st.integers(0, 40)
KINDS = st.integers(0, 14) | st.sampled_from([255, 1 << 31])
BYTES = st.binary(max_size=24)


def fields() -> st.SearchStrategy[bytes]:
    """A metadata key of any type, its lengths true or not."""

    def write(length: int, key: bytes, kind: int, inner: int, count: int, body: bytes) -> bytes:
        array = struct.pack("<IQ", inner, count) if kind == 9 else b""
        return u64(length) + key + struct.pack("<I", kind) + array + body

    honest = BYTES.flatmap(lambda key: st.tuples(st.just(len(key)), st.just(key)))
    keys = honest | st.tuples(SIZES, BYTES)
    return st.builds(
        lambda key, *rest: write(*key, *rest), keys, KINDS, KINDS, SIZES, st.binary(max_size=80)
    )


def tensors() -> st.SearchStrategy[bytes]:
    """A tensor's entry with any dimensions, type and offset."""

    def write(name: bytes, dims: list[int], kind: int, offset: int) -> bytes:
        shape = b"".join(map(u64, dims))
        return (
            u64(len(name))
            + name
            + struct.pack("<I", len(dims))
            + shape
            + struct.pack("<IQ", kind, offset)
        )

    dims = st.lists(SIZES | st.just(32), max_size=5)
    kinds = st.integers(0, 40) | st.just(1 << 31)
    offsets = st.sampled_from([0, 32, 64, 1 << 40, (1 << 64) - 32]) | SIZES
    return st.builds(write, st.sampled_from([b"a", b"b", b"c", b"\xff"]), dims, kinds, offsets)


@FUZZ
@given(
    keys=st.lists(fields(), max_size=3),
    entries=st.lists(tensors(), max_size=4),
    counts=st.none() | st.tuples(SIZES, SIZES),
    data=st.sampled_from([0, 31, 4096]),
)
def test_a_gguf_of_hostile_entries(
    folder: Path,
    keys: list[bytes],
    entries: list[bytes],
    counts: tuple[int, int] | None,
    data: int,
) -> None:
    number = counts or (len(entries), len(keys))
    raw = b"GGUF" + struct.pack("<IQQ", 3, *number) + b"".join(keys + entries)
    open_gguf(folder, raw + bytes(data))


BOMBS: dict[str, Callable[[Path], Path]] = {
    "deep config": lambda folder: publish(folder, config=b'{"a":' * 2_000_000),
    "wide config": lambda folder: publish(folder, config=b'{"a":[' + b"0," * 100_000),
    "deep index": lambda folder: publish(folder, index=b"[" * 4_000_000),
    "large config": lambda folder: publish(folder, config=b" " * ((16 << 20) + 1)),
    "large index": lambda folder: publish(folder, index=b" " * ((32 << 20) + 1)),
    "deep header": lambda folder: publish(folder, u64(2_000_000) + b'{"a":' * 400_000),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused(bomb: str, folder: Path) -> None:
    BOMBS[bomb](folder)
    tracemalloc.reset_peak()
    start = time.process_time()
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)
    assert time.process_time() - start < SECONDS
    assert tracemalloc.get_traced_memory()[1] < 40 << 20

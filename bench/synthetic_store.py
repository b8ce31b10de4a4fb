"""Random weights of a true shape, written as a store without ever being floats.

Owns the numbers and the files of a store; not the shapes, and not the command.

Codes are random bytes. A scale is a BF16 number within 6 % of one that gives rows a standard
deviation of 1 / sqrt(inputs), of random sign, so that activations neither grow nor vanish and
weights have no mean. The bias is ``-2**(bits - 1)`` times the scale, which only moves the
exponent: at 4 bits a group of 64 is two Q4_0 blocks of one scale, exactly.

Invariant: the same shape, bits, skew and distinct files always give the same bytes, and memory
holds a few records and the scales of one tensor.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import xxhash
from synthetic_shapes import GROUP, TRUNK_BITS, trunk_tensors

from flashmoe.quant import FLOATS, Affine, Array, Plain
from flashmoe.shape import ModelShape
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

CHUNK_BYTES = 8 << 20
THREADS = 2
_EXPERTS, _TRUNK, _SKEW = range(3)
"""What a generator is for: keeps the streams of random numbers apart."""

Item, Made = TypeVar("Item"), TypeVar("Made")


def in_order(work: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """Results in order, made on a few threads, never more than a few ahead."""
    pending: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > 2 * THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def generator(purpose: int, *key: int | str) -> np.random.Generator:
    """Numpy's quickest source of random bytes, its stream chosen by purpose and key."""
    numbers = [xxhash.xxh32_intdigest(part.encode()) if isinstance(part, str) else part
               for part in key]  # fmt: skip
    return np.random.Generator(np.random.SFC64([purpose, *numbers]))


def random_bytes(rng: np.random.Generator, nbytes: int) -> Array:
    """Random uint8."""
    words = rng.integers(0, 1 << 64, -(-nbytes // 8), dtype=np.uint64)
    return words.view(np.uint8)[:nbytes]


def scales_of(
    rng: np.random.Generator, form: Affine, rows: int, columns: int, spread: Array | float
) -> tuple[Array, Array]:
    """The BF16 bits (uint16) of scales and biases, each (rows, columns / group).

    ``spread`` is the standard deviation of the weights, one or one a row (rows, 1).
    """
    codes = math.sqrt((4**form.bits - 1) / 12)  # of uniform codes
    middle = np.asarray(spread / codes, np.float32).astype(FLOATS["BF16"]).view(np.uint16)
    drawn = rng.integers(0, 1 << 16, (rows, columns // form.group), dtype=np.uint16)
    scales = (middle & np.uint16(0x7FF8)) | (drawn & np.uint16(0x8007))
    biases = (scales ^ np.uint16(0x8000)) + np.uint16((form.bits - 1) << 7)
    return scales, biases


def random_record(layout: RecordLayout, layer: int, expert: int) -> tuple[Array, str]:
    """One expert's record and its checksum."""
    rng = generator(_EXPERTS, layer, expert)
    record = random_bytes(rng, layout.record_bytes)
    record[layout.nbytes :] = 0
    for form, (rows, columns), (_, scales, biases) in layout.matrices:
        assert isinstance(form, Affine)
        drawn = scales_of(rng, form, rows, columns, columns**-0.5)
        for field, values in zip((scales, biases), drawn, strict=True):
            field.view(record).view(np.uint16)[...] = values
    return record, xxhash.xxh3_64_hexdigest(record.data)


def random_vector(tensor: TrunkTensor) -> Array:
    """A norm, a convolution, a decay: numbers about those of trained models."""
    rng = generator(_TRUNK, tensor.name)
    spread, middle = 0.05, 0.0
    if "conv1d" in tensor.name:
        spread = 0.3
    elif tensor.name.endswith("A_log"):
        spread = 0.2
    elif tensor.name.endswith("dt_bias"):
        spread, middle = 0.5, -1.0
    elif tensor.name.endswith("linear_attn.norm.weight"):
        middle = 1.0
    assert isinstance(tensor.form, Plain)
    values = rng.standard_normal(tensor.shape, dtype=np.float32) * np.float32(spread) + middle
    return values.astype(FLOATS[tensor.form.dtype])


def spread_of(tensor: TrunkTensor, skew: float) -> Array | float:
    """Standard deviation of a matrix's weights, (rows, 1) for a router with a skew.

    The rows of a router differ in size by ``exp(skew * z)``, z normal: an expert with large
    logits is among the best more often.
    """
    rows, columns = tensor.shape
    if tensor.name == "embed_tokens.weight":
        return 1.0
    if skew and tensor.name.endswith("mlp.gate.weight"):
        z = generator(_SKEW, tensor.name).standard_normal((rows, 1))
        return np.exp(skew * z) * columns**-0.5
    return columns**-0.5


def write_store(
    path: Path,
    shape: ModelShape,
    *,
    bits: int,
    distinct: int,
    skew: float,
    name: str,
    tell: Callable[[str], None],
) -> Manifest:
    """Write a complete store; the manifest comes last. ``tell`` gets a line a file."""
    path.mkdir(parents=True, exist_ok=True)
    form = Affine(bits, GROUP)
    layout = RecordLayout(form, form, form, shape.hidden, shape.experts.intermediate)
    trunk = trunk_tensors(shape)
    trunk_checksums = write_trunk(path / TRUNK, trunk, skew)
    tell(f"{TRUNK} written")
    entries = []
    for layer in range(shape.layers):
        if layer < distinct:
            entries.append(write_layer(path, layout, layer, shape.experts.count))
            tell(f"{layer_file(layer)} written")
        else:
            original = entries[layer % distinct]
            os.link(path / original.file, path / layer_file(layer))
            copied = (layout, original.data_offset, original.checksums)
            entries.append(LayerEntry(layer_file(layer), *copied))
    files = {"tokenizer.json": tokenizer_json(shape.vocabulary)}
    for file, text in files.items():
        (path / file).write_text(text, encoding="utf-8")
    manifest = Manifest(
        shape=shape,
        layers=tuple(entries),
        trunk=trunk,
        trunk_checksums=trunk_checksums,
        files={file: xxhash.xxh3_64_hexdigest(text.encode()) for file, text in files.items()},
        conversion={"bits": bits, "group": GROUP, "trunk_bits": TRUNK_BITS, "slices": None},
        source={
            "family": shape.family,
            "kind": "synthetic",
            "architectures": [],
            "weights": f"random, of the shape of {name}",
            "skew": skew,
            "distinct": distinct,
        },
    )
    (path / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def write_layer(path: Path, layout: RecordLayout, layer: int, count: int) -> LayerEntry:
    """The experts of one layer."""
    header, checksums = layer_header(layout, count), []
    with (path / layer_file(layer)).open("wb") as file:
        file.write(header)
        for record, checksum in in_order(lambda e: random_record(layout, layer, e), range(count)):
            file.write(record.data)
            checksums.append(checksum)
        to_disk(file)
    return LayerEntry(layer_file(layer), layout, len(header), tuple(checksums))


def write_trunk(path: Path, tensors: tuple[TrunkTensor, ...], skew: float) -> dict[str, str]:
    """Every resident tensor; returns the checksum of each part."""
    header, extents = trunk_header(tensors)
    checksums: dict[str, str] = {}
    with path.open("wb") as file:
        file.write(header)
        for tensor in tensors:
            for name, pieces in trunk_parts(tensor, skew):
                digest = xxhash.xxh3_64()
                file.seek(extents[name][0])
                for piece in pieces:
                    file.write(piece)
                    digest.update(piece)
                checksums[name] = digest.hexdigest()
        to_disk(file)
    return checksums


def trunk_parts(tensor: TrunkTensor, skew: float) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The name of each stored part of a tensor, and its bytes in pieces."""
    names = [name for name, _ in tensor.named_parts()]
    if isinstance(tensor.form, Plain):
        yield names[0], iter((random_vector(tensor).tobytes(),))
        return
    rng = generator(_TRUNK, tensor.name)
    scales, biases = scales_of(rng, tensor.form, *tensor.shape, spread_of(tensor, skew))
    weight = tensor.named_parts()[0][1]
    sizes = (
        min(CHUNK_BYTES, weight.nbytes - start) for start in range(0, weight.nbytes, CHUNK_BYTES)
    )
    yield names[0], (random_bytes(rng, size).tobytes() for size in sizes)
    yield names[1], iter((scales.tobytes(),))
    yield names[2], iter((biases.tobytes(),))


def to_disk(file: BinaryIO) -> None:
    """Nothing stays in the page cache: what is read afterwards is read from the disk."""
    file.flush()
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def vocabulary_of(size: int) -> list[str]:
    """A word an id: the 256 bytes as byte-level BPE spells them, then names that no text has."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    words = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
    return words + [f"<t{number}>" for number in range(len(words), size)]


def tokenizer_json(vocabulary: int) -> str:
    """A byte-level tokenizer without merges."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    words: dict[str, Any] = {word: index for index, word in enumerate(vocabulary_of(vocabulary))}
    definition = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {"type": "BPE", "vocab": words, "merges": []},
    }
    return json.dumps(definition, ensure_ascii=False)

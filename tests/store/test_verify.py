"""Verification finds one flipped bit wherever it is, and names file and record."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash

from flashmoe.errors import CheckpointError, ReadError, StoreError
from flashmoe.store.convert import Progress, convert
from flashmoe.store.layout import MANIFEST, TRUNK
from flashmoe.store.manifest import Manifest
from flashmoe.store.reader import Store
from flashmoe.store.verify import Fault, verify
from tests import published as pub
from tests.republished import as_mlx, write_gguf

LAYER = "layer-001.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pub.qwen3_5_moe(moe_intermediate_size=192).write(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("whole") / "store"
    convert(source, store, bits=3)
    return store


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "store"))


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def test_an_intact_store_has_no_fault(whole: Path, source: Path) -> None:
    seen: list[Progress] = []
    report = verify(whole, progress=seen.append)
    assert (report.faults, report.records_checked) == ((), 32)
    assert report.bytes_checked == sum(
        path.stat().st_size for path in whole.iterdir() if path.name != MANIFEST
    )
    assert seen[-1].done_bytes == seen[-1].total_bytes
    assert {state.what for state in seen} == {*Store.open(whole).file_sizes(), *pub.texts()}
    report = verify(whole, against=source, progress=seen.append)
    assert not report.faults
    assert seen[-1].done_bytes == report.bytes_checked == seen[-1].total_bytes


def test_a_bit_of_a_record_names_the_record(store: Path) -> None:
    at = Store.open(store).record(1, 5)
    flip(at.path, at.offset + 777, 6)
    (fault,) = verify(store).faults
    assert (fault.file, fault.name) == (LAYER, "expert 5")
    assert at.checksum in fault.detail


def test_a_bit_of_padding_is_found(store: Path) -> None:
    opened = Store.open(store)
    at, layout = opened.record(1, 5), opened.layout(1)
    assert layout.nbytes < layout.record_bytes
    flip(at.path, at.offset + layout.record_bytes - 1)
    assert [(f.file, f.name) for f in verify(store).faults] == [(LAYER, "expert 5")]


@pytest.mark.parametrize("file", [LAYER, TRUNK])
@pytest.mark.parametrize("offset", [0, 7, 8, 100, 4095])
def test_a_bit_of_a_header_is_found(file: str, offset: int, store: Path) -> None:
    flip(store / file, offset)
    assert [(f.file, f.name) for f in verify(store).faults] == [(file, "header")]


def test_a_bit_of_the_trunk_names_the_part(store: Path) -> None:
    flip(store / TRUNK, (store / TRUNK).stat().st_size - 1)
    (fault,) = verify(store).faults
    assert fault.file == TRUNK and fault.name in Store.open(store).manifest.trunk_checksums


def test_a_bit_of_a_text_file_is_found(store: Path) -> None:
    flip(store / "tokenizer.json", 3)
    (fault,) = verify(store).faults
    assert (fault.file, fault.name) == ("tokenizer.json", "text")
    (store / "tokenizer.json").unlink()
    (fault,) = verify(store).faults
    assert "cannot be read" in fault.detail


def test_any_bit_of_any_file(whole: Path, store: Path) -> None:
    """150 random bits; in the manifest it may also be one that keeps the store from opening."""
    random = np.random.default_rng(7)
    files = sorted(whole.iterdir())
    for index in range(150):
        path = store / files[index % len(files)].name
        original = path.read_bytes()
        offset, bit = int(random.integers(len(original))), int(random.integers(8))
        flip(path, offset, bit)
        try:
            faults = verify(store).faults
        except StoreError as error:
            assert path.name == MANIFEST and MANIFEST in str(error)
        else:
            named = {fault.file for fault in faults}
            assert path.name in named, f"bit {bit} of byte {offset} of {path.name}"
        path.write_bytes(original)


def test_every_fault_is_reported(store: Path) -> None:
    opened = Store.open(store)
    for layer, expert in ((0, 0), (0, 7), (3, 2)):
        at = opened.record(layer, expert)
        flip(at.path, at.offset)
    flip(store / TRUNK, 9)
    assert [(f.file, f.name) for f in verify(store).faults] == [
        (TRUNK, "header"),
        ("layer-000.safetensors", "expert 0"),
        ("layer-000.safetensors", "expert 7"),
        ("layer-003.safetensors", "expert 2"),
    ]


def test_a_file_cut_short_does_not_open(store: Path) -> None:
    path = store / LAYER
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=LAYER):
        verify(store)


def test_a_file_that_shrinks_meanwhile_is_an_error(store: Path) -> None:
    def cut(_: Progress) -> None:
        (store / LAYER).write_bytes(b"")

    with pytest.raises(ReadError, match=LAYER):
        verify(store, progress=cut)


def rewrite(store: Path, manifest: Manifest) -> None:
    """A manifest that agrees with itself."""
    (store / MANIFEST).write_text(manifest.to_json())


def test_a_consistent_forgery_is_found_against_the_source(store: Path, source: Path) -> None:
    opened = Store.open(store)
    at = opened.record(2, 6)
    flip(at.path, at.offset + 11)
    record = at.path.read_bytes()[at.offset : at.offset + at.nbytes]
    layers = list(opened.manifest.layers)
    checksums = list(layers[2].checksums)
    checksums[6] = xxhash.xxh3_64_hexdigest(record)
    layers[2] = replace(layers[2], checksums=tuple(checksums))
    rewrite(store, replace(opened.manifest, layers=tuple(layers)))
    assert not verify(store).faults
    (fault,) = verify(store, against=source).faults
    assert (fault.file, fault.name) == ("layer-002.safetensors", "expert 6")
    assert "the checkpoint gives" in fault.detail


def test_another_checkpoint_of_the_same_shape_differs_everywhere(
    whole: Path, tmp_path: Path
) -> None:
    other = pub.qwen3_5_moe(moe_intermediate_size=192, seed=5)
    other.texts["tokenizer_config.json"] = b"{}"
    del other.texts["chat_template.jinja"]
    faults = verify(whole, against=other.write(tmp_path)).faults
    assert {f.name for f in faults if f.file == LAYER} == {f"expert {n}" for n in range(8)}
    assert "embed_tokens.weight" in {f.name for f in faults if f.file == TRUNK}
    texts = {f.file for f in faults if f.name == "text"}
    assert texts == {"tokenizer_config.json", "chat_template.jinja"}


def test_another_model_is_one_fault(whole: Path, tmp_path: Path) -> None:
    other = pub.qwen3_5_moe().write(tmp_path)
    assert verify(whole, against=other).faults == (
        Fault(MANIFEST, "shape", "is not what the checkpoint gives: another model"),
    )


def test_a_quantised_checkpoint_is_not_the_source_of_a_quantised_one(
    whole: Path, tmp_path: Path
) -> None:
    mlx = as_mlx(pub.qwen3_5_moe(moe_intermediate_size=192)).write(tmp_path, by="mlx")
    (fault,) = verify(whole, against=mlx).faults
    assert (fault.file, fault.name) == (MANIFEST, "conversion")


@pytest.mark.parametrize("kind", ["mlx", "gguf", "slices"])
def test_against_repacked_and_sliced_sources(kind: str, tmp_path: Path) -> None:
    if kind == "mlx":
        source = as_mlx(pub.qwen3_5_moe()).write(tmp_path / "published", by="mlx")
        convert(source, tmp_path / "store")
    elif kind == "gguf":
        source = write_gguf(pub.llama(), tmp_path / "m.gguf")
        convert(source, tmp_path / "store", slices=16)
    else:
        source = pub.llama().write(tmp_path / "published")
        convert(source, tmp_path / "store", bits=2, trunk_bits=8, group=32, slices=2)
    report = verify(tmp_path / "store", against=source)
    assert not report.faults and report.records_checked


def test_options_of_a_forged_manifest_are_checked(store: Path, source: Path) -> None:
    manifest = Store.open(store).manifest
    for bits in ("3", 7):
        rewrite(store, replace(manifest, conversion={**manifest.conversion, "bits": bits}))
        with pytest.raises(StoreError, match=r"manifest\.json: conversion"):
            verify(store, against=source)


def test_a_source_that_is_not_there(store: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        verify(store, against=tmp_path / "nowhere")

"""Opening a store: what is missing, short, unfinished or damaged is named, with the mend."""

import ctypes
import mmap
import os
from dataclasses import replace

import numpy as np
import pytest
import safetensors

from flashmoe.errors import ReadError, StoreError
from flashmoe.store.layout import JOURNAL, MANIFEST, TRUNK
from flashmoe.store.reader import Store, locate
from tests.synthetic import DENSE, write_store


@pytest.fixture
def path(tmp_path):
    return write_store(tmp_path / "store")


def test_records_lie_where_their_addresses_say(path):
    store = Store.open(path)
    for layer in range(store.shape.layers):
        address = store.record(layer, 5)
        raw = np.fromfile(address.path, np.uint8, address.nbytes, offset=address.offset)
        expert = store.layout(layer).expert(raw)
        tensors = dict(safetensors.deserialize(address.path.read_bytes()))
        assert bytes(tensors["experts.5.up_proj.scales"]["data"]) == expert.up.scales.tobytes()
        assert address.label == f"expert 5 of layer {layer}"


def test_the_trunk_is_whole(path):
    trunk = Store.open(path).trunk()
    assert trunk["lm_head.weight"].shape == (96, 64)
    assert trunk["norm.weight"].weight.shape == (64,)


def test_tensors_are_read_one_by_one_and_not_kept(path):
    store = Store.open(path)
    tensors, whole = store.tensors(), store.trunk()
    assert list(tensors) == list(whole) and len(tensors) == len(whole)
    for name, tensor in whole.items():
        np.testing.assert_array_equal(tensors[name].weight, tensor.weight)
        assert tensors[name] is not tensors[name]
    assert tensors.get("no such tensor") is None


def test_a_flipped_bit_in_the_trunk_is_found_and_named(path):
    content = bytearray((path / TRUNK).read_bytes())
    content[-1] ^= 1
    (path / TRUNK).write_bytes(content)
    with pytest.raises(ReadError, match=r"trunk\.safetensors: .* does not match its checksum"):
        Store.open(path).trunk()


@pytest.mark.parametrize("file", [TRUNK, "layer-002.safetensors"])
def test_a_missing_or_short_file_is_named(path, file):
    content = (path / file).read_bytes()
    (path / file).write_bytes(content[:-1])
    with pytest.raises(StoreError, match=f"{file} has .* bytes instead of"):
        Store.open(path)
    (path / file).unlink()
    with pytest.raises(StoreError, match=f"{file} is missing"):
        Store.open(path)


def test_an_unfinished_store_says_how_to_go_on(path):
    (path / MANIFEST).unlink()
    (path / JOURNAL).write_text("{}\n")
    with pytest.raises(StoreError, match="unfinished store: run the same `flashmoe convert"):
        Store.open(path)


def test_what_is_not_a_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match="not a store"):
        Store.open(tmp_path)
    with pytest.raises(StoreError, match="not a directory"):
        Store.open(tmp_path / "nothing")


def test_a_changed_text_file_is_refused(tmp_path):
    path = write_store(tmp_path / "store", DENSE)
    manifest = replace(Store.open(path).manifest, files={"tokenizer.json": "0" * 16})
    (path / MANIFEST).write_text(manifest.to_json())
    store = Store.open(path)
    assert store.text("chat_template.jinja") is None
    with pytest.raises(StoreError, match="cannot be read"):
        store.text("tokenizer.json")
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(StoreError, match="does not match its checksum"):
        store.text("tokenizer.json")


def test_demo_is_the_shipped_store_and_other_names_are_paths(tmp_path):
    assert locate("demo").name == "demo" and locate("demo").is_absolute()
    assert locate(tmp_path) == tmp_path


def test_the_trunk_does_not_stay_in_the_page_cache(path):
    file = path / "trunk.safetensors"
    with file.open("rb") as opened:
        os.fsync(opened.fileno())  # pages that are still to be written cannot be dropped
        opened.read()
    pages_in_memory(file) or pytest.skip("the file system here keeps no pages in memory")
    Store.open(path).trunk()
    assert pages_in_memory(file) == 0


def pages_in_memory(file):
    """How many pages of a file the page cache has, as mincore() tells."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as view:
        size = len(view)
        found = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        start = np.frombuffer(view, np.uint8).ctypes.data
        assert libc.mincore(start, size, found) == 0
        return sum(one & 1 for one in found)

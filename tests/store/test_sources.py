"""Several directories for one store: what makes it up, and what does not belong to it."""

import os
import shutil
from pathlib import Path

import pytest

from flashmoe.errors import InputError, StoreError
from flashmoe.quant import Affine
from flashmoe.store.layout import MANIFEST
from flashmoe.store.parts import MAX_PARTS, PART, SPREAD_JOURNAL
from flashmoe.store.reader import Store
from flashmoe.store.spread import spread
from tests.synthetic import write_store


@pytest.fixture
def path(tmp_path):
    return write_store(tmp_path / "store")


@pytest.fixture
def stripes(path, tmp_path):
    places = [tmp_path / "a", tmp_path / "b"]
    spread(path, places)
    return places


def strip(path):
    """Take a store's own layer files away."""
    for file in path.glob("layer-*"):
        file.unlink()


def test_the_stores_own_files_come_first_and_parts_are_more_copies(path, stripes):
    store = Store.open(path, stripes)
    assert store.directories == (path, *stripes)
    assert [len(sources) for sources in store.sources] == [3] * 4
    assert store.record(1, 5) == Store.open(path).record(1, 5)
    assert len(store.weight_files()) == 1 + 3 * 4
    assert Store.open(path, stripes[1:]).directories == (path, stripes[1])


def test_a_store_without_layer_files_opens_with_all_of_its_stripes_only(path, stripes, tmp_path):
    strip(path)
    assert Store.open(path, [str(place) for place in stripes]).directories == tuple(stripes)
    with pytest.raises(StoreError, match=r"layer-000.* is missing.*--store-dir"):
        Store.open(path)
    for place, absent in zip(stripes, (1, 0), strict=True):
        with pytest.raises(StoreError, match=f"stripe {absent} of 2 of .*store is missing"):
            Store.open(path, [place])


def test_layer_files_that_are_left_fill_gaps(path, stripes):
    (path / "layer-002.safetensors").unlink()
    with pytest.raises(StoreError, match=r"stripe 0 of 2.*expert 0 of layer-002"):
        Store.open(path, stripes[1:])
    assert [len(sources) for sources in Store.open(path, stripes).sources] == [3, 3, 2, 3]


def test_copies_made_by_hand_may_be_partial(path, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(path / "layer-001.safetensors", copy)
    assert [len(sources) for sources in Store.open(path, [copy]).sources] == [1, 2, 1, 1]
    (path / "layer-001.safetensors").unlink()
    assert Store.open(path, [copy]).record(1, 3).path.parent == copy
    (path / "layer-003.safetensors").unlink()
    with pytest.raises(StoreError, match=r"layer-003\.safetensors is missing, and no --store-dir"):
        Store.open(path, [copy])


def test_a_whole_copy_is_a_mirror(path, tmp_path):
    shutil.copytree(path, tmp_path / "copy")
    assert [len(sources) for sources in Store.open(path, [tmp_path / "copy"]).sources] == [2] * 4


def test_what_belongs_to_another_store_is_refused(path, stripes, tmp_path):
    other = write_store(tmp_path / "other", form=Affine(8, 32))
    with pytest.raises(StoreError, match=r"a holds a part of another store.*`flashmoe spread"):
        Store.open(other, stripes)
    shutil.copytree(path, tmp_path / "copy")
    with pytest.raises(StoreError, match="bytes instead of"):
        Store.open(other, [tmp_path / "copy"])


def test_a_copy_of_a_store_of_equal_shape_is_told_apart(path, tmp_path):
    """By the manifest beside the files, or else by the first record."""
    changed = tmp_path / "changed"
    shutil.copytree(path, changed)
    with (changed / "layer-000.safetensors").open("r+b") as file:
        file.seek(Store.open(path).record(0, 0).offset)
        file.write(b"another")
    (changed / MANIFEST).unlink()
    with pytest.raises(StoreError, match="changed holds layer files of another store"):
        Store.open(path, [changed])
    shutil.copy(path / "layer-000.safetensors", changed)
    Store.open(path, [changed])
    (changed / MANIFEST).write_text("{}")
    with pytest.raises(StoreError, match="changed holds layer files of another store"):
        Store.open(path, [changed])


def test_a_missing_or_short_file_of_a_part_is_named(path, stripes):
    file = stripes[1] / "layer-002.1of2.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(StoreError, match=r"layer-002\.1of2.* instead of .*`flashmoe spread` again"):
        Store.open(path, stripes)
    file.unlink()
    with pytest.raises(StoreError, match=r"layer-002\.1of2.* is missing: .*stripe 1 of 2"):
        Store.open(path, stripes)


def test_a_damaged_or_unfinished_part_is_refused(path, stripes):
    content = bytearray((stripes[0] / PART).read_bytes())
    content[content.index(b'"index": 0') + 9] ^= 1
    (stripes[0] / PART).write_bytes(content)
    with pytest.raises(StoreError, match=r"a/part\.json is malformed"):
        Store.open(path, stripes)
    (stripes[0] / PART).write_bytes(b"\xff" * (1 << 20))
    with pytest.raises(StoreError, match=r"a/part\.json cannot be read"):
        Store.open(path, stripes)
    os.replace(stripes[1] / PART, stripes[1] / SPREAD_JOURNAL)
    with pytest.raises(StoreError, match="b is an unfinished part: run the same `flashmoe spread`"):
        Store.open(path, stripes[1:])


def test_a_directory_that_may_not_be_looked_into_is_named(path, stripes, monkeypatch):
    exists = Path.exists

    def refusing(self):
        if self.parent == stripes[0]:
            raise PermissionError(13, "Permission denied", str(self))
        return exists(self)

    (stripes[0] / PART).unlink()
    monkeypatch.setattr(Path, "exists", refusing)
    with pytest.raises(StoreError, match=r"a/.* cannot be looked at: Permission denied"):
        Store.open(path, stripes)


def test_directories_that_are_none_are_refused(path, stripes, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="gone is not a directory: mount its drive"):
        Store.open(path, [tmp_path / "gone"])
    with pytest.raises(StoreError, match=r"empty has neither a part\.json nor a layer file"):
        Store.open(path, [tmp_path / "empty"])
    for twice in ([stripes[0], stripes[1], tmp_path / "store" / ".." / "a"], [path]):
        with pytest.raises(InputError, match="given twice, or is the store itself"):
            Store.open(path, twice)
    many = [tmp_path / str(number) for number in range(MAX_PARTS + 1)]
    with pytest.raises(InputError, match="33 times; at most 32"):
        Store.open(path, many)

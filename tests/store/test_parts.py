"""part.json and the files of a part: what they say, and what is refused."""

import json
from pathlib import Path

import pytest
import safetensors

from flashmoe.errors import StoreError
from flashmoe.store.parts import MAX_PARTS, Part, whole
from flashmoe.store.reader import Store
from flashmoe.store.spread import spread
from tests.synthetic import write_store

STORE = "0123456789abcdef"


def test_a_part_reads_what_it_wrote():
    for part in (Part(STORE, "stripe", 1, 3), Part(STORE, "mirror", 0, 1)):
        assert Part.from_json(part.to_json(), "part.json") == part
    assert str(Part(STORE, "stripe", 1, 3)) == "stripe 1 of 3"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", "[" * 100_000, '{"format": "flashmoe"}', "\x00", '"flashmoe part"'],
)
def test_what_is_not_a_part_json_is_refused(text):
    with pytest.raises(StoreError, match=r"there/part\.json is malformed.*flashmoe spread"):
        Part.from_json(text, "there/part.json")


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2}, {"store": 7}, {"store": None}, {"kind": "raid"}, {"kind": ["stripe"]},
        {"index": -1}, {"index": 3}, {"index": True}, {"index": "1"}, {"index": 1.0},
        {"parts": 0}, {"parts": MAX_PARTS + 1}, {"parts": None}, {"checksum": "0" * 16},
        {"index": 2}, {"parts": 4},
    ],
)  # fmt: skip
def test_a_changed_part_json_is_refused(change):
    document = json.loads(Part(STORE, "stripe", 1, 3).to_json())
    with pytest.raises(StoreError, match="malformed"):
        Part.from_json(json.dumps({**document, **change}, indent=1) + "\n", "part.json")


def test_the_files_of_a_stripe_are_safetensors_files(tmp_path):
    path = write_store(tmp_path / "store")
    places = [tmp_path / str(number) for number in range(3)]
    parts = spread(path, places)
    store = Store.open(path)
    whole_files = [
        dict(safetensors.deserialize((path / entry.file).read_bytes()))
        for entry in store.manifest.layers
    ]
    for layer, entry in enumerate(store.manifest.layers):
        together = {}
        for place, part in zip(places, parts, strict=True):
            source = part.source(place, entry)
            assert source.name == f"layer-00{layer}.{part.index}of3.safetensors"
            assert list(source.experts) == list(range(part.index, 8, 3))
            assert source.path.stat().st_size == source.nbytes
            assert len(source.header) == source.data_offset
            together |= dict(safetensors.deserialize(source.path.read_bytes()))
        assert together == whole_files[layer]


def test_more_parts_than_experts(tmp_path):
    path = write_store(tmp_path / "store")
    places = [tmp_path / str(number) for number in range(10)]
    parts = spread(path, places)
    entry = Store.open(path).manifest.layers[0]
    assert [len(part.source(Path(), entry).experts) for part in parts] == [1] * 8 + [0] * 2
    for file in path.glob("layer-*"):
        file.unlink()
    store = Store.open(path, places)
    assert {store.record(0, expert).path.parent for expert in range(8)} == set(places[:8])


def test_a_whole_file_lies_as_the_manifest_says(tmp_path):
    entry = Store.open(write_store(tmp_path / "store")).manifest.layers[2]
    source = whole(tmp_path, entry)
    assert [source.offset(expert) for expert in source.experts] == [
        entry.offset(expert) for expert in range(8)
    ]

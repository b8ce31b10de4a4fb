"""The manifest: a stable text, and strict reading of a hostile one."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.errors import StoreError
from flashmoe.store.layout import MANIFEST
from flashmoe.store.manifest import Manifest
from tests.synthetic import write_store


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return (write_store(tmp_path_factory.mktemp("m") / "store") / MANIFEST).read_text()


def test_the_text_is_stable(text):
    assert Manifest.from_json(text, "m").to_json() == text


def test_one_changed_character_is_found(text):
    for position in range(0, len(text), 97):
        other = "0" if text[position] != "0" else "1"
        with pytest.raises(StoreError, match=r"^m "):
            Manifest.from_json(text[:position] + other + text[position + 1 :], "m")


def paths(node, prefix=()):
    yield prefix
    if isinstance(node, dict):
        for key, value in node.items():
            yield from paths(value, (*prefix, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from paths(value, (*prefix, index))


JUNK = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=2), st.none(), max_size=1)
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_changed_field_is_read_or_refused(text, data):
    document = json.loads(text)
    path = data.draw(st.sampled_from([p for p in paths(document) if p]))
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = data.draw(JUNK)
    try:
        Manifest.from_json(json.dumps(document), "m")
    except StoreError as error:
        assert str(error).startswith("m")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(version=2), "format version 2"),
        (lambda d: d.update(format="other"), "not the manifest"),
        (lambda d: d["layers"].pop(), "3 layer files for a model of 4 layers"),
        (lambda d: d["layers"][1].update(file="../x"), "lies in '../x'"),
        (lambda d: d["layers"][1]["checksums"].pop(), "has 7 checksums, not 8"),
        (lambda d: d["layers"][0].update(data_offset=17), "data_offset 17"),
        (lambda d: d["layers"][0].update(record_bytes=8192), "records of 8192 bytes"),
        (lambda d: d["files"].update({"../../etc": "0" * 16}), "not a plain name"),
        (lambda d: d["trunk_checksums"].update(extra="0" * 16), "do not name the same"),
        (lambda d: d["trunk"]["norm.weight"].update(shape=[2**60]), "has shape"),
        (lambda d: d["shape"].update(hidden=-1), "hidden is -1"),
        (lambda d: d.pop("trunk"), "'trunk' is missing"),
    ],
)
def test_each_fault_is_named(text, change, message):
    document = json.loads(text)
    change(document)
    with pytest.raises(StoreError, match=message):
        Manifest.from_json(json.dumps(document), "m")


@pytest.mark.parametrize("bad", ["", "{", "[]", "[" * 100_000, "null", '"x"'])
def test_what_is_not_a_manifest_is_refused(bad):
    with pytest.raises(StoreError):
        Manifest.from_json(bad, "m")

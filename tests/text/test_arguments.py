"""What bare text means by a schema, and that nothing in either raises."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flashmoe.text.arguments import (
    json_text,
    property_schema,
    read_json,
    read_json_from,
    schemas_of,
    typed,
)

CITY = {"$ref": "#/$defs/city"}
ROOT: dict[str, Any] = {
    "$defs": {
        "city": {"type": "string"},
        "count": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "loop": {"$ref": "#/$defs/loop"},
        "tree": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "integer"}]},
        "a/b~": {"type": "boolean"},
    },
    "list": [{"type": "integer"}],
}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "12", "12"),
        ({"type": "string"}, " null\n", " null\n"),
        ({"type": "integer"}, " 12 ", 12),
        ({"type": "integer"}, "-3.0", -3),
        ({"type": "integer"}, "1e3", 1000),
        ({"type": "integer"}, "1.5", "1.5"),
        ({"type": "integer"}, "1e300", "1e300"),
        ({"type": "integer"}, "12 apples", "12 apples"),
        ({"type": "integer"}, "True", "True"),
        ({"type": "number"}, "12", 12),
        ({"type": "number"}, "12.0", 12.0),
        ({"type": "number"}, "1e999", "1e999"),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "number"}, "-Infinity", "-Infinity"),
        ({"type": "number"}, "9" * 5000, "9" * 5000),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "False", False),
        ({"type": "boolean"}, "TRUE", True),
        ({"type": "boolean"}, "1", "1"),
        ({"type": "boolean"}, "yes", "yes"),
        ({"type": "null"}, "none", None),
        ({"type": "null"}, "", ""),
        ({"type": "array"}, "[1, {}]", [1, {}]),
        ({"type": "array"}, "{}", "{}"),
        ({"type": "array"}, "[1, 1e999]", "[1, 1e999]"),
        ({"type": "object"}, '{"a": "x\ny"}', {"a": "x\ny"}),
        ({"type": "object"}, '{"a": 1} b', '{"a": 1} b'),
        ({"type": "object"}, "[" * 100_000, "[" * 100_000),
        ({"type": ["string", "null"]}, "None", None),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "none", "none"),
        ({"type": ["string", "null"]}, "true", "true"),
        ({"type": "string", "nullable": True}, "null", None),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "12", 12),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "012", "012"),
        ({"oneOf": [{"type": "array"}, {"type": "null"}]}, "[]", []),
        ({"allOf": [{"type": ["integer", "string"]}, {"type": "string"}]}, "1", "1"),
        ({"enum": ["1", 2, None]}, "1", "1"),
        ({"enum": ["1", 2, None]}, "2", 2),
        ({"enum": ["1", 2, None]}, "None", None),
        ({"enum": ["a"]}, "12", "12"),
        ({"enum": [True, "no"]}, "True", True),
        ({"const": 3}, "3", 3),
        ({"const": "3"}, "3", "3"),
        ({"properties": {}}, '{"a": 1}', {"a": 1}),
        ({"items": {}}, "[1]", [1]),
        ({}, "12", 12),
        ({}, "true", True),
        ({}, "[1", "[1"),
        ({}, "Ulm", "Ulm"),
        (True, "1", 1),
        (None, '"a"', '"a"'),
        (CITY, "12", "12"),
        ({"$ref": "#/$defs/count"}, "12", 12),
        ({"$ref": "#/$defs/count"}, "null", None),
        ({"$ref": "#/$defs/loop"}, "1", 1),
        ({"$ref": "#/$defs/tree"}, "1", 1),
        ({"$ref": "#/%24defs/a~1b~0"}, "true", True),
        ({"$ref": "#/list/0"}, "1", 1),
        ({"$ref": "#/list/7"}, "1", 1),
        ({"$ref": "#/nowhere"}, "1", 1),
        ({"$ref": "elsewhere.json"}, "1", 1),
        ({"allOf": [CITY, {"description": "where"}]}, "12", "12"),
    ],
    ids=repr,
)
def test_types(schema: Any, text: str, value: Any) -> None:
    found = typed(text, schema, ROOT)
    assert found == value and type(found) is type(value)


def test_properties_are_found_where_schemas_put_them() -> None:
    root: dict[str, Any] = {
        "properties": {"a": CITY},
        "allOf": [{"$ref": "#/$defs/more"}],
        "additionalProperties": {"type": "integer"},
        "$defs": {"more": {"properties": {"b": {"type": "null"}}}},
    }
    assert property_schema("a", root, root) == CITY
    assert property_schema("b", root, root) == {"type": "null"}
    assert property_schema("c", root, root) == {"type": "integer"}
    assert property_schema("c", {"additionalProperties": False}, {}) == {}
    assert property_schema("c", None, None) == {}


def test_tools_by_name() -> None:
    schema = {"type": "object"}
    tools: list[Any] = [
        {"type": "function", "function": {"name": "a", "parameters": schema}},
        {"name": "b", "parameters": schema},
        {"type": "function", "function": {"name": "c"}},
        {"type": "function", "function": {"name": 1}},
        {"type": "function", "function": None},
        {},
    ]
    assert schemas_of(tools) == {"a": schema, "b": schema, "c": {}}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=JSON, ensure_ascii=st.booleans())
def test_json_comes_back_as_it_was(value: Any, ensure_ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=ensure_ascii)
    assert read_json(f" {text}\n") == value
    assert read_json_from(f"x{text}y", 1) == (value, 1 + len(text))
    assert json.loads(json_text(value)) == value


@pytest.mark.parametrize(
    "text", ["", "x", "[1", "{'a': 1}", "NaN", "[1] 2", "[" * 100_000, "1e400"]
)
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_json(text)


def test_lone_surrogates_do_not_come_out() -> None:
    assert json_text(read_json(r'{"\ud800": "\ud83d\ude42\udc00"}')) == '{"\ufffd": "🙂\ufffd"}'


WORDS = st.sampled_from(
    ["type", "anyOf", "oneOf", "allOf", "enum", "const", "$ref", "properties", "items", "nullable"]
)
NAMES = st.sampled_from(["string", "integer", "null", "#", "#/anyOf/0", "#/properties/a", "a"])
SCHEMAS = st.recursive(
    JSON | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | NAMES, inner, max_size=4),
    max_leaves=20,
)


@given(schema=SCHEMAS, text=st.sampled_from(["1", "a", "null", "[]", "{}", "1.0"]) | st.text())
@example(schema={"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, text="1")
@example(schema={"enum": {"a": 1}, "type": {}}, text="1")
def test_no_schema_raises_and_text_stays_or_becomes_json(schema: Any, text: str) -> None:
    value = typed(text, property_schema("a", schema, schema), schema)
    value = typed(text, schema, schema) if value == text else value
    json.loads(json_text(value))


def test_schemas_that_contain_themselves_many_times_take_no_time() -> None:
    wide: dict[str, Any] = {"$defs": {}}
    for level in range(60):
        reference = {"$ref": f"#/$defs/{level + 1}"}
        wide["$defs"][str(level)] = {"anyOf": [reference, {"allOf": [reference, reference]}]}
    assert typed("1", {"$ref": "#/$defs/0"}, wide) == 1
    deep: dict[str, Any] = {}
    for _ in range(20_000):
        deep = {"anyOf": [deep]}
    assert typed("1", deep, deep) == 1

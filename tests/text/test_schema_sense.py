"""Schemas as a whole: values that never end, and too much asked at once."""

from __future__ import annotations

from typing import Any

import pytest

from flashmoe.text import schema_sense
from flashmoe.text.schema_sense import TooLarge, endless, overload
from tests.text.bound import listed


def finder(root: dict[str, Any]):
    def find(reference: str) -> Any:
        found: Any = root
        for step in reference.split("/")[1:]:
            found = found[int(step)] if isinstance(found, list) else found[step]
        return found

    return find


def of(definitions: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    return {"$defs": definitions, **schema}


SELF = {"$ref": "#"}
NEXT = {"$ref": "#/$defs/next"}


@pytest.mark.parametrize(
    "root",
    [
        SELF,
        listed({"a": SELF}),
        {"anyOf": [SELF, listed({"a": SELF})]},
        {"type": "array", "items": SELF, "minItems": 1},
        {"allOf": [{"type": "null"}, SELF]},
        of({"next": listed({"back": SELF})}, listed({"a": NEXT})),
        of({"next": listed({"back": {"anyOf": [SELF, NEXT]}})}, listed({"a": NEXT})),
    ],
)
def test_a_schema_that_contains_itself_without_an_end(root):
    assert endless(root, finder(root))


@pytest.mark.parametrize(
    "root",
    [
        {},
        {"type": "string"},
        listed({"a": SELF}, []),
        listed({"a": {"anyOf": [SELF, {"type": "null"}]}}),
        {"type": "array", "items": SELF},
        {"type": ["null", "object"], "properties": {"a": SELF}, "required": ["a"]},
        {"const": {"a": 1}, "allOf": [SELF]},
        # What is needed first is met last.
        of(
            {"next": {"anyOf": [listed({"x": SELF}), {"$ref": "#/$defs/leaf"}]},
             "leaf": {"type": "null"}},
            listed({"a": NEXT, "b": {"anyOf": [listed({"y": NEXT}), NEXT]}}),
        ),
    ],
)  # fmt: skip
def test_a_schema_that_comes_to_an_end(root):
    assert not endless(root, finder(root))


def patterns(count: int) -> list[dict[str, Any]]:
    return [{"type": "string", "pattern": f".{{{index}}}a"} for index in range(count)]


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ({"allOf": patterns(9)}, "9 patterns"),
        ({"allOf": [listed({"a": part}) for part in patterns(9)]}, "9 patterns"),
        (of({"next": {"allOf": patterns(8)}}, {"pattern": "x", **NEXT}), "9 patterns"),
        (
            {"allOf": [{"type": "integer", "multipleOf": each} for each in (101, 103, 107)]},
            "multiple",
        ),
    ],
)
def test_too_much_asked_of_one_value(root, words):
    found = overload(root, finder(root))
    assert found is not None and words in found


@pytest.mark.parametrize(
    "root",
    [
        {"anyOf": patterns(40)},
        {"allOf": [listed({f"p{index}": part}) for index, part in enumerate(patterns(40))]},
        {"allOf": [{"items": part} for part in patterns(4)] + [{"properties": {"a": {}}}]},
        listed({f"p{index}": {"type": "integer", "multipleOf": 1000} for index in range(9)}),
        of({"next": listed({"a": {"pattern": "a"}, "b": NEXT})}, {"allOf": [NEXT, SELF]}),
    ],
)
def test_what_is_asked_of_different_values_does_not_add_up(root):
    assert overload(root, finder(root)) is None


def test_what_unfolds_without_measure_is_given_up(monkeypatch):
    monkeypatch.setattr(schema_sense, "VISITS", 500)
    wide = {"anyOf": [{"type": "null"}] * 1000}
    for look in (endless, overload):
        with pytest.raises(TooLarge):
            look(wide, finder(wide))


def test_references_to_references_are_followed_once():
    """2^60 ways lead through it."""
    steps = {f"d{index}": {"allOf": [{"$ref": f"#/$defs/d{index + 1}"}] * 2} for index in range(60)}
    root = of({**steps, "d60": {"pattern": "a"}}, {"$ref": "#/$defs/d0"})
    assert not endless(root, finder(root))
    assert overload(root, finder(root)) is not None

"""Schemas made ready for grammars: what is refused, and where; what is admitted less."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings

from flashmoe.errors import InputError
from flashmoe.text.patterns import FORMATS
from flashmoe.text.schemas import culprit, prepared, rebased, resolved, unbounded, within
from tests.text.bound import SCHEMAS, listed


@settings(deadline=None)
@given(schema=SCHEMAS)
def test_preparing_changes_nothing_given_and_is_done_once(schema):
    before = copy.deepcopy(schema)
    made = prepared(schema, "it")
    assert schema == before
    assert prepared(made, "it") == made


def test_annotations_go_and_unknown_words_are_annotations():
    schema = {"type": "string", "title": "t", "default": 3, "format": "int32", "x-mine": {"not": 1}}
    assert prepared(schema, "it") == {"type": "string", "x-mine": {"not": 1}}
    found = prepared({"type": "string", "format": "ipv4"}, "it")
    assert found == {"type": "string", "pattern": f"^(?:{FORMATS['ipv4']})$"}
    both = {"type": "string", "format": "ipv4", "pattern": "^1"}
    assert prepared(both, "it") == both
    assert prepared({"const": {"not": 1}}, "it") == {"const": {"not": 1}}
    named = listed({"not": {"type": "null"}, "title": {"type": "null"}})
    assert prepared(named, "it")["properties"] == named["properties"]


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"not": {}}, "#/not"),
        ({"items": {"uniqueItems": True}}, "#/items/uniqueItems"),
        ({"anyOf": [{}, {"if": {}}]}, "#/anyOf/1/if"),
        ({"$defs": {"a b": {"contains": {}}}}, "#/$defs/a%20b/contains"),
        (
            {"properties": {"x": {"propertyNames": {"maxLength": 3}}}},
            "#/properties/x/propertyNames",
        ),
        ({"x-guidance": {"lenient": True}}, "#/x-guidance"),
        ({"items": 5}, "#/items"),
    ],
)
def test_what_cannot_be_enforced_is_named_with_its_place(schema, place):
    with pytest.raises(InputError, match=f"^mine, at {place.replace('$', '[$]')}: "):
        prepared(schema, "mine")


def test_items_as_a_list_are_the_first_ones():
    pair = {"items": [{"type": "boolean"}, {"type": "null"}]}
    assert prepared(pair, "it") == pair
    with pytest.raises(InputError, match=r"at #/additionalItems: .*give the list as 'prefixItems'"):
        prepared({**pair, "additionalItems": False}, "it")
    with pytest.raises(InputError, match="at #: 'items' is a list beside 'prefixItems'"):
        prepared({**pair, "prefixItems": [{"type": "string"}]}, "it")
    with pytest.raises(InputError, match='at #/items/0: "string" is no schema: give an object'):
        prepared({"items": ["string"]}, "it")


def test_keywords_that_say_nothing_are_no_matter():
    schema = {"uniqueItems": False, "propertyNames": {"type": "string"}, "unevaluatedItems": True}
    assert prepared(schema, "it") == {}


def test_listed_properties_are_all_there_are():
    assert prepared(listed({"a": {}}), "it")["additionalProperties"] is False
    for open_ in (
        {"type": "object"},
        {**listed({"a": {}}), "additionalProperties": {"type": "null"}},
        {**listed({"a": {}}), "patternProperties": {"^x": {}}},
        {"properties": {"a": {}}, "required": ["b"]},
        {"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}]},
        {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
    ):
        assert "'additionalProperties': False" not in str(prepared(open_, "it"))


def test_numbers_have_bounds():
    most = 10**18
    assert prepared({"type": "integer"}, "it") == {
        "type": "integer",
        "minimum": -most,
        "maximum": most,
    }
    assert prepared({"type": ["number", "null"], "minimum": 2}, "it")["maximum"] == most
    for own in ({"type": "integer", "enum": [most**2]}, {"type": "integer", "minimum": most**2}):
        assert prepared(own, "it") == own
    assert unbounded(prepared({"type": "integer"}, "it"))
    assert not unbounded({"type": "integer", "minimum": 3})


@pytest.mark.parametrize("schema", [5, None, [], False, {"a": float("nan")}, {"a": {1, 2}}])
def test_what_is_no_schema_is_refused(schema):
    with pytest.raises(InputError, match=r"^it is"):
        prepared(schema, "it")


def test_schemas_without_end_are_refused():
    deep: dict[str, object] = {}
    for _ in range(100):
        deep = {"items": deep}
    with pytest.raises(InputError, match="64 deep"):
        prepared(deep, "it")
    with pytest.raises(InputError, match="64 deep"):
        prepared({"anyOf": [{}] * 5000}, "it")


def test_parts_take_their_references_along():
    root = {"$defs": {"n": {"type": "null"}}, "properties": {"a/b": {"$ref": "#/$defs/n"}}}
    moved = {
        "$defs": {"n": {"type": "null"}},
        "properties": {"a/b": {"$ref": "#/$defs/root/$defs/n"}},
    }
    assert within(root, "/properties/a~1b") == {
        "$ref": "#/$defs/root/properties/a~1b",
        "$defs": {"root": moved},
    }
    assert rebased(root, {"type": "null"}) == {"type": "null"}
    assert rebased(root, {"items": {"$ref": "#/$defs/n"}})["$defs"] == {"root": moved}


def test_references_are_followed_to_their_end():
    root = {
        "$defs": {"a": {"$ref": "#/$defs/b%20c/0"}, "b c": [{"type": "null"}]},
        "x": {"$ref": "#/x"},
    }
    assert resolved(root, {"$ref": "#/$defs/a"}, "it") == {"type": "null"}
    assert resolved(root, True, "it") is True
    for bad in ("#/x", "#/nowhere", "http://a/b", 5):
        with pytest.raises(InputError, match="leads nowhere"):
            resolved(root, {"$ref": bad}, "it")


def test_the_culprit_is_the_smallest_part():
    root = listed({"a": {"items": {"type": "bad"}}, "b": {}})

    def fails(part):
        where = part["$ref"].removeprefix("#/$defs/root")
        return "/properties/a/items".startswith(where)

    assert culprit(root, fails) == "#/properties/a/items"
    assert culprit(root, lambda part: False) == "#"


def test_the_culprit_is_sought_in_a_bounded_number_of_trials():
    root, trials = {"properties": {f"p{number}": {} for number in range(4000)}}, []

    def fails(part):
        trials.append(part)
        return False

    assert culprit(root, fails) == "#"
    assert len(trials) <= 64

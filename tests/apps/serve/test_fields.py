"""Tables of parameters: a fault is named by its place, and the schema says what the check does."""

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.apps.serve.ask import BadRequest
from flashmoe.apps.serve.fields import (
    Either,
    Flag,
    Free,
    Items,
    Only,
    Real,
    Record,
    Refused,
    Tagged,
    Text,
    Whole,
)

PART = Tagged(
    "type",
    {"text": Record({"text": Text()}, ("text",)), "no": Record({})},
    refused={"image": "text alone"},
)
TABLE = Record(
    {
        "model": Text(least=1),
        "size": Whole(1, 9),
        "heat": Real(0, 2, above=True),
        "stream": Flag(),
        "stop": Either((Text(), Items(Text(), most=2)), "a string or a list of strings"),
        "mode": Text(("fast", "slow")),
        "n": Only(1, "one is all there is"),
        "audio": Refused("text alone"),
        "extra": Free(),
        "parts": Items(PART, least=1),
    },
    required=("model",),
)  # fmt: skip


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "model", "model is missing"),
        ({"model": None}, "model", "missing"),
        ({"model": ""}, "model", "empty"),
        ({"model": 1}, "model", "a whole number; it must be a string"),
        ({"model": "m", "sise": 1}, "sise", "not a known parameter"),
        ({"model": "m", "size": 0}, "size", "at least 1 and at most 9"),
        ({"model": "m", "size": True}, "size", "a boolean"),
        ({"model": "m", "size": 1.5}, "size", "a number"),
        ({"model": "m", "heat": 0}, "heat", "above 0"),
        ({"model": "m", "heat": 3}, "heat", "at most 2"),
        ({"model": "m", "stream": "yes"}, "stream", "true or false"),
        ({"model": "m", "stop": 3}, "stop", "a string or a list of strings"),
        ({"model": "m", "stop": ["a", "b", "c"]}, "stop", "at most 2"),
        ({"model": "m", "stop": ["a", 1]}, "stop[1]", "a string"),
        ({"model": "m", "mode": "odd"}, "mode", 'one of "fast", "slow"'),
        ({"model": "m", "n": 2}, "n", "one is all there is"),
        ({"model": "m", "n": True}, "n", "n is true: one is all there is"),
        ({"model": "m", "n": {"a": "é"}}, "n", 'n is {"a": "é"}: one is all'),
        ({"model": "\ud800"}, "model", "half of a character, \\ud800"),
        ({"model": "m", "stop": ["a", "b\udfff"]}, "stop[1]", "half of a character, \\udfff"),
        ({"model": "m", "extra": {"a": [{"b": "\ud800"}]}}, "extra.a[0].b", "half"),
        ({"model": "m", "extra": {"\ud800": 1}}, "extra", "half"),
        ({"model": "m", "audio": {}}, "audio", "text alone"),
        ({"model": "m", "extra": []}, "extra", "an object"),
        ({"model": "m", "parts": []}, "parts", "at least 1"),
        ({"model": "m", "parts": [{}]}, "parts[0].type", "missing"),
        ({"model": "m", "parts": [{"type": "image"}]}, "parts[0].type", "text alone"),
        ({"model": "m", "parts": [{"type": "x"}]}, "parts[0].type", 'one of "text", "no"'),
        ({"model": "m", "parts": [{"type": "text"}]}, "parts[0].text", "missing"),
        ({"model": "m", "parts": [{"type": "text", "text": "", "x": 1}]}, "parts[0].x", "known"),
    ],
)
def test_a_fault_is_named(body, param, words):
    with pytest.raises(BadRequest) as caught:
        TABLE.read(body)
    assert caught.value.param == param and words in caught.value.message


@pytest.mark.parametrize("value", [10**400, -(10**400), 2**63, 1e300])
def test_a_whole_number_has_64_bits(value):
    with pytest.raises(BadRequest, match="of 64 bits") as caught:
        Whole().read(value, "max_tokens")
    assert caught.value.param == "max_tokens" and len(caught.value.message) < 200
    assert Whole().read(2**63 - 1, "seed") == 2**63 - 1


def test_both_halves_are_a_character():
    assert TABLE.read(json.loads(r'{"model": "\ud83d\ude00"}')) == {"model": "😀"}


def test_null_is_nothing_and_whole_floats_are_whole():
    given_ = {"model": "m", "size": 3.0, "audio": None, "heat": 1}
    assert TABLE.read(given_) == {"model": "m", "size": 3, "heat": 1.0}


values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 12) | st.floats(-1, 3) | st.sampled_from(
        ["", "a", "fast", "slow", "text", "no", "image"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["type", "text", "x"]), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from([*TABLE.fields, "sise"]), values, max_size=4))
def test_the_schema_takes_what_the_table_takes(body):
    body = {"model": "m", **body}
    valid = jsonschema.Draft202012Validator(TABLE.schema()).is_valid(body)
    try:
        TABLE.read(body)
        taken = True
    except BadRequest:
        taken = False
    if "audio" in body and body["audio"] is None:
        return  # a client's null for what is not supported is let pass, and not advertised
    assert taken == valid

"""llguidance's reasons in plain words: none of its own insides reach who asked."""

from __future__ import annotations

import re
from functools import reduce
from typing import Any

import pytest

from flashmoe.errors import InputError
from flashmoe.text.forms import JsonSchema, Regex
from flashmoe.text.reasons import plain
from tests.text.bound import grammars_of, listed, tool

INSIDES = re.compile(
    r"start:|%json|x-guidance|whitespace_flexible|item_separator|json-schema:|non-verbose|Bias"
    r"|regex parse|NoneType|Traceback|PyErr|panic|lexer|parser|\bRust\b|Error\(|<class|codec"
    r"|serializable| f64|serde|_written|T0|r0",
    re.IGNORECASE,
)
"""Words of llguidance, of Python and of the grammars that are written for the one by the other."""


def nested(steps: int, kind: str) -> dict[str, Any]:
    start: dict[str, Any] = {"type": "string"}
    return reduce(lambda inner, _: {"type": "array", kind: inner}, range(steps), start)


FORMS: list[tuple[Any, str]] = [
    ({"type": "strin"}, "at #: \"strin\" is no value of 'type'"),
    ({"properties": {"a": {"minLength": -2}}}, "at #/properties/a: -2 is no value of 'minLength'"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "at #: .*oneOf.*anyOf"),
    (listed({"a": {"allOf": [{"type": "string"}, {"type": "null"}]}}), "at #/properties/a: no val"),
    (listed({"a": False}), "at #/properties/a: no value"),
    ({"properties": {"a": {}}, "minProperties": 1}, "at #: minProperties"),
    (listed({"a": {"pattern": "a("}}), "at #/properties/a: the pattern is not .*unclosed group"),
    ({"patternProperties": {"(?=a)": {}}}, "at #: the pattern is not usable .*look-around"),
    ({"$ref": "#/$defs/gone"}, 'the reference "#/.*gone" leads nowhere'),
    ({"$ref": "https://elsewhere/schema"}, "leads nowhere"),
    ({"$ref": "#"}, "without an end"),
    ({"allOf": [{"type": "string", "pattern": f".{{{n}}}a"} for n in range(5)]}, "one pattern"),
    ({"allOf": [{"type": "string", "pattern": f".{{{n}}}a"} for n in range(60)]}, "60 patterns"),
    ({"const": "\ud800"}, "not Unicode"),
    ({"const": {1, 2}}, "not JSON data"),
    ({"enum": [f"{n:09d}" for n in range(200_000)]}, "make it smaller"),
    ({"properties": {f"p{n}": {} for n in range(1000)}}, "1000 properties may be left out"),
    ({"properties": {f"p{n}": {} for n in range(9000)}}, "more than 4096 parts"),
    (nested(100, "items"), "64 deep"),
    (nested(100_000, "items"), "64 deep"),
    ({"type": "integer", "multipleOf": 10**9 + 7}, "'multipleOf'"),
]
PATTERNS = [
    ("(", "unclosed group"),
    ("(?=a)b", "look-around"),
    (r"(a)\1", "backreferences"),
    ("[z-a]", "character class range"),
    ("(" * 300 + ")" * 300, "nested"),
    ("a\ud800", "not Unicode"),
    ("a" * 100_000, "make it shorter"),
    ("a{1000000}", "lower them"),
    ("((a{99}){99}){99}", "lower them"),
    ("(?:a|b)*a(?:a|b){30}", None),
    ("(a*)*" * 200 + "b", None),
]


@pytest.fixture(scope="module")
def grammars(byte_level):
    return {form: grammars_of(byte_level, form) for form in ("xml", "json")}


@pytest.mark.parametrize(("schema", "words"), FORMS)
def test_a_schema_is_refused_by_place_and_mend(grammars, schema, words):
    with pytest.raises(InputError, match=words) as refused:
        grammars["xml"].guide(form=JsonSchema(schema))
    assert not INSIDES.search(str(refused.value).replace("https", "")), str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("form", ["xml", "json"])
@pytest.mark.parametrize(("schema", "words"), FORMS)
def test_a_tool_is_refused_by_name_place_and_mend(grammars, form, schema, words):
    offered = [tool("look", listed({"it": schema} if schema != {"$ref": "#"} else {"it": {}}))]
    if schema == {"$ref": "#"}:
        offered[0]["function"]["parameters"]["properties"]["it"] = schema
    with pytest.raises(InputError, match="the parameters of the tool 'look'") as refused:
        grammars[form].guide(tools=offered, tool_choice="required")
    assert not INSIDES.search(str(refused.value).replace("https", "")), str(refused.value)


@pytest.mark.parametrize(("pattern", "words"), PATTERNS)
def test_a_pattern_is_refused_with_its_mend(grammars, pattern, words):
    if words is None:
        assert grammars["json"].guide(form=Regex(pattern)).mask() is not None
        return
    for form in (Regex(pattern), JsonSchema({"type": "string", "pattern": pattern})):
        with pytest.raises(InputError, match=words) as refused:
            grammars["json"].guide(form=form)
        assert not INSIDES.search(str(refused.value)), str(refused.value)


def test_reasons_that_are_not_known_say_nothing_of_insides():
    for reason in (
        "at 3(5): something new 3 | r2[lazy]: %json {…}",
        "panic: called `Result::unwrap()` on an `Err` value: PyErr { type: <class 'KeyError'> }",
        "ParserTooComplex <non-verbose/>",
    ):
        assert not INSIDES.search(plain(reason)) and ":" in plain(reason)

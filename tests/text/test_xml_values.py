"""Values of parameters: what a schema's alternatives come to, and what no string may look like."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.errors import InputError
from flashmoe.text.arguments import typed
from flashmoe.text.lark import Lark
from flashmoe.text.schemas import prepared
from flashmoe.text.vocabulary import Vocabulary
from flashmoe.text.xml_values import Values
from tests.text.bound import SCHEMAS
from tests.text.test_lark import matches

END = "\n</parameter>\n"
TEXTS = st.one_of(
    st.sampled_from(
        [
            "12",
            "-3",
            "4.5",
            "true",
            "True",
            "null",
            "None",
            "[1]",
            "{}",
            "",
            " 7",
            "a",
            "1e5",
            '"b"',
        ]
    ),
    st.text('ab19-. \n{["', max_size=6),
)


@pytest.fixture(scope="module")
def vocabulary(byte_level):
    return Vocabulary(byte_level, byte_level.stop_ids, byte_level.vocab_size)


def admits(vocabulary, schema, text):
    made = prepared(schema, "it")
    lark = Lark()
    grammar = lark.grammar(lark.rule(Values(lark, made, "it").of(made, "p")))
    return matches(vocabulary, grammar, text + END)


@settings(deadline=None, max_examples=60)
@given(schema=SCHEMAS, text=TEXTS)
def test_what_is_admitted_is_read_as_a_valid_value(vocabulary, schema, text):
    if admits(vocabulary, schema, text):
        value = typed(text, schema, schema)
        jsonschema.validate(
            value, schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
        )


@settings(deadline=None, max_examples=60)
@given(
    value=st.one_of(st.integers(-(10**17), 10**17), st.booleans(), st.text("ab<>/\n"), st.none())
)
def test_what_was_meant_is_admitted(vocabulary, value):
    names = {int: "integer", bool: "boolean", str: "string", type(None): "null"}
    text = value if isinstance(value, str) else json.dumps(value)
    assert admits(vocabulary, {"type": names[type(value)]}, text)
    assert admits(vocabulary, {"enum": ["other", value]}, text)
    assert admits(vocabulary, {}, text)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"enum": []}, "at least one value"),
        ({"type": "string", "enum": [3]}, "no value"),
        ({"allOf": [{"maxLength": 3}]}, "allOf"),
        ({"type": "string", "anyOf": [{"minLength": 3}, {"pattern": "a"}]}, "anyOf"),
        ({"$ref": "#/$defs/x"}, "leads nowhere"),
        ({"$ref": "#"}, "without an end"),
        ({"enum": ["a</parameter>"]}, "cannot express"),
    ],
)
def test_what_the_form_cannot_enforce_is_refused(schema, message):
    lark = Lark()
    with pytest.raises(InputError, match=message):
        made = prepared(schema, "it")
        Values(lark, made, "it").of(made, "p")

"""What a reply to a tool request is worth."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.apps.eval.cases import Case
from flashmoe.apps.eval.validity import Judge, Verdict, equal
from flashmoe.errors import InputError
from flashmoe.text.pieces import Call, Content, Reasoning
from flashmoe.text.syntax import Mark, Syntax

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "on": {"type": "boolean"}},
    "required": ["a"],
}
TOOL = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
SYNTAX = Syntax(call_open=Mark("<tool_call>", 5), call_close=Mark("</tool_call>", 6), calls="xml")
RIGHT = Call("add", '{"a": 1, "on": true}')


def case(**more) -> Case:
    expected = {"name": "add", "arguments": {"on": True, "a": 1.0}}
    return Case("cases, line 1", ({},), None, (TOOL,), **(expected | more))


def verdict(*pieces, ended=True, **more) -> Verdict:
    return Judge(SYNTAX).verdict(case(**more), pieces, ended=ended)


def test_the_right_call():
    assert verdict(Reasoning("hm <tool_call>"), RIGHT) == Verdict(True, True, True, None)
    assert verdict(Content("Let me add: "), RIGHT) == Verdict(True, True, True, None)
    assert verdict(RIGHT, arguments=None).right is True
    assert verdict(RIGHT, name=None, arguments=None) == Verdict(True, True, None, None)


@pytest.mark.parametrize(
    ("pieces", "fault"),
    [
        ([Content("3")], "no call"),
        ([], "no call"),
        ([RIGHT, Content("<tool_call>\n<function=add")], "markup of a call in the text"),
        ([Content("</tool_call>"), RIGHT], "markup of a call in the text"),
        ([RIGHT, Call("subtract", "{}")], "a call of 'subtract', which was not offered"),
        ([Call("add", "[1]")], "the arguments of add are no JSON object"),
        ([Call("add", "{")], "the arguments of add are no JSON object"),
    ],
)
def test_what_is_not_well_formed(pieces, fault):
    assert verdict(*pieces) == Verdict(False, False, False, fault)
    assert verdict(*pieces, name=None, arguments=None).right is None


def test_a_reply_that_was_cut_is_not_well_formed():
    assert verdict(RIGHT, ended=False).fault == "cut: it did not come to its end"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ('{"a": "1", "on": true}', "add: $.a: '1' is not of type 'integer'"),
        ('{"on": true}', "add: $: 'a' is a required property"),
        ('{"a": 1, "on": 1}', "add: $.on: 1 is not of type 'boolean'"),
    ],
)
def test_what_is_not_valid(arguments, fault):
    assert verdict(Call("add", arguments)) == Verdict(True, False, False, fault)


@pytest.mark.parametrize(
    "calls", [[RIGHT, RIGHT], [Call("add", '{"a": 2, "on": true}')], [Call("add", '{"a": 1}')]]
)
def test_what_is_not_right(calls):
    assert verdict(*calls) == Verdict(True, True, False, "another call than the expected one")


def test_a_schema_that_is_none_is_named():
    tool = {"function": {"name": "add", "parameters": {"type": "number?"}}}
    with pytest.raises(InputError, match="line 1: the parameters of add are no JSON schema"):
        Judge(SYNTAX).check(Case("cases, line 1", ({},), None, (tool,)))
    Judge(SYNTAX).check(case())


def test_without_jsonschema_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(InputError, match="pip install 'jsonschema>="):
        Judge(SYNTAX)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=1), inner),
    max_leaves=6,
)


@settings(deadline=None)
@given(values)
def test_every_value_equals_itself_and_nothing_it_was_wrapped_in(value):
    assert equal(value, value) and not equal(value, [value]) and not equal({"k": value}, value)


def test_numbers_are_equal_by_value_and_truth_is_none():
    assert equal({"a": [1, 2.0]}, {"a": [1.0, 2]})
    assert not equal(True, 1) and not equal(0, False) and not equal([1], [True])
    assert not equal({"a": 1}, {"a": 1, "b": 2}) and not equal([1, 2], [2, 1])

"""The body of a JSON call: what is read, and what is left as it stands."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.text.call_json import Openness, read_calls
from flashmoe.text.pieces import Call
from tests.text.test_arguments import JSON


def read(text: str) -> tuple[list[Call], str]:
    return read_calls(text, {}, closed=True)


@pytest.mark.parametrize(
    ("text", "calls", "rest"),
    [
        ('\n{"name": "f", "arguments": {"a": 1}}\n', [Call("f", '{"a": 1}')], "\n"),
        ('{"arguments":{},"name":"f"}', [Call("f", "{}")], ""),
        ('{"name": "f"}', [Call("f", "{}")], ""),
        ('{"name": "f", "arguments": null, "id": 3}', [Call("f", "{}")], ""),
        ('{"name": "f", "arguments": "{\\"a\\": \\"é\\"}"}', [Call("f", '{"a": "é"}')], ""),
        ('{"name": "f", "arguments": {"a": "x\ny"}}', [Call("f", '{"a": "x\\ny"}')], ""),
        ('{"name": "f", "arguments": {}}}', [Call("f", "{}")], "}"),
        ('{"name": "f"} and so\n', [Call("f", "{}")], " and so\n"),
        ('{"name": "f"}\n{"name": "g"}', [Call("f", "{}"), Call("g", "{}")], ""),
        ('[{"name": "f"}, {"name": "g"}]', [Call("f", "{}"), Call("g", "{}")], ""),
        ('{"name": "f"} {"name": 1}', [Call("f", "{}")], ' {"name": 1}'),
        (r'{"name": "\ud800"}', [Call("\ufffd", "{}")], ""),
    ],
)
def test_calls(text: str, calls: list[Call], rest: str) -> None:
    assert read(text) == (calls, rest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "f",
        "[]",
        '"f"',
        '{"name": "f", "arguments": {"a": 1}',
        '{"name": "f", "arguments": {"a": NaN}}',
        "{'name': 'f', 'arguments': {}}",
        '{"name": 1, "arguments": {}}',
        '{"name": "", "arguments": {}}',
        '{"arguments": {}}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": 1}',
        '{"name": "f", "arguments": "one"}',
        '{"name": "f", "arguments": "[1]"}',
        '[{"name": "f"}, 1]',
        'call {"name": "f"}',
        "<function=f>\n</function>",
        '{"name": "f", "arguments": ' + "[" * 100_000,
    ],
    ids=lambda text: text[:40],
)
def test_what_is_no_call_is_left(text: str) -> None:
    assert read(text) == ([], text)


@given(
    name=st.text(min_size=1),
    arguments=st.dictionaries(st.text(), JSON, max_size=4),
    ensure_ascii=st.booleans(),
    as_text=st.booleans(),
)
def test_calls_come_back(name: str, arguments: Any, ensure_ascii: bool, as_text: bool) -> None:
    given = json.dumps(arguments) if as_text else arguments
    text = json.dumps({"name": name, "arguments": given}, ensure_ascii=ensure_ascii)
    ((call,), rest) = read(f"\n{text}\n")
    assert (call.name, json.loads(call.arguments), rest) == (name, arguments, "\n")


def inside(text: str) -> bool:
    """Whether a text ends inside a JSON string that a line break ends."""
    open_, escaped = False, False
    for letter in text:
        if escaped:
            escaped = False
        elif letter == "\\":
            escaped = open_
        elif letter == '"':
            open_ = not open_
        elif letter == "\n":
            open_ = False
    return open_


@given(text=st.text('ab"\\\n', max_size=20), cuts=st.lists(st.integers(0, 20)))
def test_openness(text: str, cuts: list[int]) -> None:
    openness = Openness()
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    for start, end in pairwise(places):
        openness.read(text[start:end])
    assert openness.inside is inside(text)

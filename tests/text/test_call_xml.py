"""The body of an XML call: what is read, and what is left as it stands."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.text.call_xml import Openness, read_calls
from flashmoe.text.pieces import Call

SCHEMAS: dict[str, dict[str, Any]] = {
    "f": {"type": "object", "properties": {"s": {"type": "string"}, "n": {"type": "integer"}}}
}


def body(*parameters: tuple[str, str], name: str = "f") -> str:
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters)
    return f"\n<function={name}>\n{inner}</function>\n"


def arguments(text: str, *, closed: bool = True) -> Any:
    """The arguments of the one call in ``text``, of which nothing is left."""
    calls, rest = read_calls(text, SCHEMAS, closed=closed)
    assert len(calls) == 1 and not rest.strip()
    return json.loads(calls[0].arguments)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (body(), {}),
        (body(("s", "a"), ("n", "2")), {"s": "a", "n": 2}),
        (body(("n", "two")), {"n": "two"}),
        (body(("s", "\n a\n\n")), {"s": "\n a\n\n"}),
        (body(("s", "")), {"s": ""}),
        (body(("s", "1"), ("s", "2")), {"s": "2"}),
        (body(("s", "é\u2028🙂")), {"s": "é\u2028🙂"}),
        (body(("s", "</parameter> and </function> <parameter=n>")),
         {"s": "</parameter> and </function> <parameter=n>"}),
        (body(("s", "<function=g>\n<parameter=a>\n1\n</function>"), ("n", "1")),
         {"s": "<function=g>\n<parameter=a>\n1\n</function>", "n": 1}),
        (body(("other", "[1]")), {"other": [1]}),
        (body(("a key", "x")), {"a key": "x"}),
        ("<function=f><parameter=s>a</parameter><parameter=n>3</parameter></function>",
         {"s": "a", "n": 3}),
        ("<function=f>\n<parameter=n>\n3\n</parameter>\n", {"n": 3}),
        ("<function=f>\n<parameter=n>\n3\n", {"n": 3}),
        ("<function=f>\n<parameter=n>\n3\n</function>", {"n": 3}),
        ("<function=f>", {}),
    ],
)  # fmt: skip
def test_one_call(text: str, expected: Any) -> None:
    assert arguments(text) == expected


def test_the_tool_need_not_be_known() -> None:
    text = body(("n", "1"), ("s", "x"), name="g")
    assert read_calls(text, SCHEMAS, closed=True)[0] == [Call("g", '{"n": 1, "s": "x"}')]


def test_two_functions_are_two_calls() -> None:
    calls, rest = read_calls(body(("n", "1")) + body(name="g") + " so\n", SCHEMAS, closed=False)
    assert calls == [Call("f", '{"n": 1}'), Call("g", "{}")]
    assert rest == "\n so\n"


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "f",
        '{"name": "f", "arguments": {}}',
        "\n<parameter=n>\n1\n</parameter>\n</function>\n",
        "<function=>\n</function>",
        "<function=f\n</function>",
        "I call\n<function=f>\n</function>",
        "<function=f>\nn is 1\n</function>",
    ],
)
def test_what_is_no_call_is_left(text: str, closed: bool) -> None:
    assert read_calls(text, SCHEMAS, closed=closed) == ([], text)


@pytest.mark.parametrize("end", range(1, len("\n</parameter>\n</function>")))
def test_without_the_closing_mark_it_must_be_complete(end: int) -> None:
    text = "<function=f>\n<parameter=s>\na\n</parameter>\n</function>"[:-end]
    assert read_calls(text, SCHEMAS, closed=False) == ([], text)


def test_a_call_that_breaks_off_is_left_behind_whole_ones() -> None:
    calls, rest = read_calls(body() + "<function=f>\n<parameter=s>\nx", SCHEMAS, closed=False)
    assert calls == [Call("f", "{}")]
    assert rest == "\n<function=f>\n<parameter=s>\nx"


VALUES = st.text() | st.lists(
    st.sampled_from(["</parameter>", "<parameter=n>", "</function>", "<function=f>", "\n", "x"])
).map("".join)


SPELLED_END = re.compile(r"</parameter>\s*(?:<parameter=|</function>)")


@settings(deadline=None)
@given(value=VALUES.filter(lambda value: not SPELLED_END.search(value)))
def test_strings_come_back(value: str) -> None:
    assert arguments(body(("s", value), ("n", "1"))) == {"s": value, "n": 1}
    assert arguments(body(("n", "1"), ("s", value))) == {"s": value, "n": 1}


@pytest.mark.parametrize(
    "value",
    [
        f"<tool_call>{body(('s', 'x'))}</tool_call>",
        f"a{body(('s', 'x'), ('n', '2'))}b{body(name='g')}c",
        body(("s", f"in{body(('n', '1'))}side")),
        "as </parameter></function> does",
        "a\n</parameter>\n</function>\nb",
    ],
)
def test_a_value_may_spell_a_call(value: str) -> None:
    assert arguments(body(("s", value))) == {"s": value}


@pytest.mark.parametrize(
    "value", [["</parameter><parameter=s>"], {"a": "</parameter> </function>"}, [["</parameter>"]]]
)
def test_texts_in_json_may_spell_anything(value: Any) -> None:
    text = json.dumps(value)
    assert arguments(body(("other", text), ("n", "1"))) == {"other": value, "n": 1}
    assert arguments(body(("other", f"  {text}\n\n"))) == {"other": value}


def test_what_only_begins_as_json_is_text() -> None:
    for text in ("[1] or [2]", "[1", '{"a": 1} b', '["</parameter>'):
        assert arguments(body(("other", text), ("n", "1"))) == {"other": text, "n": 1}


def test_text_behind_a_call_is_no_part_of_it() -> None:
    for behind in (" so\n", f" so{body(('n', '2'))}", " <parameter=n>2</parameter>"):
        calls, rest = read_calls(body(("s", "a")) + behind, SCHEMAS, closed=True)
        assert calls == [Call("f", '{"s": "a"}')] and rest == f"\n{behind}"


@pytest.mark.parametrize(
    "piece",
    ["<parameter=s>", "</parameter>", "</parameter>\n</function>", '<parameter=o>["</parameter>'],
)
@pytest.mark.parametrize("head", ["", "<parameter=s>"])
def test_a_long_body_takes_time_in_proportion(piece: str, head: str) -> None:
    def seconds(times: int) -> float:
        text = f"<function=f>{head}" + piece * times
        began = time.process_time()
        read_calls(text, SCHEMAS, closed=True)
        return time.process_time() - began

    short = min(seconds(2_000) for _ in range(3))
    assert min(seconds(20_000) for _ in range(3)) < 30 * short + 0.05


@settings(deadline=None)
@given(text=VALUES, closed=st.booleans())
def test_nothing_raises_and_nothing_is_lost(text: str, closed: bool) -> None:
    text = "<function=f>" + text
    calls, rest = read_calls(text, SCHEMAS, closed=closed)
    assert text.endswith(rest)
    assert calls or rest == text


@pytest.mark.parametrize(
    ("read", "inside"),
    [
        ([""], False),
        (["<function=f>\n<parameter=s>\na"], True),
        (["<function=f>\n<parameter=s>\n", "</tool_call>", "\n</parameter>\n"], False),
        (["<function=f>\n<parameter=s>\n", "</tool_call>", ""], True),
        (["<function=f>\n<parameter=s>\na\n</function>\n"], False),
        (["<function=f>\n<parameter=s>\na </parameter> b"], True),
        (["<function=f>\n<parameter=s>\na </parameter>", " ", "b\n</parameter>\n"], False),
        (["<function=f>\n<parameter=s>\na\n</parameter>\n</function>\nso"], False),
        (["<function=f>\n<parameter=s>\na </function> b"], True),
    ],
)
def test_openness(read: list[str], inside: bool) -> None:
    openness = Openness()
    for text in read:
        openness.read(text)
    assert openness.inside is inside

"""A reply that a template wrote comes apart into what it was made of, by real ids."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flashmoe.text import (
    Call,
    ChatTemplate,
    Content,
    Piece,
    Reasoning,
    ReplyParser,
    Segment,
    Syntax,
    Tokenizer,
)
from tests.text.replies import TAGS, joined
from tests.text.templates import HERMES, QWEN

QUESTION = {"role": "user", "content": "?"}
END = "<|im_end|>"


@cache
def template_of(source: str, tokenizer: Tokenizer) -> tuple[ChatTemplate, Syntax]:
    return ChatTemplate(source, markup=tokenizer.markup), Syntax.of(source, tokenizer)


def after(prompt: Sequence[Segment], whole: Sequence[Segment]) -> list[Segment]:
    """The segments of the reply alone: what follows the prompt, up to the end of the turn."""
    skip = sum(len(segment.text) for segment in prompt)
    rest: list[Segment] = []
    for segment in whole:
        kept = segment.text[min(skip, len(segment.text)) :]
        skip -= len(segment.text) - len(kept)
        rest += [Segment(kept, markup=segment.markup)] if kept else []
    ends = [index for index, segment in enumerate(rest) if segment == Segment(END, markup=True)]
    return rest[: ends[-1]]


def round_trip(
    source: str, tokenizer: Tokenizer, tools: Sequence[Any], **reply: Any
) -> list[Piece]:
    """The pieces of a reply that was given, written by the template and read by id."""
    template, syntax = template_of(source, tokenizer)
    prompt = template.render([QUESTION], tools=tools)
    message = {"role": "assistant", **reply}
    whole = template.render([QUESTION, message], tools=tools, add_generation_prompt=False)
    thinking = syntax.starts_thinking(prompt)
    parser = ReplyParser(tokenizer, syntax, tools, thinking=thinking)
    ids = tokenizer.encode_segments(after(prompt, whole))
    found = [piece for id in ids for piece in parser.push(id)] + parser.finish()
    assert not parser.withholding and not parser.thinking
    return joined(found)


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def normal(text: str) -> str:
    """As the tokenizer's normalizer leaves it."""
    return unicodedata.normalize("NFC", text)


MARKUP = st.lists(
    st.sampled_from([*TAGS, END, "<|im_start|>system", "<function=f>", "<parameter=a>",
                     "</function>", "</parameter>", "\n", " ", '"', "\\", "}", "</tool", "é",
                     "日本", "x"])
).map("".join)  # fmt: skip
TEXT = (st.text() | MARKUP).map(normal)
NAME = st.text(st.sampled_from("abcXYZ019_-.é日"), min_size=1).map(normal)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
SPELLED_END = re.compile(r"</parameter>\s*(?:<parameter=|</function>)")
"""What a text in the XML form spells where it ends, of all that it can spell."""
TYPED = {
    "string": TEXT.filter(lambda text: not SPELLED_END.search(text)),
    "integer": st.integers(),
    "number": st.floats(allow_nan=False, allow_infinity=False),
    "boolean": st.booleans(),
    "null": st.none(),
    "array": st.lists(JSON, max_size=3),
    "object": st.dictionaries(TEXT, JSON, max_size=3),
}
NESTED = "<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter>\n</function>\n</tool_call>"
PARAMETERS = st.dictionaries(
    NAME,
    st.sampled_from(sorted(TYPED)).flatmap(lambda name: st.tuples(st.just(name), TYPED[name])),
    max_size=4,
)


def tool(name: str, properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@settings(deadline=None)
@given(name=NAME, parameters=PARAMETERS, again=st.booleans())
@example(name="f", parameters={"a": ("string", "\n</tool_call>\n")}, again=True)
@example(name="f", parameters={"a": ("string", "</parameter>")}, again=True)
@example(name="f", parameters={"a": ("string", "</function>\n</tool_call>")}, again=False)
@example(name="f", parameters={"a": ("string", NESTED)}, again=False)
@example(name="f", parameters={"a": ("array", ["</parameter><parameter=a>"])}, again=True)
def test_xml_calls(name: str, parameters: Any, again: bool, byte_level: Tokenizer) -> None:
    arguments = {key: value for key, (_, value) in parameters.items()}
    tools = [tool(name, {key: {"type": kind} for key, (kind, _) in parameters.items()})]
    calls = [call(name, arguments)] * (1 + again)
    found = round_trip(QWEN, byte_level, tools, content="", tool_calls=calls)
    assert [_exact(piece) for piece in found] == [(name, exactly(arguments))] * (1 + again)


@settings(deadline=None)
@given(
    name=TEXT.filter(bool), arguments=st.dictionaries(TEXT, JSON, max_size=4), tagged=st.booleans()
)
@example(name="f", arguments={"a": "</tool_call><tool_call>"}, tagged=False)
def test_json_calls(
    name: str, arguments: Any, tagged: bool, byte_level: Tokenizer, untagged: Tokenizer
) -> None:
    tokenizer = byte_level if tagged else untagged
    tools = [tool(name, {})]
    found = round_trip(HERMES, tokenizer, tools, content="", tool_calls=[call(name, arguments)])
    assert [_exact(piece) for piece in found] == [(name, exactly(arguments))]


def _exact(piece: Piece) -> tuple[str, str]:
    assert isinstance(piece, Call)
    return piece.name, exactly(json.loads(piece.arguments))


def exactly(value: Any) -> str:
    """JSON's text: it tells 1 from True and 1.0, which compare equal."""
    return json.dumps(value)


@settings(deadline=None)
@given(reasoning=TEXT.map(str.strip), content=TEXT.map(str.strip), number=st.integers(0, 2))
def test_reasoning_content_and_calls(
    reasoning: str, content: str, number: int, byte_level: Tokenizer
) -> None:
    """The user's and the model's text may spell any tag: by id it is none."""
    found = round_trip(
        QWEN,
        byte_level,
        [tool("f", {"n": {"type": "integer"}})],
        content=content,
        reasoning_content=reasoning,
        tool_calls=[call("f", {"n": 1})] * number,
    )
    expected: list[Piece] = [Reasoning(reasoning)] if reasoning else []
    expected += [Content(content)] if content else []
    assert found == [*expected, *[Call("f", '{"n": 1}')] * number]


@pytest.mark.parametrize("source", [QWEN, HERMES], ids=["qwen", "hermes"])
@pytest.mark.parametrize("text", ["a </tool_call> b", "x <tool_call> y", "\n \n", "é🙂"])
def test_strings_by_text(source: str, text: str, untagged: Tokenizer) -> None:
    tools = [tool("f", {"s": {"type": "string"}})]
    found = round_trip(source, untagged, tools, content="Hi", tool_calls=[call("f", {"s": text})])
    assert [piece for piece in found if isinstance(piece, Content)] == [Content("Hi")]
    assert [_exact(p) for p in found if isinstance(p, Call)] == [("f", exactly({"s": text}))]

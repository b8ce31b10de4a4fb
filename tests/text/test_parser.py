"""Replies come apart into reasoning, content and calls, however ids cut them; nothing is lost."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.errors import InputError
from flashmoe.text import Call, Content, Piece, Reasoning, ReplyParser, Syntax
from tests.text.replies import (
    BY_TEXT,
    SPECIAL,
    TAGS,
    Pieces,
    joined,
    parse,
    syntax,
)

THINK, NO_THINK, CALL, NO_CALL = range(4)  # the ids of the tags
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {"properties": {"s": {"type": "string"}, "n": {"type": "integer"}}},
        },
    }
]
JSON_BODY = '\n{"name": "f", "arguments": {"n": 1}}\n'
XML_BODY = "\n<function=f>\n<parameter=n>\n1\n</parameter>\n</function>\n"
CALLED = Call("f", '{"n": 1}')


def pieces(parts: Sequence[str | int | bytes], form: Any = "xml", **options: Any) -> list[Piece]:
    """The joined pieces of a reply with marks by id, and the same with marks by text."""
    options = {"tools": TOOLS, **options}
    found = joined(parse(parts, syntax(form, True), **options).pieces)
    spelled = [TAGS[part] if isinstance(part, int) and part < 4 else part for part in parts]
    assert joined(parse(spelled, syntax(form, False), **options).pieces) == found
    return found


def test_content_alone() -> None:
    assert pieces(["Hi", " there.\n"]) == [Content("Hi there.\n")]
    assert pieces([]) == []
    assert pieces(["\n", " Hi"]) == [Content("\n Hi")]
    assert pieces(["\n"]) == [Content("\n")]


def test_a_reply_that_begins_inside_reasoning() -> None:
    parts = ["\n so", "\n\nthen ", "\n", NO_THINK, "\n", "\nHi. ", "\n"]
    assert pieces(parts, thinking=True) == [Reasoning("so\n\nthen"), Content("Hi. \n")]
    assert pieces([THINK, *parts], thinking=True) == pieces(parts, thinking=True)
    assert pieces([NO_THINK, "\n\nHi"], thinking=True) == [Content("Hi")]
    assert pieces(["so "], thinking=True) == [Reasoning("so")]


def test_reasoning_that_the_reply_opens_itself() -> None:
    assert pieces(["\n", THINK, "\nso\n", NO_THINK, "\n\nHi"]) == [Reasoning("so"), Content("Hi")]
    again = [THINK, "a\n", NO_THINK, "\n", THINK, "\nb", NO_THINK, "Hi"]
    assert pieces(again) == [Reasoning("a\nb"), Content("Hi")]


def test_tags_out_of_place_are_text() -> None:
    assert pieces(["a ", THINK, " b ", NO_THINK]) == [Content("a <think> b </think>")]
    assert pieces(["a ", THINK, " b"], thinking=True) == [Reasoning("a <think> b")]
    assert pieces(["a ", NO_CALL, " b"]) == [Content("a </tool_call> b")]
    assert pieces(["a ", NO_CALL, " b"], thinking=True) == [Reasoning("a </tool_call> b")]


def test_a_model_that_does_not_reason_has_no_tags_for_it() -> None:
    plain = Syntax(None, None, *BY_TEXT[2:], "json")
    for thinking in (True, False):
        found = parse(["<think>a</think>"], plain, thinking=thinking).pieces
        assert joined(found) == [Content("<think>a</think>")]


@pytest.mark.parametrize(("form", "body"), [("xml", XML_BODY), ("json", JSON_BODY)])
class TestCalls:
    def test_one(self, form: str, body: str) -> None:
        assert pieces([CALL, body, NO_CALL], form) == [CALLED]
        assert pieces(["\n\n", CALL, body, NO_CALL, "\n"], form) == [CALLED]

    def test_after_reasoning_and_content(self, form: str, body: str) -> None:
        parts = ["so\n", NO_THINK, "\n\nI look. \n\n", CALL, body, NO_CALL, "\n", SPECIAL]
        expected = [Reasoning("so"), Content("I look."), CALLED]
        assert pieces(parts, form, thinking=True) == expected

    def test_several_and_text_between(self, form: str, body: str) -> None:
        call: list[str | int] = [CALL, body, NO_CALL]
        assert pieces([*call, "\n", *call], form) == [CALLED, CALLED]
        parts = ["A\n\n", *call, "\n", *call, "\n B \n", *call, "C", *call, " \nD"]
        assert pieces(parts, form) == [
            Content("A"), CALLED, CALLED, Content("\n\nB"), CALLED, Content(" \nC"), CALLED,
            Content(" \nD"),
        ]  # fmt: skip

    def test_inside_open_reasoning(self, form: str, body: str) -> None:
        call: list[str | int] = [CALL, body, NO_CALL]
        expected: list[Piece] = [Reasoning("so"), CALLED]
        assert pieces(["so ", *call], form, thinking=True) == expected
        assert pieces(["so ", *call, "\n", NO_THINK, "\n"], form, thinking=True) == expected
        parts = ["so ", *call, NO_THINK, "\n\nHi ", NO_THINK]
        assert pieces(parts, form, thinking=True) == [*expected, Content("Hi </think>")]
        parts = ["so ", *call, THINK, "\nthen\n", NO_THINK, "\n\nHi"]
        assert pieces(parts, form, thinking=True) == [
            *expected, Reasoning(" then"), Content("Hi"),
        ]  # fmt: skip

    def test_without_the_closing_tag(self, form: str, body: str) -> None:
        assert pieces([CALL, body], form) == [CALLED]
        assert pieces([CALL, body], form, cut=True) == [CALLED]
        assert pieces([CALL, body, CALL, body, NO_CALL], form) == [CALLED, CALLED]
        assert pieces([CALL, body, "so"], form) == [CALLED, Content("so")]

    def test_broken_off(self, form: str, body: str) -> None:
        for end in (1, 5, 12, len(body) - 3):
            text = Content("Hi \n<tool_call>" + body[:end])
            assert pieces(["Hi \n", CALL, body[:end]], form) == [text]
            parts = ["Hi \n", CALL, body[:end], CALL, body, NO_CALL]
            if end == 1:  # not inside a value
                stripped = Content(text.text.rstrip())
                assert pieces(parts, form) == [stripped, CALLED]

    def test_cut_short_it_is_left_out(self, form: str, body: str) -> None:
        for end in (0, 1, 5, 12, len(body) - 3):
            half: list[str | int] = ["Hi \n", CALL, body[:end]]
            assert pieces(half, form, cut=True) == [Content("Hi")]
            parts = ["so ", CALL, body[:end]]
            assert pieces(parts, form, thinking=True, cut=True) == [Reasoning("so")]
            parts = [CALL, body, NO_CALL, "\n", *half[1:]]
            assert pieces(parts, form, cut=True) == [CALLED]

    def test_cut_short_a_whole_one_before_it_stays(self, form: str, body: str) -> None:
        assert pieces([CALL, body, body[:12]], form, cut=True) == [CALLED]
        spelled = parse([f"<tool_call>{body}</tool_"], syntax(form, False), tools=TOOLS, cut=True)
        assert joined(spelled.pieces) == [CALLED]

    def test_cut_short_what_is_no_call_stays(self, form: str, body: str) -> None:
        text = "Write <tool_call> and then its"
        parts = ["Write ", CALL, " and then its"]
        assert pieces(parts, form, cut=True) == [Content(text)]
        assert pieces(parts, form, cut=True, thinking=True) == [Reasoning(text)]
        assert pieces([CALL, body, "so"], form, cut=True) == [CALLED, Content("so")]

    def test_broken(self, form: str, body: str) -> None:
        text = "<tool_call>\nf(1)\n</tool_call>"
        broken: list[str | int] = [CALL, "\nf(1)\n", NO_CALL]
        call: list[str | int] = [CALL, body, NO_CALL]
        assert pieces(broken, form) == [Content(text)]
        assert pieces(["a ", *broken, " b"], form) == [Content(f"a {text} b")]
        assert pieces([*call, "\n", *broken, "\n", *call], form) == [CALLED, Content(text), CALLED]

    def test_broken_in_open_reasoning(self, form: str, body: str) -> None:
        parts = ["use ", CALL, " or ", NO_CALL, " then ", NO_THINK, "\n\n", CALL, body, NO_CALL]
        expected = [Reasoning("use <tool_call> or </tool_call> then"), CALLED]
        assert pieces(parts, form, thinking=True) == expected
        parts = ["use ", CALL, " it ", NO_THINK, "\n\nHi"]
        expected = [Reasoning("use <tool_call> it"), Content("Hi")]
        assert pieces(parts, form, thinking=True) == expected
        assert pieces(["use ", CALL, " "], form, thinking=True) == [Reasoning("use <tool_call>")]

    def test_without_tools_nothing_is_a_call(self, form: str, body: str) -> None:
        text = f"<tool_call>{body}</tool_call>"
        assert pieces([CALL, body, NO_CALL], form, tools=()) == [Content(text)]
        assert pieces([CALL, body, NO_CALL], form, tools=(), thinking=True) == [Reasoning(text)]
        parts = [CALL, body, NO_CALL, NO_THINK, "Hi"]
        assert pieces(parts, form, tools=(), thinking=True) == [Reasoning(text), Content("Hi")]

    def test_a_tool_that_was_not_offered(self, form: str, body: str) -> None:
        tools = [{"type": "function", "function": {"name": "g"}}]
        assert pieces([CALL, body, NO_CALL], form, tools=tools) == [CALLED]

    def test_withholding(self, form: str, body: str) -> None:
        tokens: list[bytes] = [b"I look.\n", *(bytes([byte]) for byte in body.encode())]
        parser = ReplyParser(Pieces(tokens), syntax(form, True), TOOLS, thinking=False)
        assert parser.push(5) == [Content("I look.")]
        assert not parser.withholding
        assert parser.push(CALL) == []
        for id in range(6, 5 + len(tokens)):
            assert parser.withholding
            assert parser.push(id) == []
        assert parser.push(NO_CALL) == [CALLED]
        assert not parser.withholding
        assert parser.finish() == []


def test_a_model_without_calls_gives_none() -> None:
    found = parse([CALL, XML_BODY, NO_CALL], syntax(None, True), tools=TOOLS).pieces
    assert joined(found) == [Content(f"<tool_call>{XML_BODY}</tool_call>")]


def test_json_with_trailing_junk() -> None:
    body = '\n{"name": "f", "arguments": {"n": 1}}}\n'
    assert pieces([CALL, body, NO_CALL], "json") == [CALLED, Content("}")]
    assert pieces(["Hi ", CALL, body, NO_CALL, "\n"], "json") == [
        Content("Hi"), CALLED, Content(" }\n"),
    ]  # fmt: skip


def test_json_that_is_whole_and_no_call_stays_in_a_reply_that_is_cut() -> None:
    assert pieces([CALL, '{"n": 1}'], "json", cut=True) == [Content('<tool_call>{"n": 1}')]


def test_a_mark_by_text_may_stand_in_a_value() -> None:
    body = '{"name": "f", "arguments": {"s": "<tool_call>\\"</tool_call></think>"}}'
    found = parse([f"<tool_call>{body}</tool_call>."], syntax("json", False), tools=TOOLS).pieces
    arguments = '{"s": "<tool_call>\\"</tool_call></think>"}'
    assert joined(found) == [Call("f", arguments), Content(".")]
    body = "<function=f>\n<parameter=s>\n<tool_call></tool_call>\n</parameter>\n</function>"
    found = parse([f"<tool_call>{body}</tool_call>."], syntax("xml", False), tools=TOOLS).pieces
    assert joined(found) == [Call("f", '{"s": "<tool_call></tool_call>"}'), Content(".")]


def test_a_string_that_was_never_closed_does_not_swallow_what_follows() -> None:
    body = '\n{"name": "f", "arguments": {"s": "x}}\n'
    parts = [CALL, body, NO_CALL, " ", CALL, JSON_BODY, NO_CALL]
    assert pieces(parts, "json") == [Content(f"<tool_call>{body}</tool_call>"), CALLED]


def test_states() -> None:
    parser = ReplyParser(Pieces([b"a"]), syntax("xml", True), TOOLS, thinking=True)
    assert parser.thinking and not parser.withholding
    parser.push(5)
    parser.push(NO_THINK)
    assert not parser.thinking and not parser.withholding
    parser.push(CALL)
    assert parser.withholding and not parser.thinking


class TestStops:
    def test_content_ends_before_it(self) -> None:
        parser = parse(["a E", "ND b"], syntax("xml", True), tools=TOOLS, stop=["END"])
        assert joined(parser.pieces) == [Content("a ")]
        assert parser.stopped == "END"

    def test_reasoning_and_calls_do_not_count(self) -> None:
        body = "<function=f>\n<parameter=s>\nEND\n</parameter>\n</function>"
        parts = ["END", NO_THINK, "a ", CALL, body, NO_CALL, "EN", "D", CALL, body, NO_CALL]
        parser = parse(parts, syntax("xml", True), tools=TOOLS, thinking=True, stop=["END"])
        assert joined(parser.pieces) == [
            Reasoning("END"), Content("a"), Call("f", '{"s": "END"}'), Content(" "),
        ]  # fmt: skip
        assert parser.stopped == "END"
        assert parser.finish() == []

    def test_a_call_interrupts_it(self) -> None:
        parts = ["EN", CALL, XML_BODY, NO_CALL, "D"]
        parser = parse(parts, syntax("xml", True), tools=TOOLS, stop=["END"])
        assert joined(parser.pieces) == [Content("EN"), CALLED, Content("D")]
        assert parser.stopped is None

    def test_what_is_no_call_counts(self) -> None:
        parts = ["a ", CALL, "x", NO_CALL, CALL, XML_BODY, NO_CALL]
        parser = parse(parts, syntax("xml", True), tools=TOOLS, stop=["call>x</"])
        assert joined(parser.pieces) == [Content("a <tool_")]
        assert parser.stopped == "call>x</"
        parser = parse([CALL, "x"], syntax("xml", True), tools=TOOLS, stop=["x"])
        assert joined(parser.pieces) == [Content("<tool_call>")]
        assert parser.stopped == "x"

    def test_white_space_counts_once_it_is_content(self) -> None:
        parser = parse(["a\n", "\nb"], syntax("xml", True), tools=TOOLS, stop=["\n\n"])
        assert (joined(parser.pieces), parser.stopped) == ([Content("a")], "\n\n")
        parser = parse(["a\n\n"], syntax("xml", True), tools=TOOLS, stop=["\n\n"])
        assert (joined(parser.pieces), parser.stopped) == ([Content("a")], "\n\n")
        parts = ["a\n\n", CALL, XML_BODY, NO_CALL]
        parser = parse(parts, syntax("xml", True), tools=TOOLS, stop=["\n\n"])
        assert (joined(parser.pieces), parser.stopped) == ([Content("a"), CALLED], None)

    def test_an_empty_one_is_refused(self) -> None:
        with pytest.raises(InputError, match="empty"):
            parse([], syntax("xml", True), stop=[""])


def test_text_comes_as_soon_as_it_is_certain() -> None:
    parser = ReplyParser(Pieces([b"a \xe2\x82", b"\xacb\n"]), syntax("xml", True), thinking=False)
    assert parser.push(5) == [Content("a ")]
    assert parser.push(6) == [Content("€b\n")]
    parser = ReplyParser(Pieces([b"a ", b"<tool_"]), syntax("xml", False), TOOLS, thinking=False)
    assert parser.push(5) == [Content("a")]
    assert parser.push(6) == []
    assert parser.finish() == [Content(" <tool_")]


FRAGMENTS: st.SearchStrategy[str | int] = st.sampled_from(
    [THINK, NO_THINK, CALL, NO_CALL, XML_BODY, JSON_BODY, " ", "\n\n", "so", "<", "</think", "é",
     "<function=f>", "<parameter=s>\n", "\n</parameter>", "</function>", '"', "{", "END", "tool_"]
)  # fmt: skip
PARTS = st.lists(FRAGMENTS, max_size=14)


def spelled(parts: Sequence[str | int]) -> bytes:
    return "".join(TAGS[part] if isinstance(part, int) else part for part in parts).encode()


@settings(deadline=None)
@given(
    parts=PARTS,
    cuts=st.lists(st.integers(0, 200), max_size=20),
    form=st.sampled_from(["xml", "json", None]),
    thinking=st.booleans(),
    stop=st.sampled_from([(), ("END",), ("\n\n", "so")]),
    tools=st.sampled_from([TOOLS, []]),
)
def test_cuts_change_nothing(
    parts: list[str | int],
    cuts: list[int],
    form: Any,
    thinking: bool,
    stop: tuple[str, ...],
    tools: list[Any],
) -> None:
    options: dict[str, Any] = {"thinking": thinking, "stop": stop, "tools": tools}
    data = spelled(parts)
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    tokens = [data[a:b] for a, b in pairwise(places)]
    whole, cut = (parse(t, syntax(form, False), **options) for t in ([data], tokens))
    assert joined(cut.pieces) == joined(whole.pieces)
    assert cut.stopped == whole.stopped
    letters = [byte for part in parts for byte in _letters(part)]
    whole, cut = (parse(t, syntax(form, True), **options) for t in (parts, letters))
    assert joined(cut.pieces) == joined(whole.pieces)
    assert cut.stopped == whole.stopped


def _letters(part: str | int) -> list[int | bytes]:
    return [part] if isinstance(part, int) else [bytes([byte]) for byte in part.encode()]


def bare(text: str) -> str:
    return "".join(text.split())


TAGS_OF_REASONING = re.compile("</?think>")


@settings(deadline=None)
@given(
    parts=PARTS.filter(lambda parts: not {XML_BODY, JSON_BODY, "<function=f>"} & {*parts}),
    thinking=st.booleans(),
    by_id=st.booleans(),
    form=st.sampled_from(["xml", "json"]),
)
def test_nothing_is_lost_but_tags_and_white_space(
    parts: list[str | int], thinking: bool, by_id: bool, form: Any
) -> None:
    text = spelled(parts).decode()
    sent: list[Any] = [*parts] if by_id else [text]
    parser = parse(sent, syntax(form, by_id), thinking=thinking, tools=TOOLS)
    said = "".join(piece.text for piece in parser.pieces if not isinstance(piece, Call))
    assert len(parser.pieces) == sum(not isinstance(piece, Call) for piece in parser.pieces)
    assert bare(TAGS_OF_REASONING.sub("", said)) == bare(TAGS_OF_REASONING.sub("", text))


HARD = [
    ('<tool_call>{"s": "', "</tool_call>"),
    ("<tool_call><function=f><parameter=s>", "</tool_call></parameter>x"),
    ("<tool_call><function=f><parameter=s>", "</parameter>"),
    ("", "<tool_call>"),
    ("a", " \n"),
    ("", "<"),
]


@pytest.mark.parametrize("form", ["xml", "json"])
@pytest.mark.parametrize(("start", "part"), HARD)
def test_the_time_is_in_proportion_to_the_reply(start: str, part: str, form: Any) -> None:
    def spent(times: int) -> float:
        began = time.process_time()
        parse([start + part * times], syntax(form, False), tools=TOOLS)
        return time.process_time() - began

    short, long = (min(spent(times) for _ in range(3)) for times in (1_000, 8_000))
    assert long < 30 * short + 0.01  # 8 times the text; in proportion to its square: 64

"""/v1/messages: the reply whole, as events, and errors."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.apps.serve.anthropic import read
from flashmoe.apps.serve.anthropic_reply import MessageEvents, counted, refused, whole
from flashmoe.apps.serve.ask import Ask, Event, Head, Outcome, Refusal, Spoken, joined
from flashmoe.apps.serve.sealed import seal
from flashmoe.text.pieces import Call, Content, Piece, Reasoning
from flashmoe.turn import Usage

HEAD = Head("4f2a", 1_700_000_000, "demo")
USAGE = Usage(prompt_tokens=30, cached_tokens=10, completion_tokens=7, reasoning_tokens=3)
SAID = (
    Reasoning("I should look."),
    Content("Looking."),
    Call("look", '{"at": "sky"}'),
    Call("look", "{}"),
)


def ask(**more: Any) -> Ask:
    hello = {"role": "user", "content": "Hello"}
    return read({"model": "x", "max_tokens": 9, "messages": [hello], **more})


def outcome(pieces: tuple[Piece, ...] = SAID, reason: Any = "stop", **more: Any) -> Outcome:
    return Outcome(joined(pieces), reason, more.get("stop_sequence"), more.get("usage", USAGE))


def stream(asked: Ask, pushes: list[tuple[Piece, ...]], end: Outcome) -> list[Event]:
    events = MessageEvents(asked, HEAD)
    sent = events.begin(30, 10)
    for pieces in pushes:
        sent += events.push(Spoken(pieces))
    return sent + events.finish(end)


def put_together(sent: list[Event]) -> dict[str, Any]:
    """The message that a client makes of the events."""
    message: dict[str, Any] = {}
    texts: dict[int, str] = {}
    for event in sent:
        data = event.data
        assert isinstance(data, dict) and data["type"] == event.name
        if event.name == "message_start":
            message = json.loads(json.dumps(data["message"]))
        elif event.name == "content_block_start":
            assert data["index"] == len(message["content"])
            message["content"].append(dict(data["content_block"]))
        elif event.name == "content_block_delta":
            assert data["index"] == len(message["content"]) - 1
            block, delta = message["content"][-1], data["delta"]
            if delta["type"] == "input_json_delta":
                texts[data["index"]] = texts.get(data["index"], "") + delta["partial_json"]
            elif delta["type"] == "signature_delta":
                block["signature"] = delta["signature"]
            else:
                field = delta["type"].removesuffix("_delta")
                assert block["type"] == field
                block[field] += delta[field]
        elif event.name == "content_block_stop":
            block = message["content"][data["index"]]
            if block["type"] == "tool_use":
                block["input"] = json.loads(texts[data["index"]])
        elif event.name == "message_delta":
            message |= data["delta"] | {"usage": message["usage"] | data["usage"]}
    return message


def test_a_whole_reply() -> None:
    assert whole(ask(), HEAD, outcome(reason="tool_calls")) == {
        "id": "msg_4f2a",
        "type": "message",
        "role": "assistant",
        "model": "demo",
        "content": [
            {
                "type": "thinking",
                "thinking": "I should look.",
                "signature": seal("I should look."),
            },
            {"type": "text", "text": "Looking."},
            {"type": "tool_use", "id": "toolu_4f2a02", "name": "look", "input": {"at": "sky"}},
            {"type": "tool_use", "id": "toolu_4f2a03", "name": "look", "input": {}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 20,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 10,
            "output_tokens": 7,
            "output_tokens_details": {"thinking_tokens": 3},
        },
    }


def test_the_order_of_events() -> None:
    sent = stream(ask(), [(SAID[0],), (SAID[1], SAID[2])], outcome(SAID[:3], "tool_calls"))
    assert [event.name for event in sent] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",  # the seal
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = sent[0].data
    assert isinstance(start, dict)
    assert (start["message"]["content"], start["message"]["stop_reason"]) == ([], None)
    assert start["message"]["usage"]["input_tokens"] == 20


PIECES = st.lists(
    st.one_of(
        st.builds(Reasoning, st.text(min_size=1)),
        st.builds(Content, st.text(min_size=1)),
        st.builds(
            Call,
            st.text(min_size=1),
            st.dictionaries(st.text(), st.text()).map(lambda a: json.dumps(a, ensure_ascii=False)),
        ),
    ),
    max_size=8,
).map(tuple)


@given(PIECES, st.lists(st.integers(1, 3), min_size=8, max_size=8), st.booleans())
def test_events_put_together_are_the_whole(
    pieces: tuple[Piece, ...], sizes: list[int], omits: bool
) -> None:
    display = {"display": "omitted"} if omits else {}
    asked = ask(thinking={"type": "adaptive", **display})
    pushes, rest = [], pieces
    for size in sizes:
        pushes.append(rest[:size])
        rest = rest[size:]
    assert not rest
    end = outcome(pieces)
    assert put_together(stream(asked, pushes, end)) == whole(asked, HEAD, end)


def test_thinking_that_is_not_shown_comes_sealed() -> None:
    asked = ask(thinking={"type": "adaptive", "display": "omitted"})
    (block, _) = whole(asked, HEAD, outcome(SAID[:2]))["content"]
    assert block == {"type": "thinking", "thinking": "", "signature": seal("I should look.")}
    sent = stream(asked, [SAID[:2]], outcome(SAID[:2]))
    assert "I should look." not in str([event.data for event in sent])


@pytest.mark.parametrize(
    ("end", "reason", "sequence"),
    [
        (outcome(), "end_turn", None),
        (outcome(stop_sequence="X"), "stop_sequence", "X"),
        (outcome(reason="tool_calls"), "tool_use", None),
        (outcome(reason="length", usage=Usage(30, 0, 9, 0)), "max_tokens", None),
        (outcome(reason="length"), "model_context_window_exceeded", None),
    ],
)
def test_why_it_ended(end: Outcome, reason: str, sequence: str | None) -> None:
    reply = whole(ask(), HEAD, end)
    assert (reply["stop_reason"], reply["stop_sequence"]) == (reason, sequence)
    sent = put_together(stream(ask(), [end.pieces], end))
    assert (sent["stop_reason"], sent["stop_sequence"]) == (reason, sequence)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_errors(status: int, kind: str) -> None:
    refusal = Refusal(status, "top_k is -1", param="top_k")
    error = {"type": "error", "error": {"type": kind, "message": "top_k is -1"}}
    assert refused(refusal) == error
    assert MessageEvents(ask(), HEAD).fail(refusal) == [Event(error, "error")]


def test_a_count() -> None:
    assert counted(31) == {"input_tokens": 31}

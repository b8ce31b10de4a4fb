"""/v1/responses: the reply whole and as events."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.apps.serve.ask import Ask, Event, Head, Outcome, Refusal, Spoken, Token, joined
from flashmoe.apps.serve.openai_responses import read
from flashmoe.apps.serve.openai_responses_reply import ResponseEvents, whole
from flashmoe.apps.serve.sealed import seal
from flashmoe.text.pieces import Call, Content, Piece, Reasoning
from flashmoe.turn import Usage

HEAD = Head("4f2a", 1_700_000_000, "demo")
USAGE = Usage(prompt_tokens=30, cached_tokens=10, completion_tokens=7, reasoning_tokens=3)
SAID = (Reasoning("I should look."), Content("Looking."), Call("look", '{"at": "sky"}'))
LOOKING = Token(7, "Looking.", b"Looking.", -0.5, (Token(8, "Hm", b"Hm", -1.5),))


def ask(**more: Any) -> Ask:
    return read({"model": "x", "input": "Hello", **more})


def outcome(pieces: tuple[Piece, ...] = SAID, reason: Any = "stop", **more: Any) -> Outcome:
    return Outcome(joined(pieces), reason, None, USAGE, **more)


def stream(asked: Ask, pushes: list[tuple[Piece, ...]], end: Outcome) -> list[Event]:
    events = ResponseEvents(asked, HEAD)
    sent = events.begin(30, 10)
    for pieces in pushes:
        sent += events.push(Spoken(pieces))
    return sent + events.finish(end)


def checked(sent: list[Event]) -> list[dict[str, Any]]:
    """The events' data: numbered from 0, each named as its type."""
    data = [event.data for event in sent]
    assert [one["type"] for one in data] == [event.name for event in sent]
    assert [one["sequence_number"] for one in data] == list(range(len(data)))
    return data


def test_a_whole_reply() -> None:
    reply = whole(ask(metadata={"a": "b"}, temperature=0), HEAD, outcome(reason="tool_calls"))
    assert reply == {
        "id": "resp_4f2a",
        "object": "response",
        "created_at": 1_700_000_000,
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {"a": "b"},
        "model": "demo",
        "output": [
            {
                "id": "rs_4f2a00",
                "type": "reasoning",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "I should look."}],
                "encrypted_content": None,
                "status": "completed",
            },
            {
                "id": "msg_4f2a01",
                "type": "message",
                "role": "assistant",
                "content": [
                    {"type": "output_text", "text": "Looking.", "annotations": [], "logprobs": []}
                ],
                "status": "completed",
            },
            {
                "id": "fc_4f2a02",
                "type": "function_call",
                "call_id": "call_4f2a02",
                "name": "look",
                "arguments": '{"at": "sky"}',
                "status": "completed",
            },
        ],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": False,
        "temperature": 0.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": None,
        "truncation": "disabled",
        "usage": {
            "input_tokens": 30,
            "input_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 0},
            "output_tokens": 7,
            "output_tokens_details": {"reasoning_tokens": 3},
            "total_tokens": 37,
        },
        "user": None,
    }


def test_the_order_of_events() -> None:
    data = checked(stream(ask(), [SAID[:1], SAID[1:]], outcome(reason="tool_calls")))
    assert [one["type"].removeprefix("response.") for one in data] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [(one["response"]["status"], one["response"]["output"]) for one in data[:2]] == [
        ("in_progress", [])
    ] * 2


PIECES = st.lists(
    st.one_of(
        st.builds(Reasoning, st.text(min_size=1)),
        st.builds(Content, st.text(min_size=1)),
        st.builds(Call, st.text(min_size=1), st.just("{}")),
    ),
    max_size=8,
).map(tuple)


@given(PIECES, st.lists(st.integers(1, 3), min_size=8, max_size=8), st.booleans())
def test_events_put_together_are_the_whole(
    pieces: tuple[Piece, ...], sizes: list[int], cut: bool
) -> None:
    asked = ask(include=["reasoning.encrypted_content"])
    pushes, rest = [], pieces
    for size in sizes:
        pushes.append(rest[:size])
        rest = rest[size:]
    end = outcome(pieces, "length" if cut else "stop")
    sent = [json.loads(json.dumps(one)) for one in checked(stream(asked, pushes, end))]
    last = sent[-1]
    assert last["response"] == whole(asked, HEAD, end)
    assert last["type"] == f"response.{last['response']['status']}"
    finished = [one["item"] for one in sent if one["type"] == "response.output_item.done"]
    assert finished == last["response"]["output"]
    for index, item in enumerate(finished):
        own = [one for one in sent if one.get("output_index") == index]
        began = own[0]["item"]
        assert (own[0]["type"], began["id"]) == ("response.output_item.added", item["id"])
        assert began["status"] == "in_progress"
        deltas = "".join(one["delta"] for one in own if one["type"].endswith(".delta"))
        said = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert deltas == said


def test_a_reply_that_is_cut_is_incomplete() -> None:
    reply = whole(ask(), HEAD, outcome(SAID[:2], "length"))
    assert (reply["status"], reply["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    assert [item["status"] for item in reply["output"]] == ["completed", "incomplete"]


def test_probabilities_come_with_the_content() -> None:
    asked = ask(top_logprobs=1)
    events = ResponseEvents(asked, HEAD)
    events.begin(30, 10)
    sent = events.push(Spoken(SAID[:2], (LOOKING,)))
    sent += events.finish(outcome(SAID[:2], tokens=(LOOKING,)))
    entry = {
        "token": "Looking.",
        "bytes": list(b"Looking."),
        "logprob": -0.5,
        "top_logprobs": [{"token": "Hm", "bytes": [72, 109], "logprob": -1.5}],
    }
    told = {event.name: event.data["logprobs"] for event in sent if "logprobs" in event.data}
    assert told == {"response.output_text.delta": [entry], "response.output_text.done": [entry]}
    reply = whole(asked, HEAD, outcome(SAID[:2], tokens=(LOOKING,)))
    assert reply["output"][1]["content"][0]["logprobs"] == [entry]
    assert sent[-1].data["response"] == reply


def test_reasoning_is_sealed_where_that_is_wanted() -> None:
    reply = whole(ask(include=["reasoning.encrypted_content"]), HEAD, outcome())
    assert reply["output"][0]["encrypted_content"] == seal("I should look.")


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "invalid_prompt"), (429, "rate_limit_exceeded"), (500, "server_error")],
)
def test_a_failure_ends_the_response(status: int, code: str) -> None:
    refusal = Refusal(status, "it cannot be")
    (created, _, failed) = checked(ResponseEvents(ask(), HEAD).fail(refusal))
    assert created["type"] == "response.created"
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"] == {"code": code, "message": "it cannot be"}
    events = ResponseEvents(ask(), HEAD)
    sent = [*events.begin(3, 0), *events.push(Spoken(SAID[1:2])), *events.fail(refusal)]
    response = checked(sent)[-1]["response"]
    assert (response["status"], response["output"][0]["status"]) == ("failed", "incomplete")

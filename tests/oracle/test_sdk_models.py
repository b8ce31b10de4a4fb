"""Replies and events are what the official SDKs' own models take, field by field."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("anthropic")

from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from anthropic.types.shared import ErrorResponse
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from flashmoe.apps.serve import anthropic, openai_chat, openai_completions, openai_responses
from flashmoe.apps.serve.ask import Endpoint, Head, Outcome, Refusal, Spoken, Token
from flashmoe.text.pieces import Call, Content, Piece, Reasoning
from flashmoe.turn import Usage

pytestmark = pytest.mark.oracle

HEAD = Head("4f2a", 1_700_000_000, "demo")
USAGE = Usage(prompt_tokens=30, cached_tokens=10, completion_tokens=7, reasoning_tokens=3)
TOP = Token(8, "Hm", b"Hm", -1.5)
TOKEN = Token(7, "Looking.", b"Looking.", -0.5, (TOP,))
CALLS: tuple[Piece, ...] = (
    Reasoning("I should look."),
    Content("Looking."),
    Call("look", '{"at": "sky"}'),
    Call("look", "{}"),
)
TALK = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 9}
LOOK = {"name": "look", "parameters": {"type": "object"}}
REPLIES: dict[str, tuple[Endpoint, dict[str, Any], Any, Any]] = {
    "chat": (
        openai_chat.ENDPOINT,
        {**TALK, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 1},
        ChatCompletion,
        ChatCompletionChunk,
    ),
    "completions": (
        openai_completions.ENDPOINT,
        {"prompt": "Hello", "stream_options": {"include_usage": True}, "logprobs": 1},
        Completion,
        Completion,
    ),
    "responses": (
        openai_responses.ENDPOINT,
        {
            "input": "Hello",
            "tools": [{"type": "function", **LOOK, "strict": True}],
            "tool_choice": {"type": "function", "name": "look"},
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}},
            "reasoning": {"effort": "low"},
            "include": ["reasoning.encrypted_content"],
            "top_logprobs": 1,
            "metadata": {"a": "b"},
        },
        Response,
        ResponseStreamEvent,
    ),
    "messages": (
        anthropic.MESSAGES,
        {**TALK, "thinking": {"type": "adaptive"}},
        Message,
        RawMessageStreamEvent,
    ),
}


def outcomes(name: str) -> list[Outcome]:
    content = (Content("Looking."),)
    ends = [Outcome(content, "stop", None, USAGE, (TOKEN,))]
    ends += [Outcome(content, "length", None, USAGE, (TOKEN,))]
    if name != "completions":
        ends += [Outcome(CALLS, "tool_calls", None, USAGE, (TOKEN,))]
    return ends


def taken(model: Any, data: Any) -> None:
    """Refuses a value of another type, and any that a union would rather guess at. Chunks of
    completions are of one kind with the whole, but for the reason, which only the last one has."""
    TypeAdapter(model).validate_python(data, strict=True)


@pytest.mark.parametrize("name", REPLIES)
def test_whole_replies(name: str) -> None:
    endpoint, body, model, _ = REPLIES[name]
    ask = endpoint.read({"model": "demo", **body} | {"stream": "stream_options" in body})
    for outcome in outcomes(name):
        assert endpoint.whole is not None
        taken(model, endpoint.whole(ask, HEAD, outcome))


@pytest.mark.parametrize("name", REPLIES)
def test_events(name: str) -> None:
    endpoint, body, _, model = REPLIES[name]
    ask = endpoint.read({"model": "demo", **body, "stream": True})
    for outcome in outcomes(name):
        assert endpoint.events is not None
        events = endpoint.events(ask, HEAD)
        sent = events.begin(30, 10)
        for piece in outcome.pieces:
            tokens = (TOKEN,) if isinstance(piece, Content) else ()
            sent += events.push(Spoken((piece,), tokens))
        sent += events.finish(outcome)
        data = [event.data for event in sent if event.data != "[DONE]"]
        if name == "completions":
            for chunk in data:
                for choice in chunk["choices"]:
                    choice["finish_reason"] = choice["finish_reason"] or "stop"
        for one in data:
            taken(model, one)


def test_a_failed_response() -> None:
    endpoint, body, _, model = REPLIES["responses"]
    assert endpoint.events is not None
    events = endpoint.events(endpoint.read({"model": "demo", **body, "stream": True}), HEAD)
    for event in events.fail(Refusal(500, "it cannot be")):
        taken(model, event.data)


def test_anthropics_errors_and_counts() -> None:
    for status in (400, 401, 403, 404, 429, 500, 503, 504):
        taken(ErrorResponse, anthropic.MESSAGES.refused(Refusal(status, "it cannot be")))
    assert anthropic.COUNT_TOKENS.counted is not None
    taken(MessageTokensCount, anthropic.COUNT_TOKENS.counted(3))

"""/v1/completions: what is asked, and the reply in one and in chunks."""

import math
from typing import Any

import pytest

from flashmoe.apps.serve.ask import (
    BadRequest,
    Echo,
    Head,
    Outcome,
    Refusal,
    Spoken,
    Token,
)
from flashmoe.apps.serve.openai_completions import CompletionEvents, read, whole
from flashmoe.text.pieces import Content
from flashmoe.turn import Plain, Usage

HEAD = Head("4f2a", 1_700_000_000, "demo")
USAGE = Usage(prompt_tokens=3, cached_tokens=1, completion_tokens=2, reasoning_tokens=0)
FLAT_USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 0},
}
EM = Token(7, " Em", b" Em", -0.5, (Token(7, " Em", b" Em", -0.5), Token(8, " He", b" He", -1.5)))
HALF = Token(9, "\ufffd", b"\xc3", -2.0, ())


def body(**more: Any) -> dict[str, Any]:
    return {"model": "demo", "prompt": "Emma", **more}


def outcome(text: str, **more: Any) -> Outcome:
    return Outcome((Content(text),), more.pop("finish_reason", "stop"), None, USAGE, **more)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [("Emma", "Emma"), (["Emma"], "Emma"), ([1, 2], (1, 2)), ([[1, 2]], (1, 2))],
)
def test_prompts(prompt: Any, text: Any) -> None:
    assert read(body(prompt=prompt)).turn == Plain(text)


def test_what_is_given_becomes_the_sampling() -> None:
    ask = read(
        body(
            max_tokens=5,
            temperature=0,
            top_p=0.5,
            top_k=3,
            seed=4,
            stop="x",
            logprobs=2,
            stream=True,
            stream_options={"include_usage": True},
            n=1,
            user=None,
        )
    )
    assert ask.sampling == {
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 3,
        "seed": 4,
        "stop": ("x",),
        "logprobs": 2,
    }
    assert (ask.model, ask.stream, ask.include_usage, ask.echo) == ("demo", True, True, False)


def test_the_bound_is_the_apis_own_unless_given() -> None:
    assert read(body()).sampling == {"max_tokens": 16}


def test_a_prompt_can_come_back_alone() -> None:
    alone, before = read(body(max_tokens=0, echo=True)), read(body(max_tokens=1, echo=True))
    assert (alone.echo, alone.generates, alone.sampling) == (True, False, {})
    assert (before.echo, before.generates, before.sampling) == (True, True, {"max_tokens": 1})


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 2}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"echo": True, "stream": True}, "echo"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": [1, "b"]}, "prompt"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"logprobs": True}, "logprobs"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"temperature": 3}, "temperature"),
        ({"tempreature": 1}, "tempreature"),
    ],
)
def test_what_cannot_be_is_named(more: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read(body(**more))
    assert refused.value.param == param
    assert param.split("[")[0] in refused.value.message


def test_a_whole_reply() -> None:
    assert whole(read(body()), HEAD, outcome(" was", finish_reason="length")) == {
        "id": "cmpl-4f2a",
        "object": "text_completion",
        "created": 1_700_000_000,
        "model": "demo",
        "choices": [{"index": 0, "text": " was", "logprobs": None, "finish_reason": "length"}],
        "usage": FLAT_USAGE,
    }


def test_the_prompt_comes_back_with_its_probabilities() -> None:
    ask = read(body(echo=True, logprobs=1, max_tokens=1))
    first = Token(1, "Ba", b"Ba", math.nan)
    reply = whole(ask, HEAD, outcome("\ufffd", tokens=(HALF,), echo=Echo("Ba Em", (first, EM))))
    (choice,) = reply["choices"]
    assert choice["text"] == "Ba Em\ufffd"
    assert choice["logprobs"] == {
        "tokens": ["Ba", " Em", "bytes:\\xc3"],
        "token_logprobs": [None, -0.5, -2.0],
        "top_logprobs": [None, {" Em": -0.5, " He": -1.5}, {"bytes:\\xc3": -2.0}],
        "text_offset": [0, 2, 5],
    }


def test_a_stream_says_what_the_whole_says() -> None:
    ask = read(body(stream=True, stream_options={"include_usage": True}, logprobs=2))
    events = CompletionEvents(ask, HEAD)
    sent = events.begin(3, 1)
    sent += events.push(Spoken((Content(" Em"),), (EM,)))
    sent += events.push(Spoken((Content(" Em"),), (EM,)))
    sent += events.finish(outcome(" Em Em", tokens=(EM, EM)))
    *chunks, figures, end = [event.data for event in sent]
    assert end == "[DONE]"
    assert all(event.name is None for event in sent)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == [" Em", " Em", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert [chunk["usage"] for chunk in chunks] == [None] * 3
    assert (figures["choices"], figures["usage"]) == ([], FLAT_USAGE)
    columns = whole(ask, HEAD, outcome(" Em Em", tokens=(EM, EM)))["choices"][0]["logprobs"]
    for name, column in columns.items():
        assert column == [one for c in chunks[:2] for one in c["choices"][0]["logprobs"][name]]


def test_a_stream_without_figures_has_none() -> None:
    events = CompletionEvents(read(body(stream=True)), HEAD)
    sent = [*events.push(Spoken((Content("a"),))), *events.finish(outcome("a"))]
    assert [event.data for event in sent][-1] == "[DONE]"
    assert all("usage" not in event.data for event in sent[:-1])


def test_a_failure_is_an_event() -> None:
    events = CompletionEvents(read(body(stream=True)), HEAD)
    event, end = events.fail(Refusal(500, "a record cannot be read"))
    assert end.data == "[DONE]"
    assert event.data == {
        "error": {
            "message": "a record cannot be read",
            "type": "server_error",
            "param": None,
            "code": None,
        }
    }

"""Chat completions: what a body asks for, and what a reply looks like."""

import jsonschema
import pytest

from flashmoe.apps.serve.ask import BadRequest, Head, Outcome, Refusal, Spoken, Token
from flashmoe.apps.serve.openai_chat import ENDPOINT, ChatEvents, read, whole
from flashmoe.text.pieces import Call, Content, Reasoning
from flashmoe.turn import JsonSchema, Regex, Usage

HI = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
HEAD = Head("abc", 5, "m")
USAGE = Usage(10, 4, 6, 2)


def asked(**more):
    return read({**HI, **more})


def test_the_least_that_can_be_asked():
    ask = asked()
    assert ask.turn.messages == ({"role": "user", "content": "Hi"},)
    assert ask.sampling == {"stop": ()} and not ask.stream and ask.turn.thinking is None
    assert ask.turn.tool_choice == "auto" and ask.turn.parallel_calls and ask.turn.form is None


def test_everything_that_can_be_asked():
    schema = {"type": "object"}
    ask = asked(
        stream=True, stream_options={"include_usage": True}, max_completion_tokens=7,
        temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.1,
        presence_penalty=1, frequency_penalty=-1, seed=3, stop=["a", "b"], logprobs=True,
        top_logprobs=2, n=1, parallel_tool_calls=False, reasoning_effort="low", user="u",
        metadata={"a": "b"}, store=True, service_tier="auto",
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )  # fmt: skip
    assert ask.stream and ask.include_usage
    assert ask.sampling == {
        "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1,
        "repetition_penalty": 1.1, "presence_penalty": 1.0, "frequency_penalty": -1.0, "seed": 3,
        "stop": ("a", "b"), "logprobs": 2,
    }  # fmt: skip
    assert ask.turn.form == JsonSchema(schema) and not ask.turn.parallel_calls
    assert (ask.turn.thinking, ask.turn.thinking_budget) == (True, 1024)


@pytest.mark.parametrize(
    ("more", "form"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, JsonSchema({"type": "object"})),
        ({"guided_regex": "[ab]+"}, Regex("[ab]+")),
    ],
)
def test_forms_of_the_answer(more, form):
    assert asked(**more).turn.form == form


@pytest.mark.parametrize(
    ("more", "thinking"),
    [
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "high"}, True),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "high"}, True),
    ],
)
def test_reasoning_is_switched(more, thinking):
    assert asked(**more).turn.thinking is thinking


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 2}, "n"),
        ({"temprature": 1}, "temprature"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"functions": []}, "functions"),
        ({"verbosity": "low"}, "verbosity"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            "reasoning_effort",
        ),
    ],
)
def test_what_cannot_be_honoured_is_named(more, param):
    with pytest.raises(BadRequest) as caught:
        asked(**more)
    assert caught.value.param == param and param.split(".")[-1] in caught.value.message
    refused = ENDPOINT.refused(caught.value)["error"]
    assert (refused["type"], refused["param"]) == ("invalid_request_error", param)


def test_every_parameter_is_described_and_taken():
    body = {**HI, "stop": "x", "n": 1, "seed": -1, "logit_bias": {}, "modalities": ["text"]}
    jsonschema.validate(body, ENDPOINT.schema)
    read(body)


TOKEN = Token(7, "Hi", b"Hi", -0.5, (Token(8, "Ho", b"Ho", -1.5),))
ENTRY = {
    "token": "Hi",
    "logprob": -0.5,
    "bytes": [72, 105],
    "top_logprobs": [{"token": "Ho", "logprob": -1.5, "bytes": [72, 111]}],
}


def test_a_whole_reply():
    pieces = (Reasoning("Hm."), Content("Hi"), Call("f", '{"a": 1}'), Call("g", "{}"))
    body = whole(asked(logprobs=True), HEAD, Outcome(pieces, "tool_calls", None, USAGE, (TOKEN,)))
    assert body == {
        "id": "chatcmpl-abc", "object": "chat.completion", "created": 5, "model": "m",
        "choices": [{
            "index": 0, "finish_reason": "tool_calls",
            "logprobs": {"content": [ENTRY], "refusal": None},
            "message": {
                "role": "assistant", "content": "Hi", "refusal": None, "reasoning_content": "Hm.",
                "tool_calls": [
                    {"id": "call_abc00", "type": "function",
                     "function": {"name": "f", "arguments": '{"a": 1}'}},
                    {"id": "call_abc01", "type": "function",
                     "function": {"name": "g", "arguments": "{}"}},
                ],
            },
        }],
        "usage": {
            "prompt_tokens": 10, "completion_tokens": 6, "total_tokens": 16,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 2},
        },
    }  # fmt: skip


def test_calls_alone_leave_no_content():
    body = whole(asked(), HEAD, Outcome((Call("f", "{}"),), "tool_calls", None, USAGE))
    assert body["choices"][0]["message"]["content"] is None
    assert body["choices"][0]["logprobs"] is None


def deltas(events):
    return [event.data["choices"][0]["delta"] for event in events]


def test_a_stream():
    stream = ChatEvents(
        asked(stream=True, logprobs=True, stream_options={"include_usage": True}), HEAD
    )
    events = stream.begin(10, 4)
    events += stream.push(Spoken((Reasoning("Hm."),)))
    events += stream.push(Spoken((Content("Hi"), Call("f", "{}")), (TOKEN,)))
    events += stream.push(Spoken((Call("g", "{}"),)))
    events += stream.finish(Outcome((), "tool_calls", None, USAGE))
    *chunks, finish, usage, done = events
    assert deltas(chunks) == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm."},
        {"content": "Hi"},
        {"tool_calls": [{"index": 0, "id": "call_abc00", "type": "function",
                         "function": {"name": "f", "arguments": "{}"}}]},
        {"tool_calls": [{"index": 1, "id": "call_abc01", "type": "function",
                         "function": {"name": "g", "arguments": "{}"}}]},
    ]  # fmt: skip
    assert chunks[2].data["choices"][0]["logprobs"]["content"] == [ENTRY]
    assert finish.data["choices"][0]["finish_reason"] == "tool_calls"
    assert usage.data["choices"] == [] and usage.data["usage"]["total_tokens"] == 16
    assert all(event.data["usage"] is None for event in chunks)
    assert done.data == "[DONE]"


def test_no_usage_is_streamed_unless_it_is_wanted():
    events = ChatEvents(asked(stream=True), HEAD).finish(Outcome((), "stop", None, USAGE))
    assert ["usage" in event.data for event in events] == [False, False]


def test_an_error_in_a_stream():
    first, done = ChatEvents(asked(stream=True), HEAD).fail(Refusal(504, "late", code="timeout"))
    assert first.data["error"]["code"] == "timeout" and done.data == "[DONE]"

"""The official ``openai`` SDK, as it is, against a served demo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

import openai
from openai.types.responses import ResponseFunctionToolCall
from pydantic import BaseModel

pytestmark = pytest.mark.oracle

TOOLS: list[Any] = json.loads(
    Path(__file__).parents[2].joinpath("examples/tools.json").read_text(encoding="utf-8")
)
FLAT_TOOLS: list[Any] = [{"type": "function", **tool["function"]} for tool in TOOLS]
QUESTION = "What is the weather in Paris on Monday?"
ASKED: list[Any] = [{"role": "user", "content": QUESTION}]
ANSWER = {"city": "Paris", "day": "Monday"}
GREEDY: dict[str, Any] = {"temperature": 0}
SHOWN: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        ],
    }
]
BEGUN = "Emma was sitting one evening with her father when"


class Person(BaseModel):
    """An answer that is held to a schema."""

    name: str
    age: int


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="any", max_retries=0) as made:
        yield made


# Chat completions


def test_chat_and_its_stream_are_the_same(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "demo", "messages": ASKED, "temperature": 0}
    asked |= {"max_tokens": 12}
    reply = client.chat.completions.create(**asked)
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    texts, reasons, figures = [], [], []
    for chunk in client.chat.completions.create(
        stream=True, stream_options={"include_usage": True}, **asked
    ):
        texts += [choice.delta.content or "" for choice in chunk.choices]
        reasons += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
        figures += [chunk.usage] if chunk.usage else []
    assert "".join(texts) == reply.choices[0].message.content
    assert reasons == [reply.choices[0].finish_reason]
    assert [one.completion_tokens for one in figures] == [reply.usage.completion_tokens]


def test_a_whole_tool_loop_in_chat(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "demo", "tools": TOOLS, "max_tokens": 80, **GREEDY}
    first = client.chat.completions.create(messages=ASKED, **asked)
    (choice,) = first.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == ANSWER
    result = {"role": "tool", "tool_call_id": call.id, "content": "Rain, 12 degrees"}
    talk = [*ASKED, choice.message, result]
    second = client.chat.completions.create(messages=talk, **asked)
    assert first.usage and second.usage and second.usage.prompt_tokens_details
    known = second.usage.prompt_tokens_details.cached_tokens
    assert known is not None
    assert known >= first.usage.prompt_tokens - 8


def test_a_call_is_streamed_in_chat(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="demo", messages=ASKED, tools=TOOLS, max_tokens=80, **GREEDY
    ) as stream:
        stream.until_done()
        (choice,) = stream.get_final_completion().choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    (call,) = choice.message.tool_calls
    assert json.loads(call.function.arguments) == ANSWER


def test_a_choice_of_tools_in_chat(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "demo", "messages": ASKED, "tools": TOOLS, "max_tokens": 80}
    named: Any = {"type": "function", "function": {"name": "set_alarm"}}
    (choice,) = client.chat.completions.create(tool_choice=named, **asked).choices
    assert choice.message.tool_calls
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "set_alarm"
    assert set(json.loads(call.function.arguments)) == {"time", "label"}
    (choice,) = client.chat.completions.create(tool_choice="none", **asked).choices
    assert not choice.message.tool_calls


def test_an_answer_is_held_to_a_schema_in_chat(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(
        model="demo",
        messages=ASKED,
        response_format=Person,
        max_tokens=200,
    )
    (choice,) = reply.choices
    if choice.finish_reason == "stop":
        assert isinstance(choice.message.parsed, Person)


def test_probabilities_in_chat(client: openai.OpenAI) -> None:
    (choice,) = client.chat.completions.create(
        model="demo",
        messages=ASKED,
        max_tokens=5,
        logprobs=True,
        top_logprobs=2,
        temperature=0,
    ).choices
    assert choice.logprobs is not None
    for entry in choice.logprobs.content or []:
        assert len(entry.top_logprobs) == 2
        assert entry.logprob == entry.top_logprobs[0].logprob


def test_whether_it_thinks_is_said_in_a_request(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "demo", "messages": ASKED, "max_tokens": 5, **GREEDY}
    prompts = []
    for more in ({}, {"reasoning_effort": "none"}, {"reasoning_effort": "xhigh"}):
        usage = client.chat.completions.create(**asked, **more).usage
        assert usage is not None
        prompts.append(usage.prompt_tokens)
    assert prompts[0] == prompts[1] != prompts[2]


def test_what_has_no_effect_here_breaks_nobody(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="demo",
        messages=[{"role": "developer", "content": "Be brief."}, *ASKED],
        max_completion_tokens=5,
        tools=TOOLS,
        tool_choice="auto",
        parallel_tool_calls=True,
        user="u",
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
        prompt_cache_key="k",
        safety_identifier="s",
        logit_bias={},
        n=1,
        extra_body={"top_k": -1, "min_p": 0.05, "cache_prompt": True},
    )
    assert chat.usage and chat.usage.completion_tokens == 5
    response = client.responses.create(
        model="demo",
        input=QUESTION,
        max_output_tokens=5,
        user="u",
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
        truncation="disabled",
        reasoning={"summary": "auto"},
        include=["reasoning.encrypted_content"],
    )
    assert response.metadata == {"a": "b"} and response.store is False


# Completions


def test_a_completion_and_its_stream_are_the_same(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "demo", "prompt": BEGUN, "max_tokens": 12, "temperature": 0}
    reply = client.completions.create(**asked)
    (choice,) = reply.choices
    assert choice.finish_reason == "length"
    assert choice.text
    chunks = list(client.completions.create(stream=True, **asked))
    assert "".join(one.text for chunk in chunks for one in chunk.choices) == choice.text
    word = choice.text.split()[2]
    (stopped,) = client.completions.create(stop=word, **asked).choices
    assert stopped.finish_reason == "stop"
    assert stopped.text == choice.text.partition(word)[0]


def test_probabilities_of_a_completion(client: openai.OpenAI) -> None:
    (choice,) = client.completions.create(
        model="demo", prompt=BEGUN, max_tokens=4, logprobs=2, temperature=0
    ).choices
    columns = choice.logprobs
    assert columns is not None
    assert columns.tokens and columns.token_logprobs and columns.top_logprobs
    assert "".join(columns.tokens) == choice.text
    for token, logprob, top in zip(
        columns.tokens, columns.token_logprobs, columns.top_logprobs, strict=True
    ):
        assert top[token] == logprob == max(top.values())


# Responses


def test_a_response_and_its_stream_are_the_same(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "demo", "input": QUESTION, "temperature": 0}
    asked |= {"max_output_tokens": 12, "reasoning": {"effort": "none"}}
    reply = client.responses.create(**asked)
    assert reply.usage is not None
    with client.responses.stream(**asked) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert last.response.output_text == reply.output_text
    assert last.response.status == reply.status


def test_a_whole_tool_loop_in_responses(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "demo", "tools": FLAT_TOOLS, "temperature": 0}
    talk: list[Any] = list(ASKED)
    first = client.responses.create(input=talk, **asked)
    (call,) = (item for item in first.output if item.type == "function_call")
    assert (call.name, json.loads(call.arguments)) == ("get_weather", ANSWER)
    talk += first.output
    talk.append({"type": "function_call_output", "call_id": call.call_id, "output": "Rain"})
    second = client.responses.create(input=talk, max_output_tokens=40, **asked)
    assert first.usage and second.usage
    known = second.usage.input_tokens_details.cached_tokens
    assert known >= first.usage.input_tokens - 8


def test_a_call_is_streamed_in_responses(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model="demo",
        input=QUESTION,
        tools=FLAT_TOOLS,
        temperature=0,
    ) as stream:
        kinds = [event.type for event in stream]
        response = stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert "response.function_call_arguments.delta" in kinds
    (call,) = (item for item in response.output if isinstance(item, ResponseFunctionToolCall))
    assert json.loads(call.arguments) == ANSWER


def test_an_answer_is_held_to_a_schema_in_responses(client: openai.OpenAI) -> None:
    response = client.responses.parse(
        model="demo",
        input=QUESTION,
        text_format=Person,
        max_output_tokens=200,
    )
    if response.status == "completed":
        assert isinstance(response.output_parsed, Person)


# Errors and models


@pytest.mark.parametrize(
    ("path", "more", "error", "param"),
    [
        ("chat", {"n": 2}, openai.BadRequestError, "n"),
        ("chat", {"extra_body": {"tempo": 1}}, openai.BadRequestError, "tempo"),
        ("chat", {"model": "other"}, openai.NotFoundError, "model"),
        ("chat", {"messages": SHOWN}, openai.BadRequestError, "messages[0].content[1].type"),
        ("chat", {"logit_bias": {"1": 5}}, openai.BadRequestError, "logit_bias"),
        ("chat", {"tool_choice": "required"}, openai.BadRequestError, "tool_choice"),
        ("chat", {"service_tier": "flex"}, openai.BadRequestError, "service_tier"),
        (
            "chat",
            {"stream_options": {"include_usage": True}},
            openai.BadRequestError,
            "stream_options",
        ),
        ("completions", {"best_of": 2}, openai.BadRequestError, "best_of"),
        ("completions", {"prompt": [1] * 5000}, openai.BadRequestError, "prompt"),
        (
            "responses",
            {"previous_response_id": "r"},
            openai.BadRequestError,
            "previous_response_id",
        ),
        ("responses", {"tools": [{"type": "web_search"}]}, openai.BadRequestError, "tools[0].type"),
    ],
)
def test_errors_are_the_sdks_own(
    client: openai.OpenAI,
    path: str,
    more: dict[str, Any],
    error: type[openai.APIStatusError],
    param: str | None,
) -> None:
    calls: dict[str, tuple[Any, dict[str, Any]]] = {
        "chat": (client.chat.completions.create, {"messages": ASKED, "max_tokens": 5}),
        "completions": (client.completions.create, {"prompt": BEGUN, "max_tokens": 5}),
        "responses": (client.responses.create, {"input": QUESTION}),
    }
    call, asked = calls[path]
    with pytest.raises(error) as raised:
        call(**{"model": "demo", **asked, **more})
    assert raised.value.param == param
    assert raised.value.request_id


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object) == ("demo", "model")
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")

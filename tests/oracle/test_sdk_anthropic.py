"""The official ``anthropic`` SDK, as it is, against a served demo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("anthropic")

import anthropic
from anthropic.types import Message, ToolUseBlock

pytestmark = pytest.mark.oracle

TOOLS: list[Any] = [
    {
        "name": tool["function"]["name"],
        "description": tool["function"]["description"],
        "input_schema": tool["function"]["parameters"],
    }
    for tool in json.loads(Path(__file__).parents[2].joinpath("examples/tools.json").read_text())
]
ASKED: list[Any] = [{"role": "user", "content": "What is the weather in Paris on Monday?"}]
BEGUN: list[Any] = [
    {"role": "user", "content": "Go on."},
    {"role": "assistant", "content": "Emma was sitting one evening with her father when"},
]
SHOWN: list[Any] = [
    {
        "role": "user",
        "content": [{"type": "image", "source": {"type": "url", "url": "https://example.org/a"}}],
    }
]
GREEDY: dict[str, Any] = {"extra_body": {"temperature": 0}}  # SDK 2 has no name for it


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server, api_key="any", max_retries=0) as made:
        yield made


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_message_and_its_stream_are_the_same(client: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": "demo", "max_tokens": 12, "messages": BEGUN, **GREEDY}
    message = client.messages.create(**asked)
    assert message.role == "assistant"
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 12
    assert text_of(message)
    with client.messages.stream(**asked) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(texts) > 3
    assert "".join(texts) == text_of(final) == text_of(message)
    assert final.stop_reason == "max_tokens"
    assert final.usage.output_tokens == 12


def test_a_whole_tool_loop(client: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": "demo", "max_tokens": 80, "tools": TOOLS, **GREEDY}
    first = client.messages.create(messages=ASKED, **asked)
    assert first.stop_reason == "tool_use"
    (call,) = first.content
    assert isinstance(call, ToolUseBlock)
    assert (call.name, call.input) == ("get_weather", {"city": "Paris", "day": "Monday"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Rain, 12 degrees"}
    talk = [*ASKED, first.to_param(), {"role": "user", "content": [result]}]
    second = client.messages.create(messages=talk, **asked)
    assert second.stop_reason in ("end_turn", "max_tokens", "tool_use")
    usage = second.usage
    known = usage.cache_read_input_tokens
    assert known is not None
    assert known >= first.usage.input_tokens + (first.usage.cache_read_input_tokens or 0) - 8
    counted = client.messages.count_tokens(model="demo", messages=talk, tools=TOOLS)
    assert counted.input_tokens == usage.input_tokens + known


def test_a_call_is_streamed(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model="demo", max_tokens=80, tools=TOOLS, messages=ASKED, **GREEDY
    ) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert "input_json" in kinds
    assert message.stop_reason == "tool_use"
    (call,) = message.content
    assert isinstance(call, ToolUseBlock)
    assert call.input == {"city": "Paris", "day": "Monday"}


def test_tools_can_be_forced_and_forbidden(client: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": "demo", "max_tokens": 80, "tools": TOOLS, "messages": ASKED}
    forced = client.messages.create(tool_choice={"type": "tool", "name": "set_alarm"}, **asked)
    assert forced.stop_reason == "tool_use"
    (call,) = (block for block in forced.content if block.type == "tool_use")
    assert call.name == "set_alarm"
    assert set(call.input) == {"time", "label"}
    for choice in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "none"}):
        message = client.messages.create(tool_choice=choice, **asked)
        calls = [block for block in message.content if block.type == "tool_use"]
        assert len(calls) == (choice["type"] == "any")


def test_thinking_comes_apart_and_goes_back(client: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": "demo", "max_tokens": 200, **GREEDY}
    asked["thinking"] = {"type": "enabled", "budget_tokens": 20}
    message = client.messages.create(messages=ASKED, **asked)
    kinds = [block.type for block in message.content]
    assert kinds == sorted(kinds, key=["thinking", "text"].index)
    details = message.usage.output_tokens_details
    assert details is not None
    assert details.thinking_tokens <= 20
    talk = [*ASKED, message.to_param(), {"role": "user", "content": "And on Tuesday?"}]
    if message.content:
        assert client.messages.create(messages=talk, **asked).usage.output_tokens > 0


def test_a_stop_sequence_ends_it(client: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": "demo", "max_tokens": 24, "messages": BEGUN, **GREEDY}
    whole = text_of(client.messages.create(**asked))
    word = whole.split()[2]
    message = client.messages.create(stop_sequences=[word], **asked)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", word)
    assert text_of(message) == whole.partition(word)[0]


def test_an_answer_is_held_to_a_schema(client: anthropic.Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Emma", "Anne"]}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    message = client.messages.create(
        model="demo",
        max_tokens=60,
        messages=[{"role": "user", "content": "Who?"}],
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    answer = json.loads(text_of(message))
    assert answer["name"] in ("Emma", "Anne")
    assert isinstance(answer["age"], int)


def test_what_has_no_effect_here_breaks_nobody(client: anthropic.Anthropic) -> None:
    kept: Any = {"type": "ephemeral"}
    asked: dict[str, Any] = {"model": "demo", "max_tokens": 5, "tools": TOOLS, **GREEDY}
    asked["system"] = [
        {"type": "text", "text": "Be brief.", "cache_control": kept},
        {"type": "text", "text": "Be kind."},
    ]
    asked |= {"messages": ASKED, "metadata": {"user_id": "u"}, "service_tier": "auto"}
    plain = client.messages.create(**asked)
    beta = client.beta.messages.create(
        betas=["interleaved-thinking-2025-05-14", "prompt-caching-2024-07-31"], **asked
    )
    assert plain.usage.output_tokens == beta.usage.output_tokens == 5
    assert beta.to_dict()["content"] == plain.to_dict()["content"]


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"max_tokens": 0}, anthropic.BadRequestError, "max_tokens"),
        ({"extra_body": {"tempo": 1}}, anthropic.BadRequestError, "tempo"),
        ({"messages": []}, anthropic.BadRequestError, "messages"),
        ({"messages": SHOWN}, anthropic.BadRequestError, r'content\[0\].type is "image"'),
        ({"tool_choice": {"type": "any"}}, anthropic.BadRequestError, "there are no tools"),
        ({"model": "other"}, anthropic.NotFoundError, "other"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            anthropic.BadRequestError,
            "web_search_20250305",
        ),
    ],
)
def test_errors_are_the_sdks_own(
    client: anthropic.Anthropic, more: dict[str, Any], error: type[Exception], words: str
) -> None:
    asked: dict[str, Any] = {"model": "demo", "max_tokens": 5, "messages": ASKED, **more}
    with pytest.raises(error, match=words) as raised:
        client.messages.create(**asked)
    body = raised.value.body  # type: ignore[attr-defined]
    assert body["type"] == "error"
    assert raised.value.request_id  # type: ignore[attr-defined]


def test_the_version_is_one_that_is_spoken(client: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": "demo", "max_tokens": 1, "messages": BEGUN}
    with pytest.raises(anthropic.BadRequestError, match="anthropic-version is 2023-01-01"):
        client.messages.create(extra_headers={"anthropic-version": "2023-01-01"}, **asked)


def test_models(client: anthropic.Anthropic) -> None:
    (model,) = client.models.list()
    assert (model.id, model.type) == ("demo", "model")
    assert client.models.retrieve("demo").display_name == "demo"
    with pytest.raises(anthropic.NotFoundError, match="'other' does not exist") as raised:
        client.models.retrieve("other")
    body: Any = raised.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "not_found_error")

"""OpenAI's messages and tools become what chat templates take."""

import pytest

from flashmoe.apps.serve.ask import BadRequest
from flashmoe.apps.serve.fields import Items
from flashmoe.apps.serve.openai_messages import (
    MESSAGE,
    TOOL,
    TOOL_CHOICE,
    conversation,
    tool_choice,
    tools,
)
from flashmoe.turn import Named


def turned(*messages):
    return conversation(Items(MESSAGE).read(list(messages), "messages"))


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def text(words):
    return {"type": "text", "text": words}


def test_a_whole_conversation():
    assert turned(
        {"role": "developer", "content": [text("Be "), text("brief.")]},
        {"role": "system", "content": "And kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "annotations": [],
         "refusal": None, "audio": None, "function_call": None, "reasoning_content": "Hm."},
        {"role": "tool", "content": "5", "tool_call_id": "c1"},
        {"role": "assistant", "content": "Five."},
    ) == (
        {"role": "system", "content": "Be brief.\n\nAnd kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "", "reasoning_content": "Hm.",
         "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "5", "tool_call_id": "c1", "name": "f"},
        {"role": "assistant", "content": "Five."},
    )  # fmt: skip


def with_arguments(arguments):
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call]}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "function", "name": "f", "content": "x"}, "messages[0].role"),
        ({"role": "wizard", "content": "x"}, "messages[0].role"),
        ({"content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": "x", "mood": "bad"}, "messages[0].mood"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
         "messages[0].content[0].type"),
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
        ({"role": "assistant"}, "messages[0]"),
        ({"role": "assistant", "audio": {"id": "x"}}, "messages[0].audio"),
        (with_arguments("[1]"), "messages[0].tool_calls[0].function.arguments"),
        (with_arguments("{"), "messages[0].tool_calls[0].function.arguments"),
        (with_arguments("[" * 100_000), "messages[0].tool_calls[0].function.arguments"),
    ],
)  # fmt: skip
def test_a_fault_is_named_by_its_place(message, param):
    with pytest.raises(BadRequest) as caught:
        turned(message)
    assert caught.value.param == param


@pytest.mark.parametrize("before", [(), (with_arguments("{}"), {"role": "user", "content": "x"})])
def test_a_result_is_that_of_a_call_before_it(before):
    result = {"role": "tool", "content": "5", "tool_call_id": "c2"}
    later = {**with_arguments("{}"), "tool_calls": [{**CALL, "id": "c2"}]}
    with pytest.raises(BadRequest, match="'c2', which no call before it has") as caught:
        turned(*before, result, later)
    assert caught.value.param == f"messages[{len(before)}].tool_call_id"
    assert turned(*before, later, result)[-1]["tool_call_id"] == "c2"


def test_a_result_has_the_name_of_its_call_and_no_other():
    call, result = with_arguments("{}"), {"role": "tool", "content": "5", "tool_call_id": "c1"}
    assert turned(call, {**result, "name": "f"}) == turned(call, result)
    with pytest.raises(BadRequest, match="is 'g', and the call was of 'f'") as caught:
        turned(call, {**result, "name": "g"})
    assert caught.value.param == "messages[1].name"


def test_no_arguments_are_an_empty_object():
    (message,) = turned(with_arguments(""))
    assert message["tool_calls"][0]["function"]["arguments"] == {}


def test_tools_are_shown_to_the_model_without_what_is_not_for_it():
    given = [{"type": "function", "function": {"name": "f", "parameters": {}, "strict": True}}]
    assert tools(Items(TOOL).read(given, "tools")) == (
        {"type": "function", "function": {"name": "f", "parameters": {}}},
    )


def test_choices():
    named = {"type": "function", "function": {"name": "f"}}
    offered = tools([{"type": "function", "function": {"name": "f"}}])
    assert tool_choice(TOOL_CHOICE.read(named, "tool_choice"), offered) == Named("f")
    with pytest.raises(BadRequest) as caught:
        tool_choice({"function": {"name": "g"}}, offered)
    assert caught.value.param == "tool_choice.function.name"
    assert tool_choice(TOOL_CHOICE.read("required", "tool_choice"), offered) == "required"
    with pytest.raises(BadRequest, match='"auto", "none", "required"'):
        TOOL_CHOICE.read("maybe", "tool_choice")

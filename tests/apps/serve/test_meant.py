"""Names of other APIs and slips of the pen lead to the parameter; nothing else does."""

import time

import pytest

from flashmoe.apps.serve import anthropic, openai_chat, openai_completions, openai_responses
from flashmoe.apps.serve.ask import BadRequest
from flashmoe.apps.serve.meant import meant

CHAT = (openai_chat.read, {"messages": [{"role": "user", "content": "Hi"}]})
COMPLETIONS = (openai_completions.read, {"prompt": "Hi"})
RESPONSES = (openai_responses.read, {"input": "Hi"})
MESSAGES = (anthropic.read, {**CHAT[1], "max_tokens": 9})


@pytest.mark.parametrize(
    ("api", "name", "right"),
    [
        (RESPONSES, "max_tokens", "max_output_tokens"),
        (RESPONSES, "max_completion_tokens", "max_output_tokens"),
        (RESPONSES, "messages", "input"),
        (RESPONSES, "system", "instructions"),
        (RESPONSES, "response_format", "text.format"),
        (RESPONSES, "reasoning_effort", "reasoning.effort"),
        (MESSAGES, "stop", "stop_sequences"),
        (MESSAGES, "max_completion_tokens", "max_tokens"),
        (MESSAGES, "response_format", "output_config.format"),
        (MESSAGES, "parallel_tool_calls", "tool_choice.disable_parallel_tool_use"),
        (CHAT, "stop_sequences", "stop"),
        (CHAT, "max_output_tokens", "max_tokens"),
        (CHAT, "tempreature", "temperature"),
        (CHAT, "maxTokens", "max_tokens"),
        (CHAT, "top-p", "top_p"),
        (COMPLETIONS, "max_completion_tokens", "max_tokens"),
        (COMPLETIONS, "messages", "prompt"),
    ],
)
def test_a_request_is_told_the_right_name(api, name, right):
    read, body = api
    with pytest.raises(
        BadRequest, match=rf"is not a known parameter; did you mean {right}\?$"
    ) as x:
        read({"model": "m", **body, name: 1})
    assert (x.value.param, x.value.code) == (name, "unknown_parameter")


@pytest.mark.parametrize("name", ["banana", "", "x" * 1000, "functions_", "\ud800"])
def test_a_name_that_is_near_to_none_is_not_guessed_at(name):
    read, body = CHAT
    with pytest.raises(BadRequest, match=r"is not a known parameter$"):
        read({"model": "m", **body, name: 1})


def test_inner_names_are_told_too():
    read, body = MESSAGES
    tool = {"name": "f", "input_schema": {}, "parameters": {}}
    with pytest.raises(BadRequest, match=r"did you mean input_schema\?$") as caught:
        read({"model": "m", **body, "tools": [tool]})
    assert caught.value.param == "tools[0].parameters"


def test_what_is_refused_is_not_meant():
    read, body = RESPONSES
    with pytest.raises(BadRequest, match=r"is not a known parameter$"):
        read({"model": "m", **body, "conversations": 1})


def test_a_long_name_takes_no_time():
    known = [f"parameter_{number}" for number in range(50)]
    began = time.perf_counter()
    assert meant("parameter" * 100_000, known) is None
    assert time.perf_counter() - began < 0.5


def test_what_takes_one_value_alone_was_not_meant():
    read, body = MESSAGES
    with pytest.raises(BadRequest, match=r"seed is not a known parameter$"):
        read({"model": "m", **body, "seed": 3})

"""/v1/responses: what is asked."""

from typing import Any

import pytest

from flashmoe.apps.serve.ask import BadRequest
from flashmoe.apps.serve.openai_responses import ENDPOINT, read
from flashmoe.apps.serve.sealed import seal
from flashmoe.turn import JsonSchema, Named, Turn

LOOK = {
    "type": "function",
    "name": "look",
    "description": "Look out",
    "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    "strict": True,
}
LOOK_AS_FUNCTION = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look out",
        "parameters": LOOK["parameters"],
    },
}
CALL = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": "sky"}'}


def body(**more: Any) -> dict[str, Any]:
    return {"model": "demo", "input": "Hello", **more}


def turn(**more: Any) -> Turn:
    asked = read(body(**more)).turn
    assert isinstance(asked, Turn)
    return asked


def test_the_simplest_request() -> None:
    ask = read(body())
    assert ask.turn == Turn(messages=({"role": "user", "content": "Hello"},))
    assert (ask.model, ask.stream, ask.sampling) == ("demo", False, {})


def test_sampling() -> None:
    ask = read(
        body(
            temperature=0.5,
            top_k=4,
            seed=1,
            max_output_tokens=5,
            top_logprobs=2,
            stream=True,
            stream_options={"include_obfuscation": False},
        )
    )
    assert ask.sampling == {
        "temperature": 0.5,
        "top_k": 4,
        "seed": 1,
        "max_tokens": 5,
        "logprobs": 2,
    }
    assert read(body(include=["message.output_text.logprobs"])).sampling == {"logprobs": 0}


def test_a_tool_loop_becomes_messages_of_templates() -> None:
    loop = turn(
        instructions="Be brief.",
        tools=[LOOK],
        input=[
            {"role": "developer", "content": "Be kind."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hm?"}]},
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "I should look."}],
            },
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [
                    {"type": "output_text", "text": "Looking.", "annotations": [], "logprobs": []}
                ],
            },
            {**CALL, "id": "fc_1", "status": "completed", "namespace": None},
            {"type": "function_call_output", "call_id": "c1", "output": "blue"},
        ],
    )
    assert loop.tools == (LOOK_AS_FUNCTION,)
    assert loop.messages == (
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "Hm?"},
        {
            "role": "assistant",
            "content": "Looking.",
            "reasoning_content": "I should look.",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "look", "arguments": {"at": "sky"}},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "name": "look", "content": "blue"},
    )


@pytest.mark.parametrize(
    ("item", "reasoning"),
    [
        ({"summary": [{"type": "summary_text", "text": "Hm."}]}, "Hm."),
        ({"summary": [], "encrypted_content": seal("Hm.")}, "Hm."),
        ({"summary": [], "encrypted_content": "gAAAAAB"}, None),
    ],
)
def test_reasoning_comes_back(item: dict[str, Any], reasoning: str | None) -> None:
    asked = turn(
        input=[
            {"role": "user", "content": "Hello"},
            {"type": "reasoning", "id": "rs_1", **item},
            {"role": "assistant", "content": "Ah."},
            {"role": "user", "content": "So?"},
        ]
    )
    assert asked.messages[1].get("reasoning_content") == reasoning
    assert asked.messages[1]["content"] == "Ah."


def test_two_replies_in_a_row_stay_apart() -> None:
    replies = [{"role": "assistant", "content": text} for text in ("a", "b")]
    assert [m["content"] for m in turn(input=replies).messages] == ["a", "b"]


@pytest.mark.parametrize(
    ("effort", "thinking", "budget"),
    [(None, None, None), ("none", False, None), ("low", True, 1024), ("high", True, None)],
)
def test_effort(effort: str | None, thinking: bool | None, budget: int | None) -> None:
    asked = turn(reasoning={"effort": effort, "summary": "auto"})
    assert (asked.thinking, asked.thinking_budget) == (thinking, budget)


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (None, "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "name": "look"}, Named("look")),
    ],
)
def test_tool_choice(choice: Any, wanted: Any) -> None:
    asked = turn(tools=[LOOK], tool_choice=choice, parallel_tool_calls=False)
    assert (asked.tool_choice, asked.parallel_calls) == (wanted, False)


def test_forms() -> None:
    schema = {"type": "object", "properties": {}}
    named = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    assert turn(text={"format": {"type": "text"}, "verbosity": "medium"}).form is None
    assert turn(text={"format": {"type": "json_object"}}).form == JsonSchema({"type": "object"})
    assert turn(text={"format": named}).form == JsonSchema(schema)


def test_what_changes_nothing_is_taken() -> None:
    assert (
        turn(
            store=True,
            metadata={"a": "b"},
            user="u",
            safety_identifier="s",
            prompt_cache_key="k",
            prompt_cache_retention="24h",
            service_tier="auto",
            truncation="disabled",
            background=False,
            max_tool_calls=3,
            previous_response_id=None,
            include=["reasoning.encrypted_content"],
        )
        == turn()
    )


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "robot", "content": ""}]}, "input[0].role"),
        ({"input": [{"type": "item_reference", "id": "m"}]}, "input[0].type"),
        ({"input": [{"type": "web_search_call", "id": "m"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{**CALL, "arguments": "[]"}]}, "input[0].arguments"),
        (
            {"input": [{"type": "function_call_output", "call_id": "c1", "output": ""}]},
            "input[0].call_id",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [LOOK], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
        ({"tools": [LOOK], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"reasoning": {"effort": "enormous"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"background": True}, "background"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
        ({"max_tokens": 5}, "max_tokens"),
    ],
)
def test_what_cannot_be_is_named(more: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read(body(**more))
    assert refused.value.param == param
    assert param.split(".")[-1].split("[")[0] in refused.value.message


def test_the_endpoint() -> None:
    assert ENDPOINT.path == "/v1/responses"
    assert "previous_response_id" not in ENDPOINT.schema["properties"]

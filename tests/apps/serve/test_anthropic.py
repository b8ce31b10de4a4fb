"""/v1/messages and the count of tokens: what is asked."""

from typing import Any

import pytest

from flashmoe.apps.serve.anthropic import COUNT_TOKENS, MESSAGES, read, read_count
from flashmoe.apps.serve.ask import BadRequest
from flashmoe.apps.serve.sealed import seal
from flashmoe.turn import JsonSchema, Named, Turn

HELLO = {"role": "user", "content": "Hello"}
LOOK = {
    "name": "look",
    "description": "Look out",
    "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}},
}
LOOK_AS_FUNCTION = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look out",
        "parameters": LOOK["input_schema"],
    },
}


def body(**more: Any) -> dict[str, Any]:
    return {"model": "demo", "max_tokens": 50, "messages": [HELLO], **more}


def turn(**more: Any) -> Turn:
    asked = read(body(**more)).turn
    assert isinstance(asked, Turn)
    return asked


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def said(role: str, *blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": list(blocks)}


def test_the_simplest_request() -> None:
    ask = read(body())
    assert ask.turn == Turn(messages=(HELLO,), thinking=False)
    assert (ask.model, ask.stream, ask.sampling) == ("demo", False, {"max_tokens": 50})


def test_sampling() -> None:
    ask = read(
        body(
            temperature=0.5, top_p=0.9, top_k=4, stop_sequences=["a", "b"], stream=True, system=None
        )
    )
    assert ask.sampling == {
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "stop": ("a", "b"),
    }
    assert ask.stream


def test_a_tool_loop_becomes_messages_of_templates() -> None:
    loop = turn(
        system=[text("Be brief.", cache_control={"type": "ephemeral"}), text("Be kind.")],
        tools=[LOOK],
        messages=[
            said("user", text("Weather?"), text("In Bath.")),
            said(
                "assistant",
                {"type": "thinking", "thinking": "I should look.", "signature": "x"},
                {"type": "redacted_thinking", "data": "EqQB"},
                text("Looking"),
                text("."),
                {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "sky"}},
                {"type": "tool_use", "id": "toolu_2", "name": "look", "input": {}},
            ),
            said(
                "user",
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": [text("rain")]},
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": "too bright",
                    "is_error": True,
                },
                text("So?"),
            ),
        ],
    )
    assert loop.tools == (LOOK_AS_FUNCTION,)
    assert loop.messages == (
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "Weather?\n\nIn Bath."},
        {
            "role": "assistant",
            "content": "Looking.",
            "reasoning_content": "I should look.",
            "tool_calls": [
                {
                    "id": "toolu_1",
                    "type": "function",
                    "function": {"name": "look", "arguments": {"at": "sky"}},
                },
                {
                    "id": "toolu_2",
                    "type": "function",
                    "function": {"name": "look", "arguments": {}},
                },
            ],
        },
        {"role": "tool", "tool_call_id": "toolu_2", "name": "look", "content": "rain"},
        {"role": "tool", "tool_call_id": "toolu_1", "name": "look", "content": "Error: too bright"},
        {"role": "user", "content": "So?"},
    )


def test_neighbouring_messages_of_one_role_are_one() -> None:
    asked = turn(
        messages=[
            HELLO,
            said("user", text("again")),
            said("assistant", text("a"), text("b")),
            HELLO,
        ]
    )
    assert [message["content"] for message in asked.messages] == ["Hello\n\nagain", "ab", "Hello"]


def test_thinking_whose_text_was_left_out_comes_back_from_its_seal() -> None:
    thought = {"type": "thinking", "thinking": "", "signature": seal("Hm.")}
    foreign = {"type": "thinking", "thinking": "", "signature": "EqQBCkYIBxgC"}
    for block, reasoning in ((thought, "Hm."), (foreign, None)):
        messages = turn(messages=[HELLO, said("assistant", block, text("Ah.")), HELLO]).messages
        assert messages[1].get("reasoning_content") == reasoning


def test_documents_of_text_are_text() -> None:
    plain = {"type": "text", "media_type": "text/plain", "data": "Once."}
    blocks = {"type": "content", "content": [text("Upon"), text("a time.")]}
    asked = turn(
        messages=[
            said(
                "user",
                {"type": "document", "source": plain, "title": "Tale", "context": "A book"},
                {"type": "document", "source": blocks},
            )
        ]
    )
    assert asked.messages[0]["content"] == "Tale\nA book\nOnce.\n\nUpon\n\na time."


@pytest.mark.parametrize(
    ("more", "thinking", "budget"),
    [
        ({}, False, None),
        ({"thinking": {"type": "disabled"}}, False, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 20}}, True, 20),
        ({"thinking": {"type": "adaptive"}}, True, None),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, True, 1024),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, True, None),
        (
            {
                "thinking": {"type": "enabled", "budget_tokens": 2000},
                "output_config": {"effort": "low"},
                "max_tokens": 3000,
            },
            True,
            1024,
        ),
    ],
)
def test_thinking(more: dict[str, Any], thinking: bool, budget: int | None) -> None:
    asked = turn(**more)
    assert (asked.thinking, asked.thinking_budget) == (thinking, budget)


@pytest.mark.parametrize(
    ("choice", "wanted", "parallel"),
    [
        (None, "auto", True),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto", False),
        ({"type": "any"}, "required", True),
        ({"type": "none"}, "none", True),
        ({"type": "tool", "name": "look"}, Named("look"), True),
    ],
)
def test_tool_choice(choice: Any, wanted: Any, parallel: bool) -> None:
    asked = turn(tools=[LOOK], tool_choice=choice)
    assert (asked.tool_choice, asked.parallel_calls) == (wanted, parallel)


def test_a_schema_binds_the_answer() -> None:
    schema = {"type": "object"}
    asked = turn(output_config={"format": {"type": "json_schema", "schema": schema}})
    assert asked.form == JsonSchema(schema)


def test_a_beginning_is_gone_on_from() -> None:
    asked = turn(messages=[HELLO, {"role": "assistant", "content": "Well, "}])
    assert asked.continues
    assert asked.messages[-1] == {"role": "assistant", "content": "Well, "}


def test_what_changes_nothing_is_taken() -> None:
    assert turn(
        metadata={"user_id": "u"},
        service_tier="auto",
        speed="standard",
        cache_control={"type": "ephemeral", "ttl": "1h"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    ) == Turn(messages=(HELLO,), thinking=False)


def test_a_count_takes_the_same_prompt() -> None:
    prompt = body(system="Be brief.", tools=[LOOK], thinking={"type": "adaptive"})
    assert read(prompt).turn == read_count({k: prompt[k] for k in prompt if k != "max_tokens"}).turn
    with pytest.raises(BadRequest) as refused:
        read_count(prompt)
    assert refused.value.param == "max_tokens"


IMAGE = {"type": "image", "source": {"type": "url", "url": "https://x"}}
CALL = {"type": "tool_use", "id": "t", "name": "look", "input": {}}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [said("user", IMAGE)]}, "messages[0].content[0].type"),
        ({"messages": [HELLO, said("assistant", IMAGE), HELLO]}, "messages[1].content[0].type"),
        ({"messages": [said("user", CALL)]}, "messages[0].content[0].type"),
        (
            {
                "messages": [
                    said(
                        "user",
                        {"type": "document", "source": {"type": "base64", "data": "", "m": ""}},
                    )
                ]
            },
            "messages[0].content[0].source.type",
        ),
        (
            {"messages": [HELLO, said("user", {"type": "tool_result", "tool_use_id": "t"})]},
            "messages[1].content[0].tool_use_id",
        ),
        ({"messages": [HELLO, said("assistant", CALL)]}, "messages[1]"),
        ({"messages": [HELLO, {"role": "assistant", "content": " "}]}, "messages[1]"),
        (
            {
                "messages": [HELLO, {"role": "assistant", "content": "Well"}],
                "thinking": {"type": "adaptive"},
            },
            "thinking",
        ),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 50}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools[0].type"),
        ({"tools": [{**LOOK, "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [LOOK], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
        ({"mcp_servers": [{"url": "https://x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"speed": "fast"}, "speed"),
        ({"temperature": 1.5}, "temperature"),
        ({"max_token": 5}, "max_token"),
        (
            {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
            "context_management.edits[0].type",
        ),
    ],
)
def test_what_cannot_be_is_named(more: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read(body(**more))
    assert refused.value.param == param
    assert param.split(".")[-1].split("[")[0] in refused.value.message


def test_endpoints() -> None:
    assert (MESSAGES.path, COUNT_TOKENS.path) == ("/v1/messages", "/v1/messages/count_tokens")
    assert set(MESSAGES.schema["required"]) == {"model", "messages", "max_tokens"}
    assert "max_tokens" not in COUNT_TOKENS.schema["properties"]

"""OpenAI's messages and tools, in the form that chat templates take.

Owns the tables of both, and the rewriting: parts of text joined, arguments of calls as objects,
``developer`` as ``system``, and system messages at the beginning as one, since templates take one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from flashmoe.apps.serve.ask import BadRequest
from flashmoe.apps.serve.fields import (
    Either,
    Flag,
    Free,
    Items,
    Record,
    Refused,
    Tagged,
    Text,
    Whole,
)
from flashmoe.apps.serve.tool_choice import allowed
from flashmoe.apps.serve.tool_names import ToolName
from flashmoe.apps.serve.transcript import arguments_of, check_called
from flashmoe.turn import Named, ToolChoice

_TEXT_ONLY = "the model reads text alone"
_PARTS = Tagged(
    "type",
    {"text": Record({"text": Text(), "prompt_cache_breakpoint": Free()}, required=("text",))},
    refused={
        "image_url": _TEXT_ONLY,
        "input_audio": _TEXT_ONLY,
        "file": f"{_TEXT_ONLY}: send what the file says",
        "refusal": "a refusal is no part of a conversation here: send it as text",
    },
)
_CONTENT = Either((Text(), Items(_PARTS, least=1)), "a string or a list of parts")
_SYSTEM = Record({"content": _CONTENT, "name": Text()}, required=("content",))
_CALL = Tagged(
    "type",
    {
        "function": Record(
            {
                "id": Text(),
                "index": Whole(0),
                "function": Record(
                    {"name": Text(least=1), "arguments": Text()}, required=("name", "arguments")
                ),
            },
            required=("id", "function"),
        )
    },
    refused={"custom": "a call has arguments in JSON here: offer the tool as a function"},
)

MESSAGE = Tagged(
    "role",
    {
        "system": _SYSTEM,
        "developer": _SYSTEM,
        "user": _SYSTEM,
        "assistant": Record(
            {
                "content": _CONTENT,
                "name": Text(),
                "reasoning_content": Text(),
                "tool_calls": Items(_CALL),
                "annotations": Items(Free(), most=0),
                "refusal": Refused("send what was said as content"),
                "audio": Refused(_TEXT_ONLY),
                "function_call": Refused("give tool_calls instead"),
            }
        ),
        "tool": Record(
            {"content": _CONTENT, "tool_call_id": Text(), "name": Text()},
            required=("content", "tool_call_id"),
        ),
    },
    refused={"function": "results of tools come with the role 'tool'"},
)

TOOL = Tagged(
    "type",
    {
        "function": Record(
            {
                "function": Record(
                    {
                        "name": ToolName(),
                        "description": Text(),
                        "parameters": Free(),
                        "strict": Flag(),
                    },
                    required=("name",),
                )
            },
            required=("function",),
        )
    },
    refused={"custom": "a tool takes arguments in JSON here: offer it as a function"},
)

_NAMED = Record({"function": Record({"name": Text()}, required=("name",))}, required=("function",))
TOOL_CHOICE = Either(
    (
        Text(("auto", "none", "required")),
        Tagged(
            "type",
            {"function": _NAMED},
            refused={
                "allowed_tools": "offer these tools alone",
                "custom": "tools are functions here",
            },
        ),
    ),
    "a string or an object",
)


def conversation(messages: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Checked messages in the form of :class:`flashmoe.turn.Turn`.

    Raises:
        BadRequest: arguments of a call that are no JSON object, an assistant that says nothing, a
            result of no call or of one of another tool.
    """
    turned = [_turned(message, f"messages[{index}]") for index, message in enumerate(messages)]
    _check_results(turned)
    first = list(takewhile(lambda one: one["role"] == "system", turned))
    if len(first) > 1:
        joined = "\n\n".join(one["content"] for one in first)
        turned[: len(first)] = [{"role": "system", "content": joined}]
    return tuple(turned)


def _check_results(turned: Sequence[dict[str, Any]]) -> None:
    """Results are those of calls before them, and have their tool's name, given or not."""
    called: dict[str, str] = {}
    for index, message in enumerate(turned):
        called.update(
            (call["id"], call["function"]["name"]) for call in message.get("tool_calls", ())
        )
        if message["role"] == "tool":
            check_called(message["tool_call_id"], called, f"messages[{index}].tool_call_id")
            name = called[message["tool_call_id"]]
            if message.setdefault("name", name) != name:
                path = f"messages[{index}].name"
                raise BadRequest(
                    f"{path} is {message['name'][:80]!r}, and the call was of {name[:80]!r}: leave "
                    "it out, or give that name",
                    path,
                    "invalid_value",
                )


def _turned(message: Mapping[str, Any], path: str) -> dict[str, Any]:
    turned = dict(message)
    turned.pop("annotations", None)
    if turned["role"] == "developer":
        turned["role"] = "system"
    content = turned.get("content")
    if isinstance(content, list):
        turned["content"] = "".join(part["text"] for part in content)
    if turned["role"] == "assistant":
        calls = turned.pop("tool_calls", [])
        if content is None and not calls and "reasoning_content" not in turned:
            raise BadRequest(f"{path} says nothing: give content or tool_calls", path)
        turned.setdefault("content", "")
        if calls:
            turned["tool_calls"] = [
                _call(call, f"{path}.tool_calls[{index}]") for index, call in enumerate(calls)
            ]
    return turned


def _call(call: Mapping[str, Any], path: str) -> dict[str, Any]:
    function = call["function"]
    arguments = arguments_of(function["arguments"], f"{path}.function.arguments")
    named = {"name": function["name"], "arguments": arguments}
    return {"id": call["id"], "type": "function", "function": named}


def tools(given: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Checked tools as the model sees them. ``strict`` is not for it: calls always match."""
    return tuple(
        {
            "type": "function",
            "function": {k: v for k, v in tool["function"].items() if k != "strict"},
        }
        for tool in given
    )


def tool_choice(given: str | Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> ToolChoice:
    """A checked choice. Raises BadRequest where the tools do not allow it."""
    wanted: Any = given if isinstance(given, str) else Named(given["function"]["name"])
    return allowed(wanted, tools, "tool_choice.function.name")

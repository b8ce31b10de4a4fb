"""OpenAI's ``/v1/responses``: what is asked.

Owns the reading of that API's requests; ``openai_responses_reply`` writes the replies. Nothing is
kept between requests: the conversation is all in ``input``, and what only another server can read
in it (reasoning that is encrypted) is left out of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashmoe.apps.serve.ask import EFFORTS, Ask, Endpoint, Places
from flashmoe.apps.serve.openai_errors import refused
from flashmoe.apps.serve.openai_responses_fields import LOGPROBS, PARAMETERS
from flashmoe.apps.serve.openai_responses_reply import ResponseEvents, whole
from flashmoe.apps.serve.openai_stream import check_stream
from flashmoe.apps.serve.sampling_fields import drawn
from flashmoe.apps.serve.sealed import unseal
from flashmoe.apps.serve.tool_choice import allowed
from flashmoe.apps.serve.transcript import Transcript, arguments_of
from flashmoe.turn import Form, JsonSchema, Named, ToolChoice, Turn

_PLACES = Places(
    prompt="input",
    schema="tools[{}].parameters",
    form="text.format.schema",
    thinking="reasoning.effort",
)
_NO_PARAMETERS = {"type": "object", "properties": {}}


def read(body: Mapping[str, Any]) -> Ask:
    """What a request asks. Raises BadRequest."""
    given = PARAMETERS.read(body)
    check_stream(given)
    sampling = drawn(given)
    if "max_output_tokens" in given:
        sampling["max_tokens"] = given["max_output_tokens"]
    if LOGPROBS in given.get("include", ()) or given.get("top_logprobs"):
        sampling["logprobs"] = given.get("top_logprobs", 0)
    return Ask(_turn(given), given, _PLACES, sampling)


def _turn(given: Mapping[str, Any]) -> Turn:
    effort = given.get("reasoning", {}).get("effort")
    thinking, budget = EFFORTS[effort] if effort else (None, None)
    tools = tuple(map(_tool, given.get("tools", ())))
    talk = Transcript()
    if "instructions" in given:
        talk.system(given["instructions"])
    if isinstance(given["input"], str):
        talk.user(given["input"])
    else:
        for index, item in enumerate(given["input"]):
            _tell(talk, item, f"input[{index}]")
    return Turn(
        messages=talk.messages,
        tools=tools,
        tool_choice=_choice(given.get("tool_choice", "auto"), tools),
        parallel_calls=given.get("parallel_tool_calls", True),
        thinking=thinking,
        thinking_budget=budget,
        form=_form(given.get("text", {}).get("format", {"type": "text"})),
    )


def _tell(talk: Transcript, item: Mapping[str, Any], path: str) -> None:
    if item["type"] == "function_call":
        arguments = arguments_of(item["arguments"], f"{path}.arguments")
        talk.call(item["call_id"], item["name"], arguments)
    elif item["type"] == "function_call_output":
        talk.result(item["call_id"], _text(item["output"]), f"{path}.call_id")
    elif item["type"] == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        thought = "".join(part["text"] for part in parts)
        thought = thought or unseal(item.get("encrypted_content", "")) or ""
        if thought:
            talk.reasoning(thought)
    elif item["role"] == "user":
        talk.user(_text(item["content"]))
    elif item["role"] == "assistant":
        talk.content(_text(item["content"]), apart=True)
    else:
        talk.system(_text(item["content"]))


def _text(content: str | list[Mapping[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(
        part["refusal"] if part["type"] == "refusal" else part["text"] for part in content
    )


def _tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    described = {"description": tool["description"]} if "description" in tool else {}
    parameters = tool.get("parameters", _NO_PARAMETERS)
    function = {"name": tool["name"], **described, "parameters": parameters}
    return {"type": "function", "function": function}


def _choice(choice: str | Mapping[str, Any], tools: tuple[Mapping[str, Any], ...]) -> ToolChoice:
    wanted: Any = choice if isinstance(choice, str) else Named(choice["name"])
    return allowed(wanted, tools)


def _form(form: Mapping[str, Any]) -> Form | None:
    if form["type"] == "text":
        return None
    return JsonSchema(form.get("schema", {"type": "object"}))


ENDPOINT = Endpoint(
    path="/v1/responses",
    schema=PARAMETERS.schema(),
    read=read,
    refused=refused,
    whole=whole,
    events=ResponseEvents,
)

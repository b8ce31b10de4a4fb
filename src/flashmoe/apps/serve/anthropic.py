"""Anthropic's ``/v1/messages`` and its count of tokens: what is asked.

Owns the reading of that API's requests; ``anthropic_reply`` writes the replies. Two things are as
that API has them rather than as the model would: without ``thinking`` nothing is thought, and
neighbouring messages of one role are one.

What only another server can read (``redacted_thinking``, and a signature that stands for thinking
whose text was left out) is left out of the prompt, so that a conversation can come from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from flashmoe.apps.serve.anthropic_fields import COUNTED, PARAMETERS
from flashmoe.apps.serve.anthropic_reply import MessageEvents, counted, refused, whole
from flashmoe.apps.serve.ask import EFFORTS, Ask, BadRequest, Endpoint, Event, Places
from flashmoe.apps.serve.sampling_fields import drawn
from flashmoe.apps.serve.sealed import unseal
from flashmoe.apps.serve.tool_choice import allowed
from flashmoe.apps.serve.transcript import Transcript
from flashmoe.turn import JsonSchema, Named, ToolChoice, Turn

VERSIONS = ("anthropic-version", ("2023-06-01", "2026-10-21"))
"""Both have the same replies. The later one knows no temperature, top_p and top_k; they are taken
here in any case, because this model has them."""

_PLACES = Places(
    prompt="messages",
    schema="tools[{}].input_schema",
    form="output_config.format.schema",
    thinking="thinking",
)
_PARAGRAPHS = "\n\n"  # blocks of text that were apart stay so
_CHOICES: Mapping[str, ToolChoice] = {"auto": "auto", "any": "required", "none": "none"}


def read(body: Mapping[str, Any]) -> Ask:
    """What a request for a message asks. Raises BadRequest."""
    given = PARAMETERS.read(body)
    sampling = {**drawn(given), "max_tokens": given["max_tokens"]}
    if "stop_sequences" in given:
        sampling["stop"] = tuple(given["stop_sequences"])
    return Ask(_turn(given), given, _PLACES, sampling)


def read_count(body: Mapping[str, Any]) -> Ask:
    """What a request for a count asks. Raises BadRequest."""
    given = COUNTED.read(body)
    return Ask(_turn(given), given, _PLACES)


def _turn(given: Mapping[str, Any]) -> Turn:
    thinking, budget = _thinking(given)
    tools = tuple(map(_tool, given.get("tools", ())))
    choice, parallel = _choice(given.get("tool_choice", {"type": "auto"}), tools)
    talk = Transcript()
    if "system" in given:
        talk.system(_text(given["system"]))
    roles = [message["role"] for message in given["messages"]]
    for role, run in groupby(enumerate(given["messages"]), lambda numbered: numbered[1]["role"]):
        blocks = _blocks(run)
        if role == "user":
            _tell_user(talk, blocks)
        elif role == "assistant":
            _tell_assistant(talk, blocks)
        else:
            talk.system(_PARAGRAPHS.join(block["text"] for _, block in blocks))
    continues = roles[-1] == "assistant"
    if continues:
        _check_beginning(talk, thinking, len(roles) - 1)
    form = given.get("output_config", {}).get("format")
    return Turn(
        messages=talk.messages,
        tools=tools,
        tool_choice=choice,
        parallel_calls=parallel,
        thinking=thinking,
        thinking_budget=budget,
        form=JsonSchema(form["schema"]) if form else None,
        continues=continues,
    )


def _thinking(given: Mapping[str, Any]) -> tuple[bool, int | None]:
    """Whether to think, and for how many tokens at most."""
    config = given.get("thinking", {"type": "disabled"})
    thinks = config["type"] != "disabled"
    effort = given.get("output_config", {}).get("effort")
    budgets = [config["budget_tokens"]] if "budget_tokens" in config else []
    if "max_tokens" in given and budgets and budgets[0] >= given["max_tokens"]:
        raise BadRequest(
            f"thinking.budget_tokens is {budgets[0]}; it must be less than max_tokens, "
            f"{given['max_tokens']}",
            "thinking.budget_tokens",
        )
    if effort and not thinks:
        raise BadRequest(
            "output_config.effort is how long to think: set thinking to adaptive as well",
            "output_config.effort",
        )
    _, most = EFFORTS[effort or "high"]
    return thinks, min([*budgets, *([] if most is None else [most])], default=None)


def _tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    described = {"description": tool["description"]} if "description" in tool else {}
    function = {"name": tool["name"], **described, "parameters": tool["input_schema"]}
    return {"type": "function", "function": function}


def _choice(
    choice: Mapping[str, Any], tools: tuple[Mapping[str, Any], ...]
) -> tuple[ToolChoice, bool]:
    """Which tool has to be called, and whether several may be."""
    kind, parallel = choice["type"], not choice.get("disable_parallel_tool_use", False)
    wanted = Named(choice["name"]) if kind == "tool" else _CHOICES[kind]
    return allowed(wanted, tools), parallel


def _blocks(run: Iterable[tuple[int, Mapping[str, Any]]]) -> list[tuple[str, Mapping[str, Any]]]:
    """The blocks of neighbouring messages, each with its path."""
    blocks: list[tuple[str, Mapping[str, Any]]] = []
    for number, message in run:
        content, path = message["content"], f"messages[{number}].content"
        if isinstance(content, str):
            blocks.append((path, {"type": "text", "text": content}))
        else:
            blocks += [(f"{path}[{index}]", block) for index, block in enumerate(content)]
    return blocks


def _tell_user(talk: Transcript, blocks: list[tuple[str, Mapping[str, Any]]]) -> None:
    for results, run in groupby(blocks, lambda numbered: numbered[1]["type"] == "tool_result"):
        if not results:
            talk.user(_PARAGRAPHS.join(_text_of(block) for _, block in run))
            continue
        for path, block in run:
            text = _text(block.get("content", ""))
            if block.get("is_error", False):
                text = f"Error: {text}"
            talk.result(block["tool_use_id"], text, f"{path}.tool_use_id")


def _tell_assistant(talk: Transcript, blocks: list[tuple[str, Mapping[str, Any]]]) -> None:
    for _, block in blocks:
        if block["type"] == "text":
            talk.content(block["text"])
        elif block["type"] == "tool_use":
            talk.call(block["id"], block["name"], block["input"])
        elif block["type"] == "thinking":
            thought = block["thinking"] or unseal(block.get("signature", ""))
            if thought:
                talk.reasoning(thought)


def _check_beginning(talk: Transcript, thinking: bool, last: int) -> None:
    """Refuse a reply whose beginning is given and that cannot go on from there."""
    beginning, path = talk.messages[-1] if talk.messages else {}, f"messages[{last}]"
    if beginning.get("tool_calls"):
        raise BadRequest(
            f"{path} ends with a tool_use: give its tool_result in a user's message", path
        )
    if beginning.get("role") != "assistant" or not beginning["content"].strip():
        raise BadRequest(
            f"{path} is an assistant's without text: there is nothing to go on from", path
        )
    if thinking:
        raise BadRequest(
            f"{path} begins the reply, so that nothing can be thought before it: set thinking to "
            "disabled, or end with a user's message",
            "thinking",
        )


def _text(content: str | list[Mapping[str, Any]]) -> str:
    return content if isinstance(content, str) else _PARAGRAPHS.join(map(_text_of, content))


def _text_of(block: Mapping[str, Any]) -> str:
    """The text of a block of text or of a document."""
    if block["type"] == "text":
        return str(block["text"])
    source = block["source"]
    parts = [block.get("title", ""), block.get("context", "")]
    parts.append(source["data"] if source["type"] == "text" else _text(source["content"]))
    return "\n".join(filter(None, parts))


MESSAGES = Endpoint(
    path="/v1/messages",
    schema=PARAMETERS.schema(),
    read=read,
    refused=refused,
    whole=whole,
    events=MessageEvents,
    ping=Event({"type": "ping"}, "ping"),
    versions=VERSIONS,
)

COUNT_TOKENS = Endpoint(
    path="/v1/messages/count_tokens",
    schema=COUNTED.schema(),
    read=read_count,
    refused=refused,
    counted=counted,
    versions=VERSIONS,
)

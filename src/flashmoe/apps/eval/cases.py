"""Files of tool requests: what is asked, which tools are offered, which call would be right.

Owns their form. JSON lines, an object a line, or one JSON list of them. The keys of an object:

- ``messages``, as OpenAI's API has them (parts of text and arguments as JSON text, or plain text
  and arguments as objects), or ``prompt``, the whole prompt as the template would
  have rendered it, markup and all;
- ``tools``, in OpenAI's form, at least one;
- ``tool_choice``, if any: ``auto`` (as if it were left out) or ``required``;
- ``name`` and ``arguments`` of the one call that is right, or ``name`` alone; without either
  nothing is said of what is right;
- ``user``: a remark for readers.

Anything else is refused, by line or by place in the list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flashmoe.apps.eval.document import read_text
from flashmoe.errors import InputError

KEYS = {"messages", "prompt", "tools", "tool_choice", "name", "arguments", "user"}


@dataclass(frozen=True)
class Case:
    """One request; ``place`` says where in the file it stands. ``name`` and ``arguments`` are
    those of the right call, None where any would be."""

    place: str
    messages: tuple[Mapping[str, Any], ...]
    prompt: str | None
    tools: tuple[Mapping[str, Any], ...]
    tool_choice: Literal["auto", "required"] = "auto"
    name: str | None = None
    arguments: Mapping[str, Any] | None = None

    @property
    def schemas(self) -> dict[str, Mapping[str, Any]]:
        """The schema of each tool's arguments, by the tool's name."""
        functions = [tool["function"] for tool in self.tools]
        return {one["name"]: one.get("parameters", {}) for one in functions}


def read_cases(path: Path) -> list[Case]:
    """The requests of a file, in order.

    Raises:
        InputError: it cannot be read, has no requests, or one of them is malformed; says where.
    """
    found = [_case(place, entry) for place, entry in _entries(path)]
    if not found:
        raise InputError(f"{path} has no cases: give one JSON object a line")
    return found


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    text = read_text(path).removeprefix("\ufeff")
    if text.lstrip().startswith("["):
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not a JSON list of cases: {_fault(error)}") from error
        for number, entry in enumerate(entries, 1):
            yield f"{path}, case {number}", entry
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{place} is not JSON: {_fault(error)}") from error
            yield place, entry


def _fault(error: Exception) -> str:
    """What is wrong with a JSON text, and where in it."""
    if not isinstance(error, json.JSONDecodeError):
        return "it is nested too deep, or has a number of too many digits"
    where = f"line {error.lineno}, " if "\n" in error.doc else ""
    return f"{error.msg} ({where}character {error.colno})"


def _message(place: str, message: Mapping[str, Any]) -> dict[str, Any]:
    """A message in the form of chat templates."""
    told = dict(message)
    content = told.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{place}: the content of a message has a part that is no text")
        told["content"] = "".join(map(str, texts))
    if "tool_calls" in told:
        told["tool_calls"] = [_called(place, call) for call in told["tool_calls"] or ()]
    return told


def _called(place: str, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InputError(
            f"{place}: a message's tool_calls are not of the form "
            '{"type": "function", "function": {"name": …, "arguments": …}}'
        )
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{place}: the arguments of a call of {function['name']} in messages are not "
                f"JSON: {_fault(error)}"
            ) from error
    if not isinstance(arguments, dict):
        raise InputError(
            f"{place}: the arguments of a call of {function['name']} in messages are no object"
        )
    return {**call, "function": {**function, "arguments": arguments}}


def _case(place: str, entry: Any) -> Case:
    if not isinstance(entry, dict):
        raise InputError(f"{place} is not an object with messages and tools")
    if unknown := entry.keys() - KEYS:
        known = ", ".join(sorted(KEYS))
        raise InputError(f"{place} has the unknown key {min(unknown)!r}; a case takes {known}")
    if ("messages" in entry) == ("prompt" in entry):
        raise InputError(f"{place} needs either messages or prompt")
    messages, prompt = entry.get("messages", []), entry.get("prompt")
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise InputError(f"{place}: messages is not a list of objects")
    if "messages" in entry and not messages:
        raise InputError(f"{place}: messages is empty")
    if "prompt" in entry and not (isinstance(prompt, str) and prompt):
        raise InputError(f"{place}: prompt is no text")
    choice, name, arguments = _answer(place, entry)
    tools = _tools(place, entry.get("tools"))
    told = tuple(_message(place, message) for message in messages)
    case = Case(place, told, prompt, tools, choice, name, arguments)
    if name is not None and name not in case.schemas:
        raise InputError(f"{place}: name is {name!r}, which none of its tools has")
    return case


def _tools(place: str, tools: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(tools, list) or not tools:
        raise InputError(f"{place}: tools is no list of at least one tool")
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InputError(
                f"{place}: a tool is not of the form "
                '{"type": "function", "function": {"name": …, "parameters": …}}'
            )
        if not isinstance(function.get("parameters", {}), dict):
            raise InputError(f"{place}: the parameters of {function['name']} are no JSON schema")
    return tuple(tools)


def _answer(
    place: str, entry: Mapping[str, Any]
) -> tuple[Literal["auto", "required"], str | None, Mapping[str, Any] | None]:
    choice = entry.get("tool_choice", "auto")
    if choice not in ("auto", "required"):
        raise InputError(f"{place}: tool_choice is {choice!r}; it must be auto or required")
    name, arguments = entry.get("name"), entry.get("arguments")
    if name is not None and not isinstance(name, str):
        raise InputError(f"{place}: name is {name!r}; it must be a tool's name")
    if arguments is not None and not isinstance(arguments, dict):
        raise InputError(f"{place}: arguments is {arguments!r}; it must be an object")
    if arguments is not None and name is None:
        raise InputError(f"{place} has arguments and no name of the tool that they are for")
    return choice, name, arguments

"""Files of tool requests: what is asked, which tools are offered, which call would be right.

Owns their form. JSON lines, an object a line, or one JSON list of them. The keys of an object:

- ``messages``, as every chat API has them, or ``prompt``, the whole prompt as the template would
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
        raise InputError(f"{path} has no cases: give an object a line")
    return found


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    text = read_text(path)
    if text.lstrip().startswith("["):
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not a JSON list of cases: {error}") from error
        for number, entry in enumerate(entries, 1):
            yield f"{path}, case {number}", entry
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{place} is not JSON: {error}") from error
            yield place, entry


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
    case = Case(place, tuple(messages), prompt, tools, choice, name, arguments)
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

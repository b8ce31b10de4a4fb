"""Tools that a model may call: what it is told of them, and what it is answered.

Owns the record of a tool, which are switched on, and how a call comes to the text of its result.
A tool refuses with :class:`Refusal`, which the model reads and the conversation survives.

Invariant: every call is answered, once, with text; a tool that is switched off is never used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flashmoe.errors import FlashMoeError, InputError
from flashmoe.text.pieces import Call

RESULT_CHARACTERS = 20_000
"""Of a result, whatever tool it comes from; each is some thousands of tokens to read."""


class Refusal(FlashMoeError):
    """A call that a tool cannot honour; the message is for the model."""


@dataclass(frozen=True)
class Tool:
    """A tool: its definition in OpenAI's form, and what a call of it does with its arguments.

    ``use`` gives text, or raises Refusal. ``note`` is what a person is told beside its name.
    """

    definition: Mapping[str, Any]
    use: Callable[[Mapping[str, Any]], str]
    note: str = ""

    @staticmethod
    def of(
        name: str,
        description: str,
        properties: Mapping[str, Any],
        *,
        use: Callable[[Mapping[str, Any]], str],
        optional: Sequence[str] = (),
        note: str = "",
    ) -> Tool:
        """A tool whose parameters are an object of ``properties``."""
        parameters = {
            "type": "object",
            "properties": dict(properties),
            "required": [key for key in properties if key not in optional],
        }
        function = {"name": name, "description": description, "parameters": parameters}
        return Tool({"type": "function", "function": function}, use, note)

    @property
    def name(self) -> str:
        return str(self.definition["function"]["name"])

    @property
    def description(self) -> str:
        """What the model is told that it does."""
        return str(self.definition["function"].get("description", ""))


def text_of(arguments: Mapping[str, Any], name: str) -> str:
    """An argument that has to be text.

    Raises:
        Refusal: missing, or something else.
    """
    value = arguments.get(name)
    if not isinstance(value, str):
        raise Refusal(f"the argument {name} has to be text; it is {value!r}")
    return value


def defined(definitions: Iterable[Mapping[str, Any]], use: Callable[[Call], str]) -> list[Tool]:
    """Tools of a file, each answered by ``use``.

    Raises:
        InputError: a definition that names no function.
    """
    return [_defined(definition, use) for definition in definitions]


def _defined(definition: Mapping[str, Any], use: Callable[[Call], str]) -> Tool:
    function = definition.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        shown = json.dumps(definition, ensure_ascii=False)[:200]
        raise InputError(
            f'the tool {shown} has no name: give {{"type": "function", "function": {{"name": …}}}}'
        )

    def answered(arguments: Mapping[str, Any]) -> str:
        return use(Call(name, json.dumps(arguments, ensure_ascii=False)))

    return Tool(definition, answered, "you type its results")


@dataclass
class Toolbox:
    """The tools that there are, by name, and which of them the model is told of."""

    tools: dict[str, Tool] = field(default_factory=dict)
    on: set[str] = field(default_factory=set)

    @staticmethod
    def of(tools: Iterable[Tool]) -> Toolbox:
        """All of them, switched off.

        Raises:
            InputError: two of one name.
        """
        box = Toolbox()
        for tool in tools:
            if tool.name in box.tools:
                raise InputError(f"there are two tools named {tool.name}: rename one of them")
            box.tools[tool.name] = tool
        return box

    def switch(self, name: str, on: bool | None = None) -> bool:
        """Switch a tool on or off, None the other way; returns what it is now.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self.tools:
            there = ", ".join(self.tools) or "none"
            raise InputError(f"there is no tool {name!r}: there are {there}")
        wanted = name not in self.on if on is None else on
        (self.on.add if wanted else self.on.discard)(name)
        return wanted

    @property
    def definitions(self) -> tuple[Mapping[str, Any], ...]:
        """What the model is told, in the order that never changes."""
        return tuple(tool.definition for name, tool in self.tools.items() if name in self.on)

    def answer(self, call: Call) -> str:
        """What a call comes to, refusals included."""
        if call.name not in self.on or call.name not in self.tools:
            there = ", ".join(sorted(self.on)) or "none"
            return f"error: there is no tool {call.name!r}; there are {there}"
        try:
            arguments = json.loads(call.arguments)
            if not isinstance(arguments, dict):
                raise Refusal("the arguments are no JSON object")
            return bounded(self.tools[call.name].use(arguments))
        except (Refusal, ValueError, RecursionError) as error:
            return bounded(f"error: {error}")


def bounded(text: str, most: int = RESULT_CHARACTERS) -> str:
    """The text, or its beginning and its end with a word of what is missing between."""
    if len(text) <= most:
        return text
    head, tail = most * 3 // 4, most // 4
    left = len(text) - head - tail
    return f"{text[:head]}\n[… {left} characters left out …]\n{text[-tail:]}"

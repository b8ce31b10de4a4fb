"""What a call of a tool looks like, as rules of a grammar, in the model's own form.

Owns both forms of calls as they are written: what ``text.call_xml`` and ``text.call_json`` read.
Invariant: a call that the rules admit is read as one of the tools offered, with arguments that its
schema admits.

The parameters of the XML form come in the order of the schema; those that are not required may be
left out. A value of type string is any text that does not hold the closing tag.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flashmoe.errors import InputError
from flashmoe.text.lark import Lark, either, json_value, literal, mark
from flashmoe.text.schemas import Schema, prepared, resolved
from flashmoe.text.syntax import Syntax
from flashmoe.text.xml_values import Values

_NOT_ENFORCED = frozenset(
    {
        "anyOf",
        "oneOf",
        "allOf",
        "patternProperties",
        "minProperties",
        "maxProperties",
        "enum",
        "const",
    }
)


@dataclass(frozen=True)
class Tool:
    """A tool offered: its name, and what its arguments have to be (``schemas.prepared``)."""

    name: str
    parameters: Schema

    @property
    def where(self) -> str:
        """Whose schema it is, for messages."""
        return f"the parameters of the tool {self.name!r}"


def tools_of(tools: Sequence[Mapping[str, Any]]) -> list[Tool]:
    """The tools of a request (``{"type": "function", "function": {…}}``).

    Raises:
        InputError: one without a name, two of one name, or a schema that cannot be enforced.
    """
    found: dict[str, Tool] = {}
    for index, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
            raise InputError(
                f"tool {index} has no name: give "
                '{"type": "function", "function": {"name": …, "parameters": {…}}}'
            )
        if name in found:
            raise InputError(f"two tools are called {name!r}: give each a name of its own")
        parameters = function.get("parameters")
        if parameters is None:
            parameters = {"type": "object", "properties": {}}
        found[name] = Tool(name, prepared(parameters, Tool(name, {}).where))
    return list(found.values())


def call_rules(lark: Lark, tools: Sequence[Tool], syntax: Syntax) -> str:
    """What follows a call's opening mark, its closing mark included; one of ``tools``.

    Raises:
        InputError: a tool that the form cannot express.
    """
    assert syntax.call_open is not None and syntax.call_close is not None
    if syntax.calls == "json":
        calls, ended = [_json_call(tool) for tool in tools], "}"
    else:
        calls, ended = [_xml_call(lark, tool) for tool in tools], "</function>"
    begins = f"{literal(syntax.gaps.after_open)} " if syntax.gaps.after_open else ""
    ends = f"{literal(ended + syntax.gaps.before_close)} {mark(syntax.call_close)}"
    return lark.rule(f"{begins}{either(map(lark.rule, calls))} {ends}")


def _json_call(tool: Tool) -> str:
    schema = tool.parameters
    _check_object(tool, resolved(schema, schema, tool.where))
    if "type" not in schema and "$ref" not in schema:
        schema = {**schema, "type": "object"}
    name = json.dumps(tool.name, ensure_ascii=False)
    head = f'{{"name": {name}, "arguments": '
    return f"{literal(head)} {json_value(schema)}"


def _xml_call(lark: Lark, tool: Tool) -> str:
    if any(letter in tool.name for letter in "<>\n"):
        raise InputError(f"the model's form of calls cannot express the tool name {tool.name!r}")
    root = tool.parameters
    schema = _object(tool)
    values = Values(lark, root, tool.where)
    required = schema.get("required", [])
    properties = dict(schema.get("properties", {}))
    others = schema.get("additionalProperties", True)
    for name in required:
        properties.setdefault(name, others)
    parts = [literal(f"<function={tool.name}>\n")]
    for name, inner in properties.items():
        if any(letter in name for letter in "<>\n"):
            raise InputError(f"{tool.where}: the model's form of calls cannot express {name!r}")
        if inner is False:
            if name in required:
                raise InputError(f"{tool.where}: {name!r} is required and not admitted")
            continue
        rule = lark.rule(f"{literal(f'<parameter={name}>' + chr(10))} {values.of(inner, name)}")
        parts.append(rule if name in required else f"{rule}?")
    return " ".join(parts)


def _object(tool: Tool) -> Schema:
    """The schema of the arguments, once it is known to list them."""
    schema: Schema = resolved(tool.parameters, tool.parameters, tool.where)
    _check_object(tool, schema)
    odd = sorted(schema.keys() & _NOT_ENFORCED)
    if odd or "$ref" in schema:
        raise InputError(
            f"{tool.where}, at #: {(odd or ['$ref'])[0]!r} cannot be enforced in the model's form "
            "of calls: list the arguments as properties"
        )
    return schema


def _check_object(tool: Tool, schema: object) -> None:
    kind = schema.get("type", "object") if isinstance(schema, dict) else None
    if kind not in ("object", ["object"]):
        raise InputError(f"{tool.where} are no object: give a schema of type object")

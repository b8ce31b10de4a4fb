"""The values of parameters in the XML form of calls, as rules of a grammar.

Owns how a value is written there: a string as it is, between line breaks, and anything else as
JSON; not what stands around it. Invariant: a text that the rules admit is read by
``text.arguments.typed`` as a value that the schema admits. So where a schema admits strings and
something else that it binds further, no string may look like that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flashmoe.errors import InputError
from flashmoe.text.lark import Lark, any_but, either, escaped, json_value, literal
from flashmoe.text.patterns import FORMATS, searched
from flashmoe.text.schemas import Schema, rebased, resolved, unbounded

_CLOSE = "</parameter>"
_END = f"\n{_CLOSE}\n"
_DEPTH_LIMIT = 16
_TYPES = ("null", "boolean", "integer", "number", "array", "object", "string")
_NAMED = frozenset({"$defs", "definitions"})
_OF_STRINGS = frozenset({"minLength", "maxLength", "pattern", "format"})
_PYTHON = {"null": "None", "true": "True", "false": "False"}
_LOOKS: Mapping[str, str] = {
    "null": r"\s*(?:null|None)\s*",
    "boolean": r"\s*(?:true|false|True|False)\s*",
    "integer": r"\s*[\-0-9](?s:.*)",
    "number": r"\s*[\-0-9](?s:.*)",
    "array": r"\s*\[(?s:.*)",
    "object": r"\s*\{(?s:.*)",
}
"""Texts that may be read as a value of each type."""


class Values:
    """The values of one tool's parameters."""

    def __init__(self, lark: Lark, root: Schema, where: str) -> None:
        self._lark, self._root, self._where = lark, root, where

    def of(self, schema: Any, name: str) -> str:
        """A value and the closing tag behind it. ``name`` is the parameter's, for messages.

        Raises InputError for a schema that cannot be enforced in this form.
        """
        place = f"{self._where}, at {name!r}"
        leaves = list(self._leaves(schema, place, 0))
        if not leaves:
            raise InputError(f"{place}: the schema admits no value")
        looks = sorted({look for leaf in leaves for look in _looks(leaf)})
        found = dict.fromkeys(self._value(leaf, looks, place) for leaf in leaves)
        return either(found)

    def _leaves(self, schema: Any, place: str, depth: int) -> Iterator[Schema]:
        """The alternatives of a schema, each of one type or listed values."""
        schema = resolved(self._root, schema, place)
        if depth > _DEPTH_LIMIT:
            raise InputError(f"{place}: alternatives are nested over {_DEPTH_LIMIT} deep")
        if schema is False:
            return
        schema = {} if schema is True else schema
        own = schema.keys() - _NAMED
        if "enum" in own or "const" in own:
            yield {"enum": _listed(schema)}
            return
        for combined in ("anyOf", "oneOf"):
            if own == {combined}:
                for part in schema[combined]:
                    yield from self._leaves(part, place, depth + 1)
                return
        types = _types(schema)
        if "string" in types and (odd := own & {"anyOf", "oneOf", "allOf", "$ref"}):
            raise InputError(
                f"{place}: {min(odd)!r} beside other keywords cannot be enforced for a string in "
                "the model's form of calls: state the types apart"
            )
        yield from ({**schema, "type": kind} for kind in types)

    def _value(self, leaf: Schema, looks: Sequence[str], place: str) -> str:
        if "enum" in leaf:
            return f"{either(literal(text) for text in self._texts(leaf['enum'], place))} " + (
                literal(_END)
            )
        if leaf["type"] == "string":
            return self._string(leaf, looks, place)
        bound = leaf.keys() - _NAMED - {"type"} - _OF_STRINGS
        if leaf["type"] == "boolean" and not bound:
            return f"{either(map(literal, ('true', 'false', 'True', 'False')))} {literal(_END)}"
        if leaf["type"] == "null" and not bound:
            return f"{either(map(literal, ('null', 'None')))} {literal(_END)}"
        return f"{json_value(rebased(self._root, leaf))} {literal(_END)}"

    def _texts(self, values: Sequence[Any], place: str) -> Iterator[str]:
        for value in values:
            if not isinstance(value, str):
                text = json.dumps(value, ensure_ascii=False)
                yield text
                if text in _PYTHON:
                    yield _PYTHON[text]
            elif _CLOSE in value:
                raise InputError(
                    f"{place}: the model's form of calls cannot express {value[:80]!r}"
                )
            else:
                yield value

    def _string(self, leaf: Schema, looks: Sequence[str], place: str) -> str:
        parts = [self._lark.terminal(f"/{any_but(_CLOSE)}/")]
        if leaf.keys() & {"minLength", "maxLength"}:
            least, most = leaf.get("minLength", 0), leaf.get("maxLength", "")
            parts.append(self._lark.terminal(f"/(?s:.{{{least},{most}}})/"))
        if "pattern" in leaf:
            parts.append(self._lark.terminal(searched(leaf["pattern"], place)))
        if "format" in leaf:
            parts.append(self._lark.terminal(f"/{FORMATS[leaf['format']]}/"))
        if looks:
            parts.append(f"~/{'|'.join(looks)}/")
        if len(parts) == 1:
            return self._lark.terminal(f"/{any_but(_CLOSE)}{escaped(_END)}/")
        return self._lark.terminal(f"({' & '.join(parts)}) {literal(_END)}")


def _types(schema: Schema) -> Sequence[str]:
    kind = schema.get("type")
    if kind is not None:
        return [kind] if isinstance(kind, str) else list(kind)
    own = schema.keys() - _NAMED
    if "properties" in own or "items" in own:
        return ["object" if "properties" in own else "array"]
    return _TYPES if own else ["string"]  # nothing said: any text is right, as what it is read


def _listed(schema: Schema) -> list[Any]:
    """The values that ``enum`` and ``const`` leave."""
    values = list(schema["enum"]) if "enum" in schema else [schema["const"]]
    if "const" in schema:
        values = [value for value in values if value == schema["const"]]
    if "type" in schema:
        kinds = _types(schema)
        values = [value for value in values if _is_any_of(value, kinds)]
    return values


def _is_any_of(value: Any, kinds: Sequence[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in kinds
    if isinstance(value, int):
        return "integer" in kinds or "number" in kinds
    names = {type(None): "null", float: "number", list: "array", dict: "object", str: "string"}
    return names.get(type(value)) in kinds


def _looks(leaf: Schema) -> Iterator[str]:
    """How texts look that would be read as this leaf's type, and may be wrong for it then."""
    if "enum" in leaf:
        for value in leaf["enum"]:
            yield from (look for kind, look in _LOOKS.items() if _is_any_of(value, [kind]))
    elif leaf["type"] != "string" and not unbounded(leaf):
        yield _LOOKS[leaf["type"]]
    elif leaf.get("nullable") is True:  # OpenAPI's word, which the reader knows and JSON Schema not
        yield _LOOKS["null"]

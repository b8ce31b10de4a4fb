"""The arguments of a call as JSON: what a text means by a tool's schema.

Owns the reading of JSON that a model wrote, and the choice of type for a value that came as bare
text; not the forms of calls (``text.call_xml``, ``text.call_json``), nor whether arguments are
valid by the schema: hosts decide that. Invariant: what is given out is JSON by RFC 8259, without
NaN, infinities and lone surrogates, and nothing that a model or a schema says raises.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import unquote

_TYPES: dict[type, str] = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    str: "string",
}
_ALL = frozenset(_TYPES.values())
_DEPTH_LIMIT = 64  # as in text.template; real schemas stay under 20
_EXACT = 2**53  # floats are whole numbers up to here
_WORDS: dict[str, Any] = {
    "null": None,
    "None": None,
    "true": True,
    "True": True,
    "false": False,
    "False": False,
}
_SURROGATE = re.compile("[\ud800-\udfff]")


def schemas_of(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Each tool's name, with the schema of its arguments; ``{}`` for a tool without one."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and isinstance(name := function.get("name"), str):
            schema = function.get("parameters")
            found[name] = schema if isinstance(schema, Mapping) else {}
    return found


def read_json(text: str) -> Any:
    """The value of a JSON text; raises ValueError for anything else.

    Line breaks within strings are taken as they are: models write them.
    """
    value, end = read_json_from(text, len(text) - len(text.lstrip()))
    if text[end:].strip():
        raise ValueError("more follows")
    return value


def read_json_from(text: str, start: int) -> tuple[Any, int]:
    """The JSON value at ``start`` and where it ends; raises ValueError where there is none."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return value, end


def json_text(value: Any) -> str:
    """The text of a value that :func:`read_json` gave; lone surrogates become U+FFFD."""
    return whole_characters(json.dumps(value, ensure_ascii=False))


def whole_characters(text: str) -> str:
    """``text`` with lone surrogates, which JSON's escapes can spell, as U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)


def typed(text: str, schema: object, root: object) -> Any:
    """The value that bare ``text`` stands for by ``schema``; references go into ``root``.

    A listed value (``enum``, ``const``) that is written so is that one. Otherwise the types that
    the schema admits are tried, text last; a schema that says nothing admits all. A text that
    none of them can read stays text. Booleans and null may be spelled as Python does, which is
    what Qwen's template writes.
    """
    admitted = _admitted(schema, root, {}, _DEPTH_LIMIT)
    value = _read(text, admitted)
    for listed in _listed(schema, root):
        if listed == text or (type(listed) is type(value) and listed == value):
            return listed
    return value


def json_end(text: str, start: int, schema: object, root: object) -> int | None:
    """Where the JSON array or object that ``text`` has at ``start``, white space aside, ends; None
    where there is none, or the schema admits none."""
    if not _admitted(schema, root, {}, _DEPTH_LIMIT) & {"array", "object"}:
        return None
    while text[start].isspace():
        start += 1
    try:
        return read_json_from(text, start)[1]
    except ValueError:
        return None


def property_schema(name: str, schema: object, root: object) -> object:
    """The schema of one property of an object; ``{}`` where nothing is said of it."""
    others: object = {}
    for part in _parts(schema, root):
        properties, rest = part.get("properties"), part.get("additionalProperties")
        if isinstance(properties, Mapping) and name in properties:
            return properties[name]
        others = rest if isinstance(rest, Mapping) else others
    return others


def _read(text: str, admitted: frozenset[str]) -> Any:
    if admitted == {"string"}:
        return text
    word = text.strip()
    if "string" not in admitted:  # nothing else can be meant, so that case does not matter
        word = word.lower().replace("none", "null")
    value: Any = text
    if word in _WORDS:
        value = _WORDS[word]
    else:
        try:
            value = read_json(text)
        except ValueError:
            return text
    if isinstance(value, float) and "number" not in admitted and value.is_integer():
        value = int(value) if abs(value) <= _EXACT else value
    name = _TYPES[type(value)]
    fits = name in admitted or (name == "integer" and "number" in admitted)
    return value if fits and name != "string" else text


def _listed(schema: object, root: object) -> Iterator[Any]:
    for part in _parts(schema, root):
        values = part.get("enum")
        yield from values if isinstance(values, list | tuple) else ()
        if "const" in part:
            yield part["const"]


def _parts(schema: object, root: object) -> Iterator[Mapping[str, Any]]:
    """The schema and all that it refers to or combines, each once."""
    pending, seen = [schema], set()
    while pending:
        part = pending.pop()
        if isinstance(part, Mapping) and id(part) not in seen:
            seen.add(id(part))
            yield part
            for key in ("oneOf", "anyOf", "allOf"):
                pending += _list(part.get(key))
            if "$ref" in part:
                pending.append(_referred(part["$ref"], root))


def _admitted(
    schema: object, root: object, known: dict[int, frozenset[str]], depth: int
) -> frozenset[str]:
    """The JSON types that a schema may admit; ``known``: of the parts that were looked at."""
    if not isinstance(schema, Mapping) or not depth:
        return _ALL
    if (found := known.get(id(schema))) is not None:
        return found
    known[id(schema)] = _ALL  # of one that contains itself
    admitted = _own_types(schema)
    for key in ("anyOf", "oneOf"):
        if parts := _list(schema.get(key)):
            admitted &= frozenset().union(
                *(_admitted(part, root, known, depth - 1) for part in parts)
            )
    for part in _list(schema.get("allOf")):
        admitted &= _admitted(part, root, known, depth - 1)
    if "$ref" in schema:
        admitted &= _admitted(_referred(schema["$ref"], root), root, known, depth - 1)
    if schema.get("nullable") is True:  # OpenAPI's
        admitted |= {"null"}
    known[id(schema)] = admitted
    return admitted


def _own_types(schema: Mapping[str, Any]) -> frozenset[str]:
    """What the schema's own words admit, those aside that combine others."""
    named = schema.get("type")
    names = [named] if isinstance(named, str) else _list(named)
    admitted = frozenset(name for name in names if isinstance(name, str)) & _ALL or _ALL
    if "number" in admitted:
        admitted |= {"integer"}
    listed = _list(schema.get("enum")) + ([schema["const"]] if "const" in schema else [])
    if listed:
        admitted &= frozenset(_TYPES.get(type(value), "string") for value in listed)
    if not names and not listed:
        for key, name in (("properties", "object"), ("items", "array")):
            if key in schema:
                return frozenset({name})
    return admitted


def _referred(reference: object, root: object) -> object:
    """What a reference within ``root`` (``#/$defs/city``) points to; ``{}`` for any other."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return {}
    found = root
    for step in unquote(reference[1:]).split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping):
            found = found.get(key, {})
        elif isinstance(found, list | tuple) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            return {}
    return found


def _list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is too large")
    return number


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse, strict=False)

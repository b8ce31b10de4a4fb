"""JSON schemas, made ready for grammars.

Owns what of a schema can be enforced, and says where it cannot; not grammars. Invariant: whatever
fits the schema that :func:`prepared` returns fits the one that it was given.

It admits less on purpose: objects that list their properties take no others, unless the schema
speaks of others, and numbers without bounds lie within ±10^18 and have no exponent. So a model
cannot go on for ever, and no number is too large for who reads it.
Keywords that JSON Schema does not know, and formats that are not known here, are annotations, as
JSON Schema has it. Keywords that it does know and that cannot be enforced are refused.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any
from urllib.parse import quote, unquote

from flashmoe.errors import InputError
from flashmoe.text import keywords, schema_sense
from flashmoe.text.patterns import FORMATS

Schema = dict[str, Any]

_LENGTH_LIMIT = 1 << 20  # characters of JSON; the largest of real tools have 50,000
_DEPTH_LIMIT = 64
_PLACES_LIMIT = 4096
_OPTIONAL_LIMIT = 400  # llguidance keeps four items of each in a row, and 2,000 at most

_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions")
_OF_ONE = ("items", "additionalProperties")
_COUNTS = tuple(f"{end}{of}" for end in ("min", "max") for of in ("Length", "Items", "Properties"))
_OF_SEVERAL = ("anyOf", "oneOf", "allOf", "prefixItems", "items")

_REFUSED = frozenset(
    {
        "not",
        "if",
        "then",
        "else",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "contains",
        "minContains",
        "maxContains",
        "uniqueItems",
        "propertyNames",
        "unevaluatedItems",
        "unevaluatedProperties",
        "additionalItems",
        "$dynamicRef",
        "$recursiveRef",
        "x-guidance",
    }
)
_SAYS_NOTHING: Mapping[str, Sequence[object]] = {
    "uniqueItems": (False,),
    "propertyNames": ({}, True, {"type": "string"}),
    "unevaluatedItems": ({}, True),
    "unevaluatedProperties": ({}, True),
    "additionalItems": ({}, True),
    "not": (False,),
}
_DROPPED = frozenset(
    {
        "$schema",
        "$id",
        "$comment",
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
    }
)
_MOST = 10**18


def prepared(schema: object, name: str) -> Schema:
    """The schema as grammars take it; ``name`` says whose it is, for messages.

    Raises:
        InputError: a keyword that cannot be enforced, with its place, or no schema at all.
    """
    if schema is True:
        schema = {}
    if not isinstance(schema, Mapping):
        raise InputError(f"{name} is {keywords.shown(schema)}; it must be an object")
    text = _written(schema, name)
    made: Schema = _Preparation(name, closes="allOf" not in text).of(json.loads(text), "#", 0)
    _check_sense(made, name)
    return made


def _written(schema: Mapping[str, Any], name: str) -> str:
    """The schema as JSON text, once it is known to be such, and no more than a grammar takes."""
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{name} holds a character that is not Unicode: remove lone surrogates (\\ud800…)"
        ) from None
    except RecursionError:
        raise InputError(f"{name} is nested over {_DEPTH_LIMIT} deep: make it smaller") from None
    except (TypeError, ValueError):
        raise InputError(
            f"{name} is not JSON data: give objects, lists, texts, finite numbers, true, false or "
            "null"
        ) from None
    if len(text) > _LENGTH_LIMIT:
        raise InputError(
            f"{name} has {len(text)} characters, and at most {_LENGTH_LIMIT} can be enforced: make "
            "it smaller"
        )
    return text


def _check_sense(made: Schema, name: str) -> None:
    """Refuse what shows where references are followed."""

    def find(reference: str) -> Any:
        if reference != "#" and not reference.startswith("#/"):
            raise _no_reference(reference, name)
        return _found(made, reference, name)

    try:
        if schema_sense.endless(made, find):
            raise InputError(
                f"{name}: every value that fits would contain another one, without an end: let "
                "something that refers back to itself be left out, empty or null"
            )
        if (fault := schema_sense.overload(made, find)) is not None:
            raise InputError(f"{name}: {fault}")
    except schema_sense.TooLarge:
        raise InputError(
            f"{name}: its references unfold to too many parts to be enforced: make it smaller"
        ) from None


def _no_reference(target: object, name: str) -> InputError:
    return InputError(
        f"{name}: the reference {keywords.shown(target)} leads nowhere within the schema: mend it"
    )


class _Preparation:
    """``closes``: whether objects are closed. Under allOf each part would shut out the others."""

    def __init__(self, name: str, closes: bool) -> None:
        self._name, self._closes, self._places = name, closes, 0

    def _combined(self, schema: Mapping[str, Any]) -> bool:
        """Whether what the schema lists counts beside the properties of its alternatives."""
        parts = schema.keys() & {"anyOf", "oneOf", "$ref"}
        return bool(parts and schema.keys() & {"properties", "required", "additionalProperties"})

    def of(self, schema: Any, place: str, depth: int) -> Any:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise self._refusal(place, f"{keywords.shown(schema)} is no schema: give an object")
        self._places += 1
        if depth > _DEPTH_LIMIT or self._places > _PLACES_LIMIT:
            raise self._refusal(
                place,
                f"the schema is nested over {_DEPTH_LIMIT} deep or has more than {_PLACES_LIMIT} "
                "parts: make it smaller",
            )
        kept: Schema = {}
        self._closes = self._closes and not self._combined(schema)  # from here on, to be safe
        for keyword, value in schema.items():
            if (fault := keywords.fault(keyword, value)) is not None:
                raise self._refusal(place, fault)
            if keyword in _DROPPED or (keyword == "format" and value not in FORMATS):
                continue
            if keyword in _REFUSED:
                if value in _SAYS_NOTHING.get(keyword, ()):
                    continue
                raise self._refusal(f"{place}/{_escaped(keyword)}", _why_not(keyword, schema))
            kept[keyword] = self._value(keyword, value, f"{place}/{_escaped(keyword)}", depth + 1)
        if (fault := keywords.contradiction(kept) or _too_many(kept)) is not None:
            raise self._refusal(place, fault)
        return self._closed(_bounded(_spelled(kept)))

    def _value(self, keyword: str, value: Any, place: str, depth: int) -> Any:
        if keyword in _OF_NAMES and isinstance(value, Mapping):
            return {
                name: self.of(inner, f"{place}/{_escaped(name)}", depth)
                for name, inner in value.items()
            }
        if keyword in _OF_SEVERAL and isinstance(value, list | tuple):
            return [self.of(inner, f"{place}/{index}", depth) for index, inner in enumerate(value)]
        if keyword in _OF_ONE:
            return self.of(value, place, depth)
        return int(value) if keyword in _COUNTS else value

    def _closed(self, schema: Schema) -> Schema:
        listed = schema.get("properties")
        if self._closes and isinstance(listed, dict) and "additionalProperties" not in schema:
            required = schema.get("required")
            free = schema.keys() & {"patternProperties", "minProperties"}
            known = isinstance(required, list) and not listed.keys() >= set(map(str, required))
            if not free and not known:
                return {**schema, "additionalProperties": False}
        return schema

    def _refusal(self, place: str, what: str) -> InputError:
        return InputError(f"{self._name}, at {place}: {what}")


def _why_not(keyword: str, schema: Mapping[str, Any]) -> str:
    """Why a keyword is refused, and the mend."""
    if keyword == "additionalItems" and isinstance(schema.get("items"), list | tuple):
        return (
            "'additionalItems' cannot be enforced beside a list of 'items': give the list as "
            "'prefixItems', and what the further items are as 'items'"
        )
    return f"the keyword {keyword!r} cannot be enforced: leave it out, and check the answer for it"


def _too_many(schema: Schema) -> str | None:
    """Whether a grammar would have too many choices between properties."""
    free = len(schema.get("properties", {}).keys() - set(schema.get("required", ())))
    if free <= _OPTIONAL_LIMIT:
        return None
    return (
        f"{free} properties may be left out, and at most {_OPTIONAL_LIMIT} can be enforced: "
        "require more of them, or make an object of some"
    )


def _spelled(schema: Schema) -> Schema:
    """With a pattern for its format."""
    if "format" not in schema or "pattern" in schema:
        return schema
    rest = {key: value for key, value in schema.items() if key != "format"}
    return {**rest, "pattern": f"^(?:{FORMATS[schema['format']]})$"}


def _bounded(schema: Schema) -> Schema:
    """With limits to numbers that have none."""
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    if not {"integer", "number"}.intersection(map(str, kinds)) or schema.keys() & {"enum", "const"}:
        return schema
    bounds = [
        schema.get(name) for name in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    ]
    given = [bound for bound in bounds if bound is not None]
    if not all(isinstance(bound, int | float) and abs(bound) < _MOST for bound in given):
        return schema
    low = {} if {"minimum", "exclusiveMinimum"} & schema.keys() else {"minimum": -_MOST}
    high = {} if {"maximum", "exclusiveMaximum"} & schema.keys() else {"maximum": _MOST}
    return {**schema, **low, **high}


def within(root: Schema, pointer: str) -> Schema:
    """The part of ``root`` at ``pointer`` ("" or "/properties/x") as a schema of its own, whose
    references still lead where they led."""
    return {"$ref": f"#/$defs/root{pointer}", "$defs": {"root": _rerooted(root)}}


def rebased(root: Schema, part: Schema) -> Schema:
    """``part`` of ``root`` as a schema of its own, whose references lead where they led."""
    moved: Schema = _rerooted(part)
    if moved == part:
        return part
    return {**moved, "$defs": {"root": _rerooted(root)}}  # nobody refers to its own any more


def unbounded(schema: Schema) -> bool:
    """Whether a schema of one type says no more than that type, beyond what :func:`prepared`
    adds."""
    added = {"minimum": -_MOST, "maximum": _MOST}
    free = {"type", "$defs", "definitions", "minLength", "maxLength", "pattern", "format"}
    return all(key in free or added.get(key) == value for key, value in schema.items())


def _rerooted(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: f"#/$defs/root{item[1:]}"
            if key == "$ref" and isinstance(item, str) and item.startswith("#")
            else _rerooted(item)
            for key, item in value.items()
        }
    return [_rerooted(item) for item in value] if isinstance(value, list) else value


def resolved(root: Schema, schema: Any, name: str) -> Any:
    """What a reference at the top of ``schema`` leads to, however many there are in a row.

    Raises InputError for one that leads nowhere, or in a circle.
    """
    seen: set[str] = set()
    while isinstance(schema, dict) and "$ref" in schema:
        target = schema["$ref"]
        if target in seen or not isinstance(target, str) or not target.startswith("#"):
            raise _no_reference(target, name)
        seen.add(target)
        if len(schema) > 1 and schema.keys() - {"$defs", "definitions", "$ref"}:
            return schema  # both it and what stands beside it count
        schema = _found(root, target, name)
    return schema


def _found(root: Schema, target: str, name: str) -> Any:
    found: Any = root
    for part in unquote(target[1:]).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, dict) and key in found:
            found = found[key]
        else:
            raise _no_reference(target, name)
    return found


def spelled(schema: Any) -> Iterator[str]:
    """The texts that a value which fits may have to be or hold: names, and what is listed."""
    pending = [schema]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, list):
            pending += part
        elif isinstance(part, dict):
            yield from part
            pending += [value for key, value in part.items() if key != "pattern"]


_TRIALS, _TRYING_SECONDS = 64, 2.0
"""Parts of a schema that are compiled to find the one at fault, and for how long: each holds all
of the root."""


def culprit(root: Schema, fails: Callable[[Schema], bool]) -> str:
    """The place of the smallest part of a schema that fails on its own: "#", "#/properties/x".

    Or of one around it, where :data:`_TRIALS` do not find that, or not in time.
    """
    place, left, until = "", _TRIALS, time.monotonic() + _TRYING_SECONDS
    while True:
        inner = [f"{place}/{step}" for step in _steps(_found(root, f"#{place}", "the schema"))]
        tried, left = inner[:left], max(left - len(inner), 0)
        in_time = takewhile(lambda _: time.monotonic() < until, tried)
        worse = next((one for one in in_time if fails(within(root, one))), None)
        if worse is None:
            return f"#{place}"
        place = worse


def _steps(schema: Any) -> Iterator[str]:
    """The ways, one step down, to the schemas within a schema."""
    for keyword, value in schema.items() if isinstance(schema, dict) else ():
        if keyword in _OF_NAMES and isinstance(value, dict):
            yield from (f"{keyword}/{_escaped(name)}" for name in value)
        elif keyword in _OF_SEVERAL and isinstance(value, list):
            yield from (f"{keyword}/{index}" for index in range(len(value)))
        elif keyword in _OF_ONE and isinstance(value, dict):
            yield keyword


def _escaped(name: object) -> str:
    """One step of a pointer, as a fragment of an address has it."""
    return quote(str(name).replace("~", "~0").replace("/", "~1"), safe="~!$&'()*+,;=:@")

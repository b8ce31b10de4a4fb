"""What each keyword of a JSON schema may say, by itself.

Owns the values, one keyword at a time and in pairs; not where in a schema they stand, nor whether
what they ask for can be enforced (``text.schemas``). Pure: a fault is returned in plain words.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")

LONGEST_PATTERN = 10_000
"""Characters of a regular expression; what is written by people stays under 500."""
LARGEST_PATTERN = 20_000
"""Characters that one matches at most, as its repeats with an upper limit have it: each of them
can take a state."""
LARGEST_MULTIPLE = 100_000
"""Of ``multipleOf``, which takes a state a remainder."""

_MOST = 10**9


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= _MOST and int(value) == value


def _is_factor(value: Any) -> bool:
    return _is_number(value) and 0 < value <= LARGEST_MULTIPLE


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list | tuple) else [value]
    return bool(names) and all(isinstance(name, str) and name in TYPES for name in names)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value)


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


_Kind = tuple[Callable[[Any], bool], str]
_NUMBER: _Kind = (_is_number, "a number")
_COUNT: _Kind = (_is_count, f"a whole number from 0 to {_MOST}")
_ALTERNATIVES: _Kind = (_is_list, "a list of at least one schema")
_NAMED: _Kind = (_is_object, "an object that gives each name a schema")

_KINDS: Mapping[str, _Kind] = {
    "type": (_is_type, f"one of {', '.join(TYPES)}, or a list of some"),
    "enum": (_is_list, "a list of at least one value"),
    "required": (_is_names, "a list of names"),
    "pattern": (_is_text, "a regular expression, as text"),
    "format": (_is_text, "the name of a format, as text"),
    "$ref": (_is_text, "a place within the schema, such as #/$defs/name"),
    "multipleOf": (_is_factor, f"a number above 0, at most {LARGEST_MULTIPLE}"),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _NUMBER),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), _COUNT),
    **dict.fromkeys(("minProperties", "maxProperties"), _COUNT),
    **dict.fromkeys(("anyOf", "oneOf", "allOf"), _ALTERNATIVES),
    "prefixItems": (lambda value: isinstance(value, list | tuple), "a list of schemas"),
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), _NAMED),
}

_ORDERED = (
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
    ("minProperties", "maxProperties"),
    ("minimum", "maximum"),
)


def fault(keyword: str, value: Any) -> str | None:
    """What is wrong with the value of a keyword; None where nothing is."""
    known = _KINDS.get(keyword)
    if known is None or known[0](value):
        return too_large(value) if keyword == "pattern" else None
    return f"{shown(value)} is no value of {keyword!r}: give {known[1]}"


_PART = re.compile(
    r"(?P<opens>\((?:\?(?:P?<\w+>|[a-zA-Z\-]*:))?)|(?P<closes>\))|(?P<no>[*+?|^$]|\(\?[a-zA-Z\-]+\))"
    r"|\{(?P<least>\d{1,9})?,?(?P<most>\d{1,9})?\}"
    r"|(?P<one>\\[xuUpP]\{\w*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.)",
    re.DOTALL,
)
"""A group's begin and end, what matches no character, a repeat, or what matches one."""


def too_large(pattern: str) -> str | None:
    """Why a regular expression is too large for a grammar; None where it is not."""
    if len(pattern) > LONGEST_PATTERN:
        return (
            f"the pattern has {len(pattern)} characters, and at most {LONGEST_PATTERN} can be "
            "enforced: make it shorter"
        )
    if _matched(pattern) > LARGEST_PATTERN:
        return (
            f"the repeats of the pattern {shown(pattern)} come to more than {LARGEST_PATTERN} "
            "characters: lower them, or leave their upper limit out"
        )
    return None


def _matched(pattern: str) -> int:
    """How many characters a pattern matches at most, as repeats with an upper limit have it."""
    sums, last = [0], 0
    for part in _PART.finditer(pattern):
        if part["opens"]:
            sums.append(0)
        elif part["closes"] and len(sums) > 1:
            last = sums.pop()
            sums[-1] += last
        elif part["one"]:
            last = 1
            sums[-1] += 1
        elif not part["no"] and not part["closes"]:
            most = int(part["most"] or part["least"] or 1)
            sums[-1] += last * (most - 1)
            last *= most
    return sum(sums)


def contradiction(schema: Mapping[str, Any]) -> str | None:
    """Two keywords that do not go together, each of which is right by itself."""
    if "prefixItems" in schema and isinstance(schema.get("items"), list):
        return (
            "'items' is a list beside 'prefixItems', and both say what the first items are: give "
            "'items' as one schema, of all further items, or leave one of them out"
        )
    for least, most in _ORDERED:
        if least in schema and most in schema and schema[least] > schema[most]:
            return (
                f"{least} is {schema[least]} and {most} is {schema[most]}, so that no value fits: "
                "change one of them"
            )
    return None


def shown(value: Any) -> str:
    """A value for a message, in JSON's spelling, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else text[:79] + "…"

"""Calls in the form of Qwen3-Coder and Qwen3.5: ``<function=NAME>``, ``<parameter=KEY>``.

Owns the reading of what stands between a call's marks; not the marks (``text.parser``) nor what a
value means (``text.arguments``). Invariant: what is read as calls is read whole, and the rest is
handed back as it stands.

Values are raw text without escapes. One ends at the first ``</parameter>`` that another parameter,
``</function>`` or the call's end follows, white space aside: any other stands in the value. A value
may spell such an end itself. Where that leaves a rest, the body is read a second time, with every
``<parameter=…>`` in a value as one that has an end there, and no ``</function>`` as the end that
something else than a function follows: if nothing is left then, that reading counts. So a call
that is a value's own text is read as that. Time is in proportion to the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from flashmoe.text.arguments import json_text, property_schema, typed
from flashmoe.text.pieces import Call

_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>")
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>")
_VALUE_END = re.compile(r"</parameter>(?=\s*(?:<parameter=|</function>|\Z))")
_INNER = re.compile(
    r"(?P<opens><parameter=[^>\n]+>)"
    r"|</parameter>(?P<ends>(?=\s*(?:<parameter=|</function>\s*(?:<function=|\Z)|\Z)))?"
)
_FUNCTION_END = re.compile(r"\s*</function>")
_TAG = re.compile(r"<parameter=|</parameter>|</function>")

Schemas: TypeAlias = Mapping[str, Mapping[str, Any]]
Reading: TypeAlias = tuple[list[Call], str]
ValueEnd: TypeAlias = Callable[[str, int], tuple[int, int] | None]


def read_calls(body: str, schemas: Schemas, *, closed: bool) -> Reading:
    """The calls of ``body`` and the text that follows them; no calls where there is none.

    ``schemas`` are those of :func:`flashmoe.text.arguments.schemas_of`. Where the call's closing
    mark was there (``closed``), ``</function>`` and the last ``</parameter>`` may be missing. A
    parameter that is there twice counts as it is written last.
    """
    calls, rest = _read(body, schemas, _first_end, closed=closed)
    if closed and rest.strip():
        nested, left = _read(body, schemas, _outer_end, closed=False)
        if nested and not left.strip():
            return nested, left
    return calls, rest


def _read(body: str, schemas: Schemas, value_end: ValueEnd, *, closed: bool) -> Reading:
    calls: list[Call] = []
    end = 0
    while (function := _FUNCTION.match(body, end)) is not None:
        schema = schemas.get(function[1], {})
        read = _arguments(body, function.end(), schema, value_end, closed=closed)
        if read is None:
            break
        arguments, end = read
        calls.append(Call(function[1], json_text(arguments)))
    return calls, body[end:]


def _arguments(
    body: str, start: int, schema: Mapping[str, Any], value_end: ValueEnd, *, closed: bool
) -> tuple[dict[str, Any], int] | None:
    """The arguments that begin at ``start`` and where their function ends; None: it does not."""
    arguments: dict[str, Any] = {}
    while (parameter := _PARAMETER.match(body, start)) is not None:
        begins = parameter.end()
        ends = value_end(body, begins) or (_open_end(body, begins) if closed else None)
        if ends is None:
            return None
        key, text = parameter[1], body[begins : ends[0]]
        text = text.removeprefix("\n").removesuffix("\n")
        arguments[key] = typed(text, property_schema(key, schema, schema), schema)
        start = ends[1]
    over = _FUNCTION_END.match(body, start)
    if over is not None:
        return arguments, over.end()
    return (arguments, len(body)) if closed and not body[start:].strip() else None


def _first_end(body: str, start: int) -> tuple[int, int] | None:
    """Where a value and where its tag end: the first that may be one."""
    found = _VALUE_END.search(body, start)
    return None if found is None else found.span()


def _outer_end(body: str, start: int) -> tuple[int, int] | None:
    """The same, where parameters in the value have their own ends."""
    depth = 1
    for found in _INNER.finditer(body, start):
        if found["opens"] is not None:
            depth += 1
        elif depth > 1:
            depth -= 1
        elif found["ends"] is not None:
            return found.span()
    return None


def _open_end(body: str, start: int) -> tuple[int, int]:
    """Where a value without an end of its own does."""
    end = body.rfind("</function>", start)
    end = len(body) if end < 0 else end
    return end, end


class Openness:
    """Whether the body, as far as it was read, ends inside a value.

    Asked where a closing mark is met by its text, which a value may spell. What is read at once
    never begins or ends inside a tag.
    """

    def __init__(self) -> None:
        self.inside = False
        self._ended = False  # a value has, if nothing but a tag follows

    def read(self, text: str) -> None:
        """Go on with the next piece of the body."""
        place = 0
        for tag in _TAG.finditer(text):
            self._go_on(text[place : tag.start()])
            place = tag.end()
            if tag[0] == "<parameter=":
                self.inside, self._ended = True, False
            elif tag[0] == "</parameter>":
                self._ended = self._ended or self.inside
                self.inside = False
            elif self._ended:
                self._ended = False
            elif not text[place:].strip():  # the last parameter's own end may be missing
                self.inside = False
        self._go_on(text[place:])

    def _go_on(self, text: str) -> None:
        """Text without a tag: what looked like a value's end was none."""
        if self._ended and text.strip():
            self.inside, self._ended = True, False

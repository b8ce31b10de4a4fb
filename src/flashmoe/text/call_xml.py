"""Calls in the form of Qwen3-Coder and Qwen3.5: ``<function=NAME>``, ``<parameter=KEY>``.

Owns the reading of what stands between a call's marks; not the marks (``text.parser``) nor what a
value means (``text.arguments``). Invariant: what is read as calls is read whole, and the rest is
handed back as it stands.

An array or object, where the schema admits one, ends where its JSON does, whatever its texts spell.
Any other value is raw text without escapes. It ends at the first ``</parameter>`` that another
parameter, ``</function>`` or the call's end follows, white space aside: any other stands in the
value. It may spell such an end itself. Where that leaves a rest, the body is read a second time,
with every ``<parameter=…>`` in a value as one that has an end there, and no ``</function>`` as the
end that something else than a function follows: if nothing is left then, that reading counts. So a
call that is a value's own text is read as that. Time is in proportion to the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from flashmoe.text.arguments import json_end, json_text, property_schema, typed
from flashmoe.text.pieces import Call

_OPENS = "<function="
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>")
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>")
_VALUE_END = re.compile(r"</parameter>(?=\s*(?:<parameter=|</function>|\Z))")
_INNER = re.compile(
    r"(?P<opens><parameter=[^>\n]+>)"
    r"|</parameter>(?P<ends>(?=\s*(?:<parameter=|</function>\s*(?:<function=|\Z)|\Z)))?"
)
_TRIALS = 16
"""Values that begin like JSON and are none, until no more are read as such: json's own errors take
time in proportion to all that stands before them."""
_CONTAINER = re.compile(r"\s*[\[{]")
_TAG_END = re.compile(r"\s*</parameter>")
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
    calls, rest = _Body(body, _first_end, closed=closed).calls(schemas)
    if closed and rest.strip():
        nested, left = _Body(body, _outer_end, closed=False).calls(schemas)
        if nested and not left.strip():
            return nested, left
    return calls, rest


def is_begun(body: str) -> bool:
    """Whether ``body``, which holds no whole call at its beginning, may be the beginning of one."""
    text = body.lstrip()
    return text.startswith(_OPENS) or _OPENS.startswith(text)


class _Body:
    """One reading of a call's body, with ``value_end`` to say where raw text ends."""

    def __init__(self, text: str, value_end: ValueEnd, *, closed: bool) -> None:
        self._text, self._value_end, self._closed = text, value_end, closed
        self._trials = _TRIALS

    def calls(self, schemas: Schemas) -> Reading:
        calls: list[Call] = []
        end = 0
        while (function := _FUNCTION.match(self._text, end)) is not None:
            read = self._arguments(function.end(), schemas.get(function[1], {}))
            if read is None:
                break
            arguments, end = read
            calls.append(Call(function[1], json_text(arguments)))
        return calls, self._text[end:]

    def _arguments(
        self, start: int, schema: Mapping[str, Any]
    ) -> tuple[dict[str, Any], int] | None:
        """The arguments that begin at ``start`` and where their function ends; None: it does
        not."""
        arguments: dict[str, Any] = {}
        while (parameter := _PARAMETER.match(self._text, start)) is not None:
            key, begins = parameter[1], parameter.end()
            inner = property_schema(key, schema, schema)
            ends = self._json_end(begins, inner, schema) or self._value_end(self._text, begins)
            if ends is None and self._closed:
                ends = _open_end(self._text, begins)
            if ends is None:
                return None
            text = self._text[begins : ends[0]].removeprefix("\n").removesuffix("\n")
            arguments[key] = typed(text, inner, schema)
            start = ends[1]
        over = _FUNCTION_END.match(self._text, start)
        if over is not None:
            return arguments, over.end()
        whole = self._closed and not self._text[start:].strip()
        return (arguments, len(self._text)) if whole else None

    def _json_end(self, start: int, schema: object, root: object) -> tuple[int, int] | None:
        """Where an array or object and where its tag end; None where there is neither."""
        if not self._trials or not _CONTAINER.match(self._text, start):
            return None
        over = json_end(self._text, start, schema, root)
        tag = None if over is None else _TAG_END.match(self._text, over)
        if over is None or tag is None:
            self._trials -= 1
            return None
        return over, tag.end()


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

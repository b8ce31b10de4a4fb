"""Calls in the form of Qwen3-Coder and Qwen3.5: ``<function=NAME>``, ``<parameter=KEY>``.

Owns the reading of what stands between a call's marks; not the marks (``text.parser``) nor what a
value means (``text.arguments``). Invariant: what is read as calls is read whole, and the rest is
handed back as it stands.

Values are raw text without escapes. One ends at the first ``</parameter>`` that another parameter,
``</function>`` or the call's end follows, white space aside: any other stands in the value, and a
value that spells such an end itself is cut there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flashmoe.text.arguments import json_text, property_schema, typed
from flashmoe.text.pieces import Call

_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>")
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>")
_VALUE_END = re.compile(r"</parameter>(?=\s*(?:<parameter=|</function>|\Z))")
_FUNCTION_END = re.compile(r"\s*</function>")


def read_calls(
    body: str, schemas: Mapping[str, Mapping[str, Any]], *, closed: bool
) -> tuple[list[Call], str]:
    """The calls of ``body`` and the text that follows them; no calls where there is none.

    ``schemas`` are those of :func:`flashmoe.text.arguments.schemas_of`. Where the call's closing
    mark was there (``closed``), ``</function>`` and the last ``</parameter>`` may be missing. A
    parameter that is there twice counts as it is written last.
    """
    calls: list[Call] = []
    end = 0
    while (function := _FUNCTION.match(body, end)) is not None:
        read = _arguments(body, function.end(), schemas.get(function[1], {}), closed=closed)
        if read is None:
            break
        arguments, end = read
        calls.append(Call(function[1], json_text(arguments)))
    return calls, body[end:]


def _arguments(
    body: str, start: int, schema: Mapping[str, Any], *, closed: bool
) -> tuple[dict[str, Any], int] | None:
    """The arguments that begin at ``start`` and where their function ends; None: it does not."""
    arguments: dict[str, Any] = {}
    while (parameter := _PARAMETER.match(body, start)) is not None:
        ends = _value_end(body, parameter.end(), closed=closed)
        if ends is None:
            return None
        key, text = parameter[1], body[parameter.end() : ends[0]]
        text = text.removeprefix("\n").removesuffix("\n")
        arguments[key] = typed(text, property_schema(key, schema, schema), schema)
        start = ends[1]
    over = _FUNCTION_END.match(body, start)
    if over is not None:
        return arguments, over.end()
    return (arguments, len(body)) if closed and not body[start:].strip() else None


def _value_end(body: str, start: int, *, closed: bool) -> tuple[int, int] | None:
    """Where a value and where its tag end."""
    found = _VALUE_END.search(body, start)
    if found is not None:
        return found.start(), found.end()
    if not closed:
        return None
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

    def read(self, text: str) -> None:
        """Go on with the next piece of the body."""
        opens, ends = text.rfind("<parameter="), text.rfind("</parameter>")
        if opens >= 0 or ends >= 0:
            self.inside = opens > ends
        if text.rstrip().endswith("</function>"):
            self.inside = False

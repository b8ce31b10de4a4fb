"""Calls in the form of Hermes, Qwen2.5 and Qwen3: ``{"name": …, "arguments": {…}}``.

Owns the reading of what stands between a call's marks; not the marks (``text.parser``).
Invariant: what is read as calls is read whole, and the rest is handed back as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flashmoe.text.arguments import json_text, read_json, read_json_from, whole_characters
from flashmoe.text.pieces import Call

_NEXT = re.compile(r"\s*(?=[{\[])")
_STRING_MARK = re.compile(r'["\\\n]')


def read_calls(
    body: str, schemas: Mapping[str, Mapping[str, Any]], *, closed: bool
) -> tuple[list[Call], str]:
    """The calls of ``body`` and the text that follows them; no calls where there is none.

    One object is a call, several and a list of them are several. ``arguments`` may be an object,
    its JSON text, or missing where there are none; other keys are left out. What JSON says needs
    neither ``schemas`` nor the closing mark.
    """
    del schemas, closed
    calls: list[Call] = []
    end = 0
    while (begins := _NEXT.match(body, end)) is not None:
        try:
            value, after = read_json_from(body, begins.end())
        except ValueError:
            break
        found = [_call(item) for item in (value if isinstance(value, list) else [value])]
        known = [call for call in found if call is not None]
        if not known or len(known) < len(found):
            break
        calls, end = calls + known, after
    return calls, body[end:]


def is_begun(body: str) -> bool:
    """Whether ``body``, which holds no whole call at its beginning, may be the beginning of one:
    JSON that is not whole. Whole JSON that is no call does not become one."""
    begins = _NEXT.match(body)
    if begins is None:
        return not body.strip()
    try:
        read_json_from(body, begins.end())
    except ValueError:
        return True
    return False


def _call(value: Any) -> Call | None:
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str) or not name:
        return None
    arguments = value.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = read_json(arguments)
        except ValueError:
            return None
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        return None
    return Call(whole_characters(name), json_text(arguments))


class Openness:
    """Whether the body, as far as it was read, ends inside a string.

    Asked where a closing mark is met by its text, which a string may spell. A line break ends a
    string, so that one that was never closed does not swallow the mark after it.
    """

    def __init__(self) -> None:
        self.inside = False
        self._escaped = False  # the next character is

    def read(self, text: str) -> None:
        """Go on with the next piece of the body."""
        place = 0
        while place < len(text):
            if self._escaped:
                self._escaped, place = False, place + 1
                continue
            found = _STRING_MARK.search(text, place)
            if found is None:
                return
            place = found.end()
            if found[0] == '"':
                self.inside = not self.inside
            elif found[0] == "\\":
                self._escaped = self.inside
            else:
                self.inside = False

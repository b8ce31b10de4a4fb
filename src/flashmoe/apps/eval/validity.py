"""Whether what came of a tool request is a call, a valid one, and the right one.

Owns the judging; needs jsonschema, the extra ``eval``: whether a constrained call is valid is not
for the library that constrained it to say.

A reply is *well-formed* if it came to its end, calls tools that were offered and no others, and
has no markup of calls left in its text; *valid* if it is and the arguments of every call satisfy
their tool's schema; *right* if it is well-formed and consists of the one call that was expected,
with its arguments where these are given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flashmoe.apps.eval.cases import Case
from flashmoe.errors import InputError
from flashmoe.text.pieces import Call, Content, Piece
from flashmoe.text.syntax import Syntax


@dataclass(frozen=True)
class Verdict:
    """``right`` is None where nothing was expected; ``fault`` names the first thing amiss, None
    where there is nothing."""

    well_formed: bool
    valid: bool
    right: bool | None
    fault: str | None


class Judge:
    """Judges replies in the markup of ``syntax``.

    Raises:
        InputError: jsonschema is missing.
    """

    def __init__(self, syntax: Syntax) -> None:
        try:
            import jsonschema
        except ImportError as error:
            raise InputError(
                "judging tool calls needs jsonschema: pip install 'jsonschema>=4.25,<5', or "
                "leave out --tools"
            ) from error
        self._schemas = jsonschema
        marks = (syntax.call_open, syntax.call_close)
        self._marks = [mark.text for mark in marks if mark is not None]

    def check(self, case: Case) -> None:
        """Refuse a case whose schemas are none.

        Raises:
            InputError: names case and tool.
        """
        for name, schema in case.schemas.items():
            try:
                self._schemas.validators.validator_for(schema).check_schema(schema)
            except self._schemas.SchemaError as error:
                raise InputError(
                    f"{case.place}: the parameters of {name} are no JSON schema: {error.message}"
                ) from error

    def verdict(self, case: Case, pieces: Sequence[Piece], *, ended: bool) -> Verdict:
        """Of the pieces of a reply, which ``ended`` or was cut."""
        calls = [piece for piece in pieces if isinstance(piece, Call)]
        content = "".join(piece.text for piece in pieces if isinstance(piece, Content))
        malformed = self._malformed(case, calls, content, ended)
        wanted = case.name is not None
        if malformed is not None:
            return Verdict(False, False, False if wanted else None, malformed)
        invalid = self._invalid(case, calls)
        right = _is_expected(case, calls) if wanted else None
        fault = invalid or ("another call than the expected one" if right is False else None)
        return Verdict(True, invalid is None, right, fault)

    def _malformed(
        self, case: Case, calls: Sequence[Call], content: str, ended: bool
    ) -> str | None:
        if not ended:
            return "cut: it did not come to its end"
        if any(mark in content for mark in self._marks):
            return "markup of a call in the text"
        if not calls:
            return "no call"
        for call in calls:
            if call.name not in case.schemas:
                return f"a call of {call.name!r}, which was not offered"
            if not isinstance(_parsed(call.arguments), dict):
                return f"the arguments of {call.name} are no JSON object"
        return None

    def _invalid(self, case: Case, calls: Sequence[Call]) -> str | None:
        for call in calls:
            schema = case.schemas[call.name]
            validator = self._schemas.validators.validator_for(schema)(schema)
            for error in validator.iter_errors(_parsed(call.arguments)):
                return f"{call.name}: {error.json_path}: {error.message}"[:300]
        return None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_expected(case: Case, calls: Sequence[Call]) -> bool:
    if len(calls) != 1 or calls[0].name != case.name:
        return False
    return case.arguments is None or equal(_parsed(calls[0].arguments), case.arguments)


def equal(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same: 1 is 1.0 and not true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)

r"""Regular expressions for grammars: what may be given, and the formats of JSON Schema.

Owns how a pattern given by a caller becomes one of llguidance's, and its anchors; not what it is
for. Syntax and meaning are those of Rust's ``regex``, without look-around and word boundaries, and
with ASCII's digits for ``\d``, whatever else Unicode calls one. In schemas ``\w`` is ASCII's as
well, as in JavaScript.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import llguidance

from flashmoe.errors import InputError
from flashmoe.text.keywords import too_large
from flashmoe.text.reasons import plain

_MONTH_AND_DAY = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_DATE = rf"[1-9][0-9]{{3}}-{_MONTH_AND_DAY}"
_HOUR = "(?:[01][0-9]|2[0-3])"
_TIME = rf"{_HOUR}:[0-5][0-9]:[0-5][0-9](?:\.[0-9]{{1,9}})?(?:Z|[+\-]{_HOUR}:[0-5][0-9])"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9\\-]{0,61}[a-zA-Z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,8}}"
_PATH = r"(?:\/[a-zA-Z0-9._~!$&'()*+,;=:@\-]{0,256}){0,32}"
_GROUP = "[0-9a-fA-F]{1,4}"

FORMATS: Mapping[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": r"P(?:[0-9]{1,9}W|[0-9]{1,9}D|(?:[0-9]{1,9}D)?T[0-9]{1,9}[HMS])",
    "email": rf"[a-zA-Z0-9_+\-]{{1,32}}(?:\.[a-zA-Z0-9_+\-]{{1,32}}){{0,4}}@{_HOST}",
    "hostname": _HOST,
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "ipv6": rf"(?:{_GROUP}:){{7}}{_GROUP}",
    "uuid": r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}",
    "uri": rf"[a-z][a-z0-9+.\-]{{0,15}}:\/\/{_HOST}(?::[0-9]{{1,4}})?{_PATH}",
}
"""What is written in each: a part of what the format admits, which always fits it. (No 29th of
February, no year below 1000, and no IPv6 address cut short.) llguidance's own admit days that
months do not have."""


def whole(pattern: object, name: str) -> str:
    """A terminal's body that matches just what ``pattern`` matches from first to last character.

    Raises InputError, with ``name``, for what is no pattern or cannot be enforced.
    """
    return f"/{_checked(_bare(_checked_text(pattern, name)), name)}/"


def searched(pattern: object, name: str) -> str:
    """A terminal's body for a text in which ``pattern`` is found, as JSON Schema means it."""
    text = _checked_text(pattern, name)
    body = _bare(text)
    starts, ends = text.startswith("^"), _ends(text)
    if (starts or ends) and _alternatives(body):
        raise InputError(
            f"{name}: the pattern {text[:80]!r} has an anchor in one of several alternatives: put "
            "them into a group, ^(?:a|b)$"
        )
    body = _checked(body, name, ascii_only="dw")
    return f"/{'' if starts else '(?s:.*)'}(?:{body}){'' if ends else '(?s:.*)'}/"


def _checked_text(pattern: object, name: str) -> str:
    if not isinstance(pattern, str):
        raise InputError(f"{name}: the pattern {str(pattern)[:80]!r} is not text")
    if (fault := too_large(pattern)) is not None:
        raise InputError(f"{name}: {fault}")
    try:
        pattern.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{name}: the pattern holds a character that is not Unicode: remove lone surrogates"
        ) from None
    return pattern


def _ends(text: str) -> bool:
    """Whether a pattern ends with an anchor and not with a dollar sign."""
    slashes = re.search(r"(\\*)\$$", text)
    return slashes is not None and len(slashes[1]) % 2 == 0


def _bare(text: str) -> str:
    text = text[:-1] if _ends(text) else text
    return text.removeprefix("^")


def _places(body: str) -> list[tuple[str, int]]:
    """The characters of a pattern that are neither escaped nor in a class, with their depth."""
    found, depth, place, in_class = [], 0, 0, False
    while place < len(body):
        letter = body[place]
        if letter == "\\":
            place += 1
        elif in_class:
            in_class = letter != "]"
        elif letter == "[":
            in_class = True
            place += body[place + 1 : place + 2] == "^"
            place += body[place + 1 : place + 2] == "]"
        else:
            depth += (letter == "(") - (letter == ")")
            found.append((letter, depth))
        place += 1
    return found


def _alternatives(body: str) -> bool:
    return ("|", 0) in _places(body)


def _checked(body: str, name: str, ascii_only: str = "d") -> str:
    if any(letter in "^$" for letter, _ in _places(body)):
        raise InputError(
            f"{name}: the pattern has an anchor in its middle ({body[:80]!r}), which cannot be "
            "enforced: anchor the whole of it"
        )
    try:
        found: str = llguidance.regex_to_lark(body, ascii_only)
    except ValueError as error:
        raise InputError(f"{name}: {plain(str(error))}") from error
    return found.replace("\n", r"\n").replace("\r", r"\r")

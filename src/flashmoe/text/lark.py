"""Grammars as llguidance reads them: its Lark dialect, written.

Owns quoting and the names of rules; not what a grammar says. Invariant: a text given by a caller
is quoted wherever it goes, so that it cannot become a rule.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from flashmoe.text.syntax import Mark

JSON_OPTIONS: Mapping[str, object] = {
    "item_separator": r",\x20?",
    "key_separator": r":\x20?",
    "whitespace_flexible": False,
    "coerce_one_of": False,
    "lenient": False,
}
"""On one line, with a space after commas and colons or none: as ``json.dumps`` writes, and as most
models were shown calls. Wherever more white space is admitted, a model that is drawn from at
temperature 1 spends tokens on it, and a reply that is cut for its length is no JSON.
``lenient`` would leave out what is not implemented without a word."""


class Lark:
    """The rules of one grammar, in the order they were made."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def rule(self, body: str) -> str:
        """A new rule; returns its name."""
        return self._named("r", "", body)

    def terminal(self, body: str) -> str:
        """A new terminal: one regular language, read as one piece."""
        return self._named("T", "", body)

    def lazy(self, body: str) -> str:
        """A piece that ends as early as it can."""
        return self._named("r", "[lazy]", body)

    def grammar(self, start: str) -> str:
        """The whole grammar, with ``start`` as what is to be matched."""
        return "\n".join([f"start: {start}", *self._lines, ""])

    def _named(self, kind: str, attributes: str, body: str) -> str:
        name = f"{kind}{len(self._lines)}"
        self._lines.append(f"{name}{attributes}: {body}")
        return name


def literal(text: str) -> str:
    """Just ``text``, as plain text: it matches no structural token."""
    return json.dumps(text)


def mark(tag: Mark) -> str:
    """A tag: its id where it is an added token, else its text."""
    return literal(tag.text) if tag.id is None else f"<[{tag.id}]>"


def json_value(schema: Mapping[str, Any]) -> str:
    """A JSON value that a schema (``schemas.prepared``) admits."""
    return f"%json {json.dumps({**schema, 'x-guidance': JSON_OPTIONS})}"


def either(alternatives: Iterable[str]) -> str:
    """One of several."""
    return f"({' | '.join(alternatives)})"


def escaped(text: str) -> str:
    """``text`` within a regular expression between slashes."""
    return "".join(
        letter if letter.isascii() and letter.isalnum() else f"\\x{{{ord(letter):X}}}"
        for letter in text
    )


def any_but(word: str) -> str:
    """A regular expression (without slashes) of any text in which ``word`` does not occur, even
    where what follows the text begins with it.

    Written down as the automaton that it is: as a complement it would take ten times as long. The
    first character of ``word`` must not come again in it, so that a partial match can only start
    anew.
    """
    first = escaped(word[0])
    begun = [escaped(word[1:length]) for length in range(1, len(word))]
    anew = f"{first}(?:{'|'.join(part + first for part in begun)})*"
    strays = "|".join(
        f"{part}[^{first}{escaped(word[length])}]" for length, part in enumerate(begun, 1)
    )
    return f"(?:[^{first}]|{anew}(?:{strays}))*(?:{anew}(?:{'|'.join(begun)}))?"


def without(words: Iterable[str]) -> str:
    """A terminal's body: any text in which none of ``words`` occurs."""
    found = "|".join(escaped(word) for word in words)
    return f"/(?s:.*)/ & ~/(?s:.*)(?:{found})(?s:.*)/"

"""What a reply consists of, once its markup is read: reasoning, content and calls.

Owns the three records, which parsers make and every face shows; not how they are found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Reasoning:
    """Some of the text that the model thinks before it answers, without its tags."""

    text: str


@dataclass(frozen=True)
class Content:
    """Some of the answer's text. What was meant as a call and is none is content, as written."""

    text: str


@dataclass(frozen=True)
class Call:
    """A whole call of a tool; ``arguments`` is the text of a JSON object."""

    name: str
    arguments: str


Piece: TypeAlias = Reasoning | Content | Call

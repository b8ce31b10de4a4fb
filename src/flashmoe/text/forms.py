"""What a reply may be bound to: a JSON schema, a regular expression, calls of tools.

Owns the records that say so; not how they are enforced (``text.grammar``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias


@dataclass(frozen=True)
class Named:
    """The one tool that has to be called."""

    name: str


ToolChoice: TypeAlias = Literal["auto", "none", "required"] | Named
"""``auto`` lets the model decide, ``none`` lets it call nothing, ``required`` wants a call."""


@dataclass(frozen=True)
class JsonSchema:
    """The answer is one JSON value that the schema admits."""

    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Regex:
    """The answer matches, from its first to its last character."""

    pattern: str


Form: TypeAlias = JsonSchema | Regex

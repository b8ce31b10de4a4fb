"""Which tool has to be called, checked against the tools that there are.

Owns that check, which is the same whatever API the choice is said in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flashmoe.apps.serve.ask import BadRequest
from flashmoe.turn import Named, ToolChoice


def allowed(
    choice: ToolChoice, tools: Sequence[Mapping[str, Any]], path: str = "tool_choice.name"
) -> ToolChoice:
    """The choice, where the tools (in the form of :class:`~flashmoe.turn.Turn`) allow it.

    Raises:
        BadRequest: a call is wanted and there are no tools, or none of the name at ``path``.
    """
    if choice in ("auto", "none"):
        return choice
    if not tools:
        raise BadRequest(
            "tool_choice wants a call, and there are no tools: give them in tools, or leave it out",
            "tool_choice",
            "invalid_value",
        )
    if isinstance(choice, Named) and choice.name not in (one["function"]["name"] for one in tools):
        raise BadRequest(
            f"{path} is {choice.name[:80]!r}, which no tool has: name one of tools",
            path,
            "invalid_value",
        )
    return choice

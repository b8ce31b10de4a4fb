"""A turn of a conversation: what is asked of the model, and the reply as it comes.

Owns the way from messages to ids and from ids to pieces, the same for every face; does not own
any face's own form of messages (``apps``), nor the timeline (``session``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flashmoe.text.forms import Form as Form
from flashmoe.text.forms import JsonSchema as JsonSchema
from flashmoe.text.forms import Named as Named
from flashmoe.text.forms import Regex as Regex
from flashmoe.text.forms import ToolChoice as ToolChoice


@dataclass(frozen=True)
class Turn:
    """What is asked: a conversation, and what the reply to it may be.

    ``messages`` are in the form that chat templates take (``text.template``): role, content,
    reasoning_content, tool_calls with ``arguments`` as objects, tool_call_id. ``tools`` are
    ``{"type": "function", "function": {name, description, parameters}}``. ``thinking`` None
    leaves the template's own default. ``thinking_budget``: after so many tokens of reasoning it is
    closed; None lets it take as many as it wants. ``form`` binds the answer; reasoning before it
    and calls instead of it stay free. ``constrained`` False lets the model write calls as it
    will: what is none then becomes content.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: ToolChoice = "auto"
    parallel_calls: bool = True
    thinking: bool | None = None
    thinking_budget: int | None = None
    form: Form | None = None
    constrained: bool = True

"""A turn of a conversation: what is asked of the model, and the reply as it comes.

Owns the way from messages to ids and from ids to pieces, the same for every face; does not own
any face's own form of messages (``apps``), nor the timeline (``session``).
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


@dataclass(frozen=True)
class Turn:
    """What is asked: a conversation, and what the reply to it may be.

    ``messages`` are in the form that chat templates take (``text.template``): role, content,
    reasoning_content, tool_calls with ``arguments`` as objects, tool_call_id. ``tools`` are
    ``{"type": "function", "function": {name, description, parameters}}``. ``thinking`` None
    leaves the template's own default. ``thinking_budget``: after so many tokens of reasoning it is
    closed; None lets it take as many as it wants. ``form`` binds the answer; reasoning before it
    and calls instead of it stay free. ``constrained`` False lets the model write calls as it
    will: what is none then becomes content. ``continues``: the last message is the beginning of
    the reply, which goes on from its last character; white space at its end does not count.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: ToolChoice = "auto"
    parallel_calls: bool = True
    thinking: bool | None = None
    thinking_budget: int | None = None
    form: Form | None = None
    constrained: bool = True
    continues: bool = False


@dataclass(frozen=True)
class Plain:
    """A text, or ids, to be continued as they stand: no template, nothing read into the reply."""

    text: str | tuple[int, ...]


FinishReason: TypeAlias = Literal["stop", "length", "tool_calls"]
"""The reply came to its end or to a stop string, to its bound, or to calls that want results."""


@dataclass(frozen=True)
class Usage:
    """Tokens of a turn: of the prompt, those of it that were known already, of the reply with its
    markup, and those of it that are reasoning."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int

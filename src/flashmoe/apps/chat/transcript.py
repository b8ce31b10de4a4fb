"""A conversation as it was said: its messages, and what they were said under.

Owns the form in memory and as JSON; not the model's state (``flashmoe.session``), nor where either
is kept (``shelf``). Invariant: messages alternate so that a template can render them: every call
has its result, and a reply stands after what it answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flashmoe.errors import SessionError
from flashmoe.text.pieces import Call, Content, Piece, Reasoning

FORMAT = "flashmoe-conversation-1"

Message = dict[str, Any]


@dataclass
class Transcript:
    """``messages`` have no system message: ``system`` is put before them. ``tools`` are the names
    of those switched on. ``store`` says what answered, for people. ``thinking`` None leaves the
    template's own default. A message whose reply the user stopped is marked ``cut``."""

    store: str = ""
    system: str | None = None
    thinking: bool | None = None
    tools: list[str] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)

    @property
    def turns(self) -> int:
        """How often the user has spoken."""
        return sum(message["role"] == "user" for message in self.messages)

    @property
    def opening(self) -> str:
        """What the user said first."""
        said = (m["content"] for m in self.messages if m["role"] == "user")
        return str(next(said, ""))

    @property
    def stopped(self) -> bool:
        """Whether the user ended the last reply."""
        replies = [message for message in self.messages if message["role"] == "assistant"]
        return bool(replies and replies[-1].get("cut"))

    def last_turn(self) -> tuple[str, str]:
        """What the user said last, and what the model has said since; both empty before."""
        said, replied = "", ""
        for message in self.messages:
            if message["role"] == "user":
                said, replied = str(message["content"]), ""
            elif message["role"] == "assistant":
                replied = "\n\n".join(filter(None, [replied, str(message["content"])]))
        return said, replied

    def asked(self) -> tuple[Message, ...]:
        """The messages as a template takes them."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        own = [{k: v for k, v in message.items() if k != "cut"} for message in self.messages]
        return (*system, *own)

    def take_back(self) -> str | None:
        """Remove the last turn, all of its rounds; returns what the user had said."""
        spoken = [n for n, message in enumerate(self.messages) if message["role"] == "user"]
        if not spoken:
            return None
        said = str(self.messages[spoken[-1]]["content"])
        del self.messages[spoken[-1] :]
        return said

    def to_json(self) -> str:
        """The text of a file."""
        return json.dumps({"format": FORMAT, **vars(self)}, ensure_ascii=False, indent=1)

    @staticmethod
    def from_json(text: str, where: str) -> Transcript:
        """What :meth:`to_json` wrote.

        Raises:
            SessionError: something else; names ``where``.
        """
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SessionError(f"{where} is no JSON: {error}; remove it to begin anew") from error
        if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
            raise SessionError(f"{where} is no conversation of this version ({FORMAT})")
        kinds = {"store": str, "thinking": bool | None, "tools": list, "messages": list}
        sound = (
            set(found) == {*kinds, "system"}
            and all(isinstance(found[name], kind) for name, kind in kinds.items())
            and (found["system"] is None or isinstance(found["system"], str))
            and all(isinstance(name, str) for name in found["tools"])
            and all(_is_message(message) for message in found["messages"])
        )
        if not sound:
            raise SessionError(f"{where} is damaged: remove it to begin anew")
        return Transcript(**found)


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") in ("user", "assistant", "tool")
        and isinstance(message.get("content"), str)
        and isinstance(message.get("tool_calls", []), list)
    )


def reply_of(pieces: Iterable[Piece], numbers: Sequence[str], *, cut: bool) -> Message:
    """The message that pieces come to; ``numbers`` name its calls, in order.

    ``cut`` says that the user ended it.
    """
    pieces = list(pieces)
    reasoning = "".join(piece.text for piece in pieces if isinstance(piece, Reasoning))
    content = "".join(piece.text for piece in pieces if isinstance(piece, Content))
    calls = [piece for piece in pieces if isinstance(piece, Call)]
    message: Message = {"role": "assistant", "content": content}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            _call(call, number) for call, number in zip(calls, numbers, strict=True)
        ]
    if cut:
        message["cut"] = True
    return message


def _call(call: Call, number: str) -> Mapping[str, Any]:
    function = {"name": call.name, "arguments": json.loads(call.arguments)}
    return {"id": number, "type": "function", "function": function}


def result_of(number: str, call: Call, text: str) -> Message:
    """The message that answers a call."""
    return {"role": "tool", "tool_call_id": number, "name": call.name, "content": text}

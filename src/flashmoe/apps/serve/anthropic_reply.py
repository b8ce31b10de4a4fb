"""Anthropic's messages: the reply, whole and as events, and errors.

Owns that API's form of replies; not its requests. Invariant: the events, put together as the API
says, are the whole reply, because that is made from them.
"""

from __future__ import annotations

import json
from typing import Any

from flashmoe.apps.serve.ask import Ask, Event, Head, Outcome, Refusal, Spoken
from flashmoe.apps.serve.sealed import seal
from flashmoe.text.pieces import Call, Content, Piece
from flashmoe.turn import Usage

_ERRORS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def refused(refusal: Refusal) -> dict[str, Any]:
    """The body of an error."""
    other = "api_error" if refusal.status >= 500 else "invalid_request_error"
    kind = _ERRORS.get(refusal.status, other)
    return {"type": "error", "error": {"type": kind, "message": refusal.message}}


def counted(tokens: int) -> dict[str, Any]:
    """How many tokens a prompt has."""
    return {"input_tokens": tokens}


def whole(ask: Ask, head: Head, outcome: Outcome) -> dict[str, Any]:
    """The reply as one object."""
    events = MessageEvents(ask, head)
    events.push(Spoken(outcome.pieces))
    events.finish(outcome)
    return _message(head, events.blocks, *_ended(ask, outcome), _usage(outcome.usage))


class MessageEvents:
    """The reply as events: a message that begins, its blocks piece by piece, its end."""

    def __init__(self, ask: Ask, head: Head) -> None:
        self._ask = ask
        self._head = head
        self._omits = ask.given.get("thinking", {}).get("display") == "omitted"
        self._open = ""  # the kind of the last block, while it may still grow
        self.blocks: list[dict[str, Any]] = []
        """The blocks so far."""

    def begin(self, prompt_tokens: int, cached_tokens: int) -> list[Event]:
        """The message without content."""
        usage = _usage(Usage(prompt_tokens, cached_tokens, 0, 0))
        message = _message(self._head, [], None, None, usage)
        return [Event({"type": "message_start", "message": message}, "message_start")]

    def push(self, spoken: Spoken) -> list[Event]:
        """What the pieces add to the blocks."""
        return [event for piece in spoken.pieces for event in self._add(piece)]

    def finish(self, outcome: Outcome) -> list[Event]:
        """The end of the last block, why the message ended, and what it cost."""
        reason, sequence = _ended(self._ask, outcome)
        ended = {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": _usage(outcome.usage),
        }
        stop = Event({"type": "message_stop"}, "message_stop")
        return [*self._close(), Event(ended, "message_delta"), stop]

    def fail(self, refusal: Refusal) -> list[Event]:
        """What went wrong."""
        return [Event(refused(refusal), "error")]

    def _add(self, piece: Piece) -> list[Event]:
        if isinstance(piece, Call):
            arguments = json.loads(piece.arguments)
            id = f"toolu_{self._head.part(len(self.blocks))}"
            call = {"type": "tool_use", "id": id, "name": piece.name, "input": {}}
            events = [*self._close(), self._start(call)]
            self.blocks[-1]["input"] = arguments
            delta = {"type": "input_json_delta", "partial_json": piece.arguments}
            return [*events, self._delta(delta), *self._close()]
        kind, field = ("text", "text") if isinstance(piece, Content) else ("thinking", "thinking")
        events = []
        if self._open != kind:
            empty = {"type": kind, field: ""}
            seal_to_come = {} if kind == "text" else {"signature": ""}
            events = [*self._close(), self._start({**empty, **seal_to_come})]
        block = self.blocks[-1]
        block[field] += piece.text
        if kind == "thinking" and self._omits:
            return events
        return [*events, self._delta({"type": f"{kind}_delta", field: piece.text})]

    def _start(self, block: dict[str, Any]) -> Event:
        self.blocks.append(block)
        self._open = block["type"]
        start = {"type": "content_block_start", "index": len(self.blocks) - 1}
        return Event({**start, "content_block": dict(block)}, "content_block_start")

    def _delta(self, delta: dict[str, Any]) -> Event:
        index = len(self.blocks) - 1
        data = {"type": "content_block_delta", "index": index, "delta": delta}
        return Event(data, "content_block_delta")

    def _close(self) -> list[Event]:
        """The end of the open block, if one is open; thinking is sealed there."""
        if not self._open:
            return []
        events, block = [], self.blocks[-1]
        if self._open == "thinking":
            block["signature"] = seal(block["thinking"])
            if self._omits:
                block["thinking"] = ""
            delta = {"type": "signature_delta", "signature": block["signature"]}
            events.append(self._delta(delta))
        self._open = ""
        stop = {"type": "content_block_stop", "index": len(self.blocks) - 1}
        return [*events, Event(stop, "content_block_stop")]


def _message(
    head: Head,
    blocks: list[dict[str, Any]],
    reason: str | None,
    sequence: str | None,
    usage: dict[str, Any],
) -> dict[str, Any]:
    return {
        "id": f"msg_{head.id}",
        "type": "message",
        "role": "assistant",
        "model": head.model,
        "content": blocks,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": usage,
    }


def _ended(ask: Ask, outcome: Outcome) -> tuple[str, str | None]:
    """Why the message ended, and by which stop sequence."""
    if outcome.finish_reason == "length":
        reached = outcome.usage.completion_tokens >= ask.sampling["max_tokens"]
        return "max_tokens" if reached else "model_context_window_exceeded", None
    if outcome.finish_reason == "tool_calls":
        return "tool_use", None
    if outcome.stop_sequence is not None:
        return "stop_sequence", outcome.stop_sequence
    return "end_turn", None


def _usage(usage: Usage) -> dict[str, Any]:
    """What it has cost; tokens that were known already are not among ``input_tokens``."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }

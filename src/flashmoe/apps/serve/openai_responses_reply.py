"""OpenAI's responses: the reply, whole and as events.

Owns that API's form of replies; not its requests. A reply is a list of items: reasoning, messages,
calls. Invariant: the response that the last event has is the whole reply, and each item in it is
what its own last event said.
"""

from __future__ import annotations

from typing import Any

from flashmoe.apps.serve.ask import Ask, Event, Head, Outcome, Refusal, Spoken, Token
from flashmoe.apps.serve.openai_responses_fields import SEALED
from flashmoe.apps.serve.sealed import seal
from flashmoe.text.pieces import Call, Content, Piece
from flashmoe.turn import Usage

_NAMES = {"reasoning": "reasoning_text", "message": "output_text"}
"""What the part of an item is called, by the item's type; events are named after it."""

_COMES_BACK = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
    "temperature",
    "top_p",
    "user",
)


def whole(ask: Ask, head: Head, outcome: Outcome) -> dict[str, Any]:
    """The reply as one object."""
    events = ResponseEvents(ask, head)
    events.push(Spoken(outcome.pieces, outcome.tokens))
    data = events.finish(outcome)[-1].data
    assert not isinstance(data, str)
    response: dict[str, Any] = data["response"]
    return response


class ResponseEvents:
    """The reply as numbered events: it begins, its items piece by piece, it ends."""

    def __init__(self, ask: Ask, head: Head) -> None:
        self._ask = ask
        self._head = head
        self._seals = SEALED in ask.given.get("include", ())
        self._items: list[dict[str, Any]] = []
        self._part: dict[str, Any] | None = None  # of the last item, while it may still grow
        self._sent = 0

    def begin(self, prompt_tokens: int, cached_tokens: int) -> list[Event]:
        """The response without items."""
        response = self._response("in_progress")
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
        ]

    def push(self, spoken: Spoken) -> list[Event]:
        """What the pieces add to the items."""
        events: list[Event] = []
        logprobs = [_token(token) for token in spoken.tokens]
        for piece in spoken.pieces:
            taken: list[dict[str, Any]] = []
            if isinstance(piece, Content):
                taken, logprobs = logprobs, []  # those of one push are together
            events += self._call(piece) if isinstance(piece, Call) else self._grow(piece, taken)
        return events

    def finish(self, outcome: Outcome) -> list[Event]:
        """The end of the last item and of the response."""
        status = "incomplete" if outcome.finish_reason == "length" else "completed"
        events = self._close(status)
        response = self._response(status)
        response["usage"] = _usage(outcome.usage)
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        return [*events, self._event(f"response.{status}", response=response)]

    def fail(self, refusal: Refusal) -> list[Event]:
        """What went wrong."""
        before = [] if self._sent else self.begin(0, 0)
        events = self._close("incomplete")
        response = self._response("failed")
        code = "server_error" if refusal.status >= 500 else "invalid_prompt"
        code = "rate_limit_exceeded" if refusal.status == 429 else code
        response["error"] = {"code": code, "message": refusal.message}
        return [*before, *events, self._event("response.failed", response=response)]

    def _event(self, name: str, /, **fields: Any) -> Event:
        event = Event({"type": name, "sequence_number": self._sent, **fields}, name)
        self._sent += 1
        return event

    def _grow(self, piece: Piece, logprobs: list[dict[str, Any]]) -> list[Event]:
        """The piece added to the open item, once one of its kind is open."""
        assert not isinstance(piece, Call)
        kind = "message" if isinstance(piece, Content) else "reasoning"
        events = []
        if self._part is None or self._items[-1]["type"] != kind:
            events = [*self._close("completed"), *self._open(kind)]
        part = self._part
        assert part is not None
        part["text"] += piece.text
        more = {}
        if kind == "message":
            part["logprobs"] += logprobs
            more = {"logprobs": logprobs}
        name = f"response.{_NAMES[kind]}.delta"
        return [*events, self._event(name, **self._place(), delta=piece.text, **more)]

    def _open(self, kind: str) -> list[Event]:
        """A new item with an empty part."""
        key = self._head.part(len(self._items))
        item: dict[str, Any] = {"type": kind, "status": "in_progress", "content": []}
        if kind == "message":
            item |= {"id": f"msg_{key}", "role": "assistant"}
        else:
            item |= {"id": f"rs_{key}", "summary": [], "encrypted_content": None}
        events = [self._item_event("added", item)]
        self._part = _empty_part(kind)
        self._items[-1]["content"] = [self._part]
        part = self._event("response.content_part.added", **self._place(), part=_empty_part(kind))
        return [*events, part]

    def _close(self, status: str) -> list[Event]:
        """The end of the open item, if one is open."""
        part, self._part = self._part, None
        if part is None:
            return []
        item = self._items[-1]
        item["status"] = status
        if item["type"] == "reasoning" and self._seals:
            item["encrypted_content"] = seal(part["text"])
        more = {"logprobs": part["logprobs"]} if item["type"] == "message" else {}
        name = f"response.{part['type']}.done"
        return [
            self._event(name, **self._place(), text=part["text"], **more),
            self._event("response.content_part.done", **self._place(), part=part),
            self._item_event("done", item),
        ]

    def _call(self, call: Call) -> list[Event]:
        """An item for the call, begun and ended."""
        events = self._close("completed")
        key = self._head.part(len(self._items))
        item = {"id": f"fc_{key}", "type": "function_call", "call_id": f"call_{key}"}
        item |= {"name": call.name, "arguments": "", "status": "in_progress"}
        events.append(self._item_event("added", item))
        done = self._items[-1]
        done |= {"arguments": call.arguments, "status": "completed"}
        place = {"item_id": done["id"], "output_index": len(self._items) - 1}
        name = "response.function_call_arguments"
        return [
            *events,
            self._event(f"{name}.delta", **place, delta=call.arguments),
            self._event(f"{name}.done", **place, name=call.name, arguments=call.arguments),
            self._item_event("done", done),
        ]

    def _item_event(self, what: str, item: dict[str, Any]) -> Event:
        """That an item begins, as it is now, or has ended."""
        if what == "added":
            self._items.append(dict(item))
        index = len(self._items) - 1
        return self._event(f"response.output_item.{what}", output_index=index, item=item)

    def _place(self) -> dict[str, Any]:
        index = len(self._items) - 1
        return {"item_id": self._items[-1]["id"], "output_index": index, "content_index": 0}

    def _response(self, status: str) -> dict[str, Any]:
        """The response as it is now, without what it has cost."""
        given = self._ask.given
        text = {"format": {"type": "text"}, "verbosity": "medium", **given.get("text", {})}
        return {
            "id": f"resp_{self._head.id}",
            "object": "response",
            "created_at": self._head.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "metadata": given.get("metadata", {}),
            "model": self._head.model,
            "output": list(self._items),
            "parallel_tool_calls": given.get("parallel_tool_calls", True),
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None, **given.get("reasoning", {})},
            "service_tier": "default",
            "store": False,
            "text": text,
            "tool_choice": given.get("tool_choice", "auto"),
            "tools": given.get("tools", []),
            "top_logprobs": given.get("top_logprobs", 0),
            "truncation": "disabled",
            "usage": None,
            **{name: given.get(name) for name in _COMES_BACK},
        }


def _empty_part(kind: str) -> dict[str, Any]:
    part: dict[str, Any] = {"type": _NAMES[kind], "text": ""}
    return part | {"annotations": [], "logprobs": []} if kind == "message" else part


def _token(token: Token) -> dict[str, Any]:
    """A token with its alternatives."""
    return {**_alone(token), "top_logprobs": [_alone(other) for other in token.top]}


def _alone(token: Token) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.data)}


def _usage(usage: Usage) -> dict[str, Any]:
    details = {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0}
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": details,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }

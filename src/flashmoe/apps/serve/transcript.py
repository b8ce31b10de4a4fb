"""A conversation put together from parts, as chat templates take it.

Owns how the parts that some APIs send one by one (reasoning, text, calls, results) become
messages; not those APIs' forms. Invariant: parts of one reply lie in one message, in the order in
which a template writes them: reasoning, content, calls. A part that would come before one that is
there already begins another message.

System texts at the beginning become one message, because templates take one alone; a later one
stays where it is, for the template to take or to refuse.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from typing import Any

from flashmoe.apps.serve.ask import BadRequest

_BETWEEN = "\n\n"  # system texts that were apart stay paragraphs


class Transcript:
    """Messages in the making; :attr:`messages` are what there is so far."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._called: dict[str, str] = {}  # names of the tools by the calls' ids

    @property
    def messages(self) -> tuple[Mapping[str, Any], ...]:
        """All messages, in order."""
        return tuple(self._messages)

    def system(self, text: str) -> None:
        """What the model is told before or between the turns."""
        if [message["role"] for message in self._messages] == ["system"]:
            self._messages[0]["content"] += _BETWEEN + text
        else:
            self._add("system", text)

    def user(self, text: str) -> None:
        """What the user says: a message of its own."""
        self._add("user", text)

    def reasoning(self, text: str) -> None:
        """What was thought before a reply."""
        message = self._reply(before=("content", "tool_calls"))
        message["reasoning_content"] = message.get("reasoning_content", "") + text

    def content(self, text: str, *, apart: bool = False) -> None:
        """Text of a reply; ``apart`` from any text before it, which was another reply's."""
        message = self._reply(before=("content", "tool_calls") if apart else ("tool_calls",))
        message["content"] += text

    def call(self, id: str, name: str, arguments: Mapping[str, Any]) -> None:
        """A call that the model has made."""
        function = {"name": name, "arguments": dict(arguments)}
        calls = self._reply(before=()).setdefault("tool_calls", [])
        calls.append({"id": id, "type": "function", "function": function})
        self._called[id] = name

    def result(self, id: str, text: str, path: str) -> None:
        """What came of a call.

        Raises:
            BadRequest: no call before has that id, which stands at ``path``.
        """
        check_called(id, self._called, path)
        self._messages.append(
            {"role": "tool", "tool_call_id": id, "name": self._called[id], "content": text}
        )

    def _add(self, role: str, text: str) -> None:
        self._messages.append({"role": role, "content": text})

    def _reply(self, before: tuple[str, ...]) -> dict[str, Any]:
        """The assistant's message at the end; a new one where it has something of ``before``."""
        last = self._messages[-1] if self._messages else {"role": ""}
        if last["role"] != "assistant" or any(last.get(key) for key in before):
            self._add("assistant", "")
        return self._messages[-1]


def check_called(id: str, called: Container[str], path: str) -> None:
    """Raises BadRequest where ``id``, which stands at ``path``, is that of no call before it."""
    if id not in called:
        raise BadRequest(
            f"{path} is {id[:80]!r}, which no call before it has: give the call as well",
            path,
            "invalid_value",
        )


def arguments_of(text: str, path: str) -> dict[str, Any]:
    """The arguments of a call from their JSON text.

    Raises:
        BadRequest: what stands at ``path`` is no text of a JSON object.
    """
    try:
        arguments = json.loads(text, parse_constant=_refuse) if text.strip() else {}
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise BadRequest(f"{path} is not the text of a JSON object", path, "invalid_value")
    return arguments


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")

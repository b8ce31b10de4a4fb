"""A server under siege: everything that a client can make it hold, all at once.

Owns the attacks; what is measured, and what for, is ``test_memory``'s.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
from typing import Any

from flashmoe.apps.serve.openai_chat import ENDPOINT

CHAT = ENDPOINT.path


def head(length: int) -> bytes:
    return (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def asking(content: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": "demo", "messages": messages, "reasoning_effort": "none", **more}


class Siege:
    """Connections to a server, none of which reads anything."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._held: list[socket.socket] = []

    def lift(self) -> None:
        for connection in self._held:
            connection.close()
        self._held.clear()

    def _sent(self, data: bytes, patience_s: float = 30.0) -> None:
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        self._held.append(connection)
        connection.settimeout(patience_s)
        with contextlib.suppress(OSError):  # the rest is not taken, or the server has hung up
            connection.sendall(data)

    def halves_of_bodies(self, count: int, size: int) -> None:
        for _ in range(count):
            self._sent(head(size) + b" " * (size - 1))

    def questions_in_a_row(self, count: int) -> None:
        for _ in range(count):
            self._sent(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000, 0.05)

    def heads(self, count: int) -> None:
        for _ in range(count):
            self._sent(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 30_000)

    def bodies(self, *bodies: bytes) -> None:
        for body in bodies:
            self._sent(head(len(body)) + body)

    def swollen(self, size: int) -> None:
        """Bodies that are small beside what they become, each once the one before was seen to."""
        for inner in (b"[]," * (size // 3), b'{"":0},' * (size // 7), b'"ab",' * (size // 5)):
            self._answered(b'{"model":"demo","messages":[' + inner[: size - 60] + b"0]}")
        for letter in ("a", "\U0001f600", "Emma "):
            text = letter * (size // len(letter.encode()) - 100)
            self._answered(json.dumps(asking(text), ensure_ascii=False).encode())
            short = letter * (30_000 // len(letter))
            self._answered(json.dumps(asking(short), ensure_ascii=False).encode())

    def _answered(self, body: bytes) -> None:
        self.bodies(body)
        select.select([self._held[-1]], [], [], 60)

    def long_replies(self, count: int) -> None:
        """Replies with all their probabilities, streamed and not, which nobody reads."""
        for index in range(count):
            more: dict[str, Any] = {"logprobs": True, "top_logprobs": 20, "max_tokens": 300}
            more["guided_regex"] = "[a-z ]{2000,5000}"
            self.bodies(json.dumps(asking("Emma", stream=index % 2 == 0, **more)).encode())

    def tools(self, count: int) -> None:
        """Schemas, each another one, which wait."""
        for index in range(count):
            named = {f"n{index}_{one}": {"type": "string"} for one in range(40)}
            function = {"name": f"f{index}", "parameters": {"properties": named}}
            tool = {"type": "function", "function": function}
            self.bodies(json.dumps(asking("Hello", tools=[tool])).encode())

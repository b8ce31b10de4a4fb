"""Clients of a served store, good and bad, for ``serve_load``.

Owns what each kind does and how it knows that the answer is its own: it asks for a word that
nobody else asks for, in a form that binds the reply to it. What is not as it should be goes into
the :class:`Report`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
OPENAI_ERROR = {"message", "type", "param", "code"}
PATIENCE_S = 300.0
FULL = (429, 503)
"""What a server may say to anybody when it is full."""


@dataclass
class Report:
    """What came of it. ``ids`` are those of all replies."""

    seconds: float = 0.0
    done: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    replies: int = 0

    def fault(self, text: str) -> None:
        """Note a fault, the first hundred of them."""
        if len(self.faults) < 100:
            self.faults.append(text)

    def status(self, status: int, body: bytes, *expected: int, anthropic: bool = False) -> bool:
        """Whether it is a reply; a fault where the status was not to be expected, or an error has
        not its API's shape."""
        self.statuses[status] += 1
        if status not in (*expected, *FULL):
            self.fault(f"status {status} instead of {expected}: {body[:200]!r}")
        if status >= 400 and not shaped(body, anthropic=anthropic):
            self.fault(f"an error without a shape: {status} {body[:200]!r}")
        return status == 200

    def reply(self, id: str, asked: str, got: str, pattern: str) -> None:
        """A reply has come; a fault where it is another's, or one that there was before."""
        self.replies += 1
        if id in self.ids:
            self.fault(f"the id {id} was another reply's already")
        self.ids.add(id)
        if not re.fullmatch(pattern, got):
            self.fault(f"asked for {asked}, got {got[:100]!r}")


def shaped(body: bytes, *, anthropic: bool) -> bool:
    """Whether an error is in its API's shape, with words."""
    try:
        value = json.loads(body)
        error = value["error"]
        of_api = value["type"] == "error" if anthropic else set(error) == OPENAI_ERROR
        return bool(of_api and error["message"] and error["type"])
    except (ValueError, KeyError, TypeError):
        return False


class Client:
    """One of many; ``once`` does something at random."""

    def __init__(
        self, http: httpx.AsyncClient, model: str, chance: random.Random, report: Report
    ) -> None:
        self._http = http
        self._model = model
        self._chance = chance
        self._report = report

    @property
    def kinds(self) -> list[tuple[Callable[[], Awaitable[None]], int]]:
        """What there is to do, and how often of a hundred times."""
        return [
            (self.whole, 20), (self.stream, 28), (self.tool_call, 10), (self.schema, 6),
            (self.go_away, 14), (self.read_slowly, 6), (self.never_read, 2), (self.nonsense, 5),
            (self.no_http, 2), (self.unknown, 3), (self.oversized, 2), (self.swollen, 2),
        ]  # fmt: skip

    async def once(self) -> None:
        """Something at random; what breaks off unasked is a fault."""
        kinds = self.kinds
        (kind,) = self._chance.choices([one for one, _ in kinds], [weight for _, weight in kinds])
        name = kind.__name__
        try:
            async with asyncio.timeout(PATIENCE_S):
                await kind()
        except TimeoutError:
            self._report.fault(f"{name}: nothing came for {PATIENCE_S:g} s")
        except (httpx.HTTPError, OSError, ValueError, KeyError) as error:
            self._report.fault(f"{name}: {error!r}")
        self._report.done[name] += 1

    def _word(self) -> str:
        return f"w{self._chance.randrange(10**9):09}"

    def _asked(self, word: str, **more: Any) -> dict[str, Any]:
        padding = "Emma was sitting one evening. " * self._chance.choice([1, 1, 4, 20])
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": padding}],
            "guided_regex": f"{word}[a-z ]{{0,20}}",
            "max_tokens": self._chance.randrange(30, 60),
            "reasoning_effort": "none",
            **more,
        }

    async def whole(self) -> None:
        word = self._word()
        answer = await self._http.post(CHAT, json=self._asked(word))
        if self._report.status(answer.status_code, answer.content, 200):
            body = answer.json()
            content = body["choices"][0]["message"]["content"]
            self._report.reply(body["id"], word, content, f"{word}[a-z ]{{0,20}}")

    async def stream(self) -> None:
        word = self._word()
        body = self._asked(word, stream=True)
        async with self._http.stream("POST", CHAT, json=body) as answer:
            if answer.status_code != 200:
                self._report.status(answer.status_code, await answer.aread(), 200)
                return
            await self._streamed(word, answer.aiter_lines())

    async def _streamed(self, word: str, lines: AsyncIterator[str]) -> None:
        self._report.statuses[200] += 1
        content, ended, ids = "", False, set()
        async for line in lines:
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    if event["error"].get("code") not in ("server_busy", "queue_full"):
                        self._report.fault(f"an error in a stream: {event}")
                    return
                ids.add(event["id"])
                content += event["choices"][0]["delta"].get("content") or ""
        if not ended:
            self._report.fault(f"the stream of {word} has no end")
        if len(ids) != 1:
            self._report.fault(f"events of {ids} in one stream")
        self._report.reply(ids.pop() if ids else "", word, content, f"{word}[a-z ]{{0,20}}")

    async def tool_call(self) -> None:
        """Anthropic's API, and a tool that can be called in one way."""
        word = self._word()
        schema = {"type": "object", "properties": {"word": {"enum": [word]}}, "required": ["word"]}
        body = {
            "model": self._model,
            "max_tokens": 100,
            "messages": [{"role": "user", "content": "Say it."}],
            "tools": [{"name": "say", "input_schema": schema}],
            "tool_choice": {"type": "tool", "name": "say"},
        }
        answer = await self._http.post(MESSAGES, json=body)
        if self._report.status(answer.status_code, answer.content, 200, anthropic=True):
            reply = answer.json()
            (call,) = [one for one in reply["content"] if one["type"] == "tool_use"]
            self._report.reply(
                reply["id"], word, json.dumps(call["input"]), f'{{"word": "{word}"}}'
            )

    async def schema(self) -> None:
        """OpenAI's responses, and a schema that leaves one answer."""
        word = self._word()
        schema = {"type": "object", "properties": {"word": {"enum": [word]}},
                  "required": ["word"], "additionalProperties": False}  # fmt: skip
        body = {
            "model": self._model,
            "input": "Say it.",
            "max_output_tokens": 200,
            "reasoning": {"effort": "none"},
            "text": {"format": {"type": "json_schema", "name": "word", "schema": schema}},
        }
        answer = await self._http.post(RESPONSES, json=body)
        if self._report.status(answer.status_code, answer.content, 200):
            reply = answer.json()
            text = "".join(
                part["text"] for item in reply["output"] if item["type"] == "message"
                for part in item["content"]
            )  # fmt: skip
            pattern = rf'\s*{{\s*"word"\s*:\s*"{word}"\s*}}\s*'
            self._report.reply(reply["id"], word, text, pattern)

    async def go_away(self) -> None:
        body = self._asked(self._word(), stream=self._chance.random() < 0.7, max_tokens=400)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._chance.choice([0.0, 0.05, 0.3, 2.0])):
                await self._http.post(CHAT, json=body)

    async def read_slowly(self) -> None:
        """Through a small window, a little at a time; what comes is right all the same."""
        word = self._word()
        body = self._asked(word, stream=True, logprobs=True, top_logprobs=20)
        async with _raw(self._http.base_url, json.dumps(body).encode()) as (reader, _):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if " 200 " not in head.splitlines()[0]:
                body_of = await reader.read(1 << 16)
                self._report.status(int(head.split()[1]), body_of, 200)
                return
            data = b""
            while part := await reader.read(2048):
                data += part
                await asyncio.sleep(self._chance.uniform(0.0, 0.02))
                if data.endswith(b"0\r\n\r\n"):
                    break
            text = _unchunked(data).decode()

            async def lines() -> AsyncIterator[str]:
                for line in text.split("\n"):
                    yield line

            await self._streamed(word, lines())

    async def never_read(self) -> None:
        """Leaves a long reply where it is, for a while."""
        body = self._asked(self._word(), stream=True, logprobs=True, top_logprobs=20)
        body |= {"max_tokens": 300, "guided_regex": "[a-z ]{600,900}"}
        async with _raw(self._http.base_url, json.dumps(body).encode()):
            await asyncio.sleep(self._chance.uniform(1, 10))

    async def nonsense(self) -> None:
        content = self._chance.choice(
            [b"", b"{", b"[]", b"\xff\xfe", b'{"model": NaN}', b"[" * 5000, b'{"a":1,"a":2}',
             self._chance.randbytes(200), b'{"model":"x","messages":"hello"}']
        )  # fmt: skip
        path = self._chance.choice([CHAT, MESSAGES])
        headers = {"content-type": "application/json"}
        answer = await self._http.post(path, content=content, headers=headers)
        anthropic = path == MESSAGES
        self._report.status(answer.status_code, answer.content, 400, anthropic=anthropic)

    async def no_http(self) -> None:
        """What is no request at all, or half of one."""
        data = self._chance.choice(
            [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", b"HELO there\r\n\r\n",
             b"GET / HTTP/9.9\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
             b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"G" * 70_000]
        )  # fmt: skip
        url = self._http.base_url
        reader, writer = await asyncio.open_connection(url.host, url.port)
        try:
            writer.write(data)
            head = b""
            # Cut off without an answer is an answer to what is no request.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
            if head:
                length = re.search(rb"(?i)^content-length: *(\d+)", head, re.MULTILINE)
                body = await reader.readexactly(int(length[1])) if length else b""
                self._report.status(int(head.split()[1]), body, 400, 403, 404)
        finally:
            writer.close()

    async def unknown(self) -> None:
        answer = await self._http.post(CHAT, json=self._asked(self._word(), temprature=1))
        self._report.status(answer.status_code, answer.content, 400)
        if answer.status_code == 400 and "temprature" not in answer.text:
            self._report.fault(f"an unknown parameter is not named: {answer.text[:200]}")

    async def oversized(self) -> None:
        body = self._asked(self._word(), user="x" * (9 << 20))
        answer = await self._http.post(CHAT, json=body)
        self._report.status(answer.status_code, answer.content, 413)

    async def swollen(self) -> None:
        """Within the limit, and far too large once it is read, or far too long a prompt."""
        content = self._chance.choice(
            [b'{"model":"x","messages":[' + b"[]," * (1 << 20) + b"[]]}",
             json.dumps(self._asked("w") | {
                 "messages": [{"role": "user", "content": "Emma " * 400_000}]}).encode()]
        )  # fmt: skip
        headers = {"content-type": "application/json"}
        answer = await self._http.post(CHAT, content=content, headers=headers)
        self._report.status(answer.status_code, answer.content, 413, 400)


@contextlib.asynccontextmanager
async def _raw(
    url: httpx.URL, body: bytes
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection with a small window that has sent a request."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.setblocking(False)
    await asyncio.get_running_loop().sock_connect(one, (url.host, url.port))
    reader, writer = await asyncio.open_connection(sock=one, limit=4096)
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    try:
        writer.write(head.encode() + body)
        await writer.drain()
        yield reader, writer
    finally:
        writer.close()


def _unchunked(data: bytes) -> bytes:
    """A body without the frames of its chunks."""
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        body, data = body + data[:length], data[length + 2 :]
        if not length:
            break
    return body


async def until_idle(http: httpx.AsyncClient, figures: Callable[[str], dict[str, float]]) -> bool:
    """Whether everything that clients had taken is given back, within half a minute."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        now = figures((await http.get("/metrics")).text)
        held = [value for name, value in now.items() if name.startswith("flashmoe_request_bytes")]
        if not (any(held) or now["flashmoe_busy"] or now["flashmoe_queue_length"]):
            return True
        await asyncio.sleep(0.2)
    return False

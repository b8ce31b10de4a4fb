"""Many clients at once, of whom some go away, some do not read, and some send nonsense.

    python bench/serve_load.py --minutes 10 --clients 64            # serves the demo itself
    python bench/serve_load.py --url http://127.0.0.1:8080 --model store

What it checks: every reply belongs to its request (each asks for a word of its own, which the
answer is bound to begin with); every error has a shape and a status that was to be expected; the
server is alive at the end, and its resident memory has not grown since the first quarter of the
time by more than ``--growth``. One JSON line; exit code 1 where anything failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

CHAT = "/v1/chat/completions"
SHAPE = {"message", "type", "param", "code"}


@dataclass
class Report:
    """What came of it."""

    seconds: float = 0.0
    done: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    resident_bytes: list[tuple[float, int]] = field(default_factory=list)

    def fault(self, text: str) -> None:
        """Note a fault, the first hundred of them."""
        if len(self.faults) < 100:
            self.faults.append(text)

    @property
    def growth_bytes(self) -> int:
        """Resident memory at the end over the most in the first quarter."""
        early = [size for at, size in self.resident_bytes if at <= self.seconds / 4]
        return self.resident_bytes[-1][1] - max(early) if early else 0

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        sizes = [size for _, size in self.resident_bytes]
        return {
            "seconds": round(self.seconds, 1),
            "done": dict(self.done),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "faults": self.faults,
            "resident_bytes_first": sizes[0] if sizes else None,
            "resident_bytes_last": sizes[-1] if sizes else None,
            "growth_bytes": self.growth_bytes if sizes else None,
        }


class Client:
    """One of many; does one thing after the other until the time is over."""

    def __init__(self, http: httpx.AsyncClient, model: str, chance: random.Random, report: Report):
        self._http = http
        self._model = model
        self._chance = chance
        self._report = report

    async def once(self) -> None:
        """Something at random."""
        kinds: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self._whole, 30), (self._stream, 40), (self._go_away, 12), (self._read_slowly, 6),
            (self._nonsense, 6), (self._unknown, 4), (self._oversized, 2),
        ]  # fmt: skip
        (kind,) = self._chance.choices([one for one, _ in kinds], [weight for _, weight in kinds])
        name = kind.__name__.strip("_")
        try:
            await kind()
            self._report.done[name] += 1
        except httpx.HTTPError as error:
            self._report.fault(f"{name}: {error!r}")

    def _asked(self, **more: Any) -> tuple[str, dict[str, Any]]:
        """A word of its own, and a request whose answer begins with it."""
        word = f"w{self._chance.randrange(10**9):09}"
        padding = "Emma was sitting one evening. " * self._chance.choice([1, 1, 4, 20])
        return word, {
            "model": self._model,
            "messages": [{"role": "user", "content": padding}],
            "guided_regex": f"{word}[a-z ]{{0,20}}",
            "max_tokens": self._chance.randrange(30, 60),
            "reasoning_effort": "none",
            **more,
        }

    def _status(self, status: int, body: bytes, *expected: int) -> bool:
        """Whether the status was to be expected; where it is an error, whether it has its shape."""
        self._report.statuses[status] += 1
        if status not in (*expected, 429):
            self._report.fault(f"status {status}: {body[:200]!r}")
            return False
        if status >= 400:
            try:
                shaped = set(json.loads(body)["error"]) == SHAPE
            except (ValueError, KeyError, TypeError):
                shaped = False
            if not shaped:
                self._report.fault(f"no shape: {status} {body[:200]!r}")
        return status == 200

    def _belongs(self, word: str, content: str) -> None:
        if not re.fullmatch(f"{word}[a-z ]{{0,20}}", content):
            self._report.fault(f"asked for {word}, got {content[:100]!r}")

    async def _whole(self) -> None:
        word, body = self._asked()
        answer = await self._http.post(CHAT, json=body)
        if self._status(answer.status_code, answer.content, 200):
            self._belongs(word, answer.json()["choices"][0]["message"]["content"])

    async def _stream(self, pause_s: float = 0.0) -> None:
        word, body = self._asked(stream=True)
        async with self._http.stream("POST", CHAT, json=body) as answer:
            if answer.status_code != 200:
                self._status(answer.status_code, await answer.aread())
                return
            self._report.statuses[200] += 1
            content, ended = "", False
            async for line in answer.aiter_lines():
                await asyncio.sleep(pause_s)
                if line == "data: [DONE]":
                    ended = True
                elif line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        self._report.fault(f"an error in a stream: {event}")
                        return
                    content += event["choices"][0]["delta"].get("content") or ""
        if not ended:
            self._report.fault(f"the stream of {word} has no end")
        self._belongs(word, content)

    async def _read_slowly(self) -> None:
        await self._stream(pause_s=self._chance.uniform(0.02, 0.2))

    async def _go_away(self) -> None:
        _, body = self._asked(stream=self._chance.random() < 0.7)
        patience = self._chance.choice([0.0, 0.05, 0.3, 2.0])
        try:
            async with asyncio.timeout(patience):
                await self._http.post(CHAT, json=body)
        except TimeoutError:
            pass

    async def _nonsense(self) -> None:
        content = self._chance.choice(
            [b"", b"{", b"[]", b"\xff\xfe", b'{"model": NaN}', b"[" * 5000, b'{"a":1,"a":2}',
             self._chance.randbytes(200), b'{"model":"x","messages":"hello"}']
        )  # fmt: skip
        headers = {"content-type": "application/json"}
        answer = await self._http.post(CHAT, content=content, headers=headers)
        self._status(answer.status_code, answer.content, 400)

    async def _unknown(self) -> None:
        _, body = self._asked(temprature=1)
        answer = await self._http.post(CHAT, json=body)
        self._status(answer.status_code, answer.content, 400)

    async def _oversized(self) -> None:
        _, body = self._asked(user="x" * (9 << 20))
        answer = await self._http.post(CHAT, json=body)
        self._status(answer.status_code, answer.content, 413)


async def load(url: str, model: str, *, clients: int, seconds: float, seed: int = 0) -> Report:
    """Have so many clients at a server for so long."""
    report, began = Report(), time.monotonic()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits, trust_env=False) as http:

        async def client(number: int) -> None:
            one = Client(http, model, random.Random(f"{seed} {number}"), report)
            while time.monotonic() - began < seconds:
                await one.once()

        async def watch() -> None:
            while True:
                text = (await http.get("/metrics")).text
                found = re.search(r"^flashmoe_resident_bytes (\S+)$", text, re.M)
                assert found is not None
                report.resident_bytes.append((time.monotonic() - began, int(float(found[1]))))
                await asyncio.sleep(max(seconds / 100, 0.2))

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(client(number) for number in range(clients)))
        watching.cancel()
        report.seconds = time.monotonic() - began
        if (await http.get("/health")).json()["status"] != "ok":
            report.fault("the server is not well")
    return report


def served(flags: list[str]) -> tuple[subprocess.Popen[str], str]:
    """``flashmoe serve`` as a process, and its address."""
    code = "import sys; from flashmoe.apps import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "serve", *flags, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"at (http://\S+?),", line):
            return process, found[1]
    raise SystemExit(f"the server did not start: {process.wait()}")


def main() -> int:
    """Run it; 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", help="a server that runs; else the demo is served")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--growth", type=float, default=16, help="MiB that memory may grow by")
    given = parser.parse_args()
    process, url = None, given.url
    if url is None:
        process, url = served(["demo", "--ram", "600MiB"])
    run = load(url, given.model, clients=given.clients, seconds=given.minutes * 60, seed=given.seed)
    report = asyncio.run(run)
    if process is not None:
        process.terminate()
        if (code := process.wait(60)) != 0:
            report.fault(f"the server ended with {code}")
    if report.growth_bytes > given.growth * (1 << 20):
        report.fault(f"memory has grown by {report.growth_bytes} bytes")
    print(json.dumps(report.to_json()))
    return 1 if report.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())

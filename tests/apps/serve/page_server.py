"""A server that plays the chat API to the page, without a model: what is asked decides what comes.

Owns the scripts, by a word in the last message, and a made-up view of experts. The page's own files
and its map are the real ones.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from flashmoe.apps.serve import page
from flashmoe.apps.serve.ask import Refusal
from flashmoe.apps.serve.map import LISTENERS, ExpertMap, Figures
from flashmoe.quant import Array
from flashmoe.stream.picture import ExpertState

MODEL = "qwen3.5-35b-a3b"

UNCHOSEN = (ExpertState.MEMORY, ExpertState.VRAM)

MARKDOWN = """A **mixture of experts** splits each feed-forward layer into many small networks and \
lets a *router* choose a few of them for every token.

1. The router scores all experts of a layer.
2. The best `k` of them compute, the others stay where they are.
3. Their answers are summed, weighted by score.

| part | in memory | on the drive |
|---|:-:|--:|
| attention, router | always | nothing |
| experts | the likeliest | 18.1 GB |

```python
def forward(x):
    ids, weights = route(x)
    return sum(w * experts[i](x) for i, w in zip(ids, weights))
```

> So a model of 35 billion weights needs 3 billion for a token.

See [the paper](https://example.org/moe) for more."""

HOSTILE = """<img src=x onerror="alert(1)"> <script>alert(2)</script>

[here](javascript:alert(3)) ![pixel](https://example.org/pixel.png)

```html
<b onclick="alert(4)">bold</b>
```"""


class MadeUpView:
    """Experts of a model that is always at work: some chosen, some read, most of them not there.

    Of those in memory, every third is in VRAM too where there are ``vram_slots``.
    """

    def __init__(
        self, layers: int = 40, experts: int = 256, top_k: int = 8, vram_slots: int = 0
    ) -> None:
        self._dice = np.random.default_rng(4)
        self._size = layers, experts, top_k
        self._popular = self._dice.random((layers, experts)) ** 3 + 0.02
        self._memory = self._dice.random((layers, experts)) < np.sqrt(self._popular) * 0.6
        self._tokens = self._hits = self._misses = self._bytes = 0
        self._wait_ms = 0.0
        self._vram_slots = vram_slots
        self.working = False

    def shape(self) -> Mapping[str, Any]:
        layers, experts, top_k = self._size
        names = [state.name.lower() for state in ExpertState]
        return {
            "model": MODEL, "layers": layers, "experts": experts, "experts_per_token": top_k,
            "vram_slots": self._vram_slots, "states": names,
        }  # fmt: skip

    def states(self) -> Array:
        states = np.where(self._memory, ExpertState.MEMORY, ExpertState.ABSENT).astype(np.uint8)
        states[self._above()] = ExpertState.VRAM
        if self.working:
            self._token(states)
        return states

    def _above(self) -> Array:
        above = self._memory & (np.arange(self._size[1]) % 3 == 0)
        return above if self._vram_slots else np.zeros_like(above)

    def _token(self, states: Array) -> None:
        layers, experts, top_k = self._size
        now = self._dice.integers(layers)
        for layer in range(layers):
            share = self._popular[layer] / self._popular[layer].sum()
            chosen = self._dice.choice(experts, top_k, replace=False, p=share)
            there = self._memory[layer, chosen]
            states[layer, chosen] = np.where(there, ExpertState.HIT, ExpertState.MISSED)
            if layer == now:
                states[layer, chosen[~there]] = ExpertState.READING
            self._hits += int(there.sum())
            self._misses += int((~there).sum())
            self._bytes += int((~there).sum()) * 1_769_472
            left = np.flatnonzero(self._memory[layer] & np.isin(states[layer], UNCHOSEN))
            self._memory[layer, self._dice.choice(left, int((~there).sum()), replace=False)] = False
            self._memory[layer, chosen] = True
        self._tokens += 1
        self._wait_ms += 31.5

    def figures(self) -> Figures:
        held = int(self._memory.sum())
        cost = self._hits, self._misses, self._bytes, self._wait_ms
        if not self._vram_slots:
            return Figures(self._tokens, *cost, held, slots=2_800)
        asked, above = self._hits + self._misses, int(self._above().sum())
        tier = asked // 4, asked - asked // 4, 2 * self._bytes, 2 * self._wait_ms, above
        return Figures(self._tokens, *cost, held, 2_800, *tier)


@dataclass
class Script:
    """What the API was asked, and how it plays."""

    view: MadeUpView
    key: str | None = None
    pause_s: float = 0.004  # between two words
    asked: list[dict[str, Any]] = field(default_factory=list)
    cut_off: int = 0  # streams whose reader went before their end

    def refused(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        error = {"message": "The API key is missing or wrong.", "type": "authentication_error"}
        return JSONResponse({"error": error}, 401)

    async def models(self, request: Request) -> Response:
        found = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        return self.refused(request) or JSONResponse(found)

    async def chat(self, request: Request) -> Response:
        if (refused := self.refused(request)) is not None:
            return refused
        body = json.loads(await request.body())
        self.asked.append(body)
        last = body["messages"][-1]
        if "overloaded" in last["content"]:
            error = {"message": "The queue is full.", "type": "rate_limit_error"}
            return JSONResponse({"error": error}, 429, {"Retry-After": "7"})
        return StreamingResponse(self.stream(last, body), media_type="text/event-stream")

    async def stream(self, last: Mapping[str, str], body: Mapping[str, Any]) -> AsyncIterator[str]:
        self.view.working = True
        done = False
        try:
            async for text in self.acts(last["content"], last["role"], bool(body.get("tools"))):
                yield text
            done = True
        finally:
            self.view.working = False
            self.cut_off += not done

    async def acts(self, said: str, role: str, tools: bool) -> AsyncIterator[str]:
        if "queue" in said:
            yield ": queue 3\n\n"
            await asyncio.sleep(50 * self.pause_s)
        if "prompt" in said:
            for done in range(0, 16001, 2000):
                left = (16000 - done) // 61
                yield f": prompt {done}/16000 tokens, 61.2 tok/s, {left} s left\n\n"
                await asyncio.sleep(20 * self.pause_s)
        yield delta(role="assistant", content="")
        if "think" in said:
            async for text in self.words("The user wants a short answer. I weigh two.", "thought"):
                yield text
        if "fail" in said:
            yield delta(content="It begins well")
            yield data({"error": {"message": "A record could not be read.", "type": "api_error"}})
            return
        if tools and role == "user":
            yield ": call\n\n"
            await asyncio.sleep(0.1)
            for text in calls():
                yield text
            yield delta("tool_calls")
        else:
            answer = "It will be **sunny** in Paris, 24 °C." if role == "tool" else MARKDOWN
            answer = HOSTILE if "hostile" in said else answer
            answer = "" if "only think" in said else answer
            answer = "and on " * 4000 if "for ever" in said else answer
            async for text in self.words(answer, "content"):
                yield text
            yield delta("length" if "short" in said else "stop")
        yield data({"choices": [], "usage": USAGE})
        yield "data: [DONE]\n\n"

    async def words(self, text: str, kind: str) -> AsyncIterator[str]:
        name = {"thought": "reasoning_content", "content": "content"}[kind]
        for word in text.split(" "):
            yield delta(**{name: f"{word} "})
            await asyncio.sleep(self.pause_s * random.random() * 2)


USAGE = {
    "prompt_tokens": 312,
    "completion_tokens": 214,
    "total_tokens": 526,
    "prompt_tokens_details": {"cached_tokens": 256},
    "completion_tokens_details": {"reasoning_tokens": 0},
}


def data(chunk: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


def delta(finish: str | None = None, /, **what: Any) -> str:
    return data({"choices": [{"index": 0, "delta": what, "finish_reason": finish}]})


def calls() -> Iterator[str]:
    """A call in two parts, as an API may send it."""
    begun = {"name": "get_weather", "arguments": '{"city": "Paris",'}
    yield delta(tool_calls=[{"index": 0, "id": "call_1", "type": "function", "function": begun}])
    rest = {"arguments": ' "day": "Monday"}'}
    yield delta(tool_calls=[{"index": 0, "function": rest}])


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    body = {"error": {"message": error.message, "type": "server_error"}}
    return JSONResponse(body, error.status, {"Retry-After": str(error.retry_after)})


@dataclass(frozen=True)
class PageServer:
    """One that runs; ``url`` ends in a slash."""

    url: str
    script: Script


@contextmanager
def page_server(script: Script, *, listeners: int = LISTENERS) -> Iterator[PageServer]:
    """Serve page, map and script on a free port of this machine."""
    over = threading.Event()
    experts = ExpertMap(script.view, over.is_set, listeners=listeners)
    routes = [
        *page.routes(),
        *experts.routes(),
        Route("/v1/models", script.models),
        Route("/v1/chat/completions", script.chat, methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers={Refusal: refused})
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < end and thread.is_alive(), "the server does not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield PageServer(f"http://127.0.0.1:{port}/", script)
    finally:
        over.set()
        server.should_exit = True
        thread.join(10)

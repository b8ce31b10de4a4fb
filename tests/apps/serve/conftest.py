"""A demo engine that can be slowed down, a service over it, and a server on a free port."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from flashmoe.apps.serve.app import build
from flashmoe.apps.serve.command import pages
from flashmoe.apps.serve.guard import Guard
from flashmoe.apps.serve.limits import Limits
from flashmoe.apps.serve.listening import Listening, address_of, bound
from flashmoe.apps.serve.service import Served, Service
from flashmoe.engine import Engine
from flashmoe.model.observer import Observer
from flashmoe.options import Budget, PrefixCache, Runtime
from flashmoe.quant import Array

CHAT = "/v1/chat/completions"
LIMITS = Limits(idle_s=5.0, grace_s=5.0, write_s=2.0, body_bytes=64 << 10)


class Brake(Observer):
    """Takes so many seconds a layer, and counts layers."""

    def __init__(self) -> None:
        self.layer_s = 0.0
        self.layers = 0

    def routed(self, layer: int, ids: Array) -> None:
        self.layers += 1
        if self.layer_s:
            time.sleep(self.layer_s)


@pytest.fixture(scope="session")
def brake() -> Brake:
    return Brake()


@pytest.fixture(scope="session")
def engine(brake: Brake) -> Iterator[Engine]:
    kept = PrefixCache(memory_bytes=64 << 20)
    budget = Budget(context_tokens=2048, sessions=2)
    with Engine.open(
        "demo",
        budget=budget,
        observer=brake,
        prefix_cache=kept,
        runtime=Runtime(chunk_tokens=128),  # what has passed when a prompt is cancelled stays
        grammars=True,
    ) as engine:
        yield engine


@dataclass
class Site:
    """A server that runs."""

    url: str
    port: int
    service: Service
    listening: Listening
    told: list[str]
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)

    def end(self) -> None:
        """What the first signal does."""
        self.loop.call_soon_threadsafe(self.listening.end)


@contextmanager
def running(
    engine: Engine, guard: Guard | None = None, proxies: Sequence[str] = (), **limits: Any
) -> Iterator[Site]:
    """A server on a free port of the loopback address."""
    service = Service(engine, Served("demo"), replace(LIMITS, **limits))
    ready = threading.Event()
    told: list[str] = []
    door = build(service, guard or Guard(), pages(service))
    listening = Listening(door, service, ready.set, told.append, proxies)
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await listening.serve(sockets=[listener])

    with bound("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
        service.start()
        thread.start()
        assert ready.wait(10)
        port = listener.getsockname()[1]
        site = Site(address_of(listener), port, service, listening, told, loops[0], thread)
        try:
            yield site
        finally:
            if thread.is_alive():
                site.end()
            service.worker.cut_short()
            thread.join(20)
            assert not thread.is_alive()
            assert service.worker.join(20)


@pytest.fixture(scope="module")
def site(engine: Engine) -> Iterator[Site]:
    with running(engine) as site:
        yield site


def asking(text: str = "Who is Emma?", **more: Any) -> dict[str, Any]:
    """A body of a chat completion; greedy, short, without reasoning."""
    return {
        "model": "demo",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 8,
        "reasoning_effort": "none",
        **more,
    }


def events_of(lines: list[str]) -> list[dict[str, Any]]:
    """The JSON objects of a stream's data lines."""
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [json.loads(one) for one in data if one != "[DONE]"]


def until(met: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)

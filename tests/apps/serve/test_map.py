"""The events of the map: from them alone a listener has every state, and nobody listening costs
nothing."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import httpx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe import Budget, Engine, Runtime
from flashmoe.apps.serve import map as served
from flashmoe.apps.serve.map import EngineView, ExpertMap, Figures
from flashmoe.kernels import on_device
from flashmoe.quant import Array
from flashmoe.stream.picture import ExpertState
from tests.apps.serve.page_server import MadeUpView, Script, page_server
from tests.kernels.cuda.emulated import EmulatedDevice

LAYERS, EXPERTS = 3, 10


class PlayedView:
    """Shows one picture after the other, then the last one for good."""

    def __init__(self, pictures: list[Array]) -> None:
        self.pictures = pictures
        self.looks = 0

    def shape(self) -> Mapping[str, Any]:
        return {"layers": LAYERS, "experts": EXPERTS}

    def states(self) -> Array:
        self.looks += 1
        return self.pictures[min(self.looks, len(self.pictures)) - 1]

    def figures(self) -> Figures:
        return Figures(min(self.looks, len(self.pictures)), 0, 0, 0, 0.0, 0, 0)


def never() -> bool:
    return False


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    event, data = text.rstrip("\n").split("\n")
    return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def followed(states: Array | None, name: str, data: Mapping[str, Any]) -> Array:
    """What a listener that had ``states`` has after one more event."""
    if name == "all":
        return np.frombuffer(base64.b64decode(data["states"]), np.uint8).copy()
    assert states is not None and name == "changes"
    for state, gaps in data["changed"].items():
        states[np.cumsum(gaps)] = int(state)
    return states


async def several(events: AsyncIterator[str], count: int) -> list[str]:
    return [await anext(events) for _ in range(count)]


def pictures(dice: np.random.Generator, count: int, most: int) -> list[Array]:
    """Each differs from the one before in up to so many places."""
    made = [dice.integers(0, len(ExpertState), (LAYERS, EXPERTS)).astype(np.uint8)]
    for _ in range(count - 1):
        states = made[-1].copy()
        places = dice.integers(0, states.size, int(dice.integers(0, most + 1)))
        states.ravel()[places] = dice.integers(0, len(ExpertState), len(places))
        made.append(states)
    return made


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60))
def test_a_listener_has_every_picture(seed: int, most: int) -> None:
    shown = pictures(np.random.default_rng(seed), 6, most)
    with patch.object(served, "TICK_S", 0.0):
        events = ExpertMap(PlayedView(shown), never).events()
        texts = asyncio.run(several(events, 1 + len(shown)))
    name, shape = parsed(texts[0])
    assert name == "shape" and shape["layers"] == LAYERS
    states = None
    for text, want in zip(texts[1:], shown, strict=True):
        name, data = parsed(text)
        states = followed(states, name, data)
        assert np.array_equal(states, want.ravel())
        assert data["figures"]["tokens"] and data["at"] > 0


def test_a_difference_is_never_longer_than_the_whole() -> None:
    view = MadeUpView(8, 64, 4)
    view.working = True
    frame = served.Frame(1.0, view.states(), view.figures())
    other = replace(frame, states=(frame.states + 1) % 5)
    text = served._difference(frame, other)
    assert text == served._whole(other)
    near = replace(frame, states=frame.states.copy())
    near.states[3, 9] ^= 1
    text = served._difference(frame, near)
    assert text is not None and parsed(text)[1]["changed"] == {
        str(near.states[3, 9]): [3 * 64 + 9],
    }


def test_a_still_map_says_little() -> None:
    view = PlayedView([np.zeros((LAYERS, EXPERTS), np.uint8)])
    with patch.object(served, "TICK_S", 0.001), patch.object(served, "STILL_S", 0.01):
        texts = asyncio.run(several(ExpertMap(view, never).events(), 4))
    assert parsed(texts[1])[0] == "all" and texts[2:] == [": still\n\n"] * 2


def test_listeners_share_a_look_and_without_them_there_is_none() -> None:
    view = PlayedView([np.zeros((LAYERS, EXPERTS), np.uint8)])
    watched = ExpertMap(view, never)

    async def listen() -> None:
        streams = [watched.events() for _ in range(5)]
        for stream in streams:
            await several(stream, 2)
        assert view.looks == 1
        await asyncio.sleep(2 * served.TICK_S)
        assert view.looks == 1

    asyncio.run(listen())


def test_a_map_that_is_over_ends_its_streams() -> None:
    over = asyncio.Event()
    watched = ExpertMap(PlayedView([np.zeros((LAYERS, EXPERTS), np.uint8)]), over.is_set)

    async def listen() -> list[str]:
        events = watched.events()
        first = await several(events, 2)
        over.set()
        return first + [text async for text in events]

    with patch.object(served, "TICK_S", 0.0):
        assert len(asyncio.run(listen())) == 2


def test_over_http_and_no_more_than_may_listen() -> None:
    with (
        page_server(Script(MadeUpView(2, 8, 2)), listeners=1) as server,
        httpx.Client(base_url=server.url, timeout=10, trust_env=False) as client,
    ):
        with client.stream("GET", "map") as first:
            assert first.headers["content-type"].startswith("text/event-stream")
            lines = first.iter_lines()  # which closes the stream when it goes
            assert next(lines) == "event: shape"
            second = client.get("map")
            assert second.status_code == 503 and second.headers["retry-after"]
            assert "close one" in second.json()["error"]["message"]
        for _ in range(100):  # until the server has noticed
            with client.stream("GET", "map") as third:
                if third.status_code == 200:
                    return
        raise AssertionError("a listener that has gone still counts")


def test_an_engine_is_seen_while_it_works() -> None:
    with Engine.open("demo", budget=Budget(ram_bytes=None)) as engine:
        view = EngineView(engine, "demo")
        experts = engine.shape.layers * engine.shape.experts.count
        assert view.shape()["states"] == [
            "absent", "memory", "vram", "hit", "missed", "reading",
        ]  # fmt: skip
        assert view.shape()["vram_slots"] == 0
        assert not view.states().any() and view.figures().tokens == 0
        prompt = engine.tokenizer.encode("Emma was")
        steps = list(engine.session().generate(prompt, engine.sampling(max_tokens=8)))
        states, figures = view.states(), view.figures()
        chosen = np.isin(states, (ExpertState.HIT, ExpertState.MISSED)).sum(axis=1)
        assert (chosen == engine.shape.experts.top_k).all()
        assert figures.tokens == len(prompt) + len(steps) - 1
        assert figures.hits == sum(step.hits for step in steps)
        assert figures.misses == sum(step.misses for step in steps)
        assert figures.held == np.count_nonzero(states) <= min(figures.slots, experts)


def test_an_engine_on_a_gpu_shows_who_is_in_vram() -> None:
    kernels, runtime = on_device(EmulatedDevice()), Runtime(profile=False, threads=1)
    budget = Budget(context_tokens=64, vram_bytes=78 << 20)
    with Engine.open("demo", kernels=kernels, budget=budget, runtime=runtime) as engine:
        view = EngineView(engine, "demo")
        assert engine.vram is not None and view.shape()["vram_slots"] == engine.vram.slots < 256
        prompt = engine.tokenizer.encode("Emma was")
        list(engine.session().generate(prompt, engine.sampling(max_tokens=6)))
        states, figures = view.states(), view.figures()
        counters = engine.counters
    assert 0 < figures.vram_held <= engine.vram.slots
    told = int((states == ExpertState.VRAM).sum())
    chosen = int(np.isin(states, (ExpertState.HIT, ExpertState.MISSED)).sum())
    assert 0 < told <= figures.vram_held <= told + chosen
    assert (figures.vram_hits, figures.vram_misses) == (counters.vram_hits, counters.vram_misses)
    assert figures.copied_bytes == counters.copied_bytes > 0

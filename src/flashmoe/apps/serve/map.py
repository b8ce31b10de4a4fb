"""``GET /map``: what the experts are doing, as server-sent events, while somebody listens.

Owns the events, how often they come, and how many may listen. Does not own what is told
(``stream.picture``, ``stream.counters``), nor how it is shown (``web/map.js``).

A stream begins with ``shape``: the names of the states, and how many layers and experts there are.
``all`` gives the state of every expert, a byte each, layer by layer, in base64; ``changes`` only
those that are others now, by state, each place as its distance from the one before. Both bring the
moment, in seconds, and the figures since the start; rates are the listener's to form. Nothing is
sent where nothing has changed, but a comment now and then.

Invariant: without listeners nothing runs; any number of them takes one picture a tick.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from flashmoe.apps.serve.ask import Refusal
from flashmoe.apps.serve.limits import Gone
from flashmoe.engine import Engine
from flashmoe.quant import Array
from flashmoe.stream.picture import ExpertState

TICK_S = 1 / 8
"""Between two pictures: as often as an eye follows."""

LISTENERS = 16
"""Who may listen at once: each costs the server about a thousandth of a core."""

RETRY_S = 10
"""After so long one who found no place may try again."""

STILL_S = 5.0
"""A comment after so long without an event, so that a connection which is gone is noticed."""


@dataclass(frozen=True)
class Figures:
    """Since the start: tokens passed, and what streaming has cost (``stream.counters``).

    ``held`` are the experts in memory at the moment, ``slots`` those that fit; ``vram_held`` those
    in VRAM, where a tier of it lies above. Hits and misses are then of what was not there.
    """

    tokens: int
    hits: int
    misses: int
    bytes_read: int
    read_wait_ms: float
    held: int
    slots: int
    vram_hits: int = 0
    vram_misses: int = 0
    copied_bytes: int = 0
    copy_wait_ms: float = 0.0
    vram_held: int = 0


class View(Protocol):
    """What is watched. ``shape`` is JSON that does not change."""

    def shape(self) -> Mapping[str, Any]: ...

    def states(self) -> Array: ...

    def figures(self) -> Figures: ...


class EngineView:
    """An engine, watched from any thread while another one uses it."""

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine = engine
        self._model = model

    def shape(self) -> Mapping[str, Any]:
        """How many layers and experts there are, how many of these fit into VRAM (0 where there
        is no tier of it), and what they are called."""
        experts, room = self._engine.shape.experts, self._engine.vram
        return {
            "model": self._model,
            "layers": self._engine.shape.layers,
            "experts": experts.count,
            "experts_per_token": experts.top_k,
            "vram_slots": 0 if room is None else room.slots,
            "states": [state.name.lower() for state in ExpertState],
        }

    def states(self) -> Array:
        """The state of each expert, (layers, experts) uint8."""
        return self._engine.streamer.picture.states()

    def figures(self) -> Figures:
        """What there is to say of all experts together."""
        streamer, counters = self._engine.streamer, self._engine.counters
        return Figures(
            tokens=round(streamer.usage.tokens),
            hits=counters.hits,
            misses=counters.misses,
            bytes_read=counters.bytes_read,
            read_wait_ms=round(counters.wait_ms, 1),
            held=streamer.slots - streamer.free_slots,
            slots=streamer.slots,
            vram_hits=counters.vram_hits,
            vram_misses=counters.vram_misses,
            copied_bytes=counters.copied_bytes,
            copy_wait_ms=round(counters.copy_wait_ms, 1),
            vram_held=streamer.picture.held_above(),
        )


@dataclass(frozen=True)
class Frame:
    """All there is to tell at a moment: seconds of a clock of which only differences count."""

    at: float
    states: Array
    figures: Figures


class ExpertMap:
    """The events of one view, for whoever asks for ``/map``; they end, within a tick, once
    ``is_over`` says so."""

    def __init__(
        self, view: View, is_over: Callable[[], bool], *, listeners: int = LISTENERS
    ) -> None:
        self._view = view
        self._is_over = is_over
        self._most = listeners
        self._listening = 0
        self._frame: Frame | None = None

    def routes(self) -> list[Route]:
        """Where it is to be had."""
        return [Route("/map", self, methods=["GET"])]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, for as long as it listens.

        Raises:
            Refusal: too many do already.
        """
        if self._listening >= self._most:
            message = f"{self._most} others watch the map already: close one of them"
            raise Refusal(503, message, code="map_full", retry_after=RETRY_S)

        self._listening += 1
        events = self.events()
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        try:
            stream = StreamingResponse(events, headers=headers, media_type="text/event-stream")
            await stream(scope, receive, send)
        except* Gone:  # who does not read
            pass
        finally:
            self._listening -= 1
            await events.aclose()

    async def events(self) -> AsyncGenerator[str, None]:
        """The stream of one listener."""
        yield _event("shape", self._view.shape())
        before, told = None, time.monotonic()
        while not self._is_over():
            now = self._look()
            text = _whole(now) if before is None else _difference(before, now)
            if text is not None:
                before, told = now, now.at
                yield text
            elif time.monotonic() - told > STILL_S:
                told = time.monotonic()
                yield ": still\n\n"
            await asyncio.sleep(TICK_S)

    def _look(self) -> Frame:
        """The picture of this tick, taken by whoever asks first."""
        now = time.monotonic()
        if self._frame is None or now - self._frame.at >= 0.9 * TICK_S:
            self._frame = Frame(now, self._view.states(), self._view.figures())
        return self._frame


def _whole(frame: Frame) -> str:
    states = base64.b64encode(frame.states.tobytes()).decode("ascii")
    return _event("all", {**_head(frame), "states": states})


def _difference(before: Frame, now: Frame) -> str | None:
    """What is news; None where nothing is. A large difference is shorter as a whole."""
    old, new = before.states.ravel(), now.states.ravel()
    places = np.flatnonzero(old != new)
    if not len(places) and before.figures == now.figures:
        return None
    if 2 * len(places) > len(new):
        return _whole(now)
    changed = {
        int(state): np.diff(places[new[places] == state], prepend=0).tolist()
        for state in np.unique(new[places])
    }
    return _event("changes", {**_head(now), "changed": changed})


def _head(frame: Frame) -> dict[str, Any]:
    return {"at": round(frame.at, 3), "figures": asdict(frame.figures)}


def _event(name: str, data: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"

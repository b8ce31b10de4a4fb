"""What is told at ``/metrics``, for Prometheus.

Owns names and meaning of the figures: of replies as they are counted here, of the engine and of
what requests hold as they stand when it is asked, and the customary ones of a process. Each server
has a registry of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flashmoe import __version__
from flashmoe.apps.serve.room import Room
from flashmoe.engine import Engine
from flashmoe.step import Step
from flashmoe.stream import memory
from flashmoe.turn import Usage

Reading: TypeAlias = Callable[[], int]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TTFT_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """The counts of one server, which serves ``model``. Safe for several threads.

    ``waiting`` and ``busy`` are asked for how many requests wait, and whether one is replied to;
    ``rooms`` are those that requests share, by name.
    """

    def __init__(
        self,
        engine: Engine,
        model: str,
        waiting: Reading,
        busy: Reading,
        rooms: Mapping[str, Room],
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # of no use to anybody
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "flashmoe_requests",
            "Requests answered, by endpoint and HTTP status.",
            ["endpoint", "status"],
            registry=registry,
        )
        self._tokens = Counter(
            "flashmoe_tokens",
            "Tokens of prompts, those of them that were known already, and of replies.",
            ["kind"],
            registry=registry,
        )
        self._cancelled = Counter(
            "flashmoe_cancelled",
            "Replies that ended because the client had gone, or took too long.",
            registry=registry,
        )
        self._first = Histogram(
            "flashmoe_time_to_first_token_seconds",
            "From a request's arrival, its wait included, to its first token.",
            buckets=_TTFT_S,
            registry=registry,
        )
        self._token = Histogram(
            "flashmoe_token_seconds",
            "Time of a token after the first.",
            buckets=_TOKEN_S,
            registry=registry,
        )
        for kind in ("prompt", "cached", "generated"):
            self._tokens.labels(kind)
        registry.register(_EngineFigures(engine, model, waiting, busy, rooms))
        ProcessCollector(registry=registry)

    def request(self, endpoint: str, status: int) -> None:
        """A request has been answered."""
        self._requests.labels(endpoint, str(status)).inc()

    def cancelled(self) -> None:
        """A reply was cancelled."""
        self._cancelled.inc()

    def step(self, step: Step, *, first: float | None) -> None:
        """A token; ``first`` is when its request arrived, for the first token of a reply."""
        if first is None:
            self._token.observe(step.ms_total / 1e3)
        else:
            self._first.observe(time.monotonic() - first)

    def reply(self, usage: Usage) -> None:
        """A reply has ended, one way or another."""
        self._tokens.labels("prompt").inc(usage.prompt_tokens)
        self._tokens.labels("cached").inc(usage.cached_tokens)
        self._tokens.labels("generated").inc(usage.completion_tokens)

    def text(self) -> bytes:
        """All of it in Prometheus' text form."""
        return generate_latest(self._registry)


class _EngineFigures(Collector):
    """The engine's own counters and sizes, read when they are asked for."""

    def __init__(
        self,
        engine: Engine,
        model: str,
        waiting: Reading,
        busy: Reading,
        rooms: Mapping[str, Room],
    ) -> None:
        self._engine = engine
        self._model = model
        self._waiting = waiting
        self._busy = busy
        self._rooms = rooms

    def describe(self) -> list[Metric]:
        return []  # so that registering does not ask the engine

    def collect(self) -> Iterator[Metric]:
        counters = self._engine.counters
        for name, text, value in (
            ("hits", "Experts asked for that were in memory.", counters.hits),
            ("misses", "Experts asked for that had to be read.", counters.misses),
            ("guessed", "Reads started before their routing was known.", counters.guessed),
            ("guessed_right", "Those of them that were asked for.", counters.guessed_right),
            ("read_bytes", "Bytes read from disk.", counters.bytes_read),
            ("read_wait_seconds", "Time spent waiting for reads.", counters.wait_ms / 1e3),
        ):
            yield CounterMetricFamily(f"flashmoe_{name}", text, value=value)
        yield from self._vram()
        if self._engine.prefixes is not None:
            written = self._engine.prefixes.written_bytes
            text = "Bytes written to the prefix cache's directory."
            yield CounterMetricFamily("flashmoe_prefix_written_bytes", text, value=written)
        asked = counters.hits + counters.misses
        for name, text, gauge in (
            ("hit_rate", "Hits over all experts asked for, since the start.",
             counters.hits / asked if asked else 0.0),
            ("queue_length", "Requests that wait.", self._waiting()),
            ("busy", "1 while a reply is under way.", int(self._busy())),
            ("slots", "Experts that fit into memory at the moment.", self._engine.streamer.slots),
            ("resident_bytes", "Resident memory of the process.", memory.resident_bytes()),
            ("peak_resident_bytes", "The most it has been.", memory.peak_resident_bytes()),
        ):  # fmt: skip
            yield GaugeMetricFamily(f"flashmoe_{name}", text, value=gauge)
        yield self._memory()
        yield from self._requests()
        about = GaugeMetricFamily(
            "flashmoe_build_info", "1; what is served, by what.", labels=["version", "model"]
        )
        about.add_metric([__version__, self._model], 1)
        yield about

    def _vram(self) -> Iterator[Metric]:
        """What the tier of VRAM has cost; nothing where there is none."""
        room, counters = self._engine.vram, self._engine.counters
        if room is None:
            return
        for name, text, value in (
            ("vram_hits", "Experts asked for that were in VRAM.", counters.vram_hits),
            ("vram_misses", "Experts asked for that had to be copied.", counters.vram_misses),
            ("copied_bytes", "Bytes copied to the GPU.", counters.copied_bytes),
            ("copy_wait_seconds", "Time spent waiting for copies.", counters.copy_wait_ms / 1e3),
        ):
            yield CounterMetricFamily(f"flashmoe_{name}", text, value=value)
        text = "Experts that fit into VRAM."
        yield GaugeMetricFamily("flashmoe_vram_slots", text, value=room.slots)
        parts = GaugeMetricFamily(
            "flashmoe_vram_bytes", "The plan of the GPU's memory, by part.", labels=["part"]
        )
        parts.add_metric(["trunk"], room.trunk_bytes)
        parts.add_metric(["timelines"], room.timelines_bytes)
        parts.add_metric(["scratch"], room.scratch_bytes)
        parts.add_metric(["slots"], room.slots * room.slot_bytes)
        yield parts

    def _requests(self) -> Iterator[Metric]:
        held = GaugeMetricFamily(
            "flashmoe_request_bytes",
            "Memory that requests hold: bodies that come, turns that wait or are replied to, "
            "replies that are not read yet.",
            labels=["part"],
        )
        most = GaugeMetricFamily(
            "flashmoe_request_limit_bytes",
            "What there is for it; a request that finds no room is refused.",
            labels=["part"],
        )
        for part, room in self._rooms.items():
            held.add_metric([part], room.used_bytes)
            most.add_metric([part], room.most_bytes)
        yield held
        yield most

    def _memory(self) -> Metric:
        plan = self._engine.plan
        parts = GaugeMetricFamily(
            "flashmoe_memory_bytes", "The plan of memory, by part.", labels=["part"]
        )
        for part in ("process", "allowance", "trunk", "state", "kv", "scratch", "prefix", "budget"):
            parts.add_metric([part], getattr(plan, f"{part}_bytes"))
        parts.add_metric(["requests"], plan.host_bytes)
        parts.add_metric(["slots"], plan.full_slots * plan.slot_bytes)
        return parts

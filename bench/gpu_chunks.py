"""What a store's prompts take on a GPU, with all experts in VRAM and with some, in turns.

Owns the engines, the turns and where the host's time went. ``gpu_prompts.py --store`` is its door.

A prompt is of random ids and goes to its first token. What binds is the larger of its copies, the
bytes that crossed the bus at the rate of one long copy, and of its arithmetic, which is the whole
prompt with all experts in VRAM, the host's share of that included. The host's milliseconds are
told apart by what it was in; they add up to the prompt's. To be in ``copies`` is to wait for some.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from flashmoe import Budget, Engine, Runtime, Sampling
from flashmoe.kernels import on_device
from flashmoe.kernels.cuda.panel_experts import Experts, Meetings
from flashmoe.stream.tiers.convoys import Convoys
from flashmoe.stream.tiers.vram import Vram

REST = "rest"
PARTS = ("ids", "copies", "sweep", "lists", "launches", "end", REST)
"""Waiting for the router's ids, waiting for copies, the tier's own steps, lists of who meets whom
with their uploads, launches, waiting for the end, and what is left."""


class Clock:
    """Seconds by part; a part inside another stops that one's."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inside = [REST]
        self._last = time.perf_counter()

    def begin(self) -> None:
        """Forget what was before."""
        self.seconds.clear()
        self._last = time.perf_counter()

    def turn(self) -> None:
        """What has passed goes to the part that is on."""
        now = time.perf_counter()
        self.seconds[self._inside[-1]] += now - self._last
        self._last = now

    def timed(self, part: str, act: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, as a part."""

        def call(*arguments: Any, **options: Any) -> Any:
            self.turn()
            self._inside.append(part)
            try:
                return act(*arguments, **options)
            finally:
                self.turn()
                self._inside.pop()

        return call


class _Mark:
    def __init__(self, wait: Callable[[], None]) -> None:
        self.wait = wait


@contextmanager
def watched(device: Any, clock: Clock) -> Iterator[None]:
    """Whatever the host does on ``device`` is told to ``clock``."""
    places = [
        (device, "launch", "launches"),
        (device, "download", "end"),
        (Convoys, "land", "copies"),
        (Vram, "sweep", "sweep"),
        (Vram, "_take", "sweep"),
        (Vram, "_end", "sweep"),
        (Meetings, "__init__", "lists"),
        (Meetings, "tiles", "lists"),
        (Experts, "__call__", "launches"),
    ]
    mark = device.mark
    with ExitStack() as stack:
        for owner, name, part in places:
            original = getattr(owner, name)
            timed = clock.timed(part, original)
            if isinstance(owner, type):
                # A plain function, so that it is bound as the method was.
                timed = _method(timed)
            stack.enter_context(patch.object(owner, name, timed))
        marks = lambda: _Mark(clock.timed("ids", mark().wait))  # noqa: E731
        stack.enter_context(patch.object(device, "mark", marks))
        yield


def _method(act: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        return act(self, *arguments, **options)

    return method


class Turns:
    """Prompts through engines that are open side by side; ``copy_rate`` in bytes a second."""

    def __init__(self, device: Any, clock: Clock, engines: dict[str, Engine], copy_rate: float):
        self._device, self._clock = device, clock
        self._engines, self._copy_rate = engines, copy_rate
        self._seed = 0

    def prompt(self, engine: Engine, tokens: int) -> dict[str, float]:
        """Seconds of one, to its first token, and what crossed the bus; by part in the host."""
        self._seed += 1
        ids = np.random.default_rng(self._seed).integers(0, engine.shape.vocabulary, tokens)
        session, before = engine.session(), engine.counters
        self._device.synchronize()
        began = time.perf_counter()
        self._clock.begin()
        next(iter(session.generate(ids.tolist(), Sampling(temperature=0, max_tokens=1))))
        self._clock.turn()
        seconds = time.perf_counter() - began
        copied = float(engine.counters.since(before).copied_bytes)
        return {"s": seconds, "copied": copied, **{p: self._clock.seconds[p] for p in PARTS}}

    def measure(self, lengths: Sequence[int], repeat: int) -> list[dict[str, Any]]:
        """Of every engine and length the medians, after one prompt each that is not counted."""
        found = []
        for tokens in lengths:
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in self._engines}
            for turn in range(1 + repeat):
                for name, engine in self._engines.items():
                    run = self.prompt(engine, tokens)
                    if turn:
                        runs[name].append(run)
            found += [self._figures(name, tokens, some, runs) for name, some in runs.items()]
        return found

    def _figures(
        self,
        name: str,
        tokens: int,
        some: list[dict[str, float]],
        runs: dict[str, list[dict[str, float]]],
    ) -> dict[str, Any]:
        seconds = [run["s"] for run in some]
        copied = statistics.median(run["copied"] for run in some)
        bound = {"copies": tokens * self._copy_rate / copied if copied else None}
        whole = [n for n, e in self._engines.items() if e.decoder.slots == e.plan.experts_total]
        if whole:
            least = statistics.median(run["s"] for run in runs[whole[0]])
            bound["arithmetic"] = tokens / least
        return {
            "case": name,
            "tokens": tokens,
            "tok_s": tokens / statistics.median(seconds),
            "tok_s_least": tokens / max(seconds),
            "tok_s_most": tokens / min(seconds),
            "copied_gb": copied / 1e9,
            "bounds_tok_s": bound,
            "host_ms": {p: statistics.median(run[p] for run in some) * 1e3 for p in PARTS},
        }


def measured(
    device: Any, store: str, vram_bytes: int, lengths: Sequence[int], repeat: int
) -> dict[str, Any]:
    """The figures, and a table of them printed as they come.

    Raises:
        BudgetError: the device, or RAM, has no room for both engines.
    """
    copy_rate = device.copy_rate()
    device.release()
    clock = Clock()
    runtime = Runtime(profile=False)
    with ExitStack() as stack:
        stack.enter_context(watched(device, clock))
        engines = {}
        for name, limit in (("some in VRAM", vram_bytes), ("all in VRAM", None)):
            budget = Budget(context_tokens=max(lengths) + 64, vram_bytes=limit)
            opened = Engine.open(store, budget=budget, kernels=on_device(device), runtime=runtime)
            engines[name] = stack.enter_context(opened)
        found = Turns(device, clock, engines, copy_rate).measure(lengths, repeat)
        slots = {name: engine.decoder.slots for name, engine in engines.items()}
    print("| case | tokens | tok/s | copied, GB | copies allow | arithmetic | host's ms: ", end="")
    print(" | ".join(PARTS), "|")
    print("|---" * (6 + len(PARTS)) + "|")
    for row in found:
        copies, arithmetic = (row["bounds_tok_s"].get(kind) for kind in ("copies", "arithmetic"))
        spread = f"{row['tok_s']:,.0f} ({row['tok_s_least']:,.0f} to {row['tok_s_most']:,.0f})"
        parts = (f"{row['host_ms'][part]:.1f}" for part in PARTS)
        cells = (row["case"], row["tokens"], spread, f"{row['copied_gb']:.2f}")
        print("|", " | ".join(map(str, (*cells, _rate(copies), _rate(arithmetic), *parts))), "|")
    return {"copy_rate": copy_rate, "slots": slots, "prompts": found}


def _rate(tokens: float | None) -> str:
    return "-" if tokens is None else f"{tokens:,.0f}"

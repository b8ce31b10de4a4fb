"""The last line of a run: what the reply cost, for people or as JSON.

Owns the wording and the JSON keys; the numbers are :class:`flashmoe.step.Totals`'.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashmoe.apps.plurals import counted
from flashmoe.step import Step, Totals
from flashmoe.stream import memory
from flashmoe.stream.units import format_bytes

if TYPE_CHECKING:
    from flashmoe.engine import Engine

KEYS = {
    "prompt_tokens": "tokens given before the first one of the reply",
    "cached_tokens": "those of them that came from the prefix cache",
    "tokens": "tokens of the reply",
    "tokens_per_second": "speed after the first token; 0 where there was one only",
    "prompt_tokens_per_second": "speed up to the first token, without cached ones",
    "ttft_ms": "from the start of the prompt to the first token, loading not included",
    "load_ms": "opening the store",
    "ms_read_wait": "time spent waiting for experts",
    "hits": "experts asked for that were in memory, per layer and pass",
    "misses": "those that had to be read",
    "hit_rate": "hits of all; null with --io os, where only the page cache knows",
    "bytes_read": "read in all, by the page cache or past it",
    "bytes_per_token": "read for each token after the first",
    "prefix_bytes_written": "written to the prefix cache; null without one",
    "peak_bytes": "largest resident memory of the process",
    "budget_bytes": "the memory it was given",
    "slots": "experts that fit in memory at once, at the end",
    "planned_slots": "the same at the start, before keys and values and a prompt took their room",
    "withheld_slots": "of those, given back because the machine has become short of memory",
    "experts_per_token": "chosen in each layer",
    "io": "how experts were read and kept",
    "finish_reason": "stop, length, or interrupt",
}
"""The JSON keys in order, and what they mean."""

VRAM_KEYS = {
    "gpu": "what computes",
    "vram_hits": "experts asked for that were in VRAM; hits and misses are of the rest",
    "vram_misses": "those that had to be copied there",
    "vram_hit_rate": "hits in VRAM, of all experts asked for",
    "copied_bytes": "copied to the GPU in all",
    "copied_bytes_per_token": "copied for each token after the first",
    "ms_copy_wait": "time spent waiting for copies",
    "vram_bytes": "planned of the GPU's memory",
    "vram_slots": "experts that fit in it at once",
}
"""The keys that follow where a GPU computes."""


@dataclass(frozen=True)
class VramShare:
    """What a reply had of a GPU: its name, the bytes planned there, and slots for experts."""

    gpu: str
    vram_bytes: int
    vram_slots: int


@dataclass(frozen=True)
class Footer:
    """What a run reports when it ends."""

    totals: Totals
    load_ms: float
    peak_bytes: int
    budget_bytes: int
    slots: int
    planned_slots: int
    withheld_slots: int
    experts_per_token: int
    finish_reason: str
    io: str
    prefix_bytes_written: int | None = None
    vram: VramShare | None = None

    def line(self) -> str:
        """One line for a person."""
        totals = self.totals
        parts = [
            self._prompt(),
            counted(totals.tokens, "token"),
            f"{totals.tokens_per_second:.1f} tok/s",
            f"TTFT {totals.ms_first / 1e3:.2f} s",
            *self._found(),
            *self._copied(),
            f"{_gigabytes(totals.bytes_per_token)} GB read a token",
            *self._kept(),
            f"peak memory {format_bytes(self.peak_bytes)}",
        ]
        if self.withheld_slots:
            there = self.slots + self.withheld_slots
            parts.append(f"{self.slots} of {there} slots left (memory is short)")
        return ", ".join(parts)

    def _prompt(self) -> str:
        totals = self.totals
        if not totals.cached_tokens:
            return counted(totals.prompt_tokens, "prompt token")
        prompt = counted(totals.prompt_tokens, "prompt token")
        return f"{totals.cached_tokens} of {prompt} from the prefix cache"

    def _kept(self) -> tuple[str, ...]:
        if self.prefix_bytes_written is None:
            return ()
        return (f"{format_bytes(self.prefix_bytes_written)} written to the prefix cache",)

    def _found(self) -> tuple[str, ...]:
        totals = self.totals
        if self.vram is not None:
            above = f"{counted(totals.vram_hits, 'hit')} in VRAM ({totals.vram_hit_rate:.1%})"
            return (above, f"{totals.hits} in RAM", counted(totals.misses, "miss"))
        if self.io == "os":
            return (f"{counted(totals.misses, 'expert')} through the page cache",)
        misses = f"{counted(totals.misses, 'miss')} ({totals.hit_rate:.1%} hits)"
        return (counted(totals.hits, "hit"), misses)

    def _copied(self) -> tuple[str, ...]:
        if self.vram is None:
            return ()
        return (f"{_gigabytes(self.totals.copied_bytes_per_token)} GB copied a token",)

    def to_json(self, **more: Any) -> str:
        """One line for a program, with the keys of :data:`KEYS`, and :data:`VRAM_KEYS` where a GPU
        computes."""
        own = {**vars(self), "ttft_ms": self.totals.ms_first}
        keys = list(KEYS)
        if self.vram is not None:
            own |= vars(self.vram)
            keys += VRAM_KEYS
        if self.io == "os":
            own["hit_rate"] = None
        values = {key: own[key] if key in own else getattr(self.totals, key) for key in keys}
        return json.dumps({**values, **more})


def footer_of(
    engine: Engine,
    steps: Sequence[Step],
    load_ms: float,
    finish_reason: str,
    prefix_bytes_written: int | None = None,
) -> Footer:
    """What an engine has to report of a reply, as things stand now."""
    return Footer(
        totals=Totals.of(steps),
        load_ms=load_ms,
        peak_bytes=memory.peak_resident_bytes(),
        budget_bytes=engine.plan.budget_bytes,
        slots=engine.streamer.slots,
        planned_slots=engine.plan.slots,
        withheld_slots=engine.streamer.withheld,
        experts_per_token=engine.shape.experts.top_k,
        finish_reason=finish_reason,
        io=engine.runtime.io,
        prefix_bytes_written=prefix_bytes_written,
        vram=vram_share(engine),
    )


def vram_share(engine: Engine) -> VramShare | None:
    """What an engine has of a GPU; None where none computes."""
    device, room = engine.kernels.device, engine.vram
    if device is None or room is None:
        return None
    return VramShare(device.name, room.planned_bytes, room.slots)


def _gigabytes(nbytes: float) -> str:
    """Three significant digits, never in powers of ten."""
    size = nbytes / 1e9
    return f"{size:.3g}" if size >= 1e-4 or size == 0 else f"{size:.6f}"

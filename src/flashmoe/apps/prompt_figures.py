"""What a bench says of prompts: bytes, waiting, arithmetic, and the limit that these make.

Owns their names and formulas. A prompt's limit is ``tokens / max(needed bytes / disk rate,
arithmetic)``: each record that its tokens choose is read once, if it is not in memory, and the
shorter of reads and arithmetic hides behind the longer. The arithmetic is that of the same run,
all of the time that was not spent waiting for experts; where another run had everything in
memory, that one's is the better measure. Where a GPU computes, the least that is copied to it is
one more of those that hide behind each other.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flashmoe.apps.ceilings import Ceilings
from flashmoe.engine import Engine
from flashmoe.model.observer import Observer
from flashmoe.quant import Array

if TYPE_CHECKING:
    from flashmoe.step import Step

KEYS = {
    "prompt_bytes": "read for the prompt, what was read in vain included",
    "prompt_device_bytes": "of these and of what was read ahead, not from the page cache; null "
    "where the system does not tell",
    "prompt_touched_bytes": "of the experts that the prompt's tokens chose, each once",
    "prompt_needed_bytes": "of these what was not in memory: the least that can be read",
    "prompt_ms_read_wait": "of the prompt, spent waiting for experts",
    "prompt_ms_arithmetic": "of the prompt, all the rest but waiting for copies to a GPU",
    "pp_limit_tok_s": "prompt tokens a second that disk, copies to a GPU and arithmetic allow",
    "pp_share_of_limit": "pp_tok_s of that",
}
"""The JSON keys in order, and what they mean; medians of the repetitions."""


class Touched(Observer):
    """Which experts prompts choose, between :meth:`start` and :meth:`stop`."""

    def __init__(self) -> None:
        self._chosen: list[Array] | None = None

    def start(self, layers: int, experts: int) -> None:
        """From here on, of so many layers and experts a layer; nothing is chosen yet."""
        self._chosen = [np.zeros(experts, bool) for _ in range(layers)]

    def routed(self, layer: int, ids: Array) -> None:
        """Mark what a layer chose."""
        if self._chosen is not None:
            self._chosen[layer][ids.ravel()] = True

    def stop(self) -> list[int]:
        """How many of each layer were chosen."""
        chosen, self._chosen = self._chosen or [], None
        return [int(layer.sum()) for layer in chosen]


@dataclass(frozen=True)
class PromptCost:
    """What one prompt took besides its step: experts chosen a layer, and what devices gave."""

    touched: tuple[int, ...] = ()
    device_bytes: int | None = None


def figures(
    engine: Engine,
    limits: Ceilings,
    prompts: Sequence[tuple[Step, PromptCost]],
    tokens_per_second: float,
) -> dict[str, Any]:
    """By :data:`KEYS`; of each prompt the first step of its reply, and its cost."""
    records = [entry.layout.record_bytes for entry in engine.store.manifest.layers]
    touched, needed, copied = list[float](), list[float](), list[float]()
    for step, cost in prompts:
        touched.append(sum(n * size for n, size in zip(cost.touched, records, strict=False)))
        copied.append(min(touched[-1], step.vram_misses * statistics.mean(records)))
        missing = step.misses * statistics.mean(records)
        if engine.runtime.io == "os":  # only the page cache knows
            missing = cost.device_bytes or 0
        needed.append(min(touched[-1], missing))
    device = [cost.device_bytes for _, cost in prompts if cost.device_bytes is not None]
    found: dict[str, Any] = {
        "prompt_bytes": statistics.median(step.bytes_read for step, _ in prompts),
        "prompt_device_bytes": statistics.median(device) if len(device) == len(prompts) else None,
        "prompt_touched_bytes": statistics.median(touched),
        "prompt_needed_bytes": statistics.median(needed),
        "prompt_ms_read_wait": statistics.median(step.ms_read_wait for step, _ in prompts),
        "prompt_ms_arithmetic": statistics.median(step.ms_compute for step, _ in prompts),
    }
    arithmetic = found["prompt_ms_arithmetic"] / 1e3
    seconds = limit_seconds(found, limits.disk_bytes_s, arithmetic)
    if limits.copy_bytes_s is not None:
        seconds = max(seconds, statistics.median(copied) / limits.copy_bytes_s)
    limit = prompts[0][0].prompt_tokens / seconds
    return {**found, "pp_limit_tok_s": limit, "pp_share_of_limit": tokens_per_second / limit}


def limit_seconds(found: dict[str, Any], disk_bytes_s: float, arithmetic_s: float) -> float:
    """The least time that a prompt takes at this rate, and with this arithmetic."""
    reading: float = found["prompt_needed_bytes"] / disk_bytes_s
    return max(reading, arithmetic_s)


def rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """For the table of a bench."""
    arithmetic, waiting = found["prompt_ms_arithmetic"] / 1e3, found["prompt_ms_read_wait"] / 1e3
    touched, needed = found["prompt_touched_bytes"] / 1e9, found["prompt_needed_bytes"] / 1e9
    return [
        ("its reads", f"{found['prompt_bytes'] / 1e9:.3f} GB", f"{needed:.3f} GB were missing"),
        ("its experts", f"{touched:.3f} GB", "each once"),
        ("its arithmetic", f"{arithmetic:.2f} s", f"and {waiting:.2f} s of waiting for reads"),
        ("its limit", f"{found['pp_limit_tok_s']:.2f} tok/s", "what disk and arithmetic allow"),
        ("of its limit", f"{found['pp_share_of_limit']:.1%}", ""),
    ]

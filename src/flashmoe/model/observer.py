"""What one forward pass lets an onlooker see: the routing, and when each phase ended.

Owns the interface and the phase clock. Watching never changes the answer.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Literal, TypeAlias

from flashmoe.quant import Array

Phase: TypeAlias = Literal["embed", "mixer", "route", "shared", "experts", "head"]
PHASES: tuple[Phase, ...] = ("embed", "mixer", "route", "shared", "experts", "head")


class Observer:
    """Sees nothing; the default. Override what is of interest."""

    def begin(self) -> None:
        """A forward pass begins."""

    def routed(self, layer: int, ids: Array) -> None:
        """The router of a layer chose ids (T, top_k), best first."""

    def ended(self, layer: int, phase: Phase) -> None:
        """A phase of a layer ended; the next one begins."""


class PhaseClock(Observer):
    """Adds up the time of every phase: ``ms[layer, phase]``, over ``passes`` forward passes.

    The embedding counts to the first layer, the head to the last.
    """

    def __init__(self) -> None:
        self.ms: defaultdict[tuple[int, Phase], float] = defaultdict(float)
        self.passes = 0
        self._last = 0.0

    def begin(self) -> None:
        self.passes += 1
        self._last = time.perf_counter()

    def ended(self, layer: int, phase: Phase) -> None:
        last, self._last = self._last, time.perf_counter()
        if last:  # else no pass was begun: a prompt can come from a cache whole
            self.ms[layer, phase] += (self._last - last) * 1e3

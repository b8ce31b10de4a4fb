"""Which experts of the next layer to read before its routing is known: a pure policy.

Given a guess of the routing (the next layer's router applied early, likeliest first), decides
how much of it is worth reading in the time in which the disk would be idle: from the last read
that a layer waits for until the next layer has chosen. Learns that time, the time a read takes,
and how often the expert at each rank is chosen in the end. Reads nothing and holds no bytes.

With T the time of a read and W the idle time, the i-th guess can be read for g of its T,
g = min(T, W - i T). Chosen, with chance q, it has saved g; otherwise it delays the reads that
follow by T - g. So it is worth reading while q g > (1 - q) (T - g), which is q > 1 - g / T.

Invariant: the same calls in the same order give the same answers; times are told, never taken.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

WIDTH = 2
"""So many times what one token chooses are candidates."""

LEAST = 0.3
"""Chance of being chosen below which no read pays: it takes a slot and the processor's time."""

RATE = 0.05
"""Share of each new measurement in a running mean."""

_FIRST = 2  # reads a layer before anything has been measured
_RETRY = 64  # layers for which guessing does not pay
_GAIN = 1.5  # what guessing could save must exceed its own time so many times


class Prefetch:
    """The guesses for a model of ``layers`` layers, of which a token chooses ``top_k`` each."""

    def __init__(self, layers: int, top_k: int) -> None:
        self.width = WIDTH * top_k
        self._chosen = [0.5 if rank < top_k else 0.1 for rank in range(self.width)]  # how often
        self._idle_ms: list[float | None] = [None] * layers
        self._waited_ms: list[float | None] = [None] * layers
        self._read_ms: float | None = None
        self._cost_ms = 0.0
        self._refused = 0
        self._candidates: dict[int, int] = {}  # rank by expert, of those absent when guessed
        self._layer = -1  # that they belong to

    def pays(self, layer: int) -> bool:
        """Whether guessing costs less time than the waiting for this layer that it could save.

        Now and then it is tried although it does not: what it costs is known from trying alone,
        and one bad moment must not end it for good.
        """
        waited = self._waited_ms[layer]
        if waited is None or waited > _GAIN * self._cost_ms:
            return True
        self._refused += 1
        return self._refused % _RETRY == 0

    def choose(self, layer: int, ranked: Sequence[int], present: Sequence[bool]) -> list[int]:
        """The absent experts to read, best first; ``ranked`` has the likeliest first."""
        self._layer = layer
        self._candidates = {}
        chosen: list[int] = []
        for rank, expert in enumerate(ranked[: self.width]):
            if not present[rank]:
                self._candidates[expert] = rank
                if self._chosen[rank] > self._least(layer, len(chosen)):
                    chosen.append(expert)
        return chosen

    def _least(self, layer: int, place: int) -> float:
        """The chance that makes the guess in this place worth its read."""
        idle, read = self._idle_ms[layer], self._read_ms
        if idle is None or not read:
            return LEAST if place < _FIRST else 1.0
        share = min(idle / read - place, 1.0)
        return max(1.0 - share, LEAST) if share > 0 else 1.0

    def chance(self, expert: int) -> float:
        """How likely a candidate of the last choice is."""
        return self._chosen[self._candidates[expert]]

    def learn(self, layer: int, routing: Collection[int]) -> None:
        """What a layer chose in the end."""
        if layer != self._layer:
            return
        chosen = self._chosen
        for expert, rank in self._candidates.items():
            chosen[rank] += RATE * ((expert in routing) - chosen[rank])
        self._layer = -1

    def idle(self, layer: int, ms: float) -> None:
        """Between its guesses and its routing a layer left the disk so much time."""
        self._idle_ms[layer] = _mean(self._idle_ms[layer], ms)

    def waited(self, layer: int, ms: float, spared: int) -> None:
        """A hold waited so long, and ``spared`` reads were there thanks to guesses."""
        ms += spared * (self._read_ms or 0.0)
        self._waited_ms[layer] = _mean(self._waited_ms[layer], ms)

    def read(self, ms: float) -> None:
        """A read took so long, one after the other."""
        self._read_ms = _mean(self._read_ms, ms)

    def cost(self, ms: float) -> None:
        """So much time a guess has taken from the arithmetic; less is believed at once."""
        self._cost_ms = min(ms, _mean(self._cost_ms or None, ms))


def _mean(before: float | None, value: float) -> float:
    return value if before is None else before + RATE * (value - before)

"""What has been guessed about the next layer, and what came of it.

Joins the policy (``prefetch``) with the clock, the counters and the experts that guesses have
brought. Reads nothing: which slot, and when, is the ``streamer``'s.

Invariant: an expert is among ``unasked`` from the moment its guessed read starts until a routing
asks for it or it loses its slot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import compress, repeat
from typing import NamedTuple

from flashmoe.quant import Array
from flashmoe.stream.cache import Cache, Key
from flashmoe.stream.counters import Counters
from flashmoe.stream.prefetch import Prefetch


class Guess(NamedTuple):
    """Experts of a layer to read, best first, how likely each is to be asked for, and those of
    the layer's likeliest that are in memory and must not leave for it."""

    layer: int
    experts: list[int]
    chances: list[float]
    present: list[int]


class Guesses:
    """The guesses of one streamer; ``unasked`` experts are in memory, or on their way."""

    def __init__(self, policy: Prefetch, cache: Cache, counters: Counters) -> None:
        self.unasked: set[Key] = set()
        self._policy = policy
        self._cache = cache
        self._counters = counters
        self._ahead: tuple[int, Callable[[], Array]] | None = None  # a layer, who ranks its experts
        self._started: int | None = None  # the layer guessed for
        self._idle_since: float | None = None  # from when on its reads could start
        self._busy_since: float | None = None  # definite reads under way, since then
        self._began, self._spent_ms = 0.0, 0.0  # of the last guess
        self._spared = 0  # reads of the open hold that guesses have done

    def foresee(self, layer: int, rank: Callable[[], Array]) -> None:
        """Guess for a layer as soon as the disk is idle, if that pays."""
        self._ahead = (layer, rank) if self._policy.pays(layer) else None

    def forget(self) -> None:
        """There is nothing to be guessed now."""
        self._ahead = None

    def choose(self) -> Guess | None:
        """What to read once the disk is idle, if anything."""
        if self._ahead is None:
            return None
        self._began = time.perf_counter()
        (layer, rank), self._ahead = self._ahead, None
        ranked, policy = rank().tolist(), self._policy
        present = [slot >= 0 for slot in self._cache.slots_of(layer, ranked)]
        chosen = policy.choose(layer, ranked, present)
        now = self._spent()
        self._started, self._idle_since = layer, None if self._busy_since else now
        if not chosen:
            return None
        chances = [policy.chance(expert) for expert in chosen]
        return Guess(layer, chosen, chances, list(compress(ranked, present)))

    def reading(self, layer: int, experts: Collection[int]) -> None:
        """The reads of these have started."""
        self.unasked.update(zip(repeat(layer), experts))
        self._counters.guessed += len(experts)
        self._spent()

    def _spent(self) -> float:
        """Note what this guess has cost so far, and return the moment."""
        now = time.perf_counter()
        self._spent_ms = (now - self._began) * 1e3
        return now

    def dropped(self, key: Key) -> None:
        """The read of an expert has not started, and never will."""
        if key in self.unasked:
            self._counters.guessed -= 1

    def gone(self, keys: Iterable[Key]) -> None:
        """Experts have lost their slots."""
        self.unasked.difference_update(keys)

    def recheck(self) -> None:
        """Experts have lost their slots, and nobody has said which."""
        self.unasked = {key for key in self.unasked if key in self._cache}

    def asked(self, layer: int, experts: Sequence[int]) -> set[int]:
        """A routing asks for these experts; which of them are there because of a guess."""
        if self._started is not None:
            self._policy.cost(self._spent_ms)
            if self._started == layer:
                if self._idle_since is not None:
                    self._policy.idle(layer, (time.perf_counter() - self._idle_since) * 1e3)
                self._policy.learn(layer, experts)
            self._started = None
        if not self.unasked:
            return set()
        right = self.unasked.intersection(zip(repeat(layer), experts))
        self.unasked -= right
        self._counters.guessed_right += len(right)
        self._spared += len(right)
        return {expert for _, expert in right}

    def busy(self) -> None:
        """Reads have been started that a hold will wait for."""
        if self._busy_since is None:
            self._busy_since = time.perf_counter()

    def read(self, count: int) -> None:
        """So many reads that a hold waited for have come, the last one just now."""
        if self._busy_since is not None and count:
            now = time.perf_counter()
            self._policy.read((now - self._busy_since) * 1e3 / count)
            self._busy_since, self._idle_since = None, now

    def ended(self, layer: int, waited_ms: float | None) -> None:
        """A hold has ended, and had waited so long; None for more than one token's experts."""
        if waited_ms is not None:
            self._policy.waited(layer, waited_ms, self._spared)
        self._busy_since, self._spared = None, 0

"""A picture of the experts: what each of them is doing, for whoever looks.

Owns the states that are told apart, and how they are found out. Does not own who looks, how often,
or what is made of it (``apps``), nor the figures (``counters``).

Nothing is kept for it but each layer's last hold, so that nobody pays who does not look. A look
takes some 20 microseconds a layer, and no lock.

Invariant: it may be taken from any thread while another one streams. All that it reads of the
other's is read in single calls which keep the interpreter; so what it shows may be some
microseconds apart, and nothing that it touches changes.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import numpy as np

from flashmoe.quant import Array
from flashmoe.stream.cache import Cache
from flashmoe.stream.passage import Passage
from flashmoe.stream.reads import Reads
from flashmoe.stream.warmup import Warmup


class ExpertState(IntEnum):
    """What an expert is doing; where two are true, the one that is told is the greater.

    ``HIT`` and ``MISSED`` are those of the last token, or chunk, that passed the layer: asked for,
    and found in memory or not (see ``Counters``), whether or not it has left since. With a tier of
    VRAM they are those of the last one that asked for something which was not there.
    """

    ABSENT = 0
    MEMORY = 1
    VRAM = 2
    HIT = 3
    MISSED = 4
    READING = 5


class Picture:
    """Of ``experts`` experts in every layer of a cache.

    ``above`` gives, where a tier of VRAM lies above, the slot there of each expert of a layer, or
    -1 (``tiers.Vram.table``).
    """

    def __init__(
        self, experts: int, cache: Cache, reads: Reads, warmup: Warmup, passage: Passage
    ) -> None:
        self._every = list(range(experts))
        self._cache = cache
        self._reads = reads
        self._warmup = warmup
        self._passage = passage
        self.above: Callable[[int], Array] | None = None

    def held_above(self) -> int:
        """How many experts are in the tier above; 0 where there is none."""
        above = self.above
        if above is None:
            return 0
        return sum(int(np.count_nonzero(above(n) >= 0)) for n in range(self._cache.layers))

    def states(self) -> Array:
        """The :class:`ExpertState` of each, (layers, experts) uint8; the caller's own."""
        cache, every = self._cache, self._every
        states = np.full((cache.layers, len(every)), ExpertState.ABSENT, np.uint8)
        for layer in range(cache.layers):
            if cache.resident(layer):
                states[layer, np.array(cache.slots_of(layer, every)) >= 0] = ExpertState.MEMORY
        for layer, expert in self._warmup.arrived():
            states[layer, expert] = ExpertState.MEMORY
        if self.above is not None:
            for layer, row in enumerate(states):
                row[self.above(layer) >= 0] = ExpertState.VRAM
        for layer, hold in self._passage.latest.copy().items():
            states[layer, list(hold.wanted)] = ExpertState.MISSED
            states[layer, list(hold.hits)] = ExpertState.HIT
        for layer, expert in list(self._reads.tickets):
            states[layer, expert] = ExpertState.READING
        return states

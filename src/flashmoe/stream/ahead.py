"""The reads of the next layer's experts, before the router of that layer has spoken.

Joins the policies (``guesses`` for a token, ``expectation`` for a chunk) with the reads. A chunk's
start in file order once the layer at hand has asked for all that it needs, behind its reads, and
into slots whose experts are less likely to be used; an expert so read stays until its layer is
asked for. Then those that are not wanted are let go (``Reads.let_go``), and those of them not
started are dropped, as a token's are.

Invariant: what is read ahead leaves its layer one slot for an expert that was not expected.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import compress
from typing import NamedTuple

from flashmoe.quant import Array
from flashmoe.stream.cache import Cache
from flashmoe.stream.direct import Urgency
from flashmoe.stream.expectation import Expectation
from flashmoe.stream.guesses import Guesses
from flashmoe.stream.reads import Reads
from flashmoe.stream.warmup import Warmup

SHARE = 8
"""One slot in so many may be read into ahead; with few slots, two tokens' experts may."""

AT_ONCE = 64
"""Reads ahead of a chunk's first layer at most: every other layer is still to come, and what they
displace is read once more."""

_CHANCE = 0.9  # that what is expected is wanted: what is likelier than that keeps its slot


class _Next(NamedTuple):
    """The layer that comes, the tokens that pass, and what a sample of them would choose."""

    layer: int
    tokens: int
    early: Callable[[], Array]


class Ahead:
    """The reads ahead of one streamer."""

    def __init__(
        self,
        policy: Expectation,
        cache: Cache,
        warmup: Warmup,
        reads: Reads,
        guesses: Guesses,
        top_k: int,
    ) -> None:
        self._policy = policy
        self._cache = cache
        self._reads = reads
        self._warmup = warmup
        self._guesses = guesses
        self._least = 2 * top_k
        self._next: _Next | None = None
        self._layer = -1  # being read
        self._absent: list[int] = []  # expected, and not asked for yet
        self._room = 0  # reads that may still start

    def guess(self, note: Callable[[int], None]) -> None:
        """Between what this layer needs and the next routing the disk would be idle: let it read
        then what one token is likely to want."""
        guess = self._guesses.choose()
        if guess is None:
            return
        layer, experts, chances, present = guess
        if self._warmup:
            self._warmup.precede(layer, experts, self._reads.tickets)
            absent = [slot < 0 for slot in self._cache.slots_of(layer, experts)]
            experts, chances = list(compress(experts, absent)), list(compress(chances, absent))
        self._cache.pin_all(layer, present)
        begun = self._reads.start(layer, experts, note, Urgency.GUESSED, chances)
        self._guesses.reading(layer, begun.values())
        self._cache.unpin_all(layer, present)

    def expect(self, layer: int, tokens: int, early: Callable[[], Array]) -> None:
        """A layer is the next that a chunk of so many tokens passes."""
        self.forget()
        self._next = _Next(layer, tokens, early)

    def forget(self) -> None:
        """There is nothing to be read ahead now."""
        self._next, self._absent = None, []

    def pursue(self, note: Callable[[int], None], most: int | None = None) -> None:
        """Start what may be read now; ``most`` bounds it where given."""
        if self._next is not None:
            self._choose(self._next, most)
        elif self._absent:  # some may have come down from a quicker memory since
            slots = self._cache.slots_of(self._layer, self._absent)
            self._absent = [e for e, slot in zip(self._absent, slots, strict=True) if slot < 0]
        if not self._absent:
            return
        room = min(self._room, self._cache.slots - 1 - self._cache.resident(self._layer))
        if room <= 0:
            return
        chances = [_CHANCE] * min(room, len(self._absent))
        begun = self._reads.start(
            self._layer, self._absent, note, Urgency.HINTED, chances, most=len(chances)
        )
        self._room -= len(begun)
        self._reads.keep(self._layer, list(begun.values()))
        self._guesses.reading(self._layer, begun.values())

    def _choose(self, coming: _Next, most: int | None) -> None:
        """Find out what is expected and missing."""
        self._next, self._layer = None, coming.layer
        expected = self._policy.choose(coming.layer, coming.tokens, coming.early)
        self._warmup.precede(coming.layer, expected, self._reads.tickets)
        slots = self._cache.slots_of(coming.layer, expected)
        self._absent = [e for e, slot in zip(expected, slots, strict=True) if slot < 0]
        self._room = max(self._cache.slots // SHARE, self._least)
        if most is not None:
            self._room = min(self._room, most)

    def spoken(self, layer: int, tokens: int, experts: Collection[int]) -> None:
        """A routing of so many tokens wants these experts of a layer."""
        if layer == self._layer:
            self._absent = []
        if self._next is not None and self._next.layer == layer:
            self._next = None
        if tokens > 1:
            self._policy.learn(layer, tokens, experts)

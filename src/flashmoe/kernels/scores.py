"""The door to the native work over all scores of a token: peaks, sums of weights, the highest.

Owns the memory that this takes, once for a reply, and the choice of a threshold where only the
highest are wanted; nothing of what is drawn (``sampler``). The formulas are in ``native/draw.h``.
Invariant: the same bits on every machine and with any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flashmoe import _native

Numbers = NDArray[np.float64]
Places = NDArray[np.int64]
Slices = NDArray[np.uint16]

BLOCK: int = _native.DRAW_BLOCK
"""Scores whose weights are summed together."""

LOG2_E = 1.4426950408889634
_MOST = 1.7976931348623157e308  # 1 / temperature may be more
GUESS: float = _native.DRAW_GUESS
"""How far sums in float32 may be from those in float64, as a part of all."""

_FEW_BLOCKS = 16
_GUESSED = 1 << 24
_COLDEST = 1e-6
"""Sums in float32 are not worth while for fewer blocks, and hold for so many scores, down to such a
temperature."""

_ALIKE = 32
"""Nor are they where the peaks of the blocks together weigh so many times the highest: where many
scores have a small part of the whole, sums in float32 seldom tell which one is drawn."""

_SMALL = 4096
"""So many scores have room at once; more is made where more are not below a threshold."""


class Room:
    """Memory that one row after another is worked on in. It grows, and is never given back."""

    def __init__(self) -> None:
        self.peaks: Numbers = np.empty(0)
        self.masses: Numbers = np.empty(0)
        self.places: Places = np.empty(_SMALL, np.int64)
        self.values: Numbers = np.empty(_SMALL)
        self.slices: Slices = np.empty(0, np.uint16)

    def fit(self, blocks: int) -> None:
        """Make peaks and masses (blocks,)."""
        if self.peaks.size != blocks:
            self.peaks, self.masses = np.empty(blocks), np.empty(blocks)


class Scores:
    """The scores of one token: ``logits`` (n,), float32 or float64, those at ``places`` (rising)
    replaced by ``values``. ``peak`` is the highest, NaN where a logit is not finite.

    The arrays in ``room`` are another row's with the next.
    """

    def __init__(
        self,
        logits: NDArray[np.floating],
        changed: tuple[Places, Numbers],
        room: Room,
        threads: int,
    ) -> None:
        self.size = logits.size
        self._row = _native.Scores(logits, *changed)
        self._room, self._threads = room, threads
        self._plain = logits.dtype == np.float32 and not changed[0].size
        room.fit(-(-self.size // BLOCK))
        self._row.peaks(room.peaks, threads)
        self.peak = float(room.peaks.max())

    def best(self) -> int:
        """The place of the highest score, the lowest of several."""
        begin = int(self._room.peaks.argmax()) * BLOCK
        return begin + int(self.some(begin).argmax())

    def some(self, begin: int = 0, count: int = BLOCK) -> Numbers:
        """Up to ``count`` scores from ``begin`` on."""
        found = np.empty(min(count, self.size - begin))
        self._row.widen(begin, found)
        return found

    def masses(self, temperature: float) -> Numbers:
        """The sum of the weights of each block."""
        self._row.masses(self.peak, factor(temperature), self._room.masses, self._threads)
        return self._room.masses

    def guesses(self, temperature: float) -> Numbers | None:
        """The same sums in float32, for about half the time; each is within :data:`GUESS` of all
        of them together, and so is a sum of several. None where they cannot be had or are not worth
        while.
        """
        blocks = self._room.peaks.size
        if not self._plain or not _FEW_BLOCKS <= blocks <= _GUESSED // BLOCK:
            return None
        if temperature < _COLDEST:
            return None
        if self.weights(self._room.peaks, temperature).sum() > _ALIKE:
            return None
        guessed = self._room.masses
        self._row.guesses(self.peak, factor(temperature), guessed, self._threads)
        return guessed

    def weights(self, scores: Numbers, temperature: float) -> Numbers:
        """Their weights; the peak's is 1."""
        return weights(scores, self.peak, temperature)

    def above(self, least: float) -> tuple[Places, Numbers]:
        """The places of the scores not below ``least``, rising, and those scores."""
        row, peaks = self._row, self._room.peaks
        return self._found(lambda places, values: row.above(peaks, least, places, values))

    def _found(self, write: Callable[[Places, Numbers], int]) -> tuple[Places, Numbers]:
        room = self._room
        while True:
            found = write(room.places, room.values)
            if found <= room.places.size:
                return room.places[:found], room.values[:found]
            room.places, room.values = np.empty(found, np.int64), np.empty(found)

    def top(self, rank: int) -> tuple[Places, Numbers]:
        """The scores not below the ``rank``-th highest peak of a block, or the lowest, by place: as
        many as ``rank`` at the least, if there are so many blocks.
        """
        return self.above(self._peak_of(min(rank, self._room.peaks.size)))

    def _peak_of(self, rank: int) -> float:
        return float(np.partition(self._room.peaks, -rank)[-rank])

    def highest(self, count: int) -> tuple[Places, Numbers]:
        """The ``count`` highest scores, or all, in falling order, equal ones by place."""
        return self._highest(min(count, self.size), ordered=True)

    def last_of(self, count: int) -> tuple[int, float]:
        """The place of the last of the ``count`` highest, at most all, and its score."""
        places, values = self._highest(count, ordered=False)
        return int(places[-1]), float(values[-1])

    def _highest(self, count: int, ordered: bool) -> tuple[Places, Numbers]:
        peaks = self._room.peaks
        least = self._peak_of(count) if count <= peaks.size else -math.inf
        places, values = np.empty(count, np.int64), np.empty(count)
        self._row.highest(peaks, least, ordered, places, values)
        return places, values

    def kept_sums(self, temperature: float, least: float, min_p: float) -> Numbers:
        """The sum of the weights not below ``min_p``, one by one by place, at the end of each
        block; no score below ``least`` weighs as much."""
        room = self._room
        scale = self.peak, factor(temperature)
        self._row.kept_sums(room.peaks, least, *scale, min_p, room.masses)
        return room.masses

    def depth(self, most: float) -> float:
        """How far the lowest score is below the peak, or ``most`` or more where it is further."""
        return self.peak - self._row.lowest(self.peak - most)

    def slices(
        self, temperature: float, steps: float, last: tuple[int, float], min_p: float, count: int
    ) -> tuple[Numbers, float]:
        """Cut the falling order into ``count`` slices: the sums of the weights of each, and of all,
        one by one by place.

        A score is in slice (score - peak) / temperature * steps rounded down, or in the last. In
        none is what comes after ``last``, a place and a score, in the falling order, what weighs
        less than ``min_p``, which only the sum of all has, and what weighs nothing.
        """
        room = self._room
        if room.slices.size != self.size:
            room.slices = np.empty(self.size, np.uint16)
        sums, (place, least) = np.empty(count), last
        total = self._row.slices(
            self.peak, factor(temperature), temperature, steps, least, place, min_p,
            room.slices, sums,
        )  # fmt: skip
        return sums, total

    def members(self, slice_: int) -> tuple[Places, Numbers]:
        """The places of the scores of a slice that :meth:`slices` cut last, rising, and those
        scores."""
        row, slices = self._row, self._room.slices
        return self._found(lambda places, values: row.members(slices, slice_, places, values))


def falling(places: Places, values: Numbers) -> tuple[Places, Numbers]:
    """Both in the order of falling values; the order of equal ones stays."""
    order = np.argsort(-values, kind="stable")
    return places[order], values[order]


def factor(temperature: float) -> float:
    """What a difference of scores is multiplied with to be an exponent of 2."""
    return min(LOG2_E / temperature, _MOST) if temperature > 1e-300 else _MOST


def weights(scores: Numbers, peak: float, temperature: float) -> Numbers:
    """The weights of scores (n,) of which the highest, ``peak``, weighs 1."""
    found = np.empty_like(scores)
    _native.weights(scores, peak, factor(temperature), found)
    return found

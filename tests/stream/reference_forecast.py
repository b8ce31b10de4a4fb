"""The forecast in plain Python, the twin that the native one is compared with: how likely each
expert of one layer is to be chosen when the layer next comes round.

Learns from the routings alone, while they happen: how often an expert is chosen, and which
experts follow which from one token to the next. Does not know what is in memory.

The chance of expert j, given the experts I that the layer has just chosen, is

    p(j) = s * (a / s) ** trust,  a = mean over i in I of (n(i, j) + PRIOR * s) / (n(i) + PRIOR)

with s(j) the share of visits that chose j, the mean of a slow to a fast average (a visit counts
half after HALF_LIVES), n(i) how often i was followed by another routing of its layer and n(i, j)
how often that one chose j, both halved whenever n(i) passes MEMORY. n(i, i) is what the recency
of a use is worth: routers differ in it, so it is measured. They differ too in how well the last
routing foretells the next; ``trust``, one number for all layers, follows the gradient of the
log-likelihood of the routings that come, p normalised. It exceeds 1 where the experts of I agree
more than chance has it. Origin and figures: E7 in docs/EXPERIMENTS.md.

Sums and roundings are in the order that ``native/forecast.h`` promises, so that the chances are
equal to the last bit: numpy's own products would leave it to BLAS, its logarithm to the processor.

Invariant: 0 <= p <= 1; the counts of a layer take ``experts ** 2`` bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flashmoe.quant import Array

HALF_LIVES = (32, 8, 1)
"""Visits of the layer; one a token when decoding."""

PRIOR = 6
"""Routings that s is worth beside the counts of what followed an expert."""

MEMORY = 24
"""Routings that are remembered of what followed an expert."""

RATE = 0.01
"""Step of ``trust`` along its gradient, a visit."""

_DECAY = 2 ** (-1 / np.array(HALF_LIVES, np.float32)[:, None])
_GRAIN = 8  # of a count in a byte, so that halving keeps fractions; 8 * (MEMORY + 1) < 256
_PRIOR = np.float32(PRIOR * _GRAIN)
_RARE = np.float32(1e-6)  # uses a visit of an expert that is never used: no 0, no subnormals
_MOST = 4.0  # trust


def _sum(rows: Array) -> Array:
    """Of the rows, one after another."""
    total = rows[0].copy()
    for row in rows[1:]:
        total += row
    return total


class Trust:
    """How far the last routing foretells the next; shared by the layers of a model."""

    def __init__(self) -> None:
        self.value = 1.0

    def learn(self, gradient: float) -> None:
        """Take a step."""
        self.value = min(max(self.value + RATE * gradient, 0.0), _MOST)


class Forecast:
    """One layer's experts; as many as it has been told of."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._frequency: Array = np.zeros((len(HALF_LIVES), 0), np.float32)
        self._visits: Array = np.zeros((len(HALF_LIVES), 1), np.float32)
        self._followed: Array = np.zeros(0, np.uint8)
        self._follows: Array = np.zeros((0, 0), np.uint8)
        self._before: Array = np.zeros(0, np.intp)
        self._routing: Array = np.zeros(0, np.intp)
        self._chances: Array | None = None  # until something is learned
        self._gain: Array | None = None  # log(a / s), where the chances come from a routing

    def __len__(self) -> int:
        return len(self._followed)

    def cover(self, expert: int) -> None:
        """Make room for an expert; the arrays grow by doubling."""
        if expert < len(self):
            return
        more = max(8, 1 << expert.bit_length()) - len(self)
        self._forget_chances()
        self._frequency = np.pad(self._frequency, ((0, 0), (0, more)), constant_values=_RARE)
        self._followed = np.pad(self._followed, (0, more))
        self._follows = np.pad(self._follows, ((0, more), (0, more)))

    def seed(self, shares: Array) -> None:
        """Begin as if experts had been chosen in these shares of the visits for long, (n,)."""
        self.cover(len(shares) - 1)
        self._visits = 1 / (1 - _DECAY)
        self._frequency[:, : len(shares)] = np.maximum(shares, _RARE) * self._visits
        self._forget_chances()

    def begin(self) -> None:
        """The layer comes round: what it chose last is followed by what :meth:`add` tells."""
        self._before = self._routing
        self._routing = self._routing[:0]
        self._frequency *= _DECAY
        self._frequency += _RARE
        self._visits *= _DECAY
        self._visits += 1

    def add(self, experts: Sequence[int]) -> None:
        """The routing of this visit has these experts too."""
        self.cover(max(experts))
        added = np.array(experts, np.intp)
        if self._before.size:
            self._learn(added)
        self._frequency[:, added] += np.float32(1)
        self._routing = np.concatenate((self._routing, added)) if self._routing.size else added
        self._forget_chances()

    def chances(self) -> Array:
        """Of every expert, (experts,) float32, to be chosen when the layer next comes round."""
        if self._chances is None:
            self._chances = self._predict()
        return self._chances

    def _predict(self) -> Array:
        weights = np.float32(1 / len(HALF_LIVES)) / np.maximum(self._visits, np.float32(1))
        often = _sum(self._frequency * weights)
        if self._routing.size:
            routing = self._routing
            # With x the sum over I of n(i, j) / (n(i) + PRIOR): a / s = x / (|I| s) + c.
            share = np.reciprocal(self._followed[routing] + _PRIOR)
            ratio = _sum(share[:, None] * self._follows[routing].astype(np.float32))
            ratio /= often
            ratio += _PRIOR * np.float32(share.sum(dtype=np.float64))
            ratio *= np.float32(1 / routing.size)
            self._gain = np.log(ratio.astype(np.float64)).astype(np.float32)
            power = self._gain * np.float32(self._trust.value)
            often *= np.exp(power.astype(np.float64)).astype(np.float32)
        return np.minimum(often, np.float32(1), out=often)

    def _learn(self, added: Array) -> None:
        if self._gain is not None and self._chances is not None:
            chances, gain = self._chances.astype(np.float64), self._gain.astype(np.float64)
            self._trust.learn(float(gain[added].mean() - chances @ gain / chances.sum()))
        before = self._before
        if not self._routing.size:  # the first part of this routing
            self._followed[before] += _GRAIN
            full = before[self._followed[before] > MEMORY * _GRAIN]
            if full.size:
                self._followed[full] >>= 1
                self._follows[full] >>= 1
        self._follows[before[:, None], added] += _GRAIN

    def _forget_chances(self) -> None:
        self._chances = self._gain = None

"""Which experts of a layer a prompt's chunk will want, before its router has spoken: a pure policy.

Where the layer before wanted nearly all of its experts, this one will. Elsewhere the layer's own
router tells, applied early to a sample of the chunk's tokens: an expert that the sample chose
often enough to be wanted by several of all the tokens is wanted almost certainly; one that it
chose less often, about as often as such guesses have been right so far. Reads nothing.

Invariant: the same calls in the same order give the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from flashmoe.quant import Array

SAMPLE_TOKENS = 64
"""Tokens whose early routing is asked for: a router's product for more takes longer than the
reads that it spares."""

NEARLY_ALL = 0.95
"""Share of a layer's experts from which on all of the next one's are expected."""

OFTEN = 2.0
"""Tokens that are to want an expert for it to be expected with some certainty."""

LEAST = 0.75
"""Share of earlier guesses that must have been right for more of their kind."""

_RATE = 0.1  # share of each new layer in a running mean
_FIRST = (0.6, 0.9)  # of seldom and often chosen ones right, before any was seen


def sample(x: Array) -> Array:
    """Up to SAMPLE_TOKENS of the rows of ``x``, from all along it; a copy."""
    step = -(-len(x) // SAMPLE_TOKENS)
    return x[::step].copy()


class Expectation:
    """What is expected of layers of ``experts`` experts."""

    def __init__(self, experts: int) -> None:
        self._experts = experts
        self._share = 0.0  # of the experts that the last layer's routing wanted
        self._tokens = 0  # of that routing
        self._right = list(_FIRST)
        self._guessed: tuple[int, tuple[Array, Array]] | None = None  # a layer, seldom and often

    def choose(self, layer: int, tokens: int, early: Callable[[], Array]) -> list[int]:
        """The experts that a chunk of so many tokens is expected to want of a layer, ascending.

        ``early`` gives what the layer would choose for a sample of them, (sample, top_k); it is
        called where that tells more than the layer before.
        """
        self._guessed = None
        if self._share >= NEARLY_ALL and tokens >= self._tokens:
            return list(range(self._experts))
        ids = early()
        uses = np.bincount(ids.ravel(), minlength=self._experts) * (tokens / len(ids))
        often = uses >= OFTEN
        kinds = np.flatnonzero((uses > 0) & ~often), np.flatnonzero(often)
        self._guessed = layer, kinds
        kept = [kind for kind, right in zip(kinds, self._right, strict=True) if right >= LEAST]
        return sorted(int(expert) for kind in kept for expert in kind)

    def learn(self, layer: int, tokens: int, experts: Collection[int]) -> None:
        """What a routing of so many tokens wants of a layer in the end."""
        self._share, self._tokens = len(experts) / self._experts, tokens
        if self._guessed is None or self._guessed[0] != layer:
            return
        wanted = np.zeros(self._experts, bool)
        wanted[list(experts)] = True
        for number, kind in enumerate(self._guessed[1]):
            if len(kind):
                right = float(wanted[kind].mean())
                self._right[number] += _RATE * (right - self._right[number])
        self._guessed = None

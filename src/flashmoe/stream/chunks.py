"""How many tokens of a prompt pass together: the choice, and where each chunk ends.

Owns both as pure functions. Does not own what a chunk takes (``sizes``) or what that leaves to the
slots (``ledger``, ``budget``).

A chunk reads each expert once that is in no slot. A longer one means fewer of them, and more
scratch, which takes slots away; so the bytes that a prompt reads are least somewhere between.

Invariant: chunks of a chosen size end at multiples of 64 tokens from the timeline's start, or with
the prompt, so that the answer does not depend on the size. No chunk has a single token, unless
nothing else waits or one was asked for: a pass of one token is a decode step, with other kernels.
"""

from __future__ import annotations

from collections.abc import Callable

from flashmoe.kernels.reference import CHUNK

LEAST_TOKENS = 256
"""Shorter chunks are not chosen: nearly every expert is read again for each, and the products get
too few rows for their weights' way to the processor."""

MOST_TOKENS = 2048
"""Longer ones are not either: by then the arithmetic of a chunk hides its reads (512 tokens take
the processors longer than a whole layer takes the disk), and a prompt that is cancelled loses the
chunk at hand."""

RESIDENT_TOKENS = 512
"""Where all experts are in memory, more tokens together save nothing but calls."""

NEAR = 0.02
"""Sizes within this of the least bytes are as good; the smallest of them is taken."""

OVER_TOKENS = 2
"""A chunk may be so much longer than its size: see :func:`bordered`."""


def choose(position: int, total: int, missing: Callable[[int], int | None]) -> int:
    """The size of chunk in which the tokens from ``position`` to ``total`` read least.

    ``missing`` gives, for a pass of so many tokens, how many experts have no slot beside its
    scratch; None where it does not fit. It grows with them.
    """
    waiting, costs = total - position, dict[int, int]()
    for size in range(LEAST_TOKENS, MOST_TOKENS + 1, CHUNK):
        absent = missing(longest(size, waiting))
        if absent is None or (size > RESIDENT_TOKENS and not absent):
            break
        costs[size] = _passes(position, total, size) * absent
        if waiting <= size + 1:
            break
    least = min(costs.values(), default=0)
    if not least:
        return max((size for size, cost in costs.items() if not cost), default=LEAST_TOKENS)
    return min(size for size, cost in costs.items() if cost <= least * (1 + NEAR))


def _passes(position: int, total: int, size: int) -> int:
    """Chunks of a chosen size from ``position`` to ``total``: what :func:`ending` makes of it."""
    if total - position <= size + 1:
        return 1
    return -(-(total - 1 - position // CHUNK * CHUNK) // size)


def longest(size: int, waiting: int) -> int:
    """The most tokens that a chunk of a size may have, of so many that wait."""
    return min(size + OVER_TOKENS, waiting)


def ending(position: int, total: int, size: int) -> int:
    """Where a chunk of a chosen size ends that begins at ``position``, of a prompt up to ``total``.

    At the last multiple of 64 within it, or with all, or all but one, of what waits.
    """
    if total - position <= size + 1:
        return total
    end = (position + size) // CHUNK * CHUNK
    return total if total - end == 1 else end


def bordered(position: int, total: int, size: int) -> int:
    """The same for a size that was given: at the next of its multiples, so that the same tokens
    pass in the same chunks whatever calls brought them; a single token joins its neighbour."""
    end = (position // size + 1) * size
    if end - position == 1 < size:
        end += size
    return total if total - end <= (size > 1) else end

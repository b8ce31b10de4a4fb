"""What a hold yields: experts, in memory first, then as they arrive, one by one or in batches.

Owns the interface alone; the order and the waiting are the streamer's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flashmoe.quant import Expert

Batch = list[tuple[int, Expert]]
"""Experts by id; they are valid together."""

_ALL = 1 << 30


class Arrivals(Iterator[tuple[int, Expert]]):
    """Yields (id, expert). ``take`` gives up to so many, waiting for one; none at the end."""

    def __init__(self, take: Callable[[int], Batch]) -> None:
        self._take = take

    def __next__(self) -> tuple[int, Expert]:
        for arrived in self._take(1):
            return arrived
        raise StopIteration

    def batches(self) -> Iterator[Batch]:
        """All that are there, then those that have come meanwhile, and so on.

        A batch is of one expert where asking for more would end the validity of those before.
        """
        while batch := self._take(_ALL):
            yield batch

"""What a hold yields: experts, in memory first, then as they arrive, one by one or in batches.

Owns the interface alone; the order, the waiting and the end are the streamer's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol

from flashmoe.quant import Expert

Batch = list[tuple[int, Expert]]
"""Experts by id; they are valid together."""

_ALL = 1 << 30


class Take(Protocol):
    """Gives up to so many, waiting for one, if it may ``block``; none at the end."""

    def __call__(self, most: int, *, block: bool = True) -> Batch: ...


class Arrivals(Iterator[tuple[int, Expert]]):
    """Yields (id, expert), in the block of a ``with``.

    ``end`` is called when the block is left, and tells whether it was still open.
    """

    def __init__(self, take: Take, end: Callable[[], bool]) -> None:
        self._take = take
        self._end = end

    def __enter__(self) -> Arrivals:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._end() and kind is None:
            raise RuntimeError("this hold was ended by another; holds do not nest")

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

    def now(self) -> Batch:
        """All that are there or have come meanwhile, of one token's; maybe none."""
        return self._take(_ALL, block=False)

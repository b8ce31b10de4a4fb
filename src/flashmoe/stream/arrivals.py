"""What a hold yields: experts, in memory first, then as they arrive, and whether one is there.

Owns the interface alone; the order and the waiting are the streamer's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flashmoe.quant import Expert


class Arrivals(Iterator[tuple[int, Expert]]):
    """Yields (id, expert); ``ready()`` tells whether the next comes without waiting.

    It is False, too, where asking for the next would end the validity of those before it.
    """

    def __init__(self, experts: Iterator[tuple[int, Expert]], ready: Callable[[], bool]) -> None:
        self._experts = experts
        self.ready = ready

    def __next__(self) -> tuple[int, Expert]:
        return next(self._experts)

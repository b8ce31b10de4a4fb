"""What a sweep gives to whoever computes: a chunk's experts in batches.

Owns the interface alone; the order, the waiting and the end are the tier's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TypeAlias

Batch: TypeAlias = list[tuple[int, int]]
"""Experts with their slots; they are valid together."""


class Passing:
    """A chunk's experts, in ascending order, each once, inside a ``with`` block; ``end`` tells
    whether it was still open."""

    def __init__(self, take: Callable[[], Batch], end: Callable[[], bool]) -> None:
        self._take = take
        self._end = end

    def __enter__(self) -> Passing:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._end() and kind is None:
            raise RuntimeError("this sweep was ended by another; sweeps do not nest")

    def batches(self) -> Iterator[Batch]:
        """Those that are there, then those that have come meanwhile, and so on.

        A batch is valid for what the device is given to compute with it before the next is asked
        for; its copies may be under way, and the device waits for them.

        Raises:
            ReadError: a record could not be read whole and right.
            DeviceError: a copy failed, at the latest when asked for more than the last batch: until
                then what was computed may be worth nothing.
        """
        while batch := self._take():
            yield batch

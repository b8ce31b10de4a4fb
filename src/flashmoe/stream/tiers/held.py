"""What a tier's hold gives to whoever computes: slots of one token, or a chunk's in batches.

Owns the interfaces alone; the order, the waiting and the end are the tier's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TypeAlias

from flashmoe.quant import Array

Batch: TypeAlias = list[tuple[int, int]]
"""Experts with their slots; they are valid together."""


class _Block:
    """The block of a ``with``; ``end`` tells whether it was still open."""

    def __init__(self, end: Callable[[], bool]) -> None:
        self._end = end

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._end() and kind is None:
            raise RuntimeError("this hold was ended by another; holds do not nest")


class Held(_Block):
    """One token's experts: ``slots``, int32 and shaped as its ids, says where each is, or will be.

    ``ready`` is True where all were there at once: then nothing is moved and nobody waited for.
    """

    def __init__(
        self, slots: Array, ready: bool, wait: Callable[[], None], end: Callable[[], bool]
    ) -> None:
        super().__init__(end)
        self.slots = slots
        self.ready = ready
        self._wait = wait

    def __enter__(self) -> Held:
        return self

    def wait(self) -> None:
        """Bring what is not there, and wait for it. What has changed in the table is to be told
        to the device before it goes on.

        Raises:
            ReadError: a record could not be read whole and right.
            DeviceError: a copy failed.
        """
        if not self.ready:
            self._wait()


class Passing(_Block):
    """A chunk's experts, in ascending order, each once."""

    def __init__(self, take: Callable[[], Batch], end: Callable[[], bool]) -> None:
        super().__init__(end)
        self._take = take

    def __enter__(self) -> Passing:
        return self

    def batches(self) -> Iterator[Batch]:
        """Those that are there, then those that have come meanwhile, and so on.

        A batch is valid for what the device is given to compute with it before the next is asked
        for; its copies may be under way, and the device waits for them. Raises as
        :meth:`Held.wait` does, at the latest when asked for more than the last batch: until then
        what was computed may be worth nothing.
        """
        while batch := self._take():
            yield batch

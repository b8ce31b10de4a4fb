"""What the launchers want of a GPU, so that they can be tested without one.

Owns the interface, and the check of what goes through it. ``gpu`` is the real one; tests
have another, which runs the same sources on the processor.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

import numpy as np

from flashmoe.quant import Array

DeviceArray: TypeAlias = Any
"""An array in the device's memory, with numpy's face: shape, dtype, slices, assignment."""

Argument: TypeAlias = DeviceArray | np.generic | None
"""What a kernel takes: an array by its address (of numpy's, one of :meth:`Device.pinned`), a number
of the parameter's type, None for null."""


class Graph(Protocol):
    """Launches captured once (:meth:`Device.captured`)."""

    def launch(self) -> None:
        """All of them again, in their order; does not wait for them."""
        ...


class Mark(Protocol):
    """A point in what the device was given to do (:meth:`Device.mark`)."""

    def wait(self) -> None:
        """Wait until the device is past it. Raises DeviceError as ``synchronize``."""
        ...


class Device(Protocol):
    """Memory and launches of one GPU. Launches and copies take effect in the order of the calls."""

    @property
    def name(self) -> str:
        """As its maker calls it."""
        ...

    @property
    def processors(self) -> int:
        """Multiprocessors."""
        ...

    @property
    def shared_bytes(self) -> int:
        """Shared memory that a block can have, at most."""
        ...

    def memory(self) -> tuple[int, int]:
        """Bytes that are free for anyone, and bytes in all."""
        ...

    def kept(self) -> AbstractContextManager[None]:
        """A block whose calls are quicker: the thread does nothing with another device, or by
        another way with this one, until its end."""
        ...

    def release(self) -> None:
        """Give back what arrays that are gone have left."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """Memory that holds anything. Raises BudgetError where there is none."""
        ...

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """The same, zeroed."""
        ...

    def upload(self, array: Array) -> DeviceArray:
        """A copy of a numpy array."""
        ...

    def write(self, target: DeviceArray, array: Array) -> None:
        """Overwrite an array, or a part of one, with numpy's of the same shape and type."""
        ...

    def download(self, array: DeviceArray) -> Array:
        """A copy as numpy array, when all before has been done."""
        ...

    def fetch(self, target: Array, array: DeviceArray) -> None:
        """Copy to memory of :meth:`pinned`, as a launch does: not waited for, and captured."""
        ...

    def address(self, array: DeviceArray) -> int:
        """Where it begins."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Zeroed memory of the host that the device reads and writes too, at the same address."""
        ...

    def arena(self, nbytes: int) -> DeviceArray:
        """Memory for slots, bytes that begin at a multiple of 4,096, outside of any pool."""
        ...

    def mover(self, arena: DeviceArray, slot_bytes: int) -> Any:
        """Copies of records into slots of an arena, beside the launches (``tiers.mover``)."""
        ...

    def pin(self, array: Array) -> None:
        """Have memory of the host stay where it is, so that copies from it need no other, and
        kernels can read it (:meth:`host_address`)."""
        ...

    def unpin(self, array: Array) -> None:
        """The end of that."""
        ...

    def host_address(self, array: Array) -> int:
        """Where a pinned array begins, as kernels see it."""
        ...

    def captured(self, work: Callable[[], None]) -> Graph:
        """What ``work`` launches, to be launched again as one; everything else in it happens now,
        once. Arguments must live as long as the graph."""
        ...

    def beside(self, work: Callable[[], None]) -> Callable[[], None]:
        """What ``work`` launches, inside :meth:`captured`, begins behind all before, of this kind
        too, and goes on beside what is launched next, until what comes back is called: what is
        launched then begins behind both. That has to come, of the last one at the least."""
        ...

    def mark(self) -> Mark:
        """The point that all before has led to."""
        ...

    def synchronize(self) -> None:
        """Wait until all before has been done.

        Raises:
            DeviceError: something of it failed.
        """
        ...

    def busy(self) -> bool:
        """Whether something of it is still to be done; raises as :meth:`synchronize`."""
        ...

    def memory_rate(self) -> float:
        """Bytes a second that a copy within its memory reads and writes, measured now."""
        ...

    def copy_rate(self) -> float:
        """Bytes a second of copies from pinned memory of the host, measured now."""
        ...

    def launch(
        self,
        source: str,
        kernel: str,
        grid: tuple[int, int, int],
        threads: int,
        *arguments: Argument,
        shared_bytes: int = 0,
    ) -> None:
        """Run a kernel of ``source``.cu: ``grid`` blocks of ``threads``.

        Raises:
            DeviceError: the GPU reports an error, of this or an earlier launch.
        """
        ...


def check(name: str, array: DeviceArray, shape: tuple[int, ...]) -> None:
    """Kernels trust what they are given: a shape that is not ``shape`` is a ValueError here."""
    if array.shape != shape:
        raise ValueError(f"{name} of shape {array.shape} do not fit; {shape} is wanted")
